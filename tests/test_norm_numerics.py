"""Accuracy of the other norms where it is hard: far means, extreme magnitudes, long sums.

The limits are those promised for batch norm: with float32 data and an output of unit variance, y
within 4e-6 of float64 and the variance within 1e-6; with the 16-bit types the rounding of y more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
import tolerances as tol
from cases import DTYPES, to_dtype
from fastnorm import reference
from norm_cases import Case, Data
from norm_checks import check_backward, check_forward, leading, normalized, wide

Array = npt.NDArray[Any]

Y_LIMIT = 4e-6
VARIANCE_LIMIT = 1e-6

# All traversals, with tails; rows shorter than a vector and rows in several blocks.
PLACES = (
    Case("rows", "layer_norm", (37, 257)),
    Case("short_rows", "layer_norm", (1001, 7)),
    Case("rows_about_means", "layer_norm", (19, 1001)),
    Case("rows_about_guesses", "layer_norm", (7, 4001)),
    Case("long_rows", "layer_norm", (3, 40_003)),
    Case("two_axes", "layer_norm", (5, 4, 6, 33), 2),
    Case("rms", "rms_norm", (37, 257)),
    Case("rms_long", "rms_norm", (3, 40_003)),
    Case("groups", "group_norm", (3, 12, 17, 19), 1, 4),
    Case("groups_last", "group_norm", (3, 17, 19, 12), -1, 3),
    Case("instances", "instance_norm", (3, 5, 37, 41), 1),
    Case("instances_last", "instance_norm", (3, 37, 41, 5), -1),
)
CENTRED = tuple(place for place in PLACES if place.norm != "rms_norm")


def by_name(case: Case) -> str:
    return case.name


EVERY = pytest.mark.parametrize("case", PLACES, ids=by_name)
EVERY_CENTRED = pytest.mark.parametrize("case", CENTRED, ids=by_name)


def train(case: Case, x: Array, *parameters: Any, ops: Any = fn, **options: Any) -> Any:
    return case.op("_train", ops)(x, *leading(case), *parameters, **case.where(), **options)


def backward(
    case: Case,
    dy: Array,
    x: Array,
    fwd: Any,
    weight: Array | None = None,
    bias: Array | None = None,
    ops: Any = fn,
    **options: Any,
) -> Any:
    """From the statistics of the op's own forward pass; all gradients, of RMS norm's bias too."""
    statistics = (fwd.rstd,) if case.norm == "rms_norm" else (fwd.mean, fwd.rstd)
    if bias is None and case.norm == "rms_norm":
        double = x.dtype == np.float64 if weight is None else weight.dtype == np.float64
        bias = np.zeros(case.parameters_shape, np.float64 if double else np.float32)
    arguments = (dy, x, *leading(case), *statistics, weight, bias)
    return case.op("_backward", ops)(*arguments, **case.where(), **options)


def mean_of(case: Case, fwd: Any) -> Array:
    found: Array = np.zeros_like(fwd.rstd) if case.norm == "rms_norm" else fwd.mean
    return found


def per_statistic(case: Case, rng: np.random.Generator, low: float, high: float) -> Array:
    """A number for each statistic, where it belongs in x."""
    return rng.uniform(low, high, int(np.prod(case.statistics_shape)))[case.statistic_of()]


def signs(case: Case) -> Array:
    return np.where(case.statistic_of() % 2 == 0, 1.0, -1.0)


def spread_parameters(case: Case, values: Array) -> Array:
    """Parameters where they belong in x."""
    return values.reshape(-1)[case.parameter_of()]


def check_unit_variance(
    case: Case, x: Array, eps: float = 0.0, variance_limit: float = VARIANCE_LIMIT
) -> None:
    """y and the variance against float64, on an output of unit variance."""
    expected = train(case, x, ops=reference, eps=eps)
    fwd = train(case, x, eps=eps)
    # An output far beyond its unit variance has an error of its own scale.
    far = tol.ARITHMETIC * tol.accumulation_roundoff(x.dtype) * np.abs(expected.y)
    limit = np.maximum(Y_LIMIT, far) + tol.rounding(expected.y, x.dtype)
    if x.dtype.itemsize == 2:
        # mean is float32 here; the kernels work with the rounded one.
        own = tol.unit_roundoff(np.float32) * np.abs(expected.mean) * expected.rstd
        limit = limit + wide(case, own, 0.0, case.statistic_of())
    tol.assert_close(fwd.y, expected.y, limit, "y")
    if eps == 0.0:
        ratio = (fwd.rstd.astype(np.float64) / expected.rstd) ** -2
        np.testing.assert_allclose(ratio, 1.0, rtol=0, atol=variance_limit)


@pytest.mark.parametrize("ratio", [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
@EVERY
def test_mean_far_from_zero(case: Case, ratio: float) -> None:
    rng = np.random.default_rng(1)
    sigma = 10.0 ** per_statistic(case, rng, -3.0, 3.0)
    x = (rng.standard_normal(case.shape) + ratio * signs(case)) * sigma
    check_unit_variance(case, x.astype(np.float32))


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
@EVERY
def test_mean_far_from_zero_backward(case: Case, ratio: float) -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal(case.shape) + ratio * signs(case)).astype(np.float32)
    dy = rng.standard_normal(case.shape).astype(np.float32)
    exact = train(case, x, ops=reference, eps=0.0)
    grads = backward(case, dy, x, exact)
    expected = backward(case, dy, x, exact, ops=reference)
    # dx has the scale of rstd * dy, and dweight that of a sum of n terms dy * xhat.
    scale = wide(case, exact.rstd, 1.0, case.statistic_of())
    magnitude = np.abs(dy).max() * (1.0 + np.abs(exact.y).max())
    tol.assert_close(grads.dx, expected.dx, Y_LIMIT * scale * magnitude, "dx")
    count = x.size // grads.dweight.size
    limit = np.asarray(Y_LIMIT * count * np.abs(exact.y).max())
    tol.assert_close(grads.dweight, expected.dweight, limit, "dweight")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("ratio", [1.0, 30.0, 1000.0])
@EVERY
def test_mean_far_from_zero_other_types(case: Case, ratio: float, dtype: str) -> None:
    if case.name == "short_rows" and dtype == "bfloat16":
        ratio = min(ratio, 30.0)  # farther out all that is left of some rows is a constant
    rng = np.random.default_rng(3)
    # Rounded to 16 bits, data far from zero become a few steps of a grid: still a variance.
    x = (2.0 * rng.standard_normal(case.shape) + 2.0 * ratio).astype(to_dtype(dtype))
    if dtype == "bfloat16" and ratio == 1000.0:
        # A step is 8: all values could be the same one.
        x = x + np.where(rng.random(case.shape) < 0.5, 0, 16).astype(x.dtype)
    check_unit_variance(case, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1.0, 1000.0, -3e4, 3e-5])
@EVERY_CENTRED
def test_rows_that_are_constant_but_for_one_value(case: Case, value: float, dtype: str) -> None:
    """The next number to the others': of n values it is sqrt(n - 1) deviations away.

    In float64 that is a step that the mean, a float64 too, can tell. Of 16-bit data the equal
    terms are summed in float32 and may round alike, in blocks below 256 numbers: half of them u.
    """
    element = to_dtype(dtype)
    x = np.full(case.shape, value, element)
    first = np.unique(case.statistic_of(), return_index=True)[1]
    last = np.unique(case.statistic_of().ravel()[::-1], return_index=True)[1]
    step = np.nextafter(x.ravel()[0], element.type(np.inf))
    if dtype == "float64":
        step = x.ravel()[0] * (1.0 + 2.0**-20)
    x.reshape(-1)[first[::2]] = step
    x.reshape(-1)[::-1][last[1::2]] = step
    alike = 128.0 * tol.accumulation_roundoff(element) if element.itemsize == 2 else 0.0
    check_unit_variance(case, x, variance_limit=max(VARIANCE_LIMIT, alike))


@pytest.mark.parametrize("grid", [1.0, 2.0**-7, 2.0**-12])
@EVERY
def test_values_on_a_grid(case: Case, grid: float) -> None:
    """Pixels and widened 16-bit numbers: roundings of their sums must not all go one way."""
    rng = np.random.default_rng(12)
    sigma = per_statistic(case, rng, 20.0, 70.0)
    x = np.clip(rng.standard_normal(case.shape) * sigma + 128.0, 0.0, 255.0)
    check_unit_variance(case, (np.round(x / grid) * grid).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1234.5, 6e4])
@EVERY_CENTRED
def test_constant_rows_give_exactly_the_bias(case: Case, value: float, dtype: str) -> None:
    element = to_dtype(dtype)
    count = int(np.prod(case.statistics_shape))
    values = np.linspace(value, value + 0.01, count).astype(element)
    x = values[case.statistic_of()]
    weight = np.linspace(-2.0, 2.0, int(np.prod(case.parameters_shape)), dtype=np.float32)
    bias = np.linspace(-1.0, 1.0, weight.size).astype(element).reshape(case.parameters_shape)
    fwd = train(case, x, weight.reshape(case.parameters_shape), bias)
    assert np.array_equal(fwd.y, spread_parameters(case, bias))
    assert np.array_equal(fwd.mean.reshape(-1), values.astype(fwd.mean.dtype))
    np.testing.assert_allclose(fwd.rstd, 1e-5**-0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_rms_of_zeros(case: Case, dtype: str) -> None:
    """y is the bias; with no eps that is 0 * infinity, NaN, in the rows of zeros alone."""
    element = to_dtype(dtype)
    x = np.random.default_rng(18).standard_normal(case.shape).astype(element)
    zeros = case.statistic_of() % 2 == 0
    x[zeros] = 0
    bias = np.linspace(-1.0, 1.0, int(np.prod(case.parameters_shape))).astype(element)
    bias = bias.reshape(case.parameters_shape)
    fwd = train(case, x, None, bias)
    assert np.array_equal(fwd.y[zeros], spread_parameters(case, bias)[zeros])
    rstd = fwd.rstd.reshape(-1)
    np.testing.assert_allclose(rstd[::2], 1e-5**-0.5, rtol=1e-6)
    grads = backward(case, np.ones_like(x), x, fwd)
    assert np.isfinite(grads.dx.astype(np.float64)).all()

    fwd = train(case, x, None, bias, eps=0.0)
    assert np.isinf(fwd.rstd.reshape(-1)[::2]).all()
    assert np.array_equal(np.isnan(fwd.y), zeros)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [1.0, -1.0, -0.99, 0.3, -1e-2])
@EVERY_CENTRED
def test_constant_rows_of_the_largest_numbers(case: Case, fraction: float, dtype: str) -> None:
    """rstd is large against them: a product with it must not leave the range."""
    element = to_dtype(dtype)
    value = np.asarray(fraction * float(ml_dtypes.finfo(element).max)).astype(element)
    x = np.full(case.shape, value)
    dy = np.random.default_rng(15).standard_normal(case.shape).astype(element)
    bias = np.linspace(-1.0, 1.0, int(np.prod(case.parameters_shape))).astype(element)
    bias = bias.reshape(case.parameters_shape)
    for weight in (1.0, -2.0, 1e30):
        weights = np.full(case.parameters_shape, weight)
        fwd = train(case, x, weights, bias)
        assert np.array_equal(fwd.y, spread_parameters(case, bias))
        assert np.array_equal(fwd.mean, np.full(fwd.mean.shape, value.astype(fwd.mean.dtype)))
        np.testing.assert_allclose(fwd.rstd, 1e-5**-0.5, rtol=1e-6)

        grads = backward(case, dy, x, fwd, weights)
        # x - mean is 0 throughout, and so the reference stays in range at any x.
        at_zero = fwd._replace(mean=np.zeros_like(fwd.mean))
        expected = backward(case, dy, np.zeros_like(x), at_zero, weights, ops=reference)
        assert not grads.dweight.any()
        with np.errstate(over="ignore"):
            stored = expected.dx.astype(element).astype(np.float64)
        # Of the sums g - avg(g), each as far off as 16 u of the terms' largest.
        u = tol.accumulation_roundoff(element)
        limit = (tol.SUM + tol.ARITHMETIC) * u * 2.0 * float(np.abs(dy).max())
        limit = np.asarray(limit * abs(weight) * float(fwd.rstd.max()))
        limit = limit + tol.rounding(stored, element)
        beyond = np.isinf(stored) | (np.abs(stored) + limit > float(ml_dtypes.finfo(element).max))
        found = grads.dx.astype(np.float64)
        assert not np.isnan(found).any()
        assert (
            np.abs(found - expected.dx)[~beyond] <= np.broadcast_to(limit, x.shape)[~beyond]
        ).all()


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [
        ("float16", 300.0),  # whose squares are none of float16's
        ("float16", 65504.0),
        ("float16", 1e-4),
        ("bfloat16", 3.38e38),
        ("bfloat16", 1e-30),
        ("float32", 3e38),
        ("float32", 1e30),
        ("float32", 1e20),
        ("float32", 1e-19),
        ("float32", 1e-30),
        ("float64", 1e150),
        ("float64", 1e-150),
    ],
)
@pytest.mark.parametrize("kind", ["one_side", "both_sides"])
@EVERY
def test_extreme_magnitudes(case: Case, kind: str, dtype: str, magnitude: float) -> None:
    """Sums and squares of such values leave float32's range in both directions."""
    rng = np.random.default_rng(6)
    x = rng.uniform(
        0.8 if kind == "one_side" else -0.5, 1.0 if kind == "one_side" else 0.5, case.shape
    )
    check_unit_variance(case, (magnitude * x).astype(to_dtype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sorted", "trend", "outlier_first", "outlier_last", "two_levels"])
@EVERY
def test_data_that_are_no_noise(case: Case, kind: str, dtype: str) -> None:
    """Blocks that differ from each other: the merge of their statistics does the work."""
    count = int(np.prod(case.shape) / np.prod(case.statistics_shape))
    x = np.random.default_rng(7).standard_normal((int(np.prod(case.statistics_shape)), count))
    if kind == "sorted":
        x = np.sort(x, axis=1)
    elif kind == "trend":
        x += np.linspace(0.0, 1000.0, count)
    elif kind == "two_levels":
        x = 0.001 * x
        x[:, count // 3 :] += 100.0
    else:
        x[:, 0 if kind == "outlier_first" else -1] = 1e4
    at = np.argsort(case.statistic_of(), axis=None, kind="stable")
    placed = np.empty(x.size)
    placed[at] = x.ravel()
    check_unit_variance(case, placed.reshape(case.shape).astype(to_dtype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("ratio", [0.0, 1000.0])
def test_a_row_of_262144_elements(norm: str, ratio: float, dtype: str) -> None:
    case = Case("longest", norm, (2, 262_144))
    rng = np.random.default_rng(4)
    x = 2.0 * rng.standard_normal(case.shape) + 2.0 * ratio
    check_unit_variance(case, x.astype(to_dtype(dtype)))
    # Averages of g and of g * xhat that are no small remainders.
    element = to_dtype(dtype)
    x = x.astype(element)
    dy = (rng.random(case.shape) * np.where(x > x.astype(np.float64).mean(), 1.0, 0.25)).astype(
        element
    )
    check_backward(case, Data(x, dy, None, None, None, None))


@pytest.mark.parametrize("axis_of_ones", [0, 1])
def test_a_million_gradients_of_one_sign(axis_of_ones: int) -> None:
    """Over the rows for the parameters, and over a row for its dx."""
    shape = (1_000_003, 3) if axis_of_ones == 0 else (3, 1_000_003)
    rng = np.random.default_rng(5)
    x = rng.standard_normal(shape, np.float32)
    dy = rng.random(shape, np.float32)
    fwd = fn.layer_norm_train(x)
    grads = fn.layer_norm_backward(dy, x, fwd.mean, fwd.rstd)
    expected = reference.layer_norm_backward(dy, x, fwd.mean, fwd.rstd)
    np.testing.assert_allclose(grads.dbias, expected.dbias, rtol=1e-6)
    terms = np.abs((x - fwd.mean[:, None]) * fwd.rstd[:, None] * dy).sum(axis=0, dtype=np.float64)
    assert (np.abs(grads.dweight - expected.dweight) <= 1e-6 * terms).all()
    if axis_of_ones == 1:
        limit = Y_LIMIT * fwd.rstd[:, None] * (1.0 + np.abs(x).max())
        tol.assert_close(grads.dx, expected.dx, limit, "dx")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [c for c in PLACES if "group" in c.name], ids=by_name)
def test_groups_and_channels_of_very_different_scale(case: Case, dtype: str) -> None:
    """Each group has a scale of its own, and then each channel in a group."""
    rng = np.random.default_rng(19)
    power = per_statistic(case, rng, -30.0, 30.0)
    x = rng.standard_normal(case.shape) * 10.0**power
    check_unit_variance(case, x.astype(dtype))

    channels = case.shape[case.first]
    scale = 10.0 ** rng.uniform(-6.0, 6.0, channels)[case.parameter_of()]
    data = Data(
        (rng.standard_normal(case.shape) * scale).astype(dtype),
        rng.standard_normal(case.shape).astype(dtype),
        None,
        None,
        10.0 ** rng.uniform(-6.0, 6.0, channels),
        np.zeros(channels),
    )
    check_forward(replace(case, eps=0.0), data)
    check_backward(replace(case, eps=0.0), data)


@pytest.mark.parametrize("ratio", [1.0, 1e4])
@pytest.mark.parametrize("case", [c for c in PLACES if c.norm != "rms_norm"], ids=by_name)
def test_y_and_gradients_within_the_derived_tolerances(case: Case, ratio: float) -> None:
    """Where the mean is far, with weights and biases, and statistics passed on to backward."""
    rng = np.random.default_rng(20)
    shape = case.parameters_shape
    data = Data(
        (rng.standard_normal(case.shape) + ratio * signs(case)).astype(np.float32),
        rng.standard_normal(case.shape).astype(np.float32),
        rng.standard_normal(case.shape).astype(np.float32),
        None,
        rng.standard_normal(shape).astype(np.float32),
        rng.standard_normal(shape).astype(np.float32),
    )
    smooth = replace(case, residual=True, activation="silu")
    fwd = check_forward(smooth, data)
    check_backward(smooth, data)
    n = normalized(smooth, data, mean_of(smooth, fwd), fwd.rstd)
    assert float(n.z_error.max()) < 1e-4  # the tolerances above are not those of the far mean
