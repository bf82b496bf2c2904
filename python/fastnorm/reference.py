"""Every op in straight float64 NumPy: the definition that the kernels are tested against.

    z = (x - mean) * rstd * weight + bias + residual,    rstd = 1 / sqrt(var + eps)
    y = activation(z)

Slow on purpose. Arrays of any dtype go in, everything is computed and returned in float64. The
signatures are those of the ops without `out` and `mask`; arguments are not validated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastnorm.activation import Activation, as_activation

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class Forward(NamedTuple):
    """What the forward ops for training return."""

    y: Float64
    mean: Float64
    rstd: Float64


class Gradients(NamedTuple):
    """What the backward ops return."""

    dx: Float64
    dweight: Float64
    dbias: Float64
    dresidual: Float64 | None


# --- activations and their slopes, functions of (z, alpha, beta) ---------------------------------

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


def _gelu_tanh(z: Float64) -> Float64:
    # 0.5 * (1 + tanh(t)) is sigmoid(2 t), without the cancellation below zero.
    return _damped(z, _sigmoid(2.0 * _GELU_TANH_SCALE * (z + _GELU_TANH_CUBIC * z**3)))


def _gelu_tanh_slope(z: Float64) -> Float64:
    s = _sigmoid(2.0 * _GELU_TANH_SCALE * (z + _GELU_TANH_CUBIC * z**3))
    inner = 2.0 * _GELU_TANH_SCALE * (1.0 + 3.0 * _GELU_TANH_CUBIC * z**2)
    return s + _damped(z * inner, s * (1.0 - s))


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


# --- what all norms share: arguments shaped to broadcast against x -------------------------------


def _pre_activation(
    x: Array,
    mean: Float64,
    rstd: Float64,
    weight: Float64 | float,
    bias: Float64 | float,
    residual: Array | bool | None,
) -> Float64:
    z = (np.asarray(x, dtype=np.float64) - mean) * rstd * weight + bias
    if residual is not None and not isinstance(residual, bool):
        z = z + np.asarray(residual, dtype=np.float64)
    return z


def _variance(x: Array, mean: Float64, axes: tuple[int, ...]) -> Float64:
    """The biased variance over axes, kept with extent 1."""
    centred = np.asarray(x, dtype=np.float64) - mean
    return np.asarray((centred**2).mean(axis=axes, keepdims=True))


def _gradients(
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
) -> Gradients:
    """The chain rule; average is over what shares a mean (None: the statistics are constants)."""
    z = _pre_activation(x, mean, rstd, weight, bias, residual)
    g = np.asarray(dy, dtype=np.float64) * activation_slope(z, activation)
    xhat = _pre_activation(x, mean, rstd, 1.0, 0.0, None)
    dxhat = g * weight
    if average is not None and x.size > 0:
        dxhat = dxhat - average(dxhat) - xhat * average(dxhat * xhat)
    had_residual = residual is not None and residual is not False
    dresidual = g if had_residual else None
    return Gradients(dxhat * rstd, parameter_sum(g * xhat), parameter_sum(g), dresidual)


# --- batch normalization (Ioffe & Szegedy 2015) ---------------------------------------------------


def _axes(x: Array, channel_axis: int) -> tuple[int, ...]:
    """The axes that the statistics are taken over: all but the channels."""
    channel = channel_axis % x.ndim
    return tuple(axis for axis in range(x.ndim) if axis != channel)


def _per_channel(values: Array | None, x: Array, channel_axis: int, default: float) -> Float64:
    """Values of shape (C,), or the default, shaped to broadcast against x."""
    if values is None:
        return np.full((1,) * x.ndim, default)
    shape = [1] * x.ndim
    shape[channel_axis] = -1
    return np.asarray(values, dtype=np.float64).reshape(shape)


@np.errstate(all="ignore")
def batch_norm(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    residual: Array | None = None,
    activation: str | Activation | None = None,
) -> Float64:
    """Normalize with given statistics: Algorithm 2, step 11.

    Parameters are those of `fastnorm.batch_norm`; returns y, float64, of x's shape.
    """
    rstd = 1.0 / np.sqrt(np.asarray(var, dtype=np.float64) + eps)
    z = _pre_activation(
        x,
        _per_channel(mean, x, channel_axis, 0.0),
        _per_channel(rstd, x, channel_axis, 1.0),
        _per_channel(weight, x, channel_axis, 1.0),
        _per_channel(bias, x, channel_axis, 0.0),
        residual,
    )
    return activate(z, activation)


@np.errstate(all="ignore")
def batch_norm_train(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    unbiased: bool = True,
    eps: float = 1e-5,
    channel_axis: int = 1,
    residual: Array | None = None,
    activation: str | Activation | None = None,
) -> Forward:
    """Normalize with the statistics of the batch: Algorithm 1.

    Parameters are those of `fastnorm.batch_norm_train`; running_mean and running_var are updated in
    place. Returns y of x's shape, and mean and rstd of shape (C,), all float64.
    """
    channels = x.shape[channel_axis]
    if x.size == 0:
        nothing = np.full(channels, np.nan)
        return Forward(np.zeros(x.shape), nothing, nothing.copy())
    count = x.size // channels
    if count == 1:
        raise ValueError("reference: x has 1 value per channel, expected more than 1")

    x64 = np.asarray(x, dtype=np.float64)
    axes = _axes(x, channel_axis)
    mean = x64.mean(axis=axes)
    var = _variance(x, _per_channel(mean, x, channel_axis, 0.0), axes).reshape(-1)
    rstd = 1.0 / np.sqrt(var + eps)

    if running_mean is not None:
        old = np.asarray(running_mean, dtype=np.float64)
        running_mean[...] = (1.0 - momentum) * old + momentum * mean
    if running_var is not None:
        old = np.asarray(running_var, dtype=np.float64)
        batch_var = var * (count / (count - 1)) if unbiased else var
        running_var[...] = (1.0 - momentum) * old + momentum * batch_var

    z = _pre_activation(
        x,
        _per_channel(mean, x, channel_axis, 0.0),
        _per_channel(rstd, x, channel_axis, 1.0),
        _per_channel(weight, x, channel_axis, 1.0),
        _per_channel(bias, x, channel_axis, 0.0),
        residual,
    )
    return Forward(activate(z, activation), mean, rstd)


@np.errstate(all="ignore")
def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    training: bool = True,
    channel_axis: int = 1,
    residual: Array | bool | None = None,
    activation: str | Activation | None = None,
) -> Gradients:
    """The chain rule through `batch_norm_train`, or through `batch_norm` when not training.

    Parameters are those of `fastnorm.batch_norm_backward`; without an activation residual may be
    True: there was one. Returns dx and dresidual (None without a residual) of x's shape, dweight
    and dbias of shape (C,), all float64. The formulas are those of section 3 of the paper.
    """
    axes = _axes(x, channel_axis)
    return _gradients(
        dy,
        x,
        _per_channel(mean, x, channel_axis, 0.0),
        _per_channel(rstd, x, channel_axis, 1.0),
        _per_channel(weight, x, channel_axis, 1.0),
        _per_channel(bias, x, channel_axis, 0.0),
        residual,
        activation,
        (lambda a: a.mean(axis=axes, keepdims=True)) if training else None,
        lambda a: np.asarray(a.sum(axis=axes)),
    )


# --- group normalization (Wu & He 2018), and instance normalization, where each channel is a group


def _group_means(a: Array, groups: int, channel_axis: int) -> Float64:
    """The mean of each group of each sample: shape (N, groups)."""
    first = np.moveaxis(np.asarray(a, dtype=np.float64), channel_axis, 1)
    return np.asarray(first.reshape(a.shape[0], groups, -1).mean(axis=2))


def _per_group(values: Array, x: Array, channel_axis: int) -> Float64:
    """Values of shape (N, groups), shaped to broadcast against x."""
    channels = x.shape[channel_axis]
    repeats = channels // max(values.shape[1], 1)
    shape = [1] * x.ndim
    shape[0], shape[channel_axis] = x.shape[0], channels
    return np.repeat(np.asarray(values, dtype=np.float64), repeats, axis=1).reshape(shape)


@np.errstate(all="ignore")
def group_norm_train(
    x: Array,
    groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    residual: Array | None = None,
    activation: str | Activation | None = None,
) -> Forward:
    """Normalize each sample by itself, in groups of neighbouring channels: section 3.1.

    Parameters are those of `fastnorm.group_norm_train`. Returns y of x's shape, and mean and rstd
    of shape (N, groups), all float64.
    """
    if x.size == 0:
        nothing = np.full((x.shape[0], groups), np.nan)
        return Forward(np.zeros(x.shape), nothing, nothing.copy())
    mean = _group_means(x, groups, channel_axis)
    centred = np.asarray(x, dtype=np.float64) - _per_group(mean, x, channel_axis)
    rstd = 1.0 / np.sqrt(_group_means(centred**2, groups, channel_axis) + eps)
    z = _pre_activation(
        x,
        _per_group(mean, x, channel_axis),
        _per_group(rstd, x, channel_axis),
        _per_channel(weight, x, channel_axis, 1.0),
        _per_channel(bias, x, channel_axis, 0.0),
        residual,
    )
    return Forward(activate(z, activation), mean, rstd)


def group_norm(
    x: Array,
    groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    **options: Any,
) -> Float64:
    """The y of `group_norm_train`."""
    return group_norm_train(x, groups, weight, bias, **options).y


@np.errstate(all="ignore")
def group_norm_backward(
    dy: Array,
    x: Array,
    groups: int,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    residual: Array | bool | None = None,
    activation: str | Activation | None = None,
) -> Gradients:
    """The chain rule through `group_norm_train`; as `batch_norm_backward`."""
    axes = _axes(x, channel_axis)

    def average(a: Float64) -> Float64:
        return _per_group(_group_means(a, groups, channel_axis), x, channel_axis)

    return _gradients(
        dy,
        x,
        _per_group(mean, x, channel_axis),
        _per_group(rstd, x, channel_axis),
        _per_channel(weight, x, channel_axis, 1.0),
        _per_channel(bias, x, channel_axis, 0.0),
        residual,
        activation,
        average,
        lambda a: np.asarray(a.sum(axis=axes)),
    )


@np.errstate(all="ignore")
def instance_norm_train(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    unbiased: bool = True,
    eps: float = 1e-5,
    channel_axis: int = 1,
    **options: Any,
) -> Forward:
    """Normalize each channel of each sample by itself.

    Parameters are those of `fastnorm.instance_norm_train`; running_mean and running_var are updated
    in place with the averages over all samples.
    """
    channels = x.shape[channel_axis]
    fwd = group_norm_train(x, channels, weight, bias, eps=eps, channel_axis=channel_axis, **options)
    if x.size == 0:
        return fwd
    if running_mean is not None:
        old = np.asarray(running_mean, dtype=np.float64)
        running_mean[...] = (1.0 - momentum) * old + momentum * fwd.mean.mean(axis=0)
    if running_var is not None:
        old = np.asarray(running_var, dtype=np.float64)
        centred = np.asarray(x, dtype=np.float64) - _per_group(fwd.mean, x, channel_axis)
        var = _group_means(centred**2, channels, channel_axis).mean(axis=0)
        count = x.size // (x.shape[0] * channels)
        batch_var = var * (count / (count - 1)) if unbiased else var
        running_var[...] = (1.0 - momentum) * old + momentum * batch_var
    return fwd


def instance_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, **options: Any
) -> Float64:
    """The y of `instance_norm_train`."""
    return instance_norm_train(x, weight, bias, **options).y


def instance_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    **options: Any,
) -> Gradients:
    """The chain rule through `instance_norm_train`; as `batch_norm_backward`."""
    channels = x.shape[channel_axis]
    return group_norm_backward(
        dy, x, channels, mean, rstd, weight, bias, channel_axis=channel_axis, **options
    )


# --- layer normalization (Ba, Kiros & Hinton 2016), RMS normalization (Zhang & Sennrich 2019) -----


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

    Parameters are those of `fastnorm.layer_norm_train`; the sum of prenorm is of x's dtype.
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
    """Normalize each row by its root mean square: equation 4. The mean that is returned is 0."""
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
    """The y of `layer_norm_train`, and the sum with prenorm."""
    fwd = layer_norm_train(x, weight, bias, **options)
    return fwd.y if fwd.sum is None else (fwd.y, fwd.sum)


def rms_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, **options: Any
) -> Any:
    """The y of `rms_norm_train`, and the sum with prenorm."""
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
    rows = tuple(range(first))
    weights = _weights(weight, weight_offset)
    centre = _per_row(np.zeros(x.shape[:first]) if mean is None else mean, x)
    scale = _per_row(rstd, x)
    z = _pre_activation(x, centre, scale, weights, _biases(bias), residual)
    g = np.asarray(dy, dtype=np.float64) * activation_slope(z, activation)
    xhat = (np.asarray(x, dtype=np.float64) - centre) * scale
    gw = g * weights
    dx = np.zeros(x.shape)
    if x.size > 0:
        dx = gw - xhat * (gw * xhat).mean(axis=axes, keepdims=True)
        if mean is not None:
            dx = dx - gw.mean(axis=axes, keepdims=True)
        dx = dx * scale
    if dsum is not None:
        dx = dx + np.asarray(dsum, dtype=np.float64)
    had_residual = residual is not None and residual is not False
    dresidual = g if had_residual else None
    return Gradients(dx, (g * xhat).sum(axis=rows), g.sum(axis=rows), dresidual)


def rms_norm_backward(
    dy: Array,
    x: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    **options: Any,
) -> Gradients:
    """The chain rule through `rms_norm_train`; as `layer_norm_backward`."""
    return layer_norm_backward(dy, x, None, rstd, weight, bias, **options)
