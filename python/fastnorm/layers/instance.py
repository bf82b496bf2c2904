"""Instance normalization as a layer."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastnorm.activation import Activation
from fastnorm.functional import (
    Array,
    NormGradients,
    instance_norm,
    instance_norm_backward,
    instance_norm_train,
)
from fastnorm.layers.channels import ChannelNorm, Saved


class InstanceNorm(ChannelNorm):
    """Instance normalization with its parameters and, where they are tracked, running statistics.

    A call normalizes each channel of each sample by itself. With running statistics it also updates
    them in training mode, the initial one, and in inference mode is `batch_norm` with them.

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
        Whether there are running statistics.
    channel_axis : int
        The axis of x that the channels lie on, any but the first; may be negative.
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
        Initially zeros and ones. What they take in of a batch is the average over its samples; the
        variance is the unbiased one. On a device, they and the parameters are
        `fastnorm.cuda.Array`.
    num_batches_tracked : int or None
        The number of batches that the running statistics have seen. PyTorch's module has it, but
        leaves it at 0: set it before training goes on from such a checkpoint with momentum=None.
    training : bool
        The mode.
    dweight, dbias : ndarray of shape (C,), or None
        Gradients from the last `backward`.
    dresidual : ndarray of x's shape and dtype, or None
        Gradient from the last `backward`, if that call had a residual.

    Raises
    ------
    ValueError
        If channels is negative or beyond what an array can hold, channel_axis, eps or momentum out
        of range, or the activation unknown.
    TypeError
        If channels or channel_axis is no integer, eps or momentum no number, affine or
        track_running_stats no bool, or dtype none of the four.

    References
    ----------
    .. [1] D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance Normalization: The Missing Ingredient
       for Fast Stylization", 2016, https://arxiv.org/abs/1607.08022, section 2.
    """

    _name = "InstanceNorm"
    _named = ("eps", "momentum", "affine", "track_running_stats", "channel_axis", "activation")

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        channel_axis: int = 1,
        activation: str | Activation | None = None,
        dtype: npt.DTypeLike = "float32",
        device: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            channel_axis=channel_axis,
            activation=activation,
            dtype=dtype,
            device=device,
        )

    def _forward_own(
        self, x: Array, residual: Array | None, out: Array | None, stream: Any
    ) -> tuple[Array, Saved | None]:
        if not self._keeps and not self.training:
            y = instance_norm(
                x,
                self.weight,
                self.bias,
                eps=self.eps,
                channel_axis=self.channel_axis,
                residual=residual,
                activation=self.activation,
                out=out,
                stream=stream,
            )
            return y, None
        running_mean, running_var, momentum = self._running_to_update()
        forward = instance_norm_train(
            x,
            self.weight,
            self.bias,
            running_mean=running_mean,
            running_var=running_var,
            momentum=momentum,
            eps=self.eps,
            channel_axis=self.channel_axis,
            residual=residual,
            activation=self.activation,
            out=out,
            stream=stream,
        )
        return forward.y, self._save_own(x, residual, forward)

    def _gradients_own(
        self, dy: Array, saved: Saved, out: Array | None, stream: Any
    ) -> NormGradients:
        return instance_norm_backward(
            dy,
            saved.x,
            saved.mean,
            saved.rstd_or_var,
            self.weight,
            self.bias,
            channel_axis=self.channel_axis,
            residual=saved.residual,
            activation=self.activation,
            mask=saved.mask,
            out=out,
            stream=stream,
        )
