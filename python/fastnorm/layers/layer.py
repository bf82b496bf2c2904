"""Layer normalization as a layer."""

from __future__ import annotations

import numpy.typing as npt

from fastnorm.activation import Activation
from fastnorm.functional import layer_norm, layer_norm_backward, layer_norm_train
from fastnorm.layers.features import FeatureNorm


class LayerNorm(FeatureNorm):
    """Layer normalization with its parameters.

    A call normalizes each row, which is what lies on the last axes, by its own mean and variance.

    The layer keeps a reference to the x of its last call, or with prenorm to the sum, and to the
    residual where backward needs it: do not overwrite them between a call and its backward, as
    another layer's sum_out would. Of weight and bias it keeps nothing: backward takes them as they
    are at that time. After ``eval(backward=False)`` it keeps nothing of a call, which costs less.

    Parameters
    ----------
    shape : int or tuple of int
        The lengths of the last axes, which a call normalizes over together.
    eps : float
        Added to the variance inside the square root; any value >= 0.
    affine : bool
        Whether there are a weight and, with bias, a bias.
    bias : bool
        Whether there is a bias beside the weight.
    weight_offset : float
        Added to the weight, where there is one: 1 for models whose weights are relative to 1.
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
    bias : array of the shape, or None
        Initially zeros.
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
        or bias no bool, or dtype none of the four.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer Normalization", 2016,
       https://arxiv.org/abs/1607.06450, equation 3.
    """

    _name = "LayerNorm"
    _op = staticmethod(layer_norm)
    _op_train = staticmethod(layer_norm_train)
    _op_backward = staticmethod(layer_norm_backward)
    _named = ("eps", "affine", "bias", "weight_offset", "activation")

    def __init__(
        self,
        shape: int | tuple[int, ...] | list[int],
        *,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        weight_offset: float = 0.0,
        activation: str | Activation | None = None,
        dtype: npt.DTypeLike = "float32",
        device: str | None = None,
    ) -> None:
        super().__init__(
            shape,
            eps=eps,
            affine=affine,
            bias=bias,
            weight_offset=weight_offset,
            activation=activation,
            dtype=dtype,
            device=device,
        )

    def _settings(self) -> dict[str, object]:
        # The attribute of that name is the array.
        return super()._settings() | {"bias": self.bias is not None}
