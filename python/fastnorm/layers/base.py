"""What all layers share: parameters, where they are, mode, state dict and what backward needs."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from fastnorm import arguments, cuda
from fastnorm.activation import Activation, as_activation
from fastnorm.functional import Array, NormGradients

_Layer = TypeVar("_Layer", bound="Layer")


def on_cpu(array: Array) -> npt.NDArray[Any]:
    """The values of a layer's array as NumPy's."""
    values: npt.NDArray[Any] = array.numpy() if isinstance(array, cuda.Array) else array
    return values


def most_elements(dtype: npt.DTypeLike) -> int:
    """How many elements an array of parameters can have at most."""
    return sys.maxsize // np.dtype(dtype).itemsize


def placing(op: str, device: str | None) -> Callable[[npt.NDArray[Any]], Array]:
    """A function that brings a layer's new arrays to its device."""
    if device is None:
        return lambda values: values
    index = cuda.device_index(op, device)
    return lambda values: cuda.to_device(op, "parameters", values, index)


class Layer(ABC):
    """A normalization with parameters; all of its arrays have one shape.

    Parameters
    ----------
    eps, activation
        As the layers have them.
    """

    # What errors and repr call the layer, in subclasses of users too.
    _name: ClassVar[str]
    # The attributes that repr shows: those given by position, and those by name.
    _positional: ClassVar[tuple[str, ...]]
    _named: ClassVar[tuple[str, ...]]

    # None where there are no running statistics.
    num_batches_tracked: int | None = None

    def __init__(self, eps: float, activation: str | Activation | None) -> None:
        self.eps = arguments.number_within(self._name, "eps", eps, 0.0, inf, "a number >= 0")
        self.activation = as_activation(activation, self._name)
        self.training = True
        self.weight: Array | None = None
        self.bias: Array | None = None
        self.dweight: Array | None = None
        self.dbias: Array | None = None
        self.dresidual: Array | None = None
        self._keeps = True  # what backward needs
        self._saved: Any = None  # that, of the last call; None where it kept nothing

    def __repr__(self) -> str:
        named = self._settings().items()
        positional = (repr(getattr(self, name)) for name in self._positional)
        return f"{self._name}({', '.join([*positional, *(f'{n}={v!r}' for n, v in named)])})"

    def train(self: _Layer, mode: bool = True) -> _Layer:
        """Switch to training mode (to inference mode if mode is False) and return the layer."""
        self.training = arguments.flag(f"{self._name}.train", "mode", mode)
        self._keeps = True
        return self

    def eval(self: _Layer, *, backward: bool = True) -> _Layer:
        """Switch to inference mode and return the layer.

        Parameters
        ----------
        backward : bool
            Whether there may be a `backward` of calls in this mode. Without, the layer keeps no
            reference to their x, and lets go of that of the last call.
        """
        keeps = arguments.flag(f"{self._name}.eval", "backward", backward)
        self.train(False)
        self._keeps = keeps
        if not backward:
            self._saved = None
        return self

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters and running statistics, under PyTorch's names.

        Returns
        -------
        dict of str to ndarray
            Those that the layer has of weight, bias, running_mean, running_var and
            num_batches_tracked, an int64 of shape ().
        """
        state = {name: on_cpu(array.copy()) for name, array in self._arrays().items()}
        if self.num_batches_tracked is not None:
            count = min(self.num_batches_tracked, 2**63 - 1)
            state["num_batches_tracked"] = np.array(count, dtype=np.int64)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy parameters and running statistics into the layer's arrays, all or none.

        Parameters
        ----------
        state : mapping of str to array
            As `state_dict` gives it, or a PyTorch module's arrays. Values are converted to the
            layer's dtype. num_batches_tracked may be missing, as it is in old checkpoints.

        Raises
        ------
        ValueError
            For missing or unexpected names, a wrong shape, a count that is negative or no 64-bit
            number, or an array of the layer that was replaced by a read-only one or one of another
            shape.
        TypeError
            For values that are not of one of the four dtypes, a count that is no integer, or an
            array of the layer that was replaced by something else.
        """
        op = f"{self._name}.load_state_dict"
        arrays = self._arrays()
        count = self.num_batches_tracked
        if not isinstance(state, Mapping):
            found = type(state).__name__
            raise TypeError(
                f"{op}: state is of type {found}, expected a mapping of names to arrays"
            )
        missing = sorted(arrays.keys() - state.keys())
        optional = set() if count is None else {"num_batches_tracked"}
        unexpected = sorted(map(str, state.keys() - arrays.keys() - optional))
        if missing or unexpected:
            found = ", ".join(sorted(map(str, state))) or "nothing"
            groups = {"missing": missing, "unexpected": unexpected}
            wrong = [f"{word} {names}" for word, names in groups.items() if names]
            expected = ", ".join([*arrays, *(f"{name} if any" for name in optional)]) or "nothing"
            raise ValueError(f"{op}: state has {found}, expected {expected}: {', '.join(wrong)}")
        shape = self._shape()
        loaded = {name: np.asarray(state[name]) for name in arrays}
        for name, value in loaded.items():
            arguments.of_shape(f"{op}: {name}", value, shape)
        if "num_batches_tracked" in state:
            count = arguments.integer(op, "num_batches_tracked", state["num_batches_tracked"])
            if not 0 <= count < 2**63:
                raise ValueError(
                    f"{op}: num_batches_tracked is {count}, expected a number from 0 to 2**63 - 1"
                )
        for name, array in arrays.items():  # which may have been replaced
            if isinstance(array, cuda.Array):
                arguments.of_shape(f"{op}: the layer's {name}", array, shape)
            else:
                arguments.own_array(op, name, array, shape)
        # A conversion can fail (where its warnings are errors): all of them before the first copy.
        converted = {name: loaded[name].astype(array.dtype) for name, array in arrays.items()}
        for name, array in arrays.items():
            if isinstance(array, cuda.Array):
                array.assign(converted[name])
            else:
                array[...] = converted[name]
        if count is not None:
            self.num_batches_tracked = count

    @abstractmethod
    def _shape(self) -> tuple[int, ...]:
        """The shape of all of the layer's arrays."""

    def _arrays(self) -> dict[str, Array]:
        """The arrays that the layer has, under their names in a state dict."""
        named = {"weight": self.weight, "bias": self.bias}
        return {name: array for name, array in named.items() if array is not None}

    def _settings(self) -> dict[str, object]:
        """The options that repr shows by name."""
        return {name: getattr(self, name) for name in self._named}

    def _residual_for_backward(
        self, residual: Array | None, mask: Array | None
    ) -> Array | bool | None:
        """What backward has to know of the last call's residual."""
        # With the mask, or without an activation, it does not need the values.
        without_values = self.activation is None or mask is not None
        return True if residual is not None and without_values else residual

    def _keep_gradients(self, grads: NormGradients) -> Array:
        """Set those of the parameters that the layer has, and of the residual; return dx."""
        self.dweight = None if self.weight is None else grads.dweight
        self.dbias = None if self.bias is None else grads.dbias
        self.dresidual = grads.dresidual
        return grads.dx

    def _no_input(self) -> RuntimeError:
        """What backward raises where the last call kept nothing."""
        return RuntimeError(
            f"{self._name}.backward: there is no input to differentiate at, expected a call of the "
            "layer before, with out other than x, and not after eval(backward=False)"
        )
