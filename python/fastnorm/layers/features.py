"""The layers with a weight for each element of a row: what layer and RMS norm share."""

from __future__ import annotations

from abc import abstractmethod
from sys import float_info
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastnorm import _core, arguments
from fastnorm.activation import Activation
from fastnorm.functional import Array, NormGradients
from fastnorm.layers.base import Layer, most_elements, placing


class Saved(NamedTuple):
    """What backward needs from the last call."""

    x: Array  # with prenorm the sum, which is what was normalized
    mean: Array | None  # None where rows are not centred
    rstd: Array
    mask: Array | None
    residual: Array | bool | None
    prenorm: bool


class FeatureNorm(Layer):
    """A layer that normalizes over the last axes, with a weight for each element on them.

    What is done with a row, and what its statistics are, a subclass says.
    """

    _positional = ("shape",)

    def __init__(
        self,
        shape: int | tuple[int, ...] | list[int],
        *,
        eps: float,
        affine: bool,
        bias: bool,
        weight_offset: float,
        activation: str | Activation | None,
        dtype: npt.DTypeLike,
        device: str | None,
    ) -> None:
        parameter_dtype = arguments.parameter_dtype(self._name, dtype)
        self.shape = arguments.feature_shape(self._name, shape, most_elements(parameter_dtype))
        super().__init__(eps, activation)
        most = float_info.max
        self.weight_offset = arguments.number_within(
            self._name, "weight_offset", weight_offset, -most, most, "a finite number"
        )
        self.affine = arguments.flag(self._name, "affine", affine)
        has_bias = arguments.flag(self._name, "bias", bias) and self.affine
        placed = placing(self._name, device)
        if self.affine:
            # So that the first calls only normalize, whatever is added to the weight.
            self.weight = placed(np.full(self.shape, 1.0 - self.weight_offset, parameter_dtype))
        if has_bias:
            self.bias = placed(np.zeros(self.shape, parameter_dtype))

    def __call__(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        prenorm: bool = False,
        out: Array | None = None,
        sum_out: Array | None = None,
        stream: Any = None,
    ) -> Any:
        """Normalize x, or the sum of x and a residual.

        Parameters
        ----------
        x : ndarray
            1 to 5 dimensions, the last of them the layer's shape; float32, float64, float16 or
            bfloat16.
        residual : ndarray, optional
            Of x's shape and dtype; added before the activation or, with `prenorm`, to x.
        prenorm : bool
            Whether ``sum = x + residual``, rounded to x's dtype, is what is normalized, and is
            returned too: a transformer's residual stream.
        out : ndarray, optional
            Of x's shape and dtype; written and returned. May be x: then there is no backward, but
            with `prenorm`, for which that does not need x.
        sum_out : ndarray, optional
            Of x's shape and dtype; with `prenorm`, receives the sum. May be the residual.
        stream : int or object with ``__cuda_stream__``, optional
            As in `batch_norm`.

        Returns
        -------
        ndarray, or (ndarray, ndarray) with `prenorm`
            y, of x's shape, dtype and memory layout, and the sum.

        Raises
        ------
        ValueError
            For a wrong shape, a partial overlap with out or sum_out, prenorm without a residual, or
            sum_out without prenorm.
        TypeError
            For anything but arrays of the four dtypes (NumPy's, or those on the layer's device), or
            a prenorm that is no bool.
        """
        saved = None
        try:
            if self.weight is None:  # then the op has nothing that shows the shape
                self._check_shape(x)
            if self._keeps or self.training:
                y, saved = self._forward(x, residual, prenorm, out, sum_out, stream)
                result = (y, saved.x) if prenorm else y
            else:
                result = self._forward_only(x, residual, prenorm, out, sum_out, stream)
        except ValueError:
            self._check_shape(x)
            raise
        if saved is not None and out is not None and _core.same_memory(saved.x, out):
            saved = None  # the op has checked that out is x, or apart from it
        self._saved = saved
        return result

    def backward(
        self,
        dy: Array,
        *,
        dsum: Array | None = None,
        out: Array | None = None,
        stream: Any = None,
    ) -> Array:
        """The gradients of the last call, given those of its outputs.

        Sets dweight and dbias (None without the parameter) and dresidual (None without a residual);
        earlier gradients are replaced, not added to.

        Parameters
        ----------
        dy : ndarray
            Of x's shape and dtype.
        dsum : ndarray, optional
            The gradient of the sum from where else it went; of x's shape and dtype. Only where the
            call was one with prenorm.
        out : ndarray, optional
            Of x's shape and dtype; written and returned. May be dy.
        stream : int or object with ``__cuda_stream__``, optional
            As in `batch_norm`.

        Returns
        -------
        ndarray
            dx, of x's shape, dtype and memory layout. With prenorm it is the gradient of the
            residual too: dresidual is this very array.

        Raises
        ------
        RuntimeError
            If there was no call yet, or if it overwrote its x (out=x), or kept nothing of it
            (``eval(backward=False)``).
        ValueError, TypeError
            For a dsum where there was no prenorm, else as the op does.
        """
        saved: Saved | None = self._saved
        if saved is None:
            raise self._no_input()
        if dsum is not None and not saved.prenorm:
            raise ValueError(
                f"{self._name}.backward: dsum is given, expected None: the last call was one "
                "without prenorm"
            )
        grads = self._gradients(dy, saved, dsum, out, stream)
        return self._keep_gradients(grads._replace(dresidual=grads.dx) if saved.prenorm else grads)

    @abstractmethod
    def _forward(
        self,
        x: Array,
        residual: Array | None,
        prenorm: bool,
        out: Array | None,
        sum_out: Array | None,
        stream: Any,
    ) -> tuple[Array, Saved]:
        """y, and what its backward needs."""

    @abstractmethod
    def _forward_only(
        self,
        x: Array,
        residual: Array | None,
        prenorm: bool,
        out: Array | None,
        sum_out: Array | None,
        stream: Any,
    ) -> Any:
        """y, with prenorm and the sum."""

    @abstractmethod
    def _gradients(
        self, dy: Array, saved: Saved, dsum: Array | None, out: Array | None, stream: Any
    ) -> NormGradients:
        """Those of the last call."""

    def _save(
        self,
        x: Array,
        residual: Array | None,
        mean: Array | None,
        rstd: Array,
        mask: Array | None,
        total: Array | None,
    ) -> Saved:
        """What backward needs; total: the sum of a call with prenorm, else None."""
        if total is not None:
            return Saved(total, mean, rstd, mask, None, True)
        kept = self._residual_for_backward(residual, mask)
        return Saved(x, mean, rstd, mask, kept, False)

    @property
    def _axis(self) -> int:
        return -len(self.shape)

    def _shape(self) -> tuple[int, ...]:
        return self.shape

    def _check_shape(self, x: Array) -> None:
        """What the op, which knows no layer, says of a weight of another shape."""
        shape = getattr(x, "shape", None)
        if shape is None or tuple(shape[self._axis :]) == self.shape:
            return
        count = len(self.shape)
        axes = "the last axis" if count == 1 else f"the last {count} axes"
        raise ValueError(
            f"{self._name}: x has shape {tuple(shape)}, expected {self.shape} on {axes}"
        ) from None
