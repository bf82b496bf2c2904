"""The norms beside batch norm at the edges: infinities and NaN, kinks, denormals, huge weights.

And where one number must not change another: a row its neighbours, a sum its terms.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
import tolerances as tol
from cases import ACTIVATIONS, DTYPES, activation_id, to_dtype
from checks import on_isa
from fastnorm import reference
from norm_cases import Case
from norm_checks import wide
from test_norm_numerics import PLACES, backward, by_name, mean_of, train

Array = npt.NDArray[Any]

EVERY = pytest.mark.parametrize("case", PLACES, ids=by_name)
FEW_PLACES = tuple(c for c in PLACES if c.name in ("rows", "rms", "groups", "groups_last"))
FEW = pytest.mark.parametrize("case", FEW_PLACES, ids=by_name)


def spoilt_parameters(case: Case, statistic: int) -> Array:
    """Which parameters a statistic's values take part in: their gradients may be spoilt."""
    return np.unique(case.parameter_of()[np.asarray(case.statistic_of() == statistic)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", [None, "relu", "clip", "silu"])
@EVERY
def test_special_values_stay_with_their_statistic(
    case: Case, activation: str | None, value: float, dtype: str
) -> None:
    rng = np.random.default_rng(8)
    clean = rng.standard_normal(case.shape).astype(to_dtype(dtype))
    dy = rng.standard_normal(case.shape).astype(to_dtype(dtype))
    spoilt = clean.copy()
    index = tuple(extent // 2 for extent in case.shape)
    spoilt[index] = value
    statistic = int(case.statistic_of()[index])
    kept = np.asarray(case.statistic_of() != statistic)
    spared = np.ones(int(np.prod(case.parameters_shape)), bool)
    spared[spoilt_parameters(case, statistic)] = False

    def run(x: Array) -> list[tuple[Array, Array]]:
        """What there is, with the part of it that must not change."""
        fwd = train(case, x, activation=activation)
        rstd = fwd.rstd.reshape(-1)
        others = np.arange(rstd.size) != statistic
        found = [(fwd.y, kept), (rstd, others), (mean_of(case, fwd).reshape(-1), others)]
        for mask in (None, fwd.mask):
            grads = backward(case, dy, x, fwd, activation=activation, mask=mask)
            found += [(grads.dx, kept), (grads.dweight.ravel(), spared)]
            found += [(grads.dbias.ravel(), spared)]
        return found

    before, after = run(clean), run(spoilt)
    for (a, where), (b, _) in zip(before, after, strict=True):
        assert a[where].tobytes() == b[where].tobytes()
    (y, _), (rstd, _) = after[:2]
    if case.norm != "rms_norm" or np.isnan(value):
        assert np.isnan(y[~kept]).all()
        assert np.isnan(rstd[statistic])
    else:  # an infinite mean square: 0 everywhere, and 0 * infinity at the infinity itself
        assert rstd[statistic] == 0.0
        assert np.isnan(y[index])
        assert np.count_nonzero(np.isnan(y.astype(np.float64))) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@EVERY
def test_gradients_whose_sums_leave_the_range(
    case: Case, activation: str | None, dtype: str
) -> None:
    """Of one statistic: the others must not notice, to the bit, and its own dx is in range."""
    rng = np.random.default_rng(16)
    element = to_dtype(dtype)
    x = rng.standard_normal(case.shape).astype(element)
    plain = rng.uniform(0.5, 1.0, case.shape).astype(element)
    chosen = int(np.prod(case.statistics_shape)) // 2
    kept = np.asarray(case.statistic_of() != chosen)
    factor = np.where(kept, 1.0, 2.0**126)
    dy = (plain.astype(np.float64) * factor).astype(element)
    fwd = train(case, x)
    small = backward(case, plain, x, fwd, activation=activation)
    grads = backward(case, dy, x, fwd, activation=activation)

    expected = backward(case, plain, x, fwd, activation=activation, ops=reference)
    u = tol.accumulation_roundoff(element)
    # The three terms of dx, each off by the sum's 16 u and 16 u of arithmetic and slope.
    scale = wide(case, fwd.rstd, 1.0, case.statistic_of())
    xhat = float(np.abs((x.astype(np.float64)) * scale).max()) + 1.0
    limit = (tol.SUM + 2.0 * tol.ARITHMETIC) * u * scale * (1.0 + xhat + xhat**2)
    scaled = (grads.dx.astype(np.float64) / factor).astype(element)
    tol.assert_close(scaled, expected.dx, limit + tol.rounding(expected.dx, element), "dx")
    assert grads.dx[kept].tobytes() == small.dx[kept].tobytes()
    spared = np.ones(grads.dweight.size, bool)
    spared[spoilt_parameters(case, chosen)] = False
    for name in ("dweight", "dbias"):
        a, b = (getattr(g, name).ravel()[spared] for g in (grads, small))
        assert a.tobytes() == b.tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@EVERY
def test_parameter_gradients_whose_partial_sums_leave_the_range(case: Case, dtype: str) -> None:
    """The whole sums are in the range of parameters that are float64."""
    rng = np.random.default_rng(21)
    element = to_dtype(dtype)
    x = rng.standard_normal(case.shape).astype(element)
    fwd = train(case, x)
    weight = np.ones(case.parameters_shape)
    dy = np.full(case.shape, 2e38, element)
    terms = np.full(case.shape, float(dy.flat[0]))
    grads = backward(case, dy, x, fwd, weight)
    expected = backward(case, dy, x, fwd, weight, ops=reference)
    u = tol.SUM * tol.accumulation_roundoff(element)
    xhat = (x.astype(np.float64) - wide(case, mean_of(case, fwd), 0.0, case.statistic_of())) * wide(
        case, fwd.rstd, 1.0, case.statistic_of()
    )
    for name, magnitude in (("dbias", terms), ("dweight", 2.0 * terms * np.abs(xhat))):
        sums = np.bincount(case.parameter_of().ravel(), magnitude.ravel())
        wanted = getattr(expected, name)
        tol.assert_close(getattr(grads, name), wanted, u * sums.reshape(wanted.shape), name)


@pytest.mark.parametrize(
    ("dtype", "sigmas", "weights"),
    [
        ("float32", (-30, -20, 0, 20, 30), (-30, -10, 0, 10, 30, 38)),
        ("float64", (-140, 0, 140), (-300, -150, 0, 150, 300)),
    ],
)
@EVERY
def test_extreme_data_times_extreme_weight(
    case: Case, dtype: str, sigmas: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    """Neither rstd * weight nor a sum may leave the range that the results themselves keep to."""
    rng = np.random.default_rng(13)
    noise, dy = (rng.standard_normal(case.shape).astype(dtype) for _ in range(2))
    u = 64.0 * tol.unit_roundoff(dtype)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    largest = float(np.finfo(dtype).max)
    for sigma in sigmas:
        x = noise * np.asarray(10.0**sigma, dtype)
        unit = x.astype(np.float64) / 10.0**sigma  # where the reference stays in range
        fwd = train(case, x, eps=0.0)
        expected = train(case, unit, eps=0.0, ops=reference)
        exact = backward(case, dy, unit, expected, ops=reference)
        for power in weights:
            where = f"sigma 1e{sigma}, weight 1e{power}"
            weight = np.full(case.parameters_shape, 10.0**power, dtype)
            y = train(case, x, weight, eps=0.0).y.astype(np.float64)
            with np.errstate(over="ignore"):
                overflows = np.isinf(y) & (np.abs(expected.y) * 10.0**power > 0.999 * largest)
                close = np.abs(y / 10.0**power - expected.y) <= u * (1.0 + np.abs(expected.y))
            assert (close | overflows).all(), where

            grads = backward(case, dy, x, fwd, weight)
            terms = np.bincount(case.parameter_of().ravel(), np.abs(expected.y * dy).ravel())
            limit = u * (1.0 + terms.reshape(grads.dweight.shape))
            tol.assert_close(grads.dweight, exact.dweight, limit, f"dweight, {where}")
            with np.errstate(over="ignore"):
                half = 10.0 ** ((power - sigma) / 2)
                dx = (exact.dx * half * half).astype(dtype).astype(np.float64)
                limit = u * (1.0 + np.abs(exact.dx)) * half * half + tiny
            assert not np.isnan(grads.dx).any(), where
            overflows = np.isinf(dx) & (grads.dx == dx)
            at_the_edge = np.abs(dx) > 0.999 * largest
            at_the_edge &= np.sign(grads.dx) == np.sign(dx)
            with np.errstate(invalid="ignore"):
                close = np.abs(grads.dx - dx) <= limit
            assert (close | overflows | at_the_edge).all(), where


@pytest.mark.parametrize(("sigma", "power"), [(0.1, -36), (1e-5, -33), (1e-9, -35), (1e-30, -30)])
@EVERY
def test_tiny_gradients_at_small_data(case: Case, sigma: float, power: int) -> None:
    """g * (x - mean) would vanish among the subnormals, dweight and dx do not."""
    rng = np.random.default_rng(17)
    x = (sigma * rng.standard_normal(case.shape)).astype(np.float32)
    dy = (10.0**power * rng.standard_normal(case.shape)).astype(np.float32)
    weight = np.full(case.parameters_shape, 1.0 if sigma < 1e-20 else 1e4)
    fwd = train(case, x, eps=0.0)
    grads = backward(case, dy, x, fwd, weight)
    expected = backward(case, dy, x, fwd, weight, ops=reference)
    xhat = np.abs(train(case, x, eps=0.0, ops=reference).y)
    g = np.abs(dy.astype(np.float64))
    u = tol.SUM * tol.accumulation_roundoff(x.dtype)
    # A product below the normal numbers is off by a step of theirs.
    step = float(np.finfo(np.float32).smallest_subnormal)
    for name, terms in (("dbias", g), ("dweight", g * xhat)):
        wanted = getattr(expected, name)
        sums = np.bincount(case.parameter_of().ravel(), (2.0 * u * terms + step).ravel())
        tol.assert_close(getattr(grads, name), wanted, sums.reshape(wanted.shape), name)
    scale = wide(case, fwd.rstd, 1.0, case.statistic_of()) * float(weight.flat[0])
    magnitude = g + g.max() * (1.0 + xhat)
    limit = scale * (2.0 * u * magnitude + step) + tol.rounding(expected.dx, x.dtype)
    tol.assert_close(grads.dx, expected.dx, limit, "dx")


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_denormals_are_kept(case: Case, dtype: str) -> None:
    element = to_dtype(dtype)
    bits = np.random.default_rng(9).integers(1, 128, case.shape)
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[element.itemsize]
    x = bits.astype(unsigned).view(element)  # the smallest 127 positive numbers
    # The variance vanishes against eps: y is (x - mean) / sqrt(eps).
    fwd = train(case, x, eps=1.0, activation="leaky_relu")
    expected = train(case, x, eps=1.0, activation="leaky_relu", ops=reference)
    step = x.astype(np.float64).max() / 127
    tol.assert_close(fwd.y, expected.y, 2.0 * step + tol.rounding(expected.y, element), "y")
    if case.norm == "rms_norm":
        assert train(case, x, eps=1.0).y.tobytes() == x.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=activation_id)
@FEW
def test_slopes_at_the_kinks(case: Case, activation: str | fn.Activation, dtype: str) -> None:
    """With mean 0 and rstd 1 z is x; dresidual is the slope times dy, and dbias its sum."""
    values = np.array([0.0, 0.75, 1.0, 3.0, 6.0, 2.5, 0.5, 5.0, -0.0, -0.5, -1.0, -3.0, -6.0])
    x = np.resize(values, case.shape).astype(to_dtype(dtype))
    dy = np.full_like(x, 2.0)
    shape = case.statistics_shape
    given = fn.NormForward(x, np.zeros(shape), np.ones(shape), None)
    options: dict[str, Any] = {"activation": activation, "residual": np.zeros_like(x)}
    grads = backward(case, dy, x, given, **options)
    slope = reference.activation_slope(x.astype(np.float64), activation)
    u = 2.0 * tol.ARITHMETIC * tol.accumulation_roundoff(x.dtype)
    limit = 2.0 * u * (1.0 + np.abs(slope)) + tol.rounding(2.0 * slope, x.dtype)
    tol.assert_close(grads.dresidual, 2.0 * slope, limit, "dresidual")
    sums = np.bincount(case.parameter_of().ravel(), 2.0 * slope.ravel())
    terms = np.bincount(case.parameter_of().ravel(), 2.0 * np.abs(slope).ravel() + 2.0)
    limit = (u + tol.SUM * tol.accumulation_roundoff(x.dtype)) * terms
    wanted = sums.reshape(grads.dbias.shape)
    limit = limit.reshape(wanted.shape) + tol.rounding(wanted, grads.dbias.dtype)
    tol.assert_close(grads.dbias, wanted, limit, "dbias")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", fn.clip(0.0, 1.0)], ids=str)
@FEW
def test_mask_at_zero(case: Case, activation: str | fn.Activation, dtype: str) -> None:
    """x at the mean gives z = 0 exactly, on the flat side of the kink, mask or none."""
    x = np.zeros(case.shape, to_dtype(dtype))
    flat = np.argsort(case.statistic_of(), axis=None, kind="stable").reshape(
        int(np.prod(case.statistics_shape)), -1
    )
    x.reshape(-1)[flat[:, 0]], x.reshape(-1)[flat[:, 1]] = 0.5, -0.5
    dy = np.ones_like(x)
    fwd = train(case, x, activation=activation)
    assert fwd.mask is not None
    zero = x == 0
    assert not fwd.y[zero].any()
    slope = np.asarray(0.01 if activation == "leaky_relu" else 0.0, x.dtype)
    for mask, residual in ((fwd.mask, True), (None, np.zeros_like(x))):
        options: dict[str, Any] = {"activation": activation, "mask": mask, "residual": residual}
        grads = backward(case, dy, x, fwd, **options)
        assert (grads.dresidual[zero] == slope).all()


def test_very_large_eps() -> None:
    x = np.random.default_rng(10).standard_normal((8, 24)).astype(np.float32)
    for case in (Case("l", "layer_norm", x.shape), Case("g", "group_norm", x.shape, 1, 4)):
        assert (train(case, x, eps=1e300).y == 0.0).all()
    assert (fn.rms_norm(x, eps=1e300) == 0.0).all()


# --- what only norms of rows have -----------------------------------------------------------------


@pytest.mark.parametrize("parameter", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("offset", [1.0, 0.1])
def test_weight_offset_is_added_to_the_weight(
    norm: str, dtype: str, parameter: str, offset: float
) -> None:
    """The sum is rounded once, to what elements are computed in: the same bits."""
    case = Case("offset", norm, (9, 77))
    rng = np.random.default_rng(22)
    x, dy = (rng.standard_normal(case.shape).astype(to_dtype(dtype)) for _ in range(2))
    weight = (0.1 * rng.standard_normal(77)).astype(to_dtype(parameter))
    wide_dtype = np.float64 if dtype == "float64" else np.float32
    summed = (weight.astype(np.float64) + offset).astype(wide_dtype)
    fwd = train(case, x, weight, weight_offset=offset, activation="silu")
    plain = train(case, x, summed, activation="silu")
    assert fwd.y.tobytes() == plain.y.tobytes()
    grads = backward(case, dy, x, fwd, weight, weight_offset=offset, activation="silu")
    expected = backward(case, dy, x, fwd, summed, activation="silu")
    assert grads.dx.tobytes() == expected.dx.tobytes()
    assert grads.dweight.dtype == weight.dtype
    stored = expected.dweight.astype(np.float64)
    limit = tol.rounding(stored, weight.dtype) + tol.rounding(stored, summed.dtype)
    tol.assert_close(grads.dweight, stored, limit, "dweight")
    # Where there is no weight there is nothing to add to.
    assert train(case, x, weight_offset=offset).y.tobytes() == train(case, x).y.tobytes()


@pytest.mark.parametrize("isa", fn._core.isas())
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cast_before_weight(dtype: str, prenorm: bool, isa: str) -> None:
    """x * rstd in float32, rounded to the dtype, times the weight in float32, rounded: exactly."""
    element = to_dtype(dtype)
    before = fn._core.isa()
    rng = np.random.default_rng(23)
    try:
        fn._core.set_isa(isa)
        for length in (1, 7, 64, 515, 4099):
            x, residual = (rng.standard_normal((5, length)).astype(element) for _ in range(2))
            weight = rng.uniform(-2.0, 2.0, length).astype(np.float32)
            bias = rng.standard_normal(length).astype(np.float32)
            options: dict[str, Any] = {"cast_before_weight": True, "weight_offset": 0.5}
            if prenorm:
                options |= {"prenorm": True, "residual": residual}
            fwd = fn.rms_norm_train(x, weight, **options)
            used = fwd.sum if prenorm else x
            xhat = (used.astype(np.float32) * fwd.rstd[:, None]).astype(element)
            scaled = xhat.astype(np.float32) * (weight + np.float32(0.5))
            assert np.array_equal(fwd.y, scaled.astype(element))
            # Else the product is rounded once: another result.
            if length > 500:
                assert (fn.rms_norm(used, weight, weight_offset=0.5) != fwd.y).any()

            # The bias is added with a rounding or with none, and what follows is as ever.
            y = fn.rms_norm(x, weight, bias, activation="silu", **options)
            y = y[0] if prenorm else y
            z = xhat.astype(np.float64) * (weight + np.float32(0.5)) + bias
            limit = tol.ARITHMETIC * tol.unit_roundoff(np.float32) * (2.0 + 3.0 * np.abs(z) + 2.0)
            expected = reference.activate(z, "silu")
            tol.assert_close(y, expected, limit + tol.rounding(expected, element), "y")
    finally:
        fn._core.set_isa(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cast_before_weight_changes_nothing_where_computing_is_no_wider(dtype: str) -> None:
    x = np.random.default_rng(24).standard_normal((5, 300)).astype(dtype)
    weight = np.linspace(-1.0, 2.0, 300).astype(dtype)
    cast = fn.rms_norm(x, weight, cast_before_weight=True)
    assert cast.tobytes() == fn.rms_norm(x, weight).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_sum_that_overflows_spoils_its_row_alone(norm: str, dtype: str) -> None:
    case = Case("overflow", norm, (7, 100))
    element = to_dtype(dtype)
    rng = np.random.default_rng(25)
    x, residual = (rng.standard_normal(case.shape).astype(element) for _ in range(2))
    clean = train(case, x, residual=residual, prenorm=True)
    x[3, 5] = residual[3, 5] = ml_dtypes.finfo(element).max
    fwd = train(case, x, residual=residual, prenorm=True)
    assert np.isinf(fwd.sum[3, 5])
    assert np.isnan(fwd.y[3, 5])
    kept = np.arange(7) != 3
    assert fwd.y[kept].tobytes() == clean.y[kept].tobytes()
    assert fwd.sum[kept].tobytes() == clean.sum[kept].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("case", PLACES, ids=by_name)
def test_the_largest_weights(case: Case, dtype: str) -> None:
    """What they make of small numbers is in range, and of equal ones it is the bias."""
    element = to_dtype(dtype)
    largest = float(ml_dtypes.finfo(element).max)
    rng = np.random.default_rng(26)
    storage = np.float64 if dtype == "float64" else np.float32
    weight = np.full(case.parameters_shape, 0.9 * largest, storage)
    bias = np.full(case.parameters_shape, 0.5, storage)
    x = (0.05 * rng.standard_normal(case.shape)).astype(element)
    options = {"eps": 1.0}  # so that xhat is about x
    y, smaller = (
        train(case, x, w, bias, **options).y.astype(np.float64) for w in (weight, weight / 2**10)
    )
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, smaller * 2**10, rtol=2e-2, atol=largest * 1e-6)
    equal = np.full(case.shape, 0.0 if case.norm == "rms_norm" else 7.0, element)
    assert (train(case, equal, weight, bias).y == element.type(0.5)).all()


@pytest.mark.parametrize("isa", fn._core.isas())
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF80FFFF])
@pytest.mark.parametrize("rows", [5, 4000])  # the latter past the cache
def test_a_nan_of_any_digits_stays_one(rows: int, bits: int, dtype: str, isa: str) -> None:
    """Of some, what rounds a number makes a zero: those of float32 parameters, at one feature."""
    x = np.random.default_rng(11).standard_normal((rows, 320)).astype(to_dtype(dtype))
    weight = np.ones(320, np.float32)
    weight.view(np.uint32)[[1, 300]] = bits
    with on_isa(isa):
        y = fn.layer_norm(x, weight)
    expected = np.zeros(320, bool)
    expected[[1, 300]] = True
    assert (np.isnan(y.astype(np.float32)) == expected).all()


@pytest.mark.parametrize("isa", fn._core.isas())
@pytest.mark.parametrize("rows", [1, 4])
def test_every_upper_half_is_rounded_to_nearest_even(rows: int, isa: str) -> None:
    """A result of float32, a bias here, to bfloat16: with lower halves below, at and above half of
    the last place that stays."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    upper = np.arange(2**16, dtype=np.uint32) << 16
    bias = (upper[:, None] | lower).reshape(-1).view(np.float32)
    x = np.zeros((rows, bias.size), to_dtype("bfloat16"))
    with on_isa(isa), np.errstate(invalid="ignore"):
        y = fn.layer_norm(x, bias=bias)
        expected, is_nan = bias.astype(x.dtype), np.isnan(bias)
        assert (np.isnan(y.astype(np.float32)) == is_nan).all()
    others = ~is_nan & (bias != 0)  # 0 + -0 is 0
    assert (y.view(np.uint16) == expected.view(np.uint16))[:, others].all()
