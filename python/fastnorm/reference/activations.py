"""The activations and their slopes, functions of (z, alpha, beta)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastnorm.activation import Activation, as_activation

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_GELU_TANH_SCALE = math.sqrt(2.0 / math.pi)
_GELU_TANH_CUBIC = 0.044715


def _sigmoid(z: Float64) -> Float64:
    return 1.0 / (1.0 + np.exp(-z))


def _damped(z: Float64, factor: Float64) -> Float64:
    """z * factor in the limit: 0 where the factor has vanished, for an infinite z too."""
    return np.where(factor == 0.0, 0.0, z * factor)


def _normal_cdf(z: Float64) -> Float64:
    # erfc, not 1 + erf: this keeps its relative accuracy far below zero.
    return np.asarray(0.5 * _erfc(-z / math.sqrt(2.0)), dtype=np.float64)


def _normal_pdf(z: Float64) -> Float64:
    return np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _gelu_tanh_argument(z: Float64) -> Float64:
    # 0.5 * (1 + tanh(t)) is sigmoid(2 t), without the cancellation below zero.
    return 2.0 * _GELU_TANH_SCALE * (z + _GELU_TANH_CUBIC * z**3)


def _gelu_tanh(z: Float64) -> Float64:
    return _damped(z, _sigmoid(_gelu_tanh_argument(z)))


def _gelu_tanh_slope(z: Float64) -> Float64:
    u = _gelu_tanh_argument(z)
    inner = 2.0 * _GELU_TANH_SCALE * (1.0 + 3.0 * _GELU_TANH_CUBIC * z**2)
    return _sigmoid(u) + _damped(z * inner, _sigmoid(u) * _sigmoid(-u))


def _hardswish_slope(z: Float64) -> Float64:
    return np.where(z <= -3.0, 0.0, np.where(z >= 3.0, 1.0, z / 3.0 + 0.5))


Function = Callable[[Float64, float, float], Float64]

# name: (value, slope). The slopes of relu, leaky_relu and clip at a kink are those of the flat (or
# the shallow) side, so that the comparison below is also the one that the saved mask holds.
_ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "relu": (
        lambda z, a, b: np.where(z <= 0.0, 0.0, z),
        lambda z, a, b: np.where(z <= 0.0, 0.0, 1.0),
    ),
    "leaky_relu": (
        lambda z, a, b: np.where(z <= 0.0, a * z, z),
        lambda z, a, b: np.where(z <= 0.0, a, 1.0),
    ),
    "clip": (
        lambda z, a, b: np.where(z <= a, a, np.where(z >= b, b, z)),
        lambda z, a, b: np.where((z <= a) | (z >= b), 0.0, 1.0),
    ),
    "sigmoid": (
        lambda z, a, b: _sigmoid(z),
        lambda z, a, b: _sigmoid(z) * _sigmoid(-z),
    ),
    "tanh": (
        lambda z, a, b: np.tanh(z),
        lambda z, a, b: 1.0 - np.tanh(z) ** 2,
    ),
    "silu": (
        lambda z, a, b: _damped(z, _sigmoid(z)),
        lambda z, a, b: _sigmoid(z) + _damped(z, _sigmoid(z) * _sigmoid(-z)),
    ),
    "gelu": (
        lambda z, a, b: _damped(z, _normal_cdf(z)),
        lambda z, a, b: _normal_cdf(z) + _damped(z, _normal_pdf(z)),
    ),
    "gelu_tanh": (
        lambda z, a, b: _gelu_tanh(z),
        lambda z, a, b: _gelu_tanh_slope(z),
    ),
    "hardswish": (
        lambda z, a, b: _damped(z, np.clip(z + 3.0, 0.0, 6.0) / 6.0),
        lambda z, a, b: _hardswish_slope(z),
    ),
}


@np.errstate(all="ignore")
def activate(z: Array, activation: str | Activation | None) -> Float64:
    """activation(z), element by element."""
    z64 = np.asarray(z, dtype=np.float64)
    act = as_activation(activation, "reference")
    return z64 if act is None else _ACTIVATIONS[act.name][0](z64, act.alpha, act.beta)


@np.errstate(all="ignore")
def activation_slope(z: Array, activation: str | Activation | None) -> Float64:
    """The derivative of activation at z, element by element."""
    z64 = np.asarray(z, dtype=np.float64)
    act = as_activation(activation, "reference")
    return np.ones_like(z64) if act is None else _ACTIVATIONS[act.name][1](z64, act.alpha, act.beta)
