"""Layers: a normalization together with its parameters, running statistics and mode.

A layer owns arrays and remembers what backward needs; the ops of `fastnorm.functional` compute.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastnorm import _core, arguments, cuda
from fastnorm.activation import Activation, as_activation
from fastnorm.functional import Array, batch_norm, batch_norm_backward, batch_norm_train


def _on_cpu(array: Array) -> npt.NDArray[Any]:
    on_cpu: npt.NDArray[Any] = array.numpy() if isinstance(array, cuda.Array) else array
    return on_cpu


class _Saved(NamedTuple):
    """What backward needs from the last call; rstd is taken from the variance only there."""

    x: Array
    mean: Array
    rstd_or_var: Array  # var where not training
    eps: float
    mask: Array | None
    residual: Array | bool | None
    training: bool


class BatchNorm:
    """Batch normalization with its parameters and running statistics.

    In training mode, the initial one, a call normalizes with the statistics of the batch and
    updates the running ones; in inference mode it normalizes with the running ones.

    The layer keeps a reference to the x of its last call, and to the residual where backward needs
    it: do not overwrite them between a call and its backward. Of weight and bias it keeps nothing:
    backward takes them as they are at that time. After ``eval(backward=False)`` it keeps nothing of
    a call, which costs less.

    Parameters
    ----------
    channels : int
        The number of channels C.
    eps : float
        Added to the variance inside the square root; any value >= 0.
    momentum : float or None
        The weight of the new batch in the running statistics, in [0, 1]; None takes the plain
        average over all batches so far.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        Without running statistics, inference mode normalizes with those of the batch too.
    channel_axis : int
        The axis of x that the channels lie on; may be negative.
    activation : None, str or Activation
        Applied to the output, after the residual is added.
    dtype : dtype
        Of the parameters and the running statistics: float32, float64, float16 or bfloat16. It need
        not be that of x.
    device : None, "cuda" or "cuda:<number>"
        Where the parameters are, and the arrays that the layer is called with; None is the CPU.

    Attributes
    ----------
    weight, bias : array of shape (C,), or None
        Initially ones and zeros.
    running_mean, running_var : array of shape (C,), or None
        Initially zeros and ones; the variance is the unbiased one. On a device, they and the
        parameters are `fastnorm.cuda.Array`.
    num_batches_tracked : int or None
        The number of batches that the running statistics have seen.
    training : bool
        The mode.
    dweight, dbias : ndarray of shape (C,), or None
        Gradients from the last `backward`.
    dresidual : ndarray of x's shape and dtype, or None
        Gradient from the last `backward`, if that call had a residual.

    Raises
    ------
    ValueError
        If channels is negative or beyond what an array can hold, eps or momentum out of range, or
        the activation unknown.
    TypeError
        If channels or channel_axis is no integer, eps or momentum no number, or dtype none of the
        four.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", 2015, Algorithm 1 and section 3.1.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        channel_axis: int = 1,
        activation: str | Activation | None = None,
        dtype: npt.DTypeLike = "float32",
        device: str | None = None,
    ) -> None:
        self.channels = arguments.integer("BatchNorm", "channels", channels)
        parameter_dtype = arguments.parameter_dtype("BatchNorm", dtype)
        most = sys.maxsize // parameter_dtype.itemsize
        if not 0 <= self.channels <= most:
            raise ValueError(
                f"BatchNorm: channels is {channels}, expected a number from 0 to {most}"
            )
        self.eps = arguments.number_within("BatchNorm", "eps", eps, 0.0, inf, "a number >= 0")
        if momentum is not None:
            words = "a number from 0 to 1, or None"
            momentum = arguments.number_within("BatchNorm", "momentum", momentum, 0.0, 1.0, words)
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.channel_axis = arguments.integer("BatchNorm", "channel_axis", channel_axis)
        self.activation = as_activation(activation, "BatchNorm")
        self.training = True
        index = None if device is None else cuda.device_index("BatchNorm", device)

        def placed(values: npt.NDArray[Any]) -> Array:
            return values if index is None else cuda.asarray(values, device=index)

        self.weight: Array | None = None
        self.bias: Array | None = None
        if affine:
            self.weight = placed(np.ones(self.channels, parameter_dtype))
            self.bias = placed(np.zeros(self.channels, parameter_dtype))
        self.running_mean: Array | None = None
        self.running_var: Array | None = None
        self.num_batches_tracked: int | None = None
        if track_running_stats:
            self.running_mean = placed(np.zeros(self.channels, parameter_dtype))
            self.running_var = placed(np.ones(self.channels, parameter_dtype))
            self.num_batches_tracked = 0

        self.dweight: Array | None = None
        self.dbias: Array | None = None
        self.dresidual: Array | None = None
        self._keeps = True  # what backward needs
        self._saved: _Saved | None = None
        self._may_warn = True

    def __repr__(self) -> str:
        names = ("eps", "momentum", "affine", "track_running_stats", "channel_axis", "activation")
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"BatchNorm({self.channels}, {settings})"

    def train(self, mode: bool = True) -> BatchNorm:
        """Switch to training mode (to inference mode if mode is False) and return the layer."""
        self.training = bool(mode)
        self._keeps = True
        return self

    def eval(self, *, backward: bool = True) -> BatchNorm:
        """Switch to inference mode and return the layer.

        Parameters
        ----------
        backward : bool
            Whether there may be a `backward` of calls in this mode. Without, the layer keeps no
            reference to their x, and lets go of that of the last call.
        """
        self.train(False)
        self._keeps = bool(backward)
        if not backward:
            self._saved = None
        return self

    def __call__(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        out: Array | None = None,
        stream: Any = None,
    ) -> Array:
        """Normalize x.

        Parameters
        ----------
        x : ndarray
            2 to 5 dimensions, C of them on channel_axis; float32, float64, float16 or bfloat16.
        residual : ndarray, optional
            Of x's shape and dtype; added before the activation.
        out : ndarray, optional
            Of x's shape and dtype; written and returned. May be x: then there is no backward.
        stream : int or object with ``__cuda_stream__``, optional
            As in `batch_norm`.

        Returns
        -------
        ndarray
            y, of x's shape, dtype and memory layout.

        Raises
        ------
        ValueError
            For a wrong shape, a partial overlap with out, or, in training, one value per channel.
        TypeError
            For anything but NumPy arrays of the four dtypes.

        Warns
        -----
        UserWarning
            Once, in inference mode with running statistics that were never updated.
        """
        mean, var = self.running_mean, self.running_var
        try:
            if self.training or mean is None or var is None:
                y, saved = self._forward_batch(x, residual, out, stream)
            else:
                y, saved = self._forward_running(x, residual, out, stream, mean, var)
        except ValueError:
            self._check_channels(x)
            raise
        if saved is not None and out is not None and _core.same_memory(x, out):
            saved = None  # the op has checked that out is x, or apart from it
        self._saved = saved
        return y

    def backward(self, dy: Array, *, out: Array | None = None, stream: Any = None) -> Array:
        """The gradients of the last call, given that of its output.

        Sets dweight and dbias (None without parameters) and dresidual (None without a residual);
        earlier gradients are replaced, not added to.

        Parameters
        ----------
        dy : ndarray
            Of x's shape and dtype.
        out : ndarray, optional
            Of x's shape and dtype; written and returned. May be dy.
        stream : int or object with ``__cuda_stream__``, optional
            As in `batch_norm`.

        Returns
        -------
        ndarray
            dx, of x's shape, dtype and memory layout.

        Raises
        ------
        RuntimeError
            If there was no call yet, or if it overwrote its x (out=x), or kept nothing of it
            (``eval(backward=False)``); else as the op does.
        """
        if self._saved is None:
            raise RuntimeError(
                "BatchNorm.backward: there is no input to differentiate at, expected a call of the "
                "layer before, with out other than x, and not after eval(backward=False)"
            )
        saved = self._saved
        rstd = saved.rstd_or_var
        if not saved.training:
            if isinstance(rstd, cuda.Array):
                rstd = cuda.rstd_of(rstd, saved.eps, saved.x, stream)
            else:
                with np.errstate(all="ignore"):
                    rstd = 1.0 / np.sqrt(rstd.astype(np.float64) + saved.eps)
        grads = batch_norm_backward(
            dy,
            saved.x,
            saved.mean,
            rstd,
            self.weight,
            self.bias,
            training=saved.training,
            channel_axis=self.channel_axis,
            residual=saved.residual,
            activation=self.activation,
            mask=saved.mask,
            out=out,
            stream=stream,
        )
        self.dweight = grads.dweight if self.affine else None
        self.dbias = grads.dbias if self.affine else None
        self.dresidual = grads.dresidual
        return grads.dx

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters and running statistics, under PyTorch's names.

        Returns
        -------
        dict of str to ndarray
            weight, bias (with affine), running_mean, running_var and num_batches_tracked, an int64
            of shape () (with track_running_stats).
        """
        state = {name: _on_cpu(array.copy()) for name, array in self._arrays().items()}
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
        op = "BatchNorm.load_state_dict"
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
        loaded = {name: np.asarray(state[name]) for name in arrays}
        for name, value in loaded.items():
            arguments.per_channel(f"{op}: {name}", value, self.channels)
        if "num_batches_tracked" in state:
            count = arguments.integer(op, "num_batches_tracked", state["num_batches_tracked"])
            if not 0 <= count < 2**63:
                raise ValueError(
                    f"{op}: num_batches_tracked is {count}, expected a number from 0 to 2**63 - 1"
                )
        for name, array in arrays.items():  # which may have been replaced
            if isinstance(array, cuda.Array):
                arguments.per_channel(f"{op}: the layer's {name}", array, self.channels)
            else:
                arguments.own_array(op, name, array, self.channels)
        # A conversion can fail (where its warnings are errors): all of them before the first copy.
        converted = {name: loaded[name].astype(array.dtype) for name, array in arrays.items()}
        for name, array in arrays.items():
            if isinstance(array, cuda.Array):
                array.assign(converted[name])
            else:
                array[...] = converted[name]
        self.num_batches_tracked = count
        if "num_batches_tracked" not in state:
            self._may_warn = False  # nothing says that these statistics were never updated

    def _arrays(self) -> dict[str, Array]:
        named = {
            "weight": self.weight,
            "bias": self.bias,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
        }
        return {name: array for name, array in named.items() if array is not None}

    def _check_channels(self, x: Array) -> None:
        """What the op, which knows no layer, says of a mean or weight of another shape."""
        shape = getattr(x, "shape", ())
        if not -len(shape) <= self.channel_axis < len(shape):
            return  # the op says what is wrong
        found = shape[self.channel_axis]
        if found != self.channels:
            raise ValueError(
                f"BatchNorm: x has shape {tuple(shape)}, expected {self.channels} channels on axis "
                f"{self.channel_axis}"
            ) from None

    def _forward_batch(
        self, x: Array, residual: Array | None, out: Array | None, stream: Any
    ) -> tuple[Array, _Saved | None]:
        if self.weight is None:  # then the op may have nothing that shows the number of channels
            self._check_channels(x)
        update = self.training and self.track_running_stats
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / ((self.num_batches_tracked or 0) + 1)
        forward = batch_norm_train(
            x,
            self.weight,
            self.bias,
            running_mean=self.running_mean if update else None,
            running_var=self.running_var if update else None,
            momentum=momentum,
            eps=self.eps,
            channel_axis=self.channel_axis,
            residual=residual,
            activation=self.activation,
            out=out,
            stream=stream,
        )
        # An empty batch leaves the running statistics as they are, so it does not count either.
        if update and self.num_batches_tracked is not None and prod(x.shape) > 0:
            self.num_batches_tracked += 1
        if not self._keeps and not self.training:
            return forward.y, None
        # With the mask, or without an activation, backward does not need the residual's values.
        without_values = self.activation is None or forward.mask is not None
        keep = True if residual is not None and without_values else residual
        return forward.y, _Saved(x, forward.mean, forward.rstd, self.eps, forward.mask, keep, True)

    def _forward_running(
        self,
        x: Array,
        residual: Array | None,
        out: Array | None,
        stream: Any,
        mean: Array,
        var: Array,
    ) -> tuple[Array, _Saved | None]:
        y = batch_norm(
            x,
            mean,
            var,
            self.weight,
            self.bias,
            eps=self.eps,
            channel_axis=self.channel_axis,
            residual=residual,
            activation=self.activation,
            out=out,
            stream=stream,
        )
        if self._may_warn and not self.num_batches_tracked:
            self._warn_if_never_updated(mean, var)
        if not self._keeps:
            return y, None
        keep = True if residual is not None and self.activation is None else residual
        # Copies: backward must see the statistics of this call.
        return y, _Saved(x, mean.copy(), var.copy(), self.eps, None, keep, False)

    def _warn_if_never_updated(self, running_mean: Array, running_var: Array) -> None:
        if self.channels == 0:
            return
        self._may_warn = False
        if np.any(_on_cpu(running_mean) != 0) or np.any(_on_cpu(running_var) != 1):
            return
        warnings.warn(
            "BatchNorm: inference with running statistics that were never updated: train first, "
            "load a state_dict, or use track_running_stats=False",
            UserWarning,
            stacklevel=4,
        )
