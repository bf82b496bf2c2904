"""The norms with a weight for each channel: batch, group and instance norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnorm.activation import Activation
from fastnorm.reference.activations import Array, Float64, activate
from fastnorm.reference.rule import Forward, Gradients, gradients, pre_activation, variance

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


def _update(running: Array | None, value: Float64, momentum: float) -> None:
    """Move a running statistic, where there is one, towards a value."""
    if running is not None:
        running[...] = (1.0 - momentum) * np.asarray(running, dtype=np.float64) + momentum * value


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
    z = pre_activation(
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
    var = variance(x, _per_channel(mean, x, channel_axis, 0.0), axes).reshape(-1)
    rstd = 1.0 / np.sqrt(var + eps)

    _update(running_mean, mean, momentum)
    _update(running_var, var * (count / (count - 1)) if unbiased else var, momentum)
    z = pre_activation(
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
    return gradients(
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
    z = pre_activation(
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

    return gradients(
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
    _update(running_mean, fwd.mean.mean(axis=0), momentum)
    if running_var is not None:
        centred = np.asarray(x, dtype=np.float64) - _per_group(fwd.mean, x, channel_axis)
        var = _group_means(centred**2, channels, channel_axis).mean(axis=0)
        count = x.size // (x.shape[0] * channels)
        _update(running_var, var * (count / (count - 1)) if unbiased else var, momentum)
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
