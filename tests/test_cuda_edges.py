"""What the CPU's norms are held to where it is hard, asked of the device's: the very same tests."""

from __future__ import annotations

from types import ModuleType

import pytest

import fastnorm as fn
import test_norm_arguments
import test_norm_numerics
import test_norm_special
from on_device import host, ops

if not fn.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm")


def _tests_of(module: ModuleType) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if name.startswith("test_")}


for _module in (test_norm_arguments, test_norm_numerics, test_norm_special):
    globals().update(_tests_of(_module))


@pytest.fixture(autouse=True)
def _on_the_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and {"misaligned", "field"} & {
        str(v) for v in callspec.params.values()
    }:
        pytest.skip("a device reads aligned elements alone: test_cuda.py has the error")
    if host.available:
        host.reset()
        if request.node.name == "test_a_million_gradients_of_one_sign[0]":
            pytest.skip("a million rows take two minutes where the kernels run on the CPU")
    names = [norm + suffix for norm in NORMS for suffix in ("", "_train", "_backward")]
    device_ops = {name: getattr(ops, name) for name in names}
    for name, op in device_ops.items():
        monkeypatch.setattr(fn, name, op)
