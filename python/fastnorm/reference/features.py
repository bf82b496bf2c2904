"""The norms of rows, with a weight for each of their elements: layer and RMS norm.

Layer normalization is that of Ba, Kiros & Hinton 2016, RMS normalization that of Zhang & Sennrich
2019.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastnorm.activation import Activation
from fastnorm.reference.activations import Array, Float64, activate
from fastnorm.reference.rule import Gradients, gradients


class FeatureNormForward(NamedTuple):
    """What `layer_norm_train` and `rms_norm_train` return."""

    y: Float64
    mean: Float64
    rstd: Float64
    sum: Array | None


def _per_row(values: Array, x: Array) -> Float64:
    """Values of shape x.shape[:axis], shaped to broadcast against x."""
    wide = np.asarray(values, dtype=np.float64)
    return wide.reshape(wide.shape + (1,) * (x.ndim - wide.ndim))


def _weights(weight: Array | None, offset: float) -> Float64:
    return np.ones(()) if weight is None else np.asarray(weight, dtype=np.float64) + offset


def _biases(bias: Array | None) -> Float64:
    return np.zeros(()) if bias is None else np.asarray(bias, dtype=np.float64)


def _rows(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    axis: int,
    eps: float,
    residual: Array | None,
    prenorm: bool,
    weight_offset: float,
    activation: str | Activation | None,
    centred: bool,
    cast_before_weight: bool,
) -> FeatureNormForward:
    added = None
    if prenorm:
        total = np.asarray(x, np.float64) + np.asarray(residual, np.float64)
        x, added, residual = total.astype(x.dtype), total.astype(x.dtype), None
    axes = tuple(range(axis % x.ndim, x.ndim))
    x64 = np.asarray(x, dtype=np.float64)
    mean = x64.mean(axis=axes) if centred else np.zeros(x.shape[: axis % x.ndim])
    rstd = 1.0 / np.sqrt(((x64 - _per_row(mean, x)) ** 2).mean(axis=axes) + eps)
    xhat = (x64 - _per_row(mean, x)) * _per_row(rstd, x)
    if cast_before_weight:
        xhat = np.asarray(xhat.astype(x.dtype), dtype=np.float64)
    z = xhat * _weights(weight, weight_offset) + _biases(bias)
    if residual is not None:
        z = z + np.asarray(residual, dtype=np.float64)
    return FeatureNormForward(activate(z, activation), mean, rstd, added)


@np.errstate(all="ignore")
def layer_norm_train(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
    eps: float = 1e-5,
    residual: Array | None = None,
    prenorm: bool = False,
    weight_offset: float = 0.0,
    activation: str | Activation | None = None,
) -> FeatureNormForward:
    """Normalize each row by its own mean and variance: equations 3 and 4.

    ``y = activation((x - mean) / sqrt(var + eps) * (weight + weight_offset) + bias + residual)``,
    over the axes from `axis` on; with `prenorm`, x is first ``sum = x + residual``, rounded to x's
    dtype, and nothing is added behind. Parameters are those of `fastnorm.layer_norm_train`.
    """
    return _rows(
        x, weight, bias, axis, eps, residual, prenorm, weight_offset, activation, True, False
    )


@np.errstate(all="ignore")
def rms_norm_train(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
    eps: float = 1e-5,
    residual: Array | None = None,
    prenorm: bool = False,
    weight_offset: float = 0.0,
    cast_before_weight: bool = False,
    activation: str | Activation | None = None,
) -> FeatureNormForward:
    """Normalize each row by its root mean square: equation 4.

    ``y = activation(x / sqrt(avg(x ** 2) + eps) * (weight + weight_offset) + bias + residual)``;
    `cast_before_weight` rounds the quotient to x's dtype. Else as `layer_norm_train`; the mean that
    is returned is 0.
    """
    return _rows(
        x,
        weight,
        bias,
        axis,
        eps,
        residual,
        prenorm,
        weight_offset,
        activation,
        False,
        cast_before_weight,
    )


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, **options: Any
) -> Any:
    """The y of `layer_norm_train`, whose options it takes, and the sum with prenorm."""
    fwd = layer_norm_train(x, weight, bias, **options)
    return fwd.y if fwd.sum is None else (fwd.y, fwd.sum)


def rms_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, **options: Any
) -> Any:
    """The y of `rms_norm_train`, whose options it takes, and the sum with prenorm."""
    fwd = rms_norm_train(x, weight, bias, **options)
    return fwd.y if fwd.sum is None else (fwd.y, fwd.sum)


@np.errstate(all="ignore")
def layer_norm_backward(
    dy: Array,
    x: Array,
    mean: Array | None,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
    residual: Array | bool | None = None,
    dsum: Array | None = None,
    weight_offset: float = 0.0,
    activation: str | Activation | None = None,
) -> Gradients:
    """The chain rule through `layer_norm_train`, or through `rms_norm_train` where mean is None."""
    first = axis % x.ndim
    axes = tuple(range(first, x.ndim))
    centre = _per_row(np.zeros(x.shape[:first]) if mean is None else mean, x)
    grads = gradients(
        dy,
        x,
        centre,
        _per_row(rstd, x),
        _weights(weight, weight_offset),
        _biases(bias),
        residual,
        activation,
        lambda a: a.mean(axis=axes, keepdims=True),
        lambda a: a.sum(axis=tuple(range(first))),
        centred=mean is not None,
    )
    if dsum is None:
        return grads
    return grads._replace(dx=grads.dx + np.asarray(dsum, dtype=np.float64))


def rms_norm_backward(
    dy: Array,
    x: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    **options: Any,
) -> Gradients:
    """The chain rule through `rms_norm_train`; as `layer_norm_backward`."""
    grads = layer_norm_backward(dy, x, None, rstd, weight, bias, **options)
    return grads._replace(dbias=None) if bias is None else grads
