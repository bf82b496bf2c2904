"""Instance normalization."""

from __future__ import annotations

from typing import Any

from fastnorm import _core, cuda
from fastnorm.activation import Activation, as_activation
from fastnorm.functional.results import Array, NormForward, NormGradients


def instance_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    residual: Array | None = None,
    activation: str | Activation | None = None,
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> Array:
    """Instance normalization: each channel of each sample by itself.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, with the mean and
    the biased variance of each channel of each sample. With running statistics instead of x's own
    it is `batch_norm`.

    Parameters
    ----------
    x : array
        3 to 5 dimensions, samples on the first axis; float32, float64, float16 or bfloat16. A
        channel of one value gives ``activation(bias + residual)``. Squares of float64 overflow as
        in `batch_norm_train`.
    weight, bias : ndarray of shape (C,), optional
        Any of the four dtypes.
    eps, channel_axis, residual, activation, out, stream, device
        As in `group_norm`.

    Returns
    -------
    ndarray
        y, of x's shape, dtype and memory layout (or `out`).

    Raises
    ------
    ValueError, TypeError, CudaError
        As `batch_norm` does.

    References
    ----------
    .. [1] D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance Normalization: The Missing Ingredient
       for Fast Stylization", 2016, https://arxiv.org/abs/1607.08022, section 2.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("instance_norm", instance_norm, device, given)
    return _core.instance_norm(
        x,
        weight,
        bias,
        eps,
        channel_axis,
        residual,
        as_activation(activation, "instance_norm"),
        out,
        stream,
    )


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
    residual: Array | None = None,
    activation: str | Activation | None = None,
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> NormForward:
    """`instance_norm` that returns what its backward needs, too.

    Parameters
    ----------
    x, weight, bias, eps, channel_axis, residual, activation, out, stream, device
        As in `instance_norm`.
    running_mean, running_var : ndarray of shape (C,), optional
        Any of the four dtypes; updated in place:
        ``running = (1 - momentum) * running + momentum * average``, of a channel's means, or its
        variances, in all samples.
    momentum : float
        The weight of the new average, from 0 to 1.
    unbiased : bool
        Whether running_var takes unbiased variances, which needs more than one value per channel.

    Returns
    -------
    NormForward
        ``(y, mean, rstd, mask)``; mean and rstd have shape (N, C).

    Raises
    ------
    ValueError, TypeError, CudaError
        As `instance_norm` does.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("instance_norm_train", instance_norm_train, device, given)
    return NormForward(
        *_core.instance_norm_train(
            x,
            weight,
            bias,
            running_mean,
            running_var,
            momentum,
            unbiased,
            eps,
            channel_axis,
            residual,
            as_activation(activation, "instance_norm_train"),
            out,
            stream,
        )
    )


def instance_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel_axis: int = 1,
    residual: Array | bool | None = None,
    activation: str | Activation | None = None,
    mask: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> NormGradients:
    """The gradients of instance normalization.

    As those of `group_norm_backward` with as many groups as channels.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, of x's shape and dtype.
    x, weight, bias, channel_axis, activation
        Those of the forward pass.
    mean, rstd : ndarray of shape (N, C)
        Those that `instance_norm_train` returned.
    residual, mask, out, stream, device
        As in `batch_norm_backward`.

    Returns
    -------
    NormGradients
        ``(dx, dweight, dbias, dresidual)``.

    Raises
    ------
    ValueError, TypeError, CudaError
        As `instance_norm` does, and ValueError for the mask of another x or activation.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("instance_norm_backward", instance_norm_backward, device, given)
    return NormGradients(
        *_core.instance_norm_backward(
            dy,
            x,
            mean,
            rstd,
            weight,
            bias,
            channel_axis,
            residual,
            as_activation(activation, "instance_norm_backward"),
            mask,
            out,
            stream,
        )
    )
