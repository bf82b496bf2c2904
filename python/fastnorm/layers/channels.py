"""The layers with a weight for each channel: what batch, instance and group norm share."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fastnorm import _core, arguments, cuda
from fastnorm.activation import Activation
from fastnorm.functional import (
    Array,
    NormForward,
    NormGradients,
    batch_norm,
    batch_norm_backward,
)
from fastnorm.layers.base import Layer, most_elements, on_cpu, placing


class Saved(NamedTuple):
    """What backward needs from the last call; rstd is taken from the variance only there."""

    x: Array
    mean: Array
    rstd_or_var: Array  # var where the statistics are running ones
    eps: float
    mask: Array | None
    residual: Array | bool | None
    own: bool  # whether the statistics are x's own, not running ones


class ChannelNorm(Layer):
    """A layer with a weight and a bias for each channel and, perhaps, running statistics.

    With running statistics inference normalizes as batch norm does; all else is by x's own
    statistics, of which a subclass says what they are.
    """

    _positional: ClassVar[tuple[str, ...]] = ("channels",)
    # Whether samples, which lie on the first axis, are normalized by themselves.
    _of_samples: ClassVar[bool] = True

    # None where there are none.
    running_mean: Array | None = None
    running_var: Array | None = None

    def __init__(
        self,
        channels: int,
        *,
        eps: float,
        affine: bool,
        channel_axis: int,
        activation: str | Activation | None,
        dtype: npt.DTypeLike,
        device: str | None,
        momentum: float | None = None,
        track_running_stats: bool = False,
    ) -> None:
        self.channels = arguments.integer(self._name, "channels", channels)
        parameter_dtype = arguments.parameter_dtype(self._name, dtype)
        most = most_elements(parameter_dtype)
        if not 0 <= self.channels <= most:
            raise ValueError(
                f"{self._name}: channels is {channels}, expected a number from 0 to {most}"
            )
        super().__init__(eps, activation)
        if momentum is not None:
            words = "a number from 0 to 1, or None"
            momentum = arguments.number_within(self._name, "momentum", momentum, 0.0, 1.0, words)
        first = 1 if self._of_samples else 0
        self.channel_axis = arguments.axis(self._name, "channel_axis", channel_axis, first)
        self.momentum = momentum
        self.affine = arguments.flag(self._name, "affine", affine)
        self.track_running_stats = arguments.flag(
            self._name, "track_running_stats", track_running_stats
        )
        placed = placing(self._name, device)
        if self.affine:
            self.weight = placed(np.ones(self.channels, parameter_dtype))
            self.bias = placed(np.zeros(self.channels, parameter_dtype))
        if self.track_running_stats:
            self.running_mean = placed(np.zeros(self.channels, parameter_dtype))
            self.running_var = placed(np.ones(self.channels, parameter_dtype))
            self.num_batches_tracked = 0
        self._may_warn = True

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
            2 to 5 dimensions (for instance norm 3 to 5), C of them on channel_axis; float32,
            float64, float16 or bfloat16.
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
            For a wrong shape, a partial overlap with out, or, where batch norm normalizes by them
            or running statistics take them in, statistics of one value.
        TypeError
            For anything but arrays of the four dtypes: NumPy's, or those on the layer's device.

        Warns
        -----
        UserWarning
            Once, in inference mode with running statistics that were never updated.
        """
        mean, var = self.running_mean, self.running_var
        try:
            if self.training or mean is None or var is None:
                if self.weight is None:  # then the op has nothing that shows the number of channels
                    self._check_channels(x)
                y, saved = self._forward_own(x, residual, out, stream)
            else:
                if self._of_samples:  # batch norm takes more
                    _core.check_instance_norm(self._name, x, self.channel_axis)
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

        Sets dweight and dbias (None without the parameter) and dresidual (None without a residual);
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
        saved: Saved | None = self._saved
        if saved is None:
            raise self._no_input()
        if saved.own:
            grads = self._gradients_own(dy, saved, out, stream)
        else:
            grads = self._gradients_running(dy, saved, out, stream)
        return self._keep_gradients(grads)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy parameters and running statistics into the layer's arrays, all or none.

        As in every layer; a state without num_batches_tracked says nothing of whether its running
        statistics were ever updated, so that no call will warn of them.
        """
        super().load_state_dict(state)
        if "num_batches_tracked" not in state:
            self._may_warn = False

    @abstractmethod
    def _forward_own(
        self, x: Array, residual: Array | None, out: Array | None, stream: Any
    ) -> tuple[Array, Saved | None]:
        """y by x's own statistics, and what its backward needs."""

    @abstractmethod
    def _gradients_own(
        self, dy: Array, saved: Saved, out: Array | None, stream: Any
    ) -> NormGradients:
        """The gradients where a call normalized by x's own statistics."""

    def _shape(self) -> tuple[int, ...]:
        return (self.channels,)

    def _arrays(self) -> dict[str, Array]:
        named = {"running_mean": self.running_mean, "running_var": self.running_var}
        running = {name: array for name, array in named.items() if array is not None}
        return super()._arrays() | running

    def _check_channels(self, x: Array) -> None:
        """What the op, which knows no layer, says of a mean or weight of another shape."""
        shape = getattr(x, "shape", ())
        if not -len(shape) <= self.channel_axis < len(shape):
            return  # the op says what is wrong
        found = shape[self.channel_axis]
        if found != self.channels:
            raise ValueError(
                f"{self._name}: x has shape {tuple(shape)}, expected {self.channels} channels on "
                f"axis {self.channel_axis}"
            ) from None

    def _running_to_update(self) -> tuple[Array | None, Array | None, float]:
        """The running statistics that a call takes x's into, and with which weight."""
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / ((self.num_batches_tracked or 0) + 1)
        if self.training and self.track_running_stats:
            return self.running_mean, self.running_var, momentum
        return None, None, momentum

    def _save_own(self, x: Array, residual: Array | None, forward: NormForward) -> Saved:
        """What backward needs of a call by x's own statistics, which is counted where tracked."""
        _, mean, rstd, mask = forward
        count = self.num_batches_tracked
        # An empty batch leaves the running statistics as they are, so it does not count either.
        if count is not None and self.training and self.track_running_stats and prod(x.shape) > 0:
            self.num_batches_tracked = count + 1
        return Saved(
            x, mean, rstd, self.eps, mask, self._residual_for_backward(residual, mask), True
        )

    def _forward_running(
        self,
        x: Array,
        residual: Array | None,
        out: Array | None,
        stream: Any,
        mean: Array,
        var: Array,
    ) -> tuple[Array, Saved | None]:
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
        return y, Saved(x, mean.copy(), var.copy(), self.eps, None, keep, False)

    def _gradients_running(
        self, dy: Array, saved: Saved, out: Array | None, stream: Any
    ) -> NormGradients:
        rstd = saved.rstd_or_var
        if isinstance(rstd, cuda.Array):
            rstd = cuda.rstd_of(rstd, saved.eps, saved.x, stream)
        else:
            with np.errstate(all="ignore"):
                rstd = 1.0 / np.sqrt(rstd.astype(np.float64) + saved.eps)
        return batch_norm_backward(
            dy,
            saved.x,
            saved.mean,
            rstd,
            self.weight,
            self.bias,
            training=False,
            channel_axis=self.channel_axis,
            residual=saved.residual,
            activation=self.activation,
            out=out,
            stream=stream,
        )

    def _warn_if_never_updated(self, running_mean: Array, running_var: Array) -> None:
        if self.channels == 0:
            return
        self._may_warn = False
        if np.any(on_cpu(running_mean) != 0) or np.any(on_cpu(running_var) != 1):
            return
        warnings.warn(
            f"{self._name}: inference with running statistics that were never updated: train "
            "first, load a state_dict, or use track_running_stats=False",
            UserWarning,
            stacklevel=4,
        )
