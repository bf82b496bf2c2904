"""The same bits for every number of threads, every instruction set with FMA, and every run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastnorm as fn
from cases import DTYPES, FEW, TRAINABLE, Case, make
from checks import assert_same_bits, check_all, forward_options

ISAS = tuple(fn._core.isas())
WITH_FMA = tuple(isa for isa in ISAS if isa != "baseline")
THREADS = (1, 2, 3, 7)

# Large enough to be shared among threads; the channels fewer than, as many as, and no multiple of
# the threads; tails in every direction.
SHARED = (
    Case("many_channels", (4, 61, 29, 31), activation="relu", residual=True),
    Case("few_channels", (3, 2, 187, 193), activation="leaky_relu"),
    Case("one_channel", (5, 1, 70_001), activation="silu"),
    Case("one_image", (1, 5, 150, 151), residual=True),
    Case("small_planes", (97, 67, 7, 7), activation="clip", residual=True),
    Case("channels_last", (5, 41, 43, 37), -1, activation="relu", residual=True),
    Case("channels_last_memory", (5, 37, 41, 43), 1, "channels_last", "channels_last"),
    Case("tall", (30_011, 7), activation="hardswish"),
    Case("tall_with_mask", (30_011, 5), activation="relu", residual=True),
    Case("wide", (61, 5003), activation="gelu_tanh"),
    Case("wide_lines", (1283, 1024), activation="relu", residual=True),
    Case("middle", (29, 31, 5, 61), 2, activation="tanh"),
    Case("copied", (7, 33, 29, 31), 1, "strided_inner", activation="relu"),
    Case("strided", (9, 33, 29, 31), 1, "strided_channel", activation="sigmoid", residual=True),
    Case("gelu", (3, 16, 61, 63), activation="gelu"),
)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    isa, threads = fn._core.isa(), fn.get_num_threads()
    yield
    fn._core.set_isa(isa)
    fn.set_num_threads(threads)


def results(case: Case, dtype: str) -> dict[str, Any]:
    """Everything that the ops return for a case, by name."""
    data = make(case, dtype)
    options = forward_options(case, data)
    parameters = (data.weight, data.bias)
    y = fn.batch_norm(data.x, data.mean, data.var, *parameters, **options)
    fwd = fn.batch_norm_train(
        data.x,
        *parameters,
        running_mean=data.running_mean,
        running_var=data.running_var,
        **options,
    )
    backward: dict[str, Any] = {"channel_axis": case.channel_axis, "activation": case.activation}
    arguments = (data.dy, data.x, fwd.mean, fwd.rstd, *parameters)
    recomputed = fn.batch_norm_backward(*arguments, residual=data.residual, **backward)
    frozen = fn.batch_norm_backward(*arguments, residual=data.residual, training=False, **backward)
    found: dict[str, Any] = {"inference": y}
    found |= {f"train_{name}": a for name, a in fwd._asdict().items()}
    found |= {"running_mean": data.running_mean, "running_var": data.running_var}
    found |= {f"backward_{name}": a for name, a in recomputed._asdict().items()}
    found |= {f"frozen_{name}": a for name, a in frozen._asdict().items()}
    if fwd.mask is not None:
        masked = fn.batch_norm_backward(
            *arguments, residual=None if data.residual is None else True, mask=fwd.mask, **backward
        )
        found |= {f"masked_{name}": a for name, a in masked._asdict().items()}
    return found


def spoilt(case: Case, dtype: str) -> dict[str, Any]:
    """Results of data with a NaN, infinities, and sums that leave the range; NaNs made alike."""
    data = make(case, dtype)
    largest = float(ml_dtypes.finfo(data.x.dtype).max)
    for k, value in enumerate((np.nan, np.inf, -np.inf, largest, -largest)):
        flat = data.x.reshape(-1)
        flat[(k + 1) * flat.size // 7] = value
    dy = data.dy.copy()
    np.moveaxis(dy, case.channel_axis, 0)[-1] = largest / 3
    options = forward_options(case, data)
    fwd = fn.batch_norm_train(data.x, data.weight, data.bias, **options)
    found = {f"train_{name}": a for name, a in fwd._asdict().items()}
    backward: dict[str, Any] = {"channel_axis": case.channel_axis, "activation": case.activation}
    arguments = (dy, data.x, data.mean, np.ones_like(data.mean), data.weight, data.bias)
    for training in (True, False):
        grads = fn.batch_norm_backward(
            *arguments, residual=data.residual, training=training, **backward
        )
        found |= {f"{training}_{name}": a for name, a in grads._asdict().items()}
    for name, a in found.items():
        if a is not None and a.dtype != np.uint8:
            found[name] = np.where(np.isnan(a), np.asarray(np.nan, a.dtype), a)
    return found


def assert_same_results(actual: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    for name, value in expected.items():
        assert_same_bits(actual[name], value, f"{name}, {where}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_threads_and_instruction_sets(case: Case, dtype: str) -> None:
    fn.set_num_threads(1)
    expected = results(case, dtype)
    assert_same_results(results(case, dtype), expected, "a second run")
    for isa in WITH_FMA or ISAS[:1]:
        fn._core.set_isa(isa)
        for threads in THREADS:
            fn.set_num_threads(threads)
            assert_same_results(results(case, dtype), expected, f"{isa}, {threads} threads")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_special_values_too(case: Case, dtype: str) -> None:
    """Of a NaN, that it is one: its sign and payload follow from the order of operands."""
    fn.set_num_threads(1)
    expected = spoilt(case, dtype)
    for isa in WITH_FMA or ISAS[:1]:
        fn._core.set_isa(isa)
        for threads in THREADS[1:]:
            fn.set_num_threads(threads)
            assert_same_results(spoilt(case, dtype), expected, f"{isa}, {threads} threads")


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_threads_of_the_baseline(case: Case) -> None:
    fn._core.set_isa("baseline")
    fn.set_num_threads(1)
    expected = results(case, "float32")
    for threads in THREADS[1:]:
        fn.set_num_threads(threads)
        assert_same_results(results(case, "float32"), expected, f"{threads} threads")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case.name)
def test_instruction_sets_on_every_case(case: Case, dtype: str) -> None:
    expected = results(case, dtype)
    for isa in WITH_FMA:
        fn._core.set_isa(isa)
        assert_same_results(results(case, dtype), expected, isa)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case.name)
def test_baseline_against_the_reference(case: Case, dtype: str) -> None:
    """Its bits differ from those of the others, which the test above ties to each other."""
    fn._core.set_isa("baseline")
    check_all(case, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_every_instruction_set_against_the_reference(case: Case, dtype: str, isa: str) -> None:
    fn._core.set_isa(isa)
    check_all(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FEW[:8], ids=lambda case: case.name)
def test_alignment_does_not_change_the_bits(case: Case, dtype: str) -> None:
    data = make(case, dtype)
    options = forward_options(case, data)
    expected = fn.batch_norm_train(data.x, data.weight, data.bias, **options)
    itemsize = data.x.dtype.itemsize
    for offset in (itemsize, 4 * itemsize, 32, 1):
        raw = np.zeros(data.x.nbytes + offset, np.uint8)
        shifted = raw[offset:].view(data.x.dtype).reshape(data.x.shape)
        shifted[...] = data.x
        found = fn.batch_norm_train(shifted, data.weight, data.bias, **options)
        for name in ("y", "mean", "rstd"):
            assert_same_bits(getattr(found, name), getattr(expected, name), f"{name} at {offset}")


def test_isa_in_use_is_the_best_or_the_one_forced() -> None:
    assert "baseline" in ISAS
    assert fn._core.isa() in ISAS
    assert fn.info()["isa"] == fn._core.isa()
    for isa in ISAS:
        fn._core.set_isa(isa)
        assert fn._core.isa() == isa
    with pytest.raises(ValueError, match="baseline"):
        fn._core.set_isa("abacus")
    assert fn._core.isa() == ISAS[-1]


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import numpy as np, fastnorm as fn\n"
        "fn.batch_norm_train(np.ones((4, 4), np.float32))\n"
        "print(fn.info()['isa'])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTNORM_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_environment_forces_an_isa(isa: str) -> None:
    process = run_with_isa(isa)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == isa


def test_environment_with_an_unknown_isa() -> None:
    process = run_with_isa("abacus")
    assert process.returncode != 0
    assert "abacus" in process.stderr
    for isa in ISAS:
        assert isa in process.stderr
