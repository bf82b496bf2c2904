"""The norms beside batch norm on a device, over their table of cases."""

from __future__ import annotations

import numpy as np
import pytest

import fastnorm as fn
from cases import DTYPES
from checks import assert_same_bits
from norm_cases import CASES, Case, make
from norm_checks import check_backward, check_forward
from on_device import Limits, host, ops

if not fn.cuda.is_available():
    pytest.skip("there is no device", allow_module_level=True)

# On a device arrays are aligned.
HERE = [case for case in CASES if not case.of_rows and case.layout not in ("misaligned", "field")]
OF_DTYPES = pytest.mark.parametrize("dtype", DTYPES)
EVERY = pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)


@OF_DTYPES
@EVERY
def test_forward(case: Case, dtype: str) -> None:
    check_forward(case, make(case, dtype), ops)


@OF_DTYPES
@EVERY
def test_backward(case: Case, dtype: str) -> None:
    check_backward(case, make(case, dtype), ops)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5, 40, 72])
@OF_DTYPES
def test_instances_do_not_depend_on_each_other(
    dtype: str, channels: int, channels_last: bool
) -> None:
    """All samples give what each of them gives alone: groups end with their sample."""
    shape = (3, channels, 6, 5)
    case = Case("instances", "instance_norm", shape, axis=1)
    data = make(case, dtype)
    if channels_last:
        data.x = np.moveaxis(np.ascontiguousarray(np.moveaxis(data.x, 1, -1)), -1, 1)
    together = ops.instance_norm_train(data.x, data.weight, data.bias)
    for n in range(shape[0]):
        alone = ops.instance_norm_train(data.x[n : n + 1], data.weight, data.bias)
        assert_same_bits(together.y[n : n + 1], alone.y)
        assert_same_bits(together.mean[n : n + 1], alone.mean)
        assert_same_bits(together.rstd[n : n + 1], alone.rstd)


@pytest.mark.parametrize("channels_last", [False, True])
@OF_DTYPES
def test_running_statistics(dtype: str, channels_last: bool) -> None:
    case = Case("running", "instance_norm", (4, 24, 8, 9), axis=1)
    x = make(case, dtype).x
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    found = np.linspace(-1, 1, 24), np.linspace(1, 2, 24)
    expected = found[0].copy(), found[1].copy()
    options = {"momentum": 0.25, "unbiased": True}
    ops.instance_norm_train(x, running_mean=found[0], running_var=found[1], **options)
    fn.instance_norm_train(x, running_mean=expected[0], running_var=expected[1], **options)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.skipif(not host.available, reason="the kernels do not run on the CPU")
@pytest.mark.parametrize("channels_last", [False, True])
@OF_DTYPES
def test_same_bits_on_every_machine(dtype: str, channels_last: bool) -> None:
    """In a block, a cluster, a grid and in two passes."""
    case = Case("machines", "instance_norm", (3, 24, 24, 24), axis=1)
    data = make(case, dtype)
    if channels_last:
        data.x = np.moveaxis(np.ascontiguousarray(np.moveaxis(data.x, 1, -1)), -1, 1)
    machines = [
        Limits(),
        Limits(2, 6000, 7000, cluster=4),
        Limits(9, 6000, 7000, cluster=1),
        Limits(1, 3000, 4000, cluster=1),
    ]
    results = []
    kernels = set()
    for machine in machines:
        host.reset(machine)
        fwd = ops.instance_norm_train(data.x, data.weight, data.bias, activation="relu")
        grads = ops.instance_norm_backward(
            *(data.dy, data.x, fwd.mean, fwd.rstd, data.weight, data.bias),
            **{"activation": "relu", "mask": fwd.mask},
        )
        results.append((*fwd, *(g for g in grads if g is not None)))
        kernels |= {launch.kernel for launch in host.launches()}
    host.reset()
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert_same_bits(one, other)
    assert kernels >= {"on_chip", "reduce", "map", "gradients"}
