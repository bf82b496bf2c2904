"""Norms beside batch norm: the same bits for every number of threads and every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import DTYPES
from checks import assert_same_bits
from norm_cases import CASES, Case, Data, make
from norm_checks import check_backward, check_forward, forward_options, leading

Array = npt.NDArray[Any]

ISAS = tuple(fn._core.isas())
WITH_FMA = tuple(isa for isa in ISAS if isa != "baseline")
THREADS = (1, 2, 3, 7)

# Large enough to be shared among threads; statistics fewer than, as many as, and no multiple of the
# threads; tails in every direction.
SHARED = (
    Case("many_rows", "layer_norm", (3001, 67), residual=True, activation="relu"),
    Case("few_rows", "layer_norm", (3, 70_001), activation="leaky_relu"),
    Case("one_row", "rms_norm", (1, 150_007), prenorm=True, bias=False),
    Case("without_bias", "rms_norm", (1031, 1541), bias=False),
    Case("token", "rms_norm", (7, 4099), residual=True, activation="silu"),
    Case("two_axes", "layer_norm", (61, 5, 29, 31), 2, prenorm=True, activation="gelu_tanh"),
    Case("tall", "rms_norm", (30_011, 5), residual=True, activation="clip"),
    # Of whole packs, several rows at a time and some that are left over.
    Case("plain", "layer_norm", (1027, 96)),
    Case("plain_pivots", "layer_norm", (251, 768), bias=False),
    Case("plain_squares", "rms_norm", (1022, 256), bias=False),
    Case("plain_long", "rms_norm", (13, 6144)),
    Case("copied", "layer_norm", (7, 33, 29, 31), 2, layout="inner_swapped", residual=True),
    Case("strided", "rms_norm", (9, 33, 931), 2, layout="strided_channel", activation="relu"),
    Case("groups", "group_norm", (4, 60, 29, 31), 1, 6, activation="silu"),
    Case("groups_last", "group_norm", (5, 29, 31, 60), -1, 4, residual=True, activation="relu"),
    Case("one_image", "group_norm", (1, 8, 150, 151), 1, 2, residual=True),
    Case("one_group", "group_norm", (2, 3, 187, 193), 1, 1, activation="clip"),
    Case("small_planes", "group_norm", (97, 66, 7, 7), 1, 11, activation="relu"),
    Case("uneven_units", "group_norm", (1, 520, 8, 8), 1, 13, activation="silu"),
    Case("instances", "instance_norm", (3, 61, 29, 31), 1, activation="relu", residual=True),
    Case("instances_last", "instance_norm", (3, 41, 43, 37), -1, activation="hardswish"),
    Case("one_instance", "instance_norm", (1, 1, 150_001), 1, activation="gelu"),
)

# The rest of the table is of arrays such as those above.
SMALL = tuple(case for case in CASES if int(np.prod(case.shape)) <= 50_000)


def by_name(case: Case) -> str:
    return case.name


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    isa, threads = fn._core.isa(), fn.get_num_threads()
    yield
    fn._core.set_isa(isa)
    fn.set_num_threads(threads)


def results(case: Case, data: Data) -> dict[str, Any]:
    """Everything that the ops return for a case, by name."""
    options = forward_options(case, data)
    parameters = (*leading(case), data.weight, data.bias)
    running: dict[str, Array] = {}
    if case.norm == "instance_norm":
        channels = case.shape[case.first]
        running = {"running_mean": np.zeros(channels), "running_var": np.ones(channels)}
    fwd = case.op("_train")(data.x, *parameters, **options, **running)
    found: dict[str, Any] = {f"train_{name}": a for name, a in fwd._asdict().items()}
    only = case.op()(data.x, *parameters, **options)
    found |= dict(zip(("y", "sum"), only, strict=True)) if case.prenorm else {"y": only}
    found |= running
    statistics = (fwd.rstd,) if case.norm == "rms_norm" else (fwd.mean, fwd.rstd)
    x = fwd.sum if case.prenorm else data.x
    residual = None if case.prenorm else data.residual
    backward: dict[str, Any] = case.where() | {"activation": case.activation}
    if case.prenorm:
        backward["dsum"] = data.dsum
    arguments = (data.dy, x, *leading(case), *statistics, data.weight, data.bias)
    for mask in {id(m): m for m in (None, fwd.mask)}.values():
        grads = case.op("_backward")(*arguments, residual=residual, mask=mask, **backward)
        name = "recomputed" if mask is None else "masked"
        found |= {f"{name}_{of}": a for of, a in grads._asdict().items()}
    return found


def spoilt(case: Case, dtype: str) -> Data:
    """Data with a NaN, infinities, and sums that leave the range."""
    data = make(case, dtype)
    largest = float(ml_dtypes.finfo(data.x.dtype).max)
    data.x = data.x.copy(order="K")
    flat = data.x.reshape(-1)
    for k, value in enumerate((np.nan, np.inf, -np.inf, largest, -largest)):
        flat[(k + 1) * flat.size // 7] = value
    data.x = flat.reshape(case.shape)
    dy = data.dy.copy()
    np.moveaxis(dy, case.first, 0)[-1] = largest / 3
    data.dy = dy
    return data


def nans_alike(found: dict[str, Any]) -> dict[str, Any]:
    """Of a NaN, that it is one: its sign and payload follow from the order of operands."""
    return {
        name: a
        if a is None or a.dtype == np.uint8
        else np.where(np.isnan(a), np.asarray(np.nan, a.dtype), a)
        for name, a in found.items()
    }


def assert_same_results(actual: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_bits(actual[name], value, f"{name}, {where}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHARED, ids=by_name)
def test_threads_and_instruction_sets(case: Case, dtype: str) -> None:
    data = make(case, dtype)
    fn.set_num_threads(1)
    expected = results(case, data)
    assert_same_results(results(case, data), expected, "a second run")
    for isa in WITH_FMA or ISAS[:1]:
        fn._core.set_isa(isa)
        for threads in THREADS:
            fn.set_num_threads(threads)
            assert_same_results(results(case, data), expected, f"{isa}, {threads} threads")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SHARED, ids=by_name)
def test_special_values_too(case: Case, dtype: str) -> None:
    data = spoilt(case, dtype)
    fn.set_num_threads(1)
    expected = nans_alike(results(case, data))
    for isa in WITH_FMA or ISAS[:1]:
        fn._core.set_isa(isa)
        for threads in THREADS[2:]:
            fn.set_num_threads(threads)
            found = nans_alike(results(case, data))
            assert_same_results(found, expected, f"{isa}, {threads} threads")


@pytest.mark.parametrize("case", SHARED, ids=by_name)
def test_threads_of_the_baseline(case: Case) -> None:
    data = make(case, "float32")
    fn._core.set_isa("baseline")
    fn.set_num_threads(1)
    expected = results(case, data)
    for threads in THREADS[1:]:
        fn.set_num_threads(threads)
        assert_same_results(results(case, data), expected, f"{threads} threads")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=by_name)
def test_instruction_sets_on_every_case(case: Case, dtype: str) -> None:
    data = make(case, dtype)
    expected = results(case, data)
    for isa in WITH_FMA:
        fn._core.set_isa(isa)
        assert_same_results(results(case, data), expected, isa)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=by_name)
def test_baseline_against_the_reference(case: Case, dtype: str) -> None:
    """Its bits differ from those of the others, which the test above ties to each other."""
    fn._core.set_isa("baseline")
    check_forward(case, make(case, dtype))
    check_backward(case, make(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL[::7], ids=by_name)
def test_alignment_does_not_change_the_bits(case: Case, dtype: str) -> None:
    data = make(case, dtype)
    data.x = np.ascontiguousarray(data.x)
    expected = results(case, data)
    itemsize = data.x.dtype.itemsize
    for offset in (itemsize, 4 * itemsize, 32, 1):
        shifted = make(case, dtype)
        raw = np.zeros(data.x.nbytes + offset, np.uint8)
        shifted.x = raw[offset:].view(data.x.dtype).reshape(data.x.shape)
        shifted.x[...] = data.x
        assert_same_results(results(case, shifted), expected, f"at {offset}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(
    "of",
    [
        # Past the cache.
        {"shape": (2011, 1531), "residual": True, "activation": "relu"},
        # Some of the rows together, and the last ones alone.
        {"shape": (403, 64)},
        {"shape": (23, 100)},
        {"shape": (95, 768)},
        {"shape": (11, 5000)},
    ],
    ids=lambda of: "x".join(map(str, of["shape"])),
)
def test_a_row_does_not_depend_on_where_it_lies(of: dict[str, Any], norm: str, dtype: str) -> None:
    """Equal rows of an array give equal bits."""
    case = Case("equal_rows", norm, **of)
    data = make(case, dtype)
    for a in (data.x, data.dy, data.residual):
        if a is not None:
            a[...] = a[0]
    found = results(case, data)
    of_rows = {"train_y", "y", "recomputed_dx", "masked_dx", "masked_dresidual"} & found.keys()
    assert {"train_y", "y"} < of_rows
    for name in of_rows:
        rows = found[name].view(np.uint8).reshape(len(data.x), -1)
        assert (rows == rows[0]).all(), name
    assert np.unique(found["train_rstd"]).size == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_slope_that_is_computed_twice_gives_the_bits_of_one_that_is_kept(
    activation: str, dtype: str
) -> None:
    """Between a backward's sums and its dx, dy * act'(z) is kept in memory of the call's own, in dx
    itself, or nowhere: of one thread's parts of rows, in 16 bits or where dx is dy."""
    fn.set_num_threads(1)
    channels, some = 1312, slice(32, 672)
    rng = np.random.default_rng(0)
    x, dy, residual = (rng.standard_normal((2, 4, 4, channels)).astype(dtype) for _ in range(3))
    weight, bias = rng.standard_normal((2, channels)).astype(np.float32)

    def gradients(at: slice, in_place: bool = False) -> dict[str, Array]:
        def cut(a: Array) -> Array:
            return a[..., at].copy()

        parameters = {"residual": cut(residual), "activation": activation, "channel_axis": -1}
        fwd = fn.batch_norm_train(cut(x), weight[at], bias[at], **parameters)
        of = (cut(dy), cut(x), fwd.mean, fwd.rstd, weight[at], bias[at])
        out = {"out": of[0]} if in_place else {}
        return fn.batch_norm_backward(*of, **parameters, **out)._asdict()

    all_of_them = gradients(slice(None))
    cuts = {name: a[..., some] for name, a in all_of_them.items()}
    assert_same_results(gradients(some), cuts, "kept or not")
    assert_same_results(gradients(slice(None), in_place=True), all_of_them, "in place")
    assert_same_results(gradients(some, in_place=True), cuts, "kept, in place")
