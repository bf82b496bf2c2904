"""What the norms beside batch norm take: out=, in place, any strides and dtypes, nothing at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
import tolerances as tol
from cases import DTYPES, LAYOUTS, to_dtype
from checks import assert_like, assert_same_bits, statistics_dtype
from fastnorm import reference
from norm_cases import Case, Data, make
from norm_checks import (
    check_backward,
    check_forward,
    forward_options,
    leading,
    parameter_gradients,
)

Array = npt.NDArray[Any]

# Each traversal, with everything switched on.
EVERYTHING = (
    Case("layer", "layer_norm", (3, 6, 5, 7), 2, prenorm=True, activation="relu"),
    Case("layer_after", "layer_norm", (3, 6, 5, 7), -1, residual=True, activation="clip"),
    Case("rms", "rms_norm", (3, 6, 5, 7), 2, prenorm=True, activation="silu"),
    Case("group", "group_norm", (3, 6, 5, 7), 1, 2, residual=True, activation="relu"),
    Case("group_last", "group_norm", (3, 5, 7, 6), -1, 3, residual=True, activation="clip"),
    Case("instance", "instance_norm", (3, 6, 5, 7), 1, residual=True, activation="relu"),
    Case("instance_last", "instance_norm", (3, 5, 7, 6), -1, residual=True, activation="gelu"),
)
EVERY = pytest.mark.parametrize("case", EVERYTHING, ids=lambda case: case.name)
OF_DTYPES = pytest.mark.parametrize("dtype", DTYPES)
# An array that is broadcast cannot be written to.
WRITABLE = [name for name in LAYOUTS if not name.startswith("broadcast")]


def backward_of(case: Case, data: Data, x: Array, fwd: Any, dy: Array, **options: Any) -> Any:
    """The gradients with the mask, or without one where there is none."""
    statistics = (fwd.rstd,) if case.norm == "rms_norm" else (fwd.mean, fwd.rstd)
    arguments = (dy, x, *leading(case), *statistics, data.weight, data.bias)
    given: dict[str, Any] = case.where() | {"activation": case.activation, "mask": fwd.mask}
    residual = None if case.prenorm else data.residual
    given |= {"residual": residual} | ({"dsum": data.dsum} if case.prenorm else {})
    return case.op("_backward")(*arguments, **given | options)


def assert_same_fields(actual: Any, expected: Any) -> None:
    for name in expected._fields:
        assert_same_bits(getattr(actual, name), getattr(expected, name), name)


@pytest.mark.parametrize("parameter_dtype", DTYPES)
@OF_DTYPES
@EVERY
def test_parameters_of_any_dtype(case: Case, dtype: str, parameter_dtype: str) -> None:
    check_forward(case, make(case, dtype, parameter_dtype))
    check_backward(case, make(case, dtype, parameter_dtype))


@EVERY
def test_parameters_of_different_dtypes(case: Case) -> None:
    data = make(case, "float32")
    assert data.weight is not None
    assert data.bias is not None
    data.weight, data.bias = data.weight.astype("f2"), data.bias.astype(to_dtype("bfloat16"))
    fwd = case.op("_train")(
        data.x, *leading(case), data.weight, data.bias, **forward_options(case, data)
    )
    grads = backward_of(case, data, fwd.sum if case.prenorm else data.x, fwd, data.dy)
    assert grads.dweight.dtype == np.float16
    assert grads.dbias.dtype == to_dtype("bfloat16")
    for weight, bias, expected in [
        (None, None, np.dtype(np.float32)),
        (data.weight, None, np.dtype(np.float16)),
        (None, data.bias, to_dtype("bfloat16")),
    ]:
        some = replace_data(data, weight=weight, bias=bias)
        grads = backward_of(case, some, data.x, fwd, data.dy)
        for name in parameter_gradients(case, some.bias, grads):
            assert getattr(grads, name).dtype == expected
            assert getattr(grads, name).shape == case.parameters_shape


def replace_data(data: Data, **changed: Any) -> Data:
    return Data(**(vars(data) | changed))


def views(a: Array) -> list[Array]:
    """The same values under other strides."""
    gaps = np.full((*a.shape, 3), 7, a.dtype)[..., 1]
    gaps[...] = a
    every = tuple(range(a.ndim))
    return [gaps, np.asfortranarray(a), np.flip(np.flip(a, every).copy(), every)]


@OF_DTYPES
@EVERY
def test_strides_of_parameters_and_statistics(case: Case, dtype: str) -> None:
    """Views of weight, bias, mean and rstd give the bits of their copies."""
    data = make(case, dtype)
    options = forward_options(case, data)
    fwd = case.op("_train")(data.x, *leading(case), data.weight, data.bias, **options)
    x = fwd.sum if case.prenorm else data.x
    grads = backward_of(case, data, x, fwd, data.dy)
    assert data.weight is not None
    assert data.bias is not None
    saved = [fwd.rstd] if case.norm == "rms_norm" else [fwd.mean, fwd.rstd]
    for k in range(3):
        some = replace_data(data, weight=views(data.weight)[k], bias=views(data.bias)[k])
        again = case.op("_train")(data.x, *leading(case), some.weight, some.bias, **options)
        assert_same_fields(again, fwd)
        names = ("rstd",) if case.norm == "rms_norm" else ("mean", "rstd")
        given = fwd._replace(**{n: views(v)[k] for n, v in zip(names, saved, strict=True)})
        assert_same_fields(backward_of(case, some, x, given, data.dy), grads)
        masked = backward_of(case, some, x, given, views(data.dy)[k])
        assert_same_bits(masked.dx, grads.dx)


@EVERY
def test_broadcast_weight(case: Case) -> None:
    """One number for all of them: gradients are those of each."""
    data = make(case, "float32")
    weight = np.broadcast_to(np.float32(1.5), case.parameters_shape)
    copied = replace_data(data, weight=weight.copy())
    data.weight = weight
    options = forward_options(case, data)
    fwd = case.op("_train")(data.x, *leading(case), weight, data.bias, **options)
    same = case.op("_train")(data.x, *leading(case), copied.weight, data.bias, **options)
    assert_same_fields(fwd, same)
    x = fwd.sum if case.prenorm else data.x
    found = backward_of(case, data, x, fwd, data.dy)
    assert_same_fields(found, backward_of(case, copied, x, fwd, data.dy))


@pytest.mark.parametrize("narrow", ["float16", "bfloat16", "float32", "float64"])
@EVERY
def test_statistics_of_any_dtype(case: Case, narrow: str) -> None:
    """Backward takes them as they are given, rounded or not."""
    data = make(case, "float32")
    options = forward_options(case, data)
    fwd = case.op("_train")(data.x, *leading(case), data.weight, data.bias, **options)
    names = ("rstd",) if case.norm == "rms_norm" else ("mean", "rstd")
    rounded = fwd._replace(
        mask=None, **{name: getattr(fwd, name).astype(to_dtype(narrow)) for name in names}
    )
    widened = rounded._replace(**{name: getattr(rounded, name).astype("f8") for name in names})
    grads = backward_of(case, data, data.x, rounded, data.dy)
    assert_same_fields(grads, backward_of(case, data, data.x, widened, data.dy))


@pytest.mark.parametrize("layout", WRITABLE)
@OF_DTYPES
@EVERY
def test_out(case: Case, dtype: str, layout: str) -> None:
    """Whatever its strides: the same bits, and nothing between its elements."""
    data = make(case, dtype)
    parameters = (*leading(case), data.weight, data.bias)
    options = forward_options(case, data)
    outputs = ("out", "sum_out") if case.prenorm else ("out",)

    def written(call: Any, *names: str) -> tuple[Any, dict[str, Array]]:
        made = {n: LAYOUTS[layout](np.full(data.x.shape, 55, data.x.dtype)) for n in names}
        result = call(**made)
        values = {n: a.copy() for n, a in made.items()}
        for a in made.values():
            whole = a if a.base is None else a.base
            if layout in ("strided_outer", "strided_inner", "padded_inner", "strided_channel"):
                a[...] = 77
                assert (np.asarray(whole) == 77).all(), "the gaps between the elements"
        for name, a in values.items():
            made[name][...] = a
        return result, made

    fwd = case.op("_train")(data.x, *parameters, **options)
    call = case.op("_train")
    result, made = written(lambda **out: call(data.x, *parameters, **options, **out), *outputs)
    assert result.y is made["out"]
    assert_same_fields(result, fwd)
    only = case.op()
    result, made = written(lambda **out: only(data.x, *parameters, **options, **out), *outputs)
    assert_same_bits(made["out"], fwd.y)
    if case.prenorm:
        assert result[0] is made["out"]
        assert result[1] is made["sum_out"]
        assert_same_bits(made["sum_out"], fwd.sum)
    else:
        assert result is made["out"]
    x = fwd.sum if case.prenorm else data.x
    grads = backward_of(case, data, x, fwd, data.dy)
    result, made = written(lambda **out: backward_of(case, data, x, fwd, data.dy, **out), "out")
    assert result.dx is made["out"]
    assert_same_fields(result, grads)


@pytest.mark.parametrize("layout", WRITABLE)
@OF_DTYPES
@EVERY
def test_in_place(case: Case, dtype: str, layout: str) -> None:
    """out is x, sum_out the residual, and in backward out is dy; one of them, and all."""
    data = make(case, dtype)
    parameters = (*leading(case), data.weight, data.bias)

    def placed(a: Array) -> Array:
        return LAYOUTS[layout](a.copy())  # some layouts are those of a itself

    x, dy = placed(data.x), placed(data.dy)
    assert data.residual is not None
    data.residual = placed(data.residual)
    options = forward_options(case, data)
    fwd = case.op("_train")(x, *parameters, **options)
    for names in [("out",), ("sum_out",), ("out", "sum_out")] if case.prenorm else [("out",)]:
        for suffix in ("", "_train"):
            own = {"out": placed(data.x), "sum_out": placed(data.residual)}
            given = options | {"residual": own["sum_out"]} | {name: own[name] for name in names}
            found = case.op(suffix)(own["out"], *parameters, **given)
            y = found.y if suffix else found[0] if case.prenorm else found
            assert_same_bits(y, fwd.y)
            if suffix:
                assert_same_fields(found, fwd)
            if "out" in names:
                assert y is own["out"]
            else:
                assert_same_bits(own["out"], x)
            if "sum_out" in names:
                assert_same_bits(own["sum_out"], fwd.sum)
            else:
                assert_same_bits(own["sum_out"], data.residual)

    summed = fwd.sum if case.prenorm else x
    grads = backward_of(case, data, summed, fwd, dy)
    inplace = placed(data.dy)
    found = backward_of(case, data, summed, fwd, inplace, out=inplace)
    assert found.dx is inplace
    assert_same_fields(found, grads)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_place_of_a_large_array(dtype: str) -> None:
    """Whose results go past the cache unless they are in it, being x."""
    case = Case("large", "rms_norm", (1201, 1777), prenorm=True)
    data = make(case, dtype)
    expected = fn.rms_norm_train(data.x, data.weight, **forward_options(case, data))
    found = fn.rms_norm_train(
        data.x, data.weight, out=data.x, sum_out=data.residual, **forward_options(case, data)
    )
    assert found.y is data.x
    assert found.sum is data.residual
    assert_same_fields(found, expected)


@EVERY
def test_negative_axes_are_the_same_axes(case: Case) -> None:
    data = make(case, "float32")
    options = forward_options(case, data)
    parameters = (*leading(case), data.weight, data.bias)
    name = "axis" if case.of_rows else "channel_axis"
    found = [
        case.op("_train")(data.x, *parameters, **options | {name: axis})
        for axis in (case.first, case.first - len(case.shape), np.int64(case.first))
    ]
    for fwd in found[1:]:
        assert_same_fields(fwd, found[0])
    grads = [
        backward_of(case, data, data.x, found[0], data.dy, **{name: axis})
        for axis in (case.first, case.first - len(case.shape))
    ]
    assert_same_fields(*grads)


EMPTY = (
    *(Case("", norm, (0, 5)) for norm in ("layer_norm", "rms_norm")),
    *(Case("", norm, (3, 0)) for norm in ("layer_norm", "rms_norm")),
    *(Case("", norm, (0,), 0) for norm in ("layer_norm", "rms_norm")),
    *(Case("", norm, (2, 0, 4), 1) for norm in ("layer_norm", "rms_norm")),
    Case("", "layer_norm", (2, 3, 0, 4), 1),
    *(Case("", "group_norm", shape, axis, 2) for shape, axis in [((0, 4), 1), ((2, 0, 3), 1)]),
    *(Case("", "group_norm", shape, axis, 2) for shape, axis in [((2, 4, 0), 1), ((0, 3, 4), 2)]),
    *(Case("", "instance_norm", shape) for shape in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)]),
)


@OF_DTYPES
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("case", EMPTY, ids=lambda case: f"{case.norm}-{case.shape}-{case.axis}")
def test_zero_elements(case: Case, activation: str | None, dtype: str) -> None:
    x = np.zeros(case.shape, to_dtype(dtype))
    weight = np.full(case.parameters_shape, 4.0, np.float32)
    options: dict[str, Any] = case.where() | {"activation": activation, "residual": x.copy()}
    y = case.op()(x, *leading(case), weight, **options)
    assert_like(y, x)
    running: dict[str, Array] = {}
    if case.norm == "instance_norm":
        channels = case.shape[case.first]
        running = {"running_mean": np.full(channels, 2.0), "running_var": np.full(channels, 3.0)}
    if case.of_rows:
        total = case.op()(x, *leading(case), weight, prenorm=True, **options)[1]
        assert_like(total, x)
    fwd = case.op("_train")(x, *leading(case), weight, **options, **running)
    assert_like(fwd.y, x)
    names = ("rstd",) if case.norm == "rms_norm" else ("mean", "rstd")
    for name in names:
        a = getattr(fwd, name)
        assert a.shape == case.statistics_shape
        assert a.dtype == statistics_dtype(x)
        assert np.isnan(a).all()
    assert all((a == (2.0 if n == "running_mean" else 3.0)).all() for n, a in running.items())
    if fwd.mask is not None:
        assert fwd.mask.shape == (8,)  # its signature alone
    for mask in (None, fwd.mask):
        statistics = tuple(getattr(fwd, name) for name in names)
        grads = case.op("_backward")(
            x.copy(), x, *leading(case), *statistics, weight, mask=mask, **options
        )
        assert_like(grads.dx, x)
        assert_like(grads.dresidual, x)
        for name in parameter_gradients(case, None, grads):
            assert_same_bits(getattr(grads, name), np.zeros(case.parameters_shape, np.float32))


@pytest.mark.parametrize("running_dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [c for c in EVERYTHING if c.norm == "instance_norm"], ids=str)
def test_running_statistics(
    case: Case, dtype: str, unbiased: bool, momentum: float, running_dtype: str
) -> None:
    """The averages over all samples, of the means and of the variances."""
    data = make(case, dtype)
    rng = np.random.default_rng(0)
    names = ("running_mean", "running_var")
    element = to_dtype(running_dtype)
    old = {n: rng.uniform(0.5, 2.0, 2 * 6).astype(element)[::2] for n in names}
    options: dict[str, Any] = case.where() | {"momentum": momentum, "unbiased": unbiased}
    both = {name: a.copy() for name, a in old.items()}
    fwd = fn.instance_norm_train(data.x, **both, **options)
    exact = {name: a.astype(np.float64) for name, a in old.items()}
    reference.instance_norm_train(data.x, **exact, **options)
    u = 4.0 * tol.STATISTIC * tol.accumulation_roundoff(data.x.dtype)
    for name, wanted in exact.items():
        deviation = 1.0 / fwd.rstd.astype(np.float64).min()
        magnitude = np.abs(wanted) + np.abs(old[name].astype(np.float64)) + deviation
        limit = u * magnitude + tol.rounding(wanted, element)
        tol.assert_close(both[name], wanted, limit, name)
        # One of them alone is what both are; and neither changes y.
        alone = old[name].copy()
        again = fn.instance_norm_train(data.x, **{name: alone}, **options)
        assert_same_bits(alone, both[name], name)
        assert_same_bits(again.y, fwd.y)
    assert_same_bits(fwd.y, fn.instance_norm(data.x, **case.where()))


def test_one_value_per_statistic() -> None:
    """It is its own mean: y is the bias. Only an unbiased variance asks for more."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    bias = np.linspace(-1.0, 1.0, 4)
    running_mean, running_var = np.zeros(4), np.ones(4)
    options: dict[str, Any] = {"running_mean": running_mean, "running_var": running_var}
    fwd = fn.instance_norm_train(x, None, bias, momentum=1.0, unbiased=False, **options)
    assert np.array_equal(fwd.y[:, :, 0], np.broadcast_to(bias.astype("f4"), (3, 4)))
    assert np.array_equal(running_mean, x.mean(axis=(0, 2)))
    assert not running_var.any()
    fn.instance_norm_train(x, None, bias, running_mean=running_mean)
    groups = fn.group_norm_train(x[:, :, 0], 4, None, bias)
    assert_same_bits(groups.y, fwd.y[:, :, 0])
    rows = fn.layer_norm_train(x, None, bias[:1])
    assert (rows.y == np.float32(bias[0])).all()
    grads = fn.layer_norm_backward(x, x, rows.mean, rows.rstd)
    limit = 8.0 * tol.accumulation_roundoff("float32") * np.abs(x) * rows.rstd.max()
    tol.assert_close(grads.dx, np.zeros(x.shape), limit, "dx")


def test_equal_norms_by_other_names() -> None:
    """Groups of one channel are instances, and one group is a row of all that a sample has."""
    case = Case("same", "group_norm", (3, 6, 5, 7), 1)
    data = make(replace(case, groups=6), "float32")
    instances = fn.instance_norm_train(data.x, data.weight, data.bias)
    assert_same_fields(fn.group_norm_train(data.x, 6, data.weight, data.bias), instances)
    whole = fn.group_norm_train(data.x, 1)
    rows = fn.layer_norm_train(data.x, axis=1)
    limit = 8.0 * tol.accumulation_roundoff("float32") * (1.0 + np.abs(whole.y.astype("f8")))
    tol.assert_close(rows.y, whole.y.astype("f8"), 2.0 * limit, "y")
