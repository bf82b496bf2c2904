"""The layers with a weight for each element of a row: what layer and RMS norm share."""

from __future__ import annotations

from collections.abc import Callable
from sys import float_info
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fastnorm import _core, arguments
from fastnorm.activation import Activation
from fastnorm.functional import Array, FeatureNormForward, NormGradients, RMSNormForward
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
    # The ops: y alone, with what backward needs, and backward.
    _op: ClassVar[Callable[..., Any]]
    _op_train: ClassVar[Callable[..., FeatureNormForward | RMSNormForward]]
    _op_backward: ClassVar[Callable[..., NormGradients]]

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
            options = self._forward_options()
            options |= {"residual": residual, "prenorm": prenorm, "out": out, "sum_out": sum_out}
            if self._keeps or self.training:
                forward = self._op_train(x, self.weight, self.bias, stream=stream, **options)
                saved = self._save(x, residual, forward)
                result = (forward.y, forward.sum) if prenorm else forward.y
            else:
                result = self._op(x, self.weight, self.bias, stream=stream, **options)
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
        statistics = (saved.rstd,) if saved.mean is None else (saved.mean, saved.rstd)
        grads = self._op_backward(
            dy,
            saved.x,
            *statistics,
            self.weight,
            self.bias,
            axis=self._axis,
            residual=saved.residual,
            dsum=dsum,
            weight_offset=self.weight_offset,
            activation=self.activation,
            mask=saved.mask,
            out=out,
            stream=stream,
        )
        return self._keep_gradients(grads._replace(dresidual=grads.dx) if saved.prenorm else grads)

    def _forward_options(self) -> dict[str, Any]:
        """What the layer has of a forward op's options."""
        return {
            "axis": self._axis,
            "eps": self.eps,
            "weight_offset": self.weight_offset,
            "activation": self.activation,
        }

    def _save(
        self, x: Array, residual: Array | None, forward: FeatureNormForward | RMSNormForward
    ) -> Saved:
        """What backward needs of a call."""
        mean = None if isinstance(forward, RMSNormForward) else forward.mean
        if forward.sum is not None:
            return Saved(forward.sum, mean, forward.rstd, forward.mask, None, True)
        kept = self._residual_for_backward(residual, forward.mask)
        return Saved(x, mean, forward.rstd, forward.mask, kept, False)

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
