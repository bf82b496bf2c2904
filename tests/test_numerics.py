"""Accuracy where it is hard: far means, extreme magnitudes, long sums, special values.

The limits are those that the library promises: with float32 data and an output of unit variance, y
within 4e-6 of float64 and the variance within 1e-6; with the 16-bit types the rounding of y more.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
import tolerances as tol
from cases import ACTIVATIONS, DTYPES, to_dtype
from fastnorm import reference

Array = npt.NDArray[Any]

Y_LIMIT = 4e-6
VARIANCE_LIMIT = 1e-6

# Both traversals, planes with tails, few channels and many.
LAYOUTS = [((4, 5, 37, 41), 1), ((4, 37, 41, 5), -1), ((6007, 3), 1), ((300, 67, 7), 1)]
EVERY_LAYOUT = pytest.mark.parametrize(("shape", "axis"), LAYOUTS, ids=lambda v: str(v))


def per_channel(values: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Values of shape (C,), shaped to broadcast against x."""
    where = [1] * len(shape)
    where[axis] = -1
    return values.reshape(where)


def check_unit_variance(x: Array, axis: int, eps: float = 0.0) -> None:
    """y and the variance against float64, on an output of unit variance."""
    expected = reference.batch_norm_train(x, eps=eps, channel_axis=axis)
    fwd = fn.batch_norm_train(x, eps=eps, channel_axis=axis)
    # An output far beyond its unit variance has an error of its own scale.
    far = tol.ARITHMETIC * tol.accumulation_roundoff(x.dtype) * np.abs(expected.y)
    limit = np.maximum(Y_LIMIT, far) + tol.rounding(expected.y, x.dtype)
    if x.dtype.itemsize == 2:
        # mean is float32 here; the kernels work with the rounded one.
        own = tol.unit_roundoff(np.float32) * np.abs(expected.mean) * expected.rstd
        limit = limit + per_channel(own, x.shape, axis)
    tol.assert_close(fwd.y, expected.y, limit, "y")
    if eps == 0.0:
        ratio = (fwd.rstd.astype(np.float64) / expected.rstd) ** -2
        np.testing.assert_allclose(ratio, 1.0, rtol=0, atol=VARIANCE_LIMIT)


@pytest.mark.parametrize("ratio", [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
@EVERY_LAYOUT
def test_mean_far_from_zero(shape: tuple[int, ...], axis: int, ratio: float) -> None:
    rng = np.random.default_rng(1)
    channels = shape[axis]
    sign = np.where(np.arange(channels) % 2 == 0, 1.0, -1.0)
    sigma = 10.0 ** rng.uniform(-3.0, 3.0, channels)
    x = (rng.standard_normal(shape) + per_channel(ratio * sign, shape, axis)) * per_channel(
        sigma, shape, axis
    )
    check_unit_variance(x.astype(np.float32), axis)


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
@EVERY_LAYOUT
def test_mean_far_from_zero_inference_and_backward(
    shape: tuple[int, ...], axis: int, ratio: float
) -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal(shape) + ratio).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    exact = reference.batch_norm_train(x, eps=0.0, channel_axis=axis)
    y = fn.batch_norm(x, exact.mean, exact.rstd**-2.0, eps=0.0, channel_axis=axis)
    tol.assert_close(y, exact.y, np.asarray(Y_LIMIT), "y")

    arguments = (dy, x, exact.mean, exact.rstd)
    grads = fn.batch_norm_backward(*arguments, channel_axis=axis)
    expected = reference.batch_norm_backward(*arguments, channel_axis=axis)
    # dx has the scale of rstd * dy, and dweight that of a sum of n terms dy * xhat.
    scale = per_channel(exact.rstd, shape, axis)
    magnitude = np.abs(dy).max() * (1.0 + np.abs(exact.y).max())
    tol.assert_close(grads.dx, expected.dx, Y_LIMIT * scale * magnitude, "dx")
    count = x.size // shape[axis]
    tol.assert_close(grads.dweight, expected.dweight, np.asarray(Y_LIMIT * count), "dweight")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("ratio", [1.0, 30.0, 1000.0])
@EVERY_LAYOUT
def test_mean_far_from_zero_other_types(
    shape: tuple[int, ...], axis: int, ratio: float, dtype: str
) -> None:
    rng = np.random.default_rng(3)
    # Rounded to 16 bits, data far from zero become a few steps of a grid: still a variance.
    x = (2.0 * rng.standard_normal(shape) + 2.0 * ratio).astype(to_dtype(dtype))
    check_unit_variance(x, axis)


@pytest.mark.parametrize("grid", [1.0, 2.0**-7, 2.0**-12])
@pytest.mark.parametrize("shape", [(2, 8, 112, 112), (25088, 8)])
def test_values_on_a_grid(shape: tuple[int, ...], grid: float) -> None:
    """Pixels and widened 16-bit numbers: roundings of their sums must not all go one way."""
    rng = np.random.default_rng(12)
    sigma = per_channel(rng.uniform(20.0, 70.0, shape[1]), shape, 1)
    x = np.clip(rng.standard_normal(shape) * sigma + 128.0, 0.0, 255.0)
    x = np.round(x / grid) * grid
    check_unit_variance(x.astype(np.float32), 1)
    fwd = fn.batch_norm_train(x.astype(np.float32))
    expected = reference.batch_norm_train(x)
    limit = tol.STATISTIC * tol.unit_roundoff(np.float32)
    assert (np.abs(fwd.mean - expected.mean) * expected.rstd).max() <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1234.5, 6e4])
@EVERY_LAYOUT
def test_constant_channels_give_exactly_the_bias(
    shape: tuple[int, ...], axis: int, value: float, dtype: str
) -> None:
    channels = shape[axis]
    element = to_dtype(dtype)
    values = np.linspace(value, value + 0.01, channels).astype(element)
    x = np.ascontiguousarray(np.broadcast_to(per_channel(values, shape, axis), shape))
    weight = np.linspace(-2.0, 2.0, channels).astype(np.float32)
    bias = np.linspace(-1.0, 1.0, channels).astype(element)
    fwd = fn.batch_norm_train(x, weight, bias, channel_axis=axis)
    expected = np.broadcast_to(per_channel(bias, shape, axis), shape)
    assert np.array_equal(fwd.y, expected)
    assert np.array_equal(fwd.mean, values.astype(fwd.mean.dtype))
    np.testing.assert_allclose(fwd.rstd, 1e-5**-0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [1.0, -1.0, -0.99, 0.3, -1e-2])
@EVERY_LAYOUT
def test_constant_channels_of_the_largest_numbers(
    shape: tuple[int, ...], axis: int, fraction: float, dtype: str
) -> None:
    """rstd is large against them: a product with it must not leave the range."""
    channels = shape[axis]
    element = to_dtype(dtype)
    value = np.asarray(fraction * float(ml_dtypes.finfo(element).max)).astype(element)
    x = np.full(shape, value)
    dy = np.random.default_rng(15).standard_normal(shape).astype(element)
    bias = np.linspace(-1.0, 1.0, channels).astype(element)
    for weight in (1.0, -2.0, 1e30):
        weights = np.full(channels, weight)
        fwd = fn.batch_norm_train(x, weights, bias, channel_axis=axis)
        assert np.array_equal(fwd.y, np.broadcast_to(per_channel(bias, shape, axis), shape))
        assert np.array_equal(fwd.mean, np.full(channels, value.astype(fwd.mean.dtype)))
        np.testing.assert_allclose(fwd.rstd, 1e-5**-0.5, rtol=1e-6)

        grads = fn.batch_norm_backward(dy, x, fwd.mean, fwd.rstd, weights, channel_axis=axis)
        # x - mean is 0 throughout, and so the reference stays in range at any x.
        arguments = (dy, np.zeros_like(x), np.zeros(channels), fwd.rstd, weights)
        expected = reference.batch_norm_backward(*arguments, channel_axis=axis)
        n = tol.normalized(*arguments[1:], channel_axis=axis)
        limits = tol.gradient_tolerances(dy, n, expected, None, channel_axis=axis)
        assert np.array_equal(grads.dweight, np.zeros(channels))
        tol.assert_close(grads.dbias, expected.dbias, limits.dbias, "dbias")
        tol.assert_close(grads.dx, expected.dx, limits.dx, "dx")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@EVERY_LAYOUT
def test_gradients_whose_sums_leave_the_range(
    shape: tuple[int, ...], axis: int, activation: str | None, dtype: str
) -> None:
    """In one channel: the others must not notice, to the bit."""
    rng = np.random.default_rng(16)
    channels = shape[axis]
    element = to_dtype(dtype)
    x = rng.standard_normal(shape).astype(element)
    plain = rng.uniform(0.5, 1.0, shape).astype(element)
    factor = np.ones(channels)
    factor[channels // 2] = 2.0**126
    dy = (plain.astype(np.float64) * per_channel(factor, shape, axis)).astype(element)
    fwd = fn.batch_norm_train(x, channel_axis=axis)
    options: dict[str, Any] = {"channel_axis": axis, "activation": activation}
    small = fn.batch_norm_backward(plain, x, fwd.mean, fwd.rstd, **options)
    grads = fn.batch_norm_backward(dy, x, fwd.mean, fwd.rstd, **options)

    spared = np.arange(channels) != channels // 2
    expected = reference.batch_norm_backward(plain, x, fwd.mean, fwd.rstd, **options)
    n = tol.normalized(x, fwd.mean, fwd.rstd, channel_axis=axis)
    limits = tol.gradient_tolerances(plain, n, expected, activation, channel_axis=axis)
    scaled = grads.dx.astype(np.float64) / per_channel(factor, shape, axis)
    tol.assert_close(scaled.astype(element), expected.dx, limits.dx, "dx")
    for a, b in zip(grads[:3], small[:3], strict=True):
        assert a is not None
        assert b is not None
        along = axis if a.ndim > 1 else 0
        kept_a, kept_b = (np.compress(spared, v, axis=along) for v in (a, b))
        assert kept_a.tobytes() == kept_b.tobytes()


@pytest.mark.parametrize(("sigma", "power"), [(0.1, -36), (1e-5, -33), (1e-9, -35), (1e-30, -30)])
@EVERY_LAYOUT
def test_tiny_gradients_at_small_data(
    shape: tuple[int, ...], axis: int, sigma: float, power: int
) -> None:
    """g * (x - mean) would vanish among the subnormals, dweight and dx do not."""
    rng = np.random.default_rng(17)
    x = (sigma * rng.standard_normal(shape)).astype(np.float32)
    dy = (10.0**power * rng.standard_normal(shape)).astype(np.float32)
    weight = np.full(shape[axis], 1.0 if sigma < 1e-20 else 1e4)
    fwd = fn.batch_norm_train(x, eps=0.0, channel_axis=axis)
    arguments = (dy, x, fwd.mean, fwd.rstd, weight)
    grads = fn.batch_norm_backward(*arguments, channel_axis=axis)
    expected = reference.batch_norm_backward(*arguments, channel_axis=axis)
    n = tol.normalized(x, fwd.mean, fwd.rstd, weight, channel_axis=axis)
    limits = tol.gradient_tolerances(
        dy, n, expected, None, channel_axis=axis, parameter_dtype=np.float64
    )
    tol.assert_close(grads.dweight, expected.dweight, limits.dweight, "dweight")
    tol.assert_close(grads.dbias, expected.dbias, limits.dbias, "dbias")
    tol.assert_close(grads.dx, expected.dx, limits.dx, "dx")


@EVERY_LAYOUT
def test_weights_beyond_the_range_and_none(shape: tuple[int, ...], axis: int) -> None:
    """A factor that no float holds must not turn a 0 into NaN."""
    channels = shape[axis]
    x = np.full(shape, 1e38, np.float32)
    zeros, ones = np.zeros(channels), np.ones(channels)
    y = fn.batch_norm(x, zeros, zeros, zeros, ones, eps=1e-30, channel_axis=axis)
    assert (y == 1.0).all()
    dy = np.zeros(shape, np.float32)
    for training in (False, True):
        options: dict[str, Any] = {"training": training, "channel_axis": axis}
        grads = fn.batch_norm_backward(
            dy, x, zeros + 1e38, ones, np.full(channels, 1e80), **options
        )
        assert not grads.dx.any()
        assert not grads.dweight.any()


@EVERY_LAYOUT
def test_deviations_beyond_the_largest_number(shape: tuple[int, ...], axis: int) -> None:
    """x - mean is no float32 here, but y is one."""
    x = np.full(shape, -3e38, np.float32)
    rows = np.moveaxis(x, axis, -1)
    rows[np.arange(x.size // shape[axis]).reshape(rows.shape[:-1]) % 3 == 0] = 3e38
    for weight in (1e-30, 1.0, 1e30, 2e38):
        weights = np.full(shape[axis], weight)
        y = fn.batch_norm_train(x, weights, channel_axis=axis).y
        expected = reference.batch_norm_train(x, weights, channel_axis=axis).y
        limit = Y_LIMIT * np.abs(expected).max()
        tol.assert_close(y, expected, limit + tol.rounding(expected, x.dtype), "y")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rstd", [1e-6, 0.3, 4.0, 1e6, 1e12, 1e30])
@EVERY_LAYOUT
def test_far_values_where_the_gradient_is_zero(
    shape: tuple[int, ...], axis: int, rstd: float, dtype: str
) -> None:
    """With given statistics x can be anything; what relu holds back must not count."""
    element = to_dtype(dtype)
    channels = shape[axis]
    x = np.full(shape, ml_dtypes.finfo(element).min, element)
    index = (0,) * len(shape)
    x[index] = 1.0
    dy = np.ones(shape, element)
    grads = fn.batch_norm_backward(
        dy,
        x,
        np.zeros(channels),
        np.full(channels, rstd),
        training=False,
        channel_axis=axis,
        activation="relu",
    )
    expected = np.zeros(channels)
    expected[0] = rstd
    np.testing.assert_allclose(grads.dweight, expected, rtol=1e-6)
    assert np.array_equal(grads.dbias, (expected > 0).astype(grads.dbias.dtype))
    assert np.count_nonzero(grads.dx) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 10_000_000), (10_000_000, 1), (1_250_000, 1, 8)])
def test_ten_million_values_in_a_channel(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal(shape, np.float32)
    x += 3.0
    check_unit_variance(x.astype(to_dtype(dtype)), 1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_ten_million_gradients_of_one_sign(offset: float) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((10, 1, 1_000_003), np.float32) + np.float32(offset)
    dy = rng.random(x.shape, np.float32)
    mean, rstd = np.array([offset]), np.ones(1)
    grads = fn.batch_norm_backward(dy, x, mean, rstd)
    exact = dy.astype(np.float64)
    np.testing.assert_allclose(grads.dbias[0], exact.sum(), rtol=1e-6)
    expected = (exact * (x.astype(np.float64) - offset)).sum()
    assert abs(grads.dweight[0] - expected) <= 1e-6 * (exact * np.abs(x - offset)).sum()


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [
        ("float16", 65504.0),
        ("bfloat16", 3.38e38),
        ("float32", 3e38),
        ("float32", 1e38),
        ("float32", 1e20),
        ("float32", 1e-19),
        ("float32", 1e-30),
        ("float64", 1e150),
        ("float64", 1e-150),
    ],
)
@pytest.mark.parametrize("kind", ["one_side", "both_sides"])
@EVERY_LAYOUT
def test_extreme_magnitudes(
    shape: tuple[int, ...], axis: int, kind: str, dtype: str, magnitude: float
) -> None:
    """Sums and squares of such values leave float32's range in both directions."""
    rng = np.random.default_rng(6)
    if kind == "one_side":
        x = magnitude * rng.uniform(0.8, 1.0, shape)
    else:
        x = magnitude * rng.uniform(-1.0, 1.0, shape)
        # Each channel's mean is 0, so that x - mean stays in range.
        x[shape[0] // 2 : 2 * (shape[0] // 2)] = -x[: shape[0] // 2]
    check_unit_variance(x.astype(to_dtype(dtype)), axis)


# Powers of ten of sigma (its square is a variance, and so within float64) and of the weight.
@pytest.mark.parametrize(
    ("dtype", "sigmas", "weights"),
    [
        ("float32", (-30, -20, -10, 0, 10, 20, 30), (-30, -20, -10, 0, 10, 20, 30)),
        ("float64", (-140, 0, 140), (-300, -150, 0, 150, 300)),
    ],
)
@EVERY_LAYOUT
def test_extreme_data_times_extreme_weight(
    shape: tuple[int, ...],
    axis: int,
    dtype: str,
    sigmas: tuple[int, ...],
    weights: tuple[int, ...],
) -> None:
    """Neither rstd * weight nor a sum may leave the range that the results themselves keep to."""
    rng = np.random.default_rng(13)
    noise, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    channels = shape[axis]
    u = 64.0 * tol.unit_roundoff(dtype)
    tiny = float(np.finfo(dtype).smallest_subnormal)

    for sigma in sigmas:
        x = noise * np.asarray(10.0**sigma, dtype)
        unit = x.astype(np.float64) / 10.0**sigma  # where the reference stays in range
        fwd = fn.batch_norm_train(x, eps=0.0, channel_axis=axis)
        expected = reference.batch_norm_train(unit, eps=0.0, channel_axis=axis)
        exact = reference.batch_norm_backward(
            dy, unit, expected.mean, expected.rstd, channel_axis=axis
        )
        for power in weights:
            weight = np.full(channels, 10.0**power, dtype)
            trained = fn.batch_norm_train(x, weight, eps=0.0, channel_axis=axis)
            var = fwd.rstd**-2.0
            given = fn.batch_norm(x, fwd.mean, var, weight, eps=0.0, channel_axis=axis)
            for y in (trained.y, given):
                close = np.abs(y / 10.0**power - expected.y) <= u * (1.0 + np.abs(expected.y))
                assert close.all()

            grads = fn.batch_norm_backward(dy, x, fwd.mean, fwd.rstd, weight, channel_axis=axis)
            sum_limit = u * x.size / channels
            tol.assert_close(grads.dweight, exact.dweight, np.asarray(sum_limit), "dweight")
            with np.errstate(over="ignore"):
                half = 10.0 ** ((power - sigma) / 2)
                dx = (exact.dx * half * half).astype(dtype).astype(np.float64)
                limit = u * (1.0 + np.abs(exact.dx)) * half * half + tiny
            overflows = np.isinf(dx) & (grads.dx == dx)
            at_the_edge = np.abs(dx) > 0.999 * float(np.finfo(dtype).max)
            with np.errstate(invalid="ignore"):
                close = np.abs(grads.dx - dx) <= limit
            assert (close | overflows | at_the_edge).all()
            assert not np.isnan(grads.dx).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sorted", "trend", "outlier_first", "outlier_last", "two_levels"])
@EVERY_LAYOUT
def test_data_that_are_no_noise(shape: tuple[int, ...], axis: int, kind: str, dtype: str) -> None:
    """Blocks that differ from each other: the merge of their statistics does the work."""
    rng = np.random.default_rng(7)
    channels = shape[axis]
    count = int(np.prod(shape)) // channels
    x = rng.standard_normal((count, channels))
    if kind == "sorted":
        x = np.sort(x, axis=0)
    elif kind == "trend":
        x += np.linspace(0.0, 1000.0, count)[:, None]
    elif kind == "two_levels":
        x = 0.001 * x
        x[count // 3 :] += 100.0
    else:
        x[0 if kind == "outlier_first" else -1] = 1e4
    others = [extent for i, extent in enumerate(shape) if i != axis % len(shape)]
    x = np.moveaxis(x.reshape(*others, channels), -1, axis)
    check_unit_variance(np.ascontiguousarray(x).astype(to_dtype(dtype)), axis)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@EVERY_LAYOUT
def test_special_values_stay_in_their_channel(
    shape: tuple[int, ...], axis: int, activation: str | None, value: float, dtype: str
) -> None:
    rng = np.random.default_rng(8)
    channels = shape[axis]
    clean = rng.standard_normal(shape).astype(to_dtype(dtype))
    dy = rng.standard_normal(shape).astype(to_dtype(dtype))
    spoilt = clean.copy()
    index = [extent // 2 for extent in shape]
    index[axis] = 1
    spoilt[tuple(index)] = value
    others = [c for c in range(channels) if c != 1]
    options: dict[str, Any] = {"channel_axis": axis, "activation": activation}

    def run(x: Array) -> tuple[list[Array], list[Array]]:
        running = [np.zeros(channels), np.ones(channels)]
        fwd = fn.batch_norm_train(x, running_mean=running[0], running_var=running[1], **options)
        grads = fn.batch_norm_backward(dy, x, fwd.mean, fwd.rstd, mask=fwd.mask, **options)
        y = fn.batch_norm(x, np.zeros(channels), np.ones(channels), **options)
        small = [fwd.mean, fwd.rstd, *running, grads.dweight, grads.dbias]
        return [fwd.y, grads.dx, y], small

    for a, b in zip(*(run(x)[0] for x in (clean, spoilt)), strict=True):
        kept_a, kept_b = (np.take(v, others, axis=axis) for v in (a, b))
        assert kept_a.tobytes() == kept_b.tobytes()
    for a, b in zip(*(run(x)[1] for x in (clean, spoilt)), strict=True):
        assert a[others].tobytes() == b[others].tobytes()

    (y, _, inference), (_, rstd, _, running_var, *_) = run(spoilt)
    assert np.isnan(np.take(y, 1, axis=axis).astype(np.float64)).all()
    assert np.isnan(rstd[1])
    assert np.isnan(running_var[1])
    # With given statistics the value passes through, alone.
    expected = reference.activate(np.array([value]) * (1 + 1e-5) ** -0.5, activation)[0]
    found = np.take(inference, 1, axis=axis).astype(np.float64)
    where = tuple(v for i, v in enumerate(index) if i != axis % len(shape))
    np.testing.assert_array_equal(found[where], expected)
    assert np.isfinite(np.delete(found.ravel(), np.ravel_multi_index(where, found.shape))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_LAYOUT
def test_denormals_are_kept(shape: tuple[int, ...], axis: int, dtype: str) -> None:
    element = to_dtype(dtype)
    bits = np.random.default_rng(9).integers(1, 128, shape)
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[element.itemsize]
    x = bits.astype(unsigned).view(element)  # the smallest 127 positive numbers
    zeros, ones = np.zeros(shape[axis]), np.ones(shape[axis])
    y = fn.batch_norm(x, zeros, ones, eps=0.0, channel_axis=axis, activation="relu")
    assert y.tobytes() == x.tobytes()
    grads = fn.batch_norm_backward(x, x, zeros, ones, training=False, channel_axis=axis)
    assert grads.dx.tobytes() == x.tobytes()
    # The variance vanishes against eps: y is (x - mean) / sqrt(eps).
    trained = fn.batch_norm_train(x, eps=1.0, channel_axis=axis)
    expected = reference.batch_norm_train(x, eps=1.0, channel_axis=axis)
    step = x.astype(np.float64).max() / 127
    limit = 2.0 * step + tol.rounding(expected.y, element)
    tol.assert_close(trained.y, expected.y, limit, "y")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_statistics_are_rounded_once(dtype: str) -> None:
    """1 + half a step + little: through float32 it would become a tie, and 1."""
    step = 2.0 * tol.unit_roundoff(to_dtype(dtype))
    for little, expected in [(2.0**-40, 1.0 + step), (0.0, 1.0), (-(2.0**-40), 1.0)]:
        value = 1.0 + step / 2.0 + little
        x = np.array([[value - 1.0], [value + 1.0]])
        running_mean = np.zeros(1, to_dtype(dtype))
        fn.batch_norm_train(x, running_mean=running_mean, momentum=1.0)
        assert float(running_mean[0]) == expected


def test_very_large_eps_and_none() -> None:
    x = np.random.default_rng(10).standard_normal((8, 3)).astype(np.float32)
    assert (fn.batch_norm_train(x, eps=1e300).y == 0.0).all()
    check_unit_variance(x, 1, eps=0.0)
