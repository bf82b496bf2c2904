"""RMS normalization as a layer."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastnorm import arguments
from fastnorm.activation import Activation
from fastnorm.functional import rms_norm, rms_norm_backward, rms_norm_train
from fastnorm.layers.features import FeatureNorm


class RMSNorm(FeatureNorm):
    """RMS normalization with its weight.

    A call normalizes each row, which is what lies on the last axes, by its own mean square.

    The layer keeps a reference to the x of its last call, or with prenorm to the sum, and to the
    residual where backward needs it: do not overwrite them between a call and its backward, as
    another layer's sum_out would. Of the weight it keeps nothing: backward takes it as it is at
    that time. After ``eval(backward=False)`` it keeps nothing of a call, which costs less.

    Parameters
    ----------
    shape : int or tuple of int
        The lengths of the last axes, which a call normalizes over together.
    eps : float
        Added to the mean square inside the square root; any value >= 0. PyTorch's module has
        another default: the machine epsilon of x's dtype.
    affine : bool
        Whether there is a weight.
    weight_offset : float
        Added to the weight, where there is one: 1 for models whose weights are relative to 1.
    cast_before_weight : bool
        Whether what is normalized is rounded to x's dtype before it is multiplied with the weight,
        as some models were trained; else a 16-bit x is computed with in float32 and rounded once.
    activation : None, str or Activation
        Applied to the output, after a residual that is added behind the norm.
    dtype : dtype
        Of the parameters: float32, float64, float16 or bfloat16. It need not be that of x.
    device : None, "cuda" or "cuda:<number>"
        Where the parameters are, and the arrays that the layer is called with; None is the CPU.

    Attributes
    ----------
    shape : tuple of int
        The lengths of the axes.
    weight : array of the shape, or None
        Initially ``1 - weight_offset``. On a device, the parameters are `fastnorm.cuda.Array`.
    bias : None
        As PyTorch's module has none; an array of the shape that is assigned takes part.
    training : bool
        The mode, which makes no difference but after ``eval(backward=False)``.
    dweight, dbias : ndarray of the shape, or None
        Gradients from the last `backward`.
    dresidual : ndarray of x's shape and dtype, or None
        Gradient from the last `backward`, if that call had a residual.

    Raises
    ------
    ValueError
        If shape has no or more than 5 axes, a negative length, or more elements than an array can
        hold, eps or weight_offset is out of range, or the activation unknown.
    TypeError
        If shape is neither an integer nor a tuple of them, eps or weight_offset no number, affine
        or cast_before_weight no bool, or dtype none of the four.

    References
    ----------
    .. [1] B. Zhang and R. Sennrich, "Root Mean Square Layer Normalization", 2019,
       https://arxiv.org/abs/1910.07467, equation 4.
    """

    _name = "RMSNorm"
    _op = staticmethod(rms_norm)
    _op_train = staticmethod(rms_norm_train)
    _op_backward = staticmethod(rms_norm_backward)
    _named = ("eps", "affine", "weight_offset", "cast_before_weight", "activation")

    def __init__(
        self,
        shape: int | tuple[int, ...] | list[int],
        *,
        eps: float = 1e-5,
        affine: bool = True,
        weight_offset: float = 0.0,
        cast_before_weight: bool = False,
        activation: str | Activation | None = None,
        dtype: npt.DTypeLike = "float32",
        device: str | None = None,
    ) -> None:
        super().__init__(
            shape,
            eps=eps,
            affine=affine,
            bias=False,
            weight_offset=weight_offset,
            activation=activation,
            dtype=dtype,
            device=device,
        )
        self.cast_before_weight = arguments.flag(
            self._name, "cast_before_weight", cast_before_weight
        )

    def _forward_options(self) -> dict[str, Any]:
        return super()._forward_options() | {"cast_before_weight": self.cast_before_weight}
