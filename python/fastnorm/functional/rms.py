"""RMS normalization."""

from __future__ import annotations

from typing import Any

from fastnorm import _core, cuda
from fastnorm.activation import Activation, as_activation
from fastnorm.functional.results import Array, NormGradients, RMSNormForward


def rms_norm(
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
    out: Array | None = None,
    sum_out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> Any:
    """RMS normalization: each row by its own mean square.

    ``y = activation(x / sqrt(avg(x**2) + eps) * weight + bias + residual)``, with the average over
    all axes from `axis` on.

    Parameters
    ----------
    x : array
        1 to 5 dimensions; float32, float64, float16 or bfloat16. Read in place where the axes from
        `axis` on are dense, and the others have no more than two strides of their own; copied first
        otherwise. Squares of float64 overflow as in `batch_norm_train`.
    weight, bias : ndarray of shape x.shape[axis:], optional
        Any of the four dtypes.
    axis : int
        The first of the axes that a row has, up to the last one (ONNX's `axis`).
    eps : float
        Added to the mean square inside the square root; any value >= 0. With 0, a row of zeros
        gives NaN. (PyTorch has another default: the machine epsilon of x's dtype.)
    residual : ndarray, optional
        Of x's shape and dtype; added before the activation or, with `prenorm`, to x.
    prenorm : bool
        Whether ``sum = x + residual``, rounded to x's dtype, is what is normalized, and is returned
        too: a transformer's residual stream.
    weight_offset : float
        Added to the weight, where there is one: 1 for models whose weights are relative to 1.
    cast_before_weight : bool
        Whether ``x * rstd`` is rounded to x's dtype before it is multiplied with the weight, as
        some models were trained; else a 16-bit x is computed with in float32 and rounded once.
    activation, out, stream, device
        As in `batch_norm`.
    sum_out : ndarray, optional
        Of x's shape and dtype; with `prenorm`, receives the sum. May be exactly the residual.

    Returns
    -------
    ndarray, or (ndarray, ndarray) with `prenorm`
        y, of x's shape, dtype and memory layout (or `out`), and the sum (or `sum_out`).

    Raises
    ------
    ValueError, TypeError, CudaError
        As `batch_norm` does.

    References
    ----------
    .. [1] B. Zhang and R. Sennrich, "Root Mean Square Layer Normalization", 2019,
       https://arxiv.org/abs/1910.07467, equation 4.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("rms_norm", rms_norm, device, given)
    return _core.rms_norm(
        x,
        weight,
        bias,
        axis,
        eps,
        residual,
        prenorm,
        weight_offset,
        cast_before_weight,
        as_activation(activation, "rms_norm"),
        out,
        sum_out,
        stream,
    )


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
    out: Array | None = None,
    sum_out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> RMSNormForward:
    """`rms_norm` that returns what its backward needs, too.

    Parameters
    ----------
    x, weight, bias, axis, eps, residual, prenorm, weight_offset, cast_before_weight, activation, \
out, sum_out, stream, device
        As in `rms_norm`.

    Returns
    -------
    RMSNormForward
        ``(y, rstd, mask, sum)``; rstd has shape x.shape[:axis], and sum is
        None without `prenorm`.

    Raises
    ------
    ValueError, TypeError, CudaError
        As `rms_norm` does.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("rms_norm_train", rms_norm_train, device, given)
    return RMSNormForward(
        *_core.rms_norm_train(
            x,
            weight,
            bias,
            axis,
            eps,
            residual,
            prenorm,
            weight_offset,
            cast_before_weight,
            as_activation(activation, "rms_norm_train"),
            out,
            sum_out,
            stream,
        )
    )


def rms_norm_backward(
    dy: Array,
    x: Array,
    rstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
    residual: Array | bool | None = None,
    dsum: Array | None = None,
    weight_offset: float = 0.0,
    activation: str | Activation | None = None,
    mask: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    device: str | None = None,
) -> NormGradients:
    """The gradients of RMS normalization.

    With ``g = dy * activation'(z)`` and ``xhat = x * rstd``: ``dbias = sum(g)`` and
    ``dweight = sum(g * xhat)`` over all rows, ``dresidual = g``, and, with averages over a row,
    ``dx = rstd * (weight * g - xhat * avg(weight * g * xhat)) + dsum``.

    Parameters
    ----------
    dy : ndarray
        The gradient of y, of x's shape and dtype.
    x : ndarray
        That of the forward pass; with prenorm the sum that it returned.
    weight, bias, axis, weight_offset, activation
        Those of the forward pass. What that rounded with `cast_before_weight` is not rounded here:
        rounding counts as the identity. Next to a kink only `mask` knows what the rounding did.
    rstd : ndarray of shape x.shape[:axis]
        The one that `rms_norm_train` returned.
    residual : ndarray or bool, optional
        The forward pass's residual, if that was added behind the norm: as in `batch_norm_backward`.
    dsum : ndarray, optional
        With prenorm, the gradient of the sum from where else it went, which is added to dx: dx is
        then the gradient of both x and the residual, so that a residual is refused beside it.
    mask, out, stream, device
        As in `batch_norm_backward`.

    Returns
    -------
    NormGradients
        ``(dx, dweight, dbias, dresidual)``; dbias is None unless a bias was given.

    Raises
    ------
    ValueError, TypeError, CudaError
        As `rms_norm` does, and ValueError for the mask of another x or activation.
    """
    if device is not None:
        given = dict(locals())
        del given["device"]
        return cuda.through_device("rms_norm_backward", rms_norm_backward, device, given)
    return NormGradients(
        *_core.rms_norm_backward(
            dy,
            x,
            rstd,
            weight,
            bias,
            axis,
            residual,
            dsum,
            weight_offset,
            as_activation(activation, "rms_norm_backward"),
            mask,
            out,
            stream,
        )
    )
