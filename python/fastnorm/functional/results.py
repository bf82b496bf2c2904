"""What the ops return."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

# NumPy's, or any on a CUDA device with DLPack or __cuda_array_interface__.
Array: TypeAlias = Any


class NormForward(NamedTuple):
    """What the forward ops for training return.

    Attributes
    ----------
    y : ndarray
        The output, of x's shape, dtype and memory layout.
    mean, rstd : ndarray
        The mean and 1 / sqrt(variance + eps) that x was normalized with, of shape (C,) for batch
        norm, (N, C) for instance norm, (N, groups) for group norm: float32 for 16-bit x, else
        float64. A float64 x with a standard deviation below 1e-154 or beyond 1e154 has a variance
        of 0 or infinity.
    mask : ndarray of uint8, or None
        For relu, leaky_relu and clip: one bit an element, set where the slope is 1, behind a
        signature of the norm, x's shape and order of dimensions in memory, the axes and the
        activation, without which those bits mean nothing. One-dimensional; its contents are of no
        concern to a caller.
    """

    y: Array
    mean: Array
    rstd: Array
    mask: Array | None


class FeatureNormForward(NamedTuple):
    """What `layer_norm_train` returns: as `NormForward`; mean and rstd have shape x.shape[:axis].

    Attributes
    ----------
    sum : ndarray or None
        With prenorm x + residual, of x's shape, dtype and memory layout.
    """

    y: Array
    mean: Array
    rstd: Array
    mask: Array | None
    sum: Array | None


class RMSNormForward(NamedTuple):
    """What `rms_norm_train` returns: as `FeatureNormForward`, without a mean."""

    y: Array
    rstd: Array
    mask: Array | None
    sum: Array | None


class NormGradients(NamedTuple):
    """What the backward ops return.

    Attributes
    ----------
    dx : ndarray
        Of x's shape, dtype and memory layout.
    dweight : ndarray
    dbias : ndarray, or None of RMS norm without a bias
        Of the shape of weight and bias, and of their dtype. Where one of those is not given, the
        other's dtype; where neither is, float32 (float64 for float64 x).
    dresidual : ndarray or None
        Of x's shape, dtype and memory layout; None unless there was a residual.
    """

    dx: Array
    dweight: Array
    dbias: Array | None
    dresidual: Array | None
