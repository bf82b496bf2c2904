"""Batch normalization."""

from __future__ import annotations

from typing import Any

from fastnorm import _core, cuda
from fastnorm.activation import Activation, as_activation
from fastnorm.functional.results import Array, NormForward, NormGradients


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
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> Array:
    """Batch normalization with given statistics (inference).

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``

    Parameters
    ----------
    x : array
        2 to 5 dimensions; float32, float64, float16 or bfloat16 (ml_dtypes'). NumPy's, or an array
        on a CUDA device of any library that has DLPack or ``__cuda_array_interface__``: all arrays
        of a call are in one place, and results come back there, in x's library if it takes DLPack,
        else as `fastnorm.cuda.Array`. Read in place where the dimensions that lie behind the
        channels' in memory are dense (and the channels too, where those dimensions have fewer than
        32 elements in all); copied first otherwise.
    mean, var : ndarray of shape (C,)
        Any of the four dtypes.
    weight, bias : ndarray of shape (C,), optional
        Any of the four dtypes.
    eps : float
        Added to the variance inside the square root; any value >= 0. With 0, a channel whose
        variance is 0 gives NaN (or an infinity, where x is not the mean); a variance below -eps
        gives NaN.
    channel_axis : int
        The axis of x that the channels lie on; -1 for channel-last.
    residual : ndarray, optional
        Of x's shape and dtype; added before the activation.
    activation : None, str or Activation
        "relu", "leaky_relu", "clip", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "hardswish",
        or one with parameters: `leaky_relu`, `clip`.
    out : ndarray, optional
        Of x's shape and dtype; written and returned. May be exactly x; overlaps nothing else.
    stream : int or object with ``__cuda_stream__``, optional
        For arrays on a device: where the call does its work, and returns without waiting for it.
        If not given, PyTorch's or CuPy's current stream for an x of theirs, else the legacy default
        stream. With `out` such a call can be part of a CUDA graph; so can one that returns more
        than that, where x is PyTorch's or CuPy's: then all results are their memory.
        A stream has to live as long as results that were made on it, and arrays until the work on
        them is done: a library that does not know of the stream would give their memory away. The
        number 2, the default stream of each thread, is for arrays that stay in their thread.
    device : "cuda" or "cuda:<number>", optional
        For NumPy arrays: copies them to a device, and the results back.

    Returns
    -------
    ndarray
        y, of x's shape, dtype and memory layout (or `out`).

    Raises
    ------
    ValueError
        For a wrong shape, a value out of range, an `out` that is read-only or overlaps an input or
        itself.
    TypeError
        For anything but arrays of the four dtypes. Nothing has been written in either case.
    CudaError
        For a device that is not there, and for what the CUDA runtime says.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", 2015, Algorithm 2, step 11.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("batch_norm", batch_norm, device, given)
    return _core.batch_norm(
        x,
        mean,
        var,
        weight,
        bias,
        eps,
        channel_axis,
        residual,
        as_activation(activation, "batch_norm"),
        out,
        stream,
    )


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
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> NormForward:
    """Batch normalization with the statistics of the batch (training).

    As `batch_norm`, with the mean and the biased variance of x over all axes but the channels'.

    Parameters
    ----------
    x, weight, bias, eps, channel_axis, residual, activation, out, stream, device
        As in `batch_norm`. x has more than one value per channel, or no elements at all: then mean
        and rstd are NaN and the running statistics stay as they are. In float64, squares of
        deviations from the mean overflow from about 1e150 on: rstd is then 0.
    running_mean, running_var : ndarray of shape (C,), optional
        Any of the four dtypes; updated in place:
        ``running = (1 - momentum) * running + momentum * batch``.
    momentum : float
        The weight of the new batch, from 0 to 1 (PyTorch's convention, not ONNX's or Keras').
    unbiased : bool
        Whether running_var takes the unbiased variance of the batch.

    Returns
    -------
    NormForward
        ``(y, mean, rstd, mask)``; the last three are for `batch_norm_backward`.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm` does, and ValueError for one value per channel.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", 2015, Algorithm 1.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("batch_norm_train", batch_norm_train, device, given)
    return NormForward(
        *_core.batch_norm_train(
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
            as_activation(activation, "batch_norm_train"),
            out,
            stream,
        )
    )


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
    mask: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> NormGradients:
    """The gradients of batch normalization.

    With ``g = dy * activation'(z)``: ``dbias = sum(g)``, ``dweight = sum(g * (x - mean) * rstd)``,
    ``dresidual = g``, and ``dx = weight * rstd * (g - avg(g) - xhat * avg(g * xhat))`` with
    ``xhat = (x - mean) * rstd``; ``dx = weight * rstd * g`` when not training.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, of x's shape and dtype.
    x, weight, bias, channel_axis, activation
        Those of the forward pass.
    mean, rstd : ndarray of shape (C,)
        Those that `batch_norm_train` returned; for a forward pass in inference mode the mean and
        ``1 / sqrt(var + eps)``. Any of the four dtypes.
    training : bool
        Whether mean and rstd were taken from x; otherwise they are constants.
    residual : ndarray or bool, optional
        The residual of the forward pass. True is enough where its values are not needed: with a
        mask, or without an activation.
    mask : ndarray of uint8, optional
        The one that the forward pass returned, for an x of the same memory layout (of the same
        order of dimensions in memory, and on the same kind of device); without it, the activation's
        input is recomputed. On a device nobody waits to see whose mask it is: results of another
        one are NaN.
    out : ndarray, optional
        Of x's shape and dtype; receives dx. May be exactly dy; overlaps nothing else.
    stream, device
        As in `batch_norm`.

    Returns
    -------
    NormGradients
        ``(dx, dweight, dbias, dresidual)``.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm` does, and ValueError for the mask of another x or activation.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", 2015, section 3, the chain rule after Algorithm 1.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("batch_norm_backward", batch_norm_backward, device, given)
    return NormGradients(
        *_core.batch_norm_backward(
            dy,
            x,
            mean,
            rstd,
            weight,
            bias,
            training,
            channel_axis,
            residual,
            as_activation(activation, "batch_norm_backward"),
            mask,
            out,
            stream,
        )
    )
