"""How far a result may be from the float64 reference, derived, not tuned.

Notation: u is the unit roundoff of the accumulation type (2^-24 for float32 and the 16-bit types,
2^-53 for float64), plus two of float64's for the reference's own errors; s that of x's dtype.

Forward, one element, t = (x - mean) * rstd * weight and z = t + bias + residual:

- x - mean (two subtractions), rstd * weight (rounded twice at most) and the product: 5 u |t|;
- adding bias and residual: each rounds a partial sum, none above |t| + |bias| + |residual|.

Hence |dz| <= 8 u (|t| + |bias| + |residual|). Statistics taken from the batch add an error of the
mean of 8 u standard deviations and a relative one of rstd of 8 u (16 u for the variance, within the
promised 1e-6): 8 u |weight| (1 + |xhat|). For the 16-bit types mean is rounded to float32 (the
kernels then work with the rounded one): u |mean| rstd |weight| more. The reference's own mean, a
float64 sum, is wrong by some 2^-53 |mean|: 16 of those.

The activation passes dz on times its largest slope, a smooth one is itself computed to 8 u of
1 + |z|, and storing y rounds: s |y|, or half the smallest subnormal.

Backward, g = dy * slope(z): a smooth slope changes by at most 2 dz (no second derivative exceeds 2)
and is computed to 8 u, and the product rounds. At a kink the slope jumps: tests set dy = 0 where z
is within dz of one (`near_kink`). Sums over n values: blocks of float32 sums, merged in float64,
16 u of the sum of magnitudes (adding b numbers of one sign in turn is off by about u sqrt(b) of
their sum, and a lane's block is below 256 numbers), plus the sum of the errors of the terms.
dx = weight * rstd * (g - mean(g) - xhat * mean(g * xhat)): the errors of the three terms, and 8 u
of their magnitudes for the arithmetic. mean and rstd are the same in op and reference, save for the
rounding of x - mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

import fastnorm as fn
from fastnorm import reference
from fastnorm.activation import as_activation

Array = npt.NDArray[Any]

# Errors of batch statistics, in units of u: the mean in standard deviations, rstd relatively.
STATISTIC = 8.0
ARITHMETIC = 8.0
SUM = 16.0
KINKED = ("relu", "leaky_relu", "clip")


def unit_roundoff(dtype: npt.DTypeLike) -> float:
    """Half the distance from 1 to the next number."""
    return 0.5 * float(ml_dtypes.finfo(np.dtype(dtype)).eps)


def accumulation_roundoff(dtype: npt.DTypeLike) -> float:
    """The u of the derivation above."""
    wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    return unit_roundoff(wide) + 2.0 * unit_roundoff(np.float64)


def rounding(value: Array, dtype: npt.DTypeLike) -> Array:
    """The error of storing a value in dtype."""
    tiny = 0.5 * float(ml_dtypes.finfo(np.dtype(dtype)).smallest_subnormal)
    return unit_roundoff(dtype) * np.abs(value) + tiny


def kinks(activation: str | fn.Activation | None) -> tuple[float, ...]:
    """Where the slope jumps."""
    act = as_activation(activation, "tolerances")
    if act is None:
        return ()
    table = {
        "relu": (0.0,),
        "leaky_relu": (0.0,),
        "clip": (act.alpha, act.beta),
        "hardswish": (-3.0, 3.0),
    }
    return table.get(act.name, ())


def _largest_slope(activation: str | fn.Activation | None) -> float:
    act = as_activation(activation, "tolerances")
    return 1.5 if act is None else max(1.5, abs(act.alpha) if act.name == "leaky_relu" else 0.0)


def _smooth(activation: str | fn.Activation | None) -> bool:
    act = as_activation(activation, "tolerances")
    return act is not None and act.name not in KINKED


class Normalized(NamedTuple):
    """xhat and z in float64, z's error, and the parameters shaped to broadcast against x."""

    xhat: Array
    z: Array
    z_error: Array
    weight: Array
    rstd: Array


@np.errstate(all="ignore")
def normalized_by(
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array,
    bias: Array,
    *,
    residual: Array | bool | None = None,
    own_statistics: bool = False,
) -> Normalized:
    """z = (x - mean) * rstd * weight + bias + residual, with the bound on its error.

    All but residual are float64 and broadcast against x.
    """
    u = accumulation_roundoff(x.dtype)
    added = residual.astype(np.float64) if isinstance(residual, np.ndarray) else np.zeros(())
    xhat = (x.astype(np.float64) - mean) * rstd
    magnitude = np.abs(xhat * weight) + np.abs(bias) + np.abs(added)
    error = ARITHMETIC * u * magnitude
    if own_statistics:
        error = error + STATISTIC * u * np.abs(weight) * (1.0 + np.abs(xhat))
        own = u if x.dtype.itemsize == 2 else 0.0
        error = error + (own + 16.0 * unit_roundoff(np.float64)) * np.abs(mean * rstd * weight)
    return Normalized(xhat, xhat * weight + bias + added, error, weight, rstd)


def normalized(
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    residual: Array | bool | None = None,
    channel_axis: int = 1,
    batch_statistics: bool = False,
) -> Normalized:
    """`normalized_by` of values per channel."""
    shape = [1] * x.ndim
    shape[channel_axis] = -1

    def wide(values: Array | None, default: float) -> Array:
        return np.asarray(default if values is None else values, np.float64).reshape(
            (1,) * x.ndim if values is None else shape
        )

    return normalized_by(
        x,
        wide(mean, 0.0),
        wide(rstd, 1.0),
        wide(weight, 1.0),
        wide(bias, 0.0),
        residual=residual,
        own_statistics=batch_statistics,
    )


@np.errstate(all="ignore")
def output_tolerance(
    n: Normalized, activation: str | fn.Activation | None, dtype: npt.DTypeLike
) -> Array:
    """The tolerance of y = activation(z), stored in dtype."""
    error = _largest_slope(activation) * n.z_error
    if _smooth(activation):
        error = error + ARITHMETIC * accumulation_roundoff(dtype) * (1.0 + np.abs(n.z))
    return error + rounding(np.abs(reference.activate(n.z, activation)) + error, dtype)


def near_kink(n: Normalized, activation: str | fn.Activation | None) -> Array:
    """Where rounding decides which side of a kink z falls on."""
    near = np.zeros(n.z.shape, bool)
    for kink in kinks(activation):
        near |= np.abs(n.z - kink) <= n.z_error
    return near


class GradientTolerances(NamedTuple):
    """One array a gradient, of its shape."""

    dx: Array
    dweight: Array
    dbias: Array
    dresidual: Array


@np.errstate(all="ignore")
def gradient_tolerances_by(
    dy: Array,
    n: Normalized,
    expected: reference.Gradients,
    activation: str | fn.Activation | None,
    *,
    average: Callable[[Array], Array] | None,
    parameter_sum: Callable[[Array], Array],
    parameter_dtype: npt.DTypeLike = np.float32,
) -> GradientTolerances:
    """The tolerances of a backward op, around the reference's gradients.

    average is over what shares a mean, None where the statistics are constants; parameter_sum over
    what shares a weight. mean and rstd, which n was made with, are taken as exact: op and reference
    get the same.
    """
    dtype = dy.dtype
    u = accumulation_roundoff(dtype)
    dy_magnitude = np.abs(dy.astype(np.float64))
    g = dy_magnitude * np.abs(reference.activation_slope(n.z, activation))
    g_error = 2.0 * u * g
    if _smooth(activation):
        g_error = g_error + dy_magnitude * (2.0 * n.z_error + ARITHMETIC * u)
    xhat, weight = np.abs(n.xhat), np.abs(n.weight)
    term_error = g_error + SUM * u * g
    dbias_error = parameter_sum(term_error)
    dweight_error = parameter_sum(term_error * xhat)
    dbias = 0.0 if expected.dbias is None else np.abs(expected.dbias)

    dx_error = weight * (g_error + ARITHMETIC * u * g)
    if average is not None:
        mean_g, mean_g_xhat = average(weight * g), average(weight * g * xhat)
        dx_error = dx_error + ARITHMETIC * u * (mean_g + xhat * mean_g_xhat)
        weighted = weight * term_error
        dx_error = dx_error + average(weighted) + xhat * average(weighted * xhat)
    dx_error = np.abs(n.rstd) * dx_error
    return GradientTolerances(
        dx=dx_error + rounding(np.abs(expected.dx) + dx_error, dtype),
        dweight=dweight_error + rounding(np.abs(expected.dweight) + dweight_error, parameter_dtype),
        dbias=dbias_error + rounding(dbias + dbias_error, parameter_dtype),
        dresidual=g_error + rounding(g + g_error, dtype),
    )


def gradient_tolerances(
    dy: Array,
    n: Normalized,
    expected: reference.Gradients,
    activation: str | fn.Activation | None,
    *,
    channel_axis: int = 1,
    training: bool = True,
    parameter_dtype: npt.DTypeLike = np.float32,
) -> GradientTolerances:
    """Those of `batch_norm_backward`."""
    channel = channel_axis % dy.ndim
    axes = tuple(axis for axis in range(dy.ndim) if axis != channel)
    count = max(dy.size // max(dy.shape[channel], 1), 1)
    return gradient_tolerances_by(
        dy,
        n,
        expected,
        activation,
        average=(lambda a: a.sum(axis=axes, keepdims=True) / count) if training else None,
        parameter_sum=lambda a: np.asarray(a.sum(axis=axes)),
        parameter_dtype=parameter_dtype,
    )


def statistic_tolerances(x_dtype: npt.DTypeLike, mean: Array, rstd: Array) -> tuple[Array, Array]:
    """The tolerances of the returned mean and rstd."""
    u = accumulation_roundoff(x_dtype)
    stored = np.dtype(np.float32 if np.dtype(x_dtype).itemsize == 2 else np.float64)
    own = 16.0 * unit_roundoff(np.float64) * np.abs(mean)
    mean_tolerance = STATISTIC * u / rstd + own + rounding(mean, stored)
    # The reference's mean, wrong by `own`, makes its variance wrong by own^2: of no account.
    return mean_tolerance, STATISTIC * u * rstd + rounding(rstd, stored)


def assert_close(actual: Array, expected: Array, tolerance: Array, what: str = "") -> None:
    """Each element of actual is within tolerance of expected; NaN and infinities must agree."""
    assert actual.shape == expected.shape, what
    wide = actual.astype(np.float64)
    with np.errstate(all="ignore"):
        stored = expected.astype(actual.dtype).astype(np.float64)
        good = np.abs(wide - expected) <= tolerance
    good |= np.isnan(wide) & np.isnan(expected)
    good |= np.isinf(wide) & (wide == stored)
    if not good.all():
        excess = np.where(good, 0.0, np.abs(wide - expected))
        excess = np.where(np.isnan(excess), np.inf, excess)
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        limit = np.broadcast_to(tolerance, wide.shape)[worst]
        raise AssertionError(
            f"{what}: {np.count_nonzero(~good)} of {good.size} elements are off, the worst at "
            f"{tuple(int(i) for i in worst)}: {wide[worst]!r}, expected {expected[worst]!r} "
            f"within {limit!r}"
        )
