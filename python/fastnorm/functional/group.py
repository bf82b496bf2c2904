"""Group normalization."""

from __future__ import annotations

from typing import Any

from fastnorm import _core, cuda
from fastnorm.activation import Activation, as_activation
from fastnorm.functional.results import Array, NormForward, NormGradients


def group_norm(
    x: Array,
    groups: int,
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
    """Group normalization: each sample by itself, in groups of neighbouring channels.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, with the mean and
    the biased variance of each sample's values in a group of channels.

    Parameters
    ----------
    x : array
        2 to 5 dimensions, samples on the first axis; float32, float64, float16 or bfloat16. Read in
        place where the dimensions that lie behind the channels' in memory are dense; copied first
        otherwise. Squares of float64 overflow as in `batch_norm_train`.
    groups : int
        A divisor of the number of channels C. 1 normalizes over all of a sample, C each channel.
    weight, bias : ndarray of shape (C,), optional
        Any of the four dtypes.
    eps : float
        Added to the variance inside the square root; any value >= 0. With 0, a group whose variance
        is 0 gives NaN.
    channel_axis : int
        The axis of x that the channels lie on, any but the first; -1 for channel-last.
    residual, activation, out, stream, device
        As in `batch_norm`.

    Returns
    -------
    ndarray
        y, of x's shape, dtype and memory layout (or `out`).

    Raises
    ------
    ValueError, TypeError, CudaError
        As `batch_norm` does, and ValueError for a number of groups that does not divide C.

    References
    ----------
    .. [1] Y. Wu and K. He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494,
       section 3.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("group_norm", group_norm, device, given)
    return _core.group_norm(
        x,
        groups,
        weight,
        bias,
        eps,
        channel_axis,
        residual,
        as_activation(activation, "group_norm"),
        out,
        stream,
    )


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
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> NormForward:
    """`group_norm` that returns what its backward needs, too.

    Parameters
    ----------
    x, groups, weight, bias, eps, channel_axis, residual, activation, out, stream, device
        As in `group_norm`.

    Returns
    -------
    NormForward
        ``(y, mean, rstd, mask)``; mean and rstd have shape (N, groups).

    Raises
    ------
    ValueError, TypeError, CudaError
        As `group_norm` does.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("group_norm_train", group_norm_train, device, given)
    return NormForward(
        *_core.group_norm_train(
            x,
            groups,
            weight,
            bias,
            eps,
            channel_axis,
            residual,
            as_activation(activation, "group_norm_train"),
            out,
            stream,
        )
    )


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
    mask: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> NormGradients:
    """The gradients of group normalization.

    With ``g = dy * activation'(z)`` and ``xhat = (x - mean) * rstd``: ``dbias = sum(g)`` and
    ``dweight = sum(g * xhat)`` over all but the channels, ``dresidual = g``, and, with averages
    over a group, ``dx = rstd * (weight * g - avg(weight * g) - xhat * avg(weight * g * xhat))``.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, of x's shape and dtype.
    x, groups, weight, bias, channel_axis, activation
        Those of the forward pass.
    mean, rstd : ndarray of shape (N, groups)
        Those that `group_norm_train` returned.
    residual, mask, out, stream, device
        As in `batch_norm_backward`.

    Returns
    -------
    NormGradients
        ``(dx, dweight, dbias, dresidual)``.

    Raises
    ------
    ValueError, TypeError, CudaError
        As `group_norm` does, and ValueError for the mask of another x or activation.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("group_norm_backward", group_norm_backward, device, given)
    return NormGradients(
        *_core.group_norm_backward(
            dy,
            x,
            groups,
            mean,
            rstd,
            weight,
            bias,
            channel_axis,
            residual,
            as_activation(activation, "group_norm_backward"),
            mask,
            out,
            stream,
        )
    )
