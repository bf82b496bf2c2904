"""Values and slopes of the smooth activations, as close as cpp/core/activations.h says.

batch_norm with a mean of 0 and a variance of 1 is the activation alone, and its backward pass with
constant statistics, for a dy of 1, the slope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import ACTIVATIONS
from checks import on_isa
from fastnorm import reference

Array = npt.NDArray[Any]

SMOOTH = [a for a in ACTIVATIONS if a not in ("relu", "leaky_relu", "clip")]
RELATIVE = ["sigmoid", "tanh", "silu", "gelu"]
ULPS = 6  # against float64, whose own reference takes two of double's
# Where a factor turns subnormal: exp(-z) or exp(-z^2 / 2); and in double, where the reference's own
# rounding of z / sqrt(2), which counts z^2 times, is more than is looked for.
LOWEST = {
    "float32": {"sigmoid": -87.0, "silu": -87.0, "gelu": -13.0},
    "float64": {"sigmoid": -708.0, "silu": -708.0, "gelu": -1.0},
}


@pytest.fixture(params=fn._core.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_isa(request.param) as name:
        yield name


def points(dtype: str) -> Array:
    """Of every exponent below 2^10, and as many again between -110 and 110; not whole packs."""
    rng = np.random.default_rng(1)
    info = np.finfo(dtype)
    exponents = rng.uniform(info.minexp, 10, 40_001)
    signs = rng.choice([-1.0, 1.0], exponents.size)
    wide = signs * np.exp2(exponents)
    near = rng.uniform(-110, 110, exponents.size)
    limits = [0.0, -0.0, np.inf, -np.inf, info.max, info.min, info.smallest_subnormal]
    return np.concatenate([wide, near, limits]).astype(dtype)


def value(x: Array, activation: str) -> Array:
    zero, one = np.zeros(1, x.dtype), np.ones(1, x.dtype)
    y = fn.batch_norm(x.reshape(1, 1, -1), zero, one, eps=0.0, activation=activation)
    return y.ravel()


def slope(x: Array, activation: str) -> Array:
    zero, one = np.zeros(1, x.dtype), np.ones(1, x.dtype)
    row = x.reshape(1, 1, -1)
    grads = fn.batch_norm_backward(
        np.ones_like(row), row, zero, one, training=False, activation=activation
    )
    return grads.dx.ravel()


def ulps(found: Array, expected: Array) -> Array:
    """Distances in units of the last place of what is expected, as the dtype has it."""
    info = np.finfo(found.dtype)
    size = np.maximum(np.abs(expected), float(info.smallest_normal))
    unit = np.exp2(np.floor(np.log2(size)) - info.nmant)
    return np.abs(found.astype(np.float64) - expected) / unit


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize(
    ("of", "expected"),
    [(value, reference.activate), (slope, reference.activation_slope)],
    ids=["value", "slope"],
)
def test_error_relative_to_one(
    of: Callable[[Array, str], Array],
    expected: Callable[[Array, str], Array],
    activation: str,
    dtype: str,
) -> None:
    x = points(dtype)
    found = of(x, activation).astype(np.float64)
    with np.errstate(all="ignore"):
        exact = expected(x, activation)
        same = found == exact.astype(dtype)  # infinities, and what rounds to one
        limit = 2 * np.finfo(dtype).eps * np.maximum(1.0, np.abs(exact))
        assert np.all(same | (np.abs(found - exact) <= limit))


def tail_slope(x: Array, activation: str) -> Array:
    """Slopes with their digits where 1 - tanh^2 has none left."""
    z = x.astype(np.float64) * (2 if activation == "tanh" else 1)
    with np.errstate(over="ignore"):
        product = 1 / (1 + np.exp(-z)) / (1 + np.exp(z))
    return product * (4 if activation == "tanh" else 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", RELATIVE)
def test_error_relative_to_the_value(activation: str, dtype: str, isa: str) -> None:
    if activation == "gelu" and isa == "baseline":
        pytest.skip("promised with fused multiply-adds")
    x = points(dtype)
    x = x[np.isfinite(x) & (x > LOWEST[dtype].get(activation, -np.inf))]
    with np.errstate(all="ignore"):
        exact = reference.activate(x, activation)
    assert ulps(value(x, activation), exact).max() <= ULPS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_slopes_keep_their_digits_in_both_tails(activation: str, dtype: str) -> None:
    x = points(dtype)
    x = x[np.abs(x) < (42.0 if dtype == "float32" else 350.0)]
    assert ulps(slope(x, activation), tail_slope(x, activation)).max() <= ULPS
