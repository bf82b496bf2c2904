"""What all norms share; per-something arguments come shaped to broadcast against x."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastnorm.activation import Activation
from fastnorm.reference.activations import Array, Float64, activation_slope


class Forward(NamedTuple):
    """What the forward ops for training return."""

    y: Float64
    mean: Float64
    rstd: Float64


class Gradients(NamedTuple):
    """What the backward ops return; dbias is None of RMS norm without a bias."""

    dx: Float64
    dweight: Float64
    dbias: Float64 | None
    dresidual: Float64 | None


def pre_activation(
    x: Array,
    mean: Float64,
    rstd: Float64,
    weight: Float64 | float,
    bias: Float64 | float,
    residual: Array | bool | None,
) -> Float64:
    """What the activation is of; a residual that is a bool has no values and adds nothing."""
    z = (np.asarray(x, dtype=np.float64) - mean) * rstd * weight + bias
    if residual is not None and not isinstance(residual, bool):
        z = z + np.asarray(residual, dtype=np.float64)
    return z


def variance(x: Array, mean: Float64, axes: tuple[int, ...]) -> Float64:
    """The biased variance over axes, kept with extent 1."""
    centred = np.asarray(x, dtype=np.float64) - mean
    return np.asarray((centred**2).mean(axis=axes, keepdims=True))


def gradients(
    dy: Array,
    x: Array,
    mean: Float64,
    rstd: Float64,
    weight: Float64 | float,
    bias: Float64 | float,
    residual: Array | bool | None,
    activation: str | Activation | None,
    average: Callable[[Float64], Float64] | None,
    parameter_sum: Callable[[Float64], Float64],
    centred: bool = True,
) -> Gradients:
    """The chain rule, where the statistics are those of x or, if average is None, constants.

    average is over what shares a statistic; centred: whether they have a mean that moves with x.
    """
    z = pre_activation(x, mean, rstd, weight, bias, residual)
    g = np.asarray(dy, dtype=np.float64) * activation_slope(z, activation)
    xhat = pre_activation(x, mean, rstd, 1.0, 0.0, None)
    dxhat = g * weight
    if average is not None and x.size > 0:
        of_mean = average(dxhat) if centred else 0.0
        dxhat = dxhat - of_mean - xhat * average(dxhat * xhat)
    had_residual = residual is not None and residual is not False
    dresidual = g if had_residual else None
    return Gradients(dxhat * rstd, parameter_sum(g * xhat), parameter_sum(g), dresidual)
