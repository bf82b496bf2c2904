"""Group normalization as a layer."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastnorm import arguments
from fastnorm.activation import Activation
from fastnorm.functional import (
    Array,
    NormGradients,
    group_norm,
    group_norm_backward,
    group_norm_train,
)
from fastnorm.layers.channels import ChannelNorm, Saved


class GroupNorm(ChannelNorm):
    """Group normalization with its parameters.

    A call normalizes each sample by itself, in groups of neighbouring channels: in training mode,
    the initial one, as in inference mode.

    The layer keeps a reference to the x of its last call, and to the residual where backward needs
    it: do not overwrite them between a call and its backward. Of weight and bias it keeps nothing:
    backward takes them as they are at that time. After ``eval(backward=False)`` it keeps nothing of
    a call, which costs less.

    Parameters
    ----------
    groups : int
        A divisor of the number of channels. 1 normalizes over all of a sample, C each channel.
    channels : int
        The number of channels C.
    eps : float
        Added to the variance inside the square root; any value >= 0.
    affine : bool
        Whether there are a weight and a bias.
    channel_axis : int
        The axis of x that the channels lie on, any but the first; may be negative.
    activation : None, str or Activation
        Applied to the output, after the residual is added.
    dtype : dtype
        Of the parameters: float32, float64, float16 or bfloat16. It need not be that of x.
    device : None, "cuda" or "cuda:<number>"
        Where the parameters are, and the arrays that the layer is called with; None is the CPU.

    Attributes
    ----------
    weight, bias : array of shape (C,), or None
        Initially ones and zeros. On a device, they are `fastnorm.cuda.Array`.
    training : bool
        The mode.
    dweight, dbias : ndarray of shape (C,), or None
        Gradients from the last `backward`.
    dresidual : ndarray of x's shape and dtype, or None
        Gradient from the last `backward`, if that call had a residual.

    Raises
    ------
    ValueError
        If groups does not divide channels, channels is negative or beyond what an array can hold,
        channel_axis or eps out of range, or the activation unknown.
    TypeError
        If groups, channels or channel_axis is no integer, eps no number, affine no bool, or dtype
        none of the four.

    References
    ----------
    .. [1] Y. Wu and K. He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494,
       section 3.
    """

    _name = "GroupNorm"
    _positional = ("groups", "channels")
    _named = ("eps", "affine", "channel_axis", "activation")

    def __init__(
        self,
        groups: int,
        channels: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        channel_axis: int = 1,
        activation: str | Activation | None = None,
        dtype: npt.DTypeLike = "float32",
        device: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            eps=eps,
            affine=affine,
            channel_axis=channel_axis,
            activation=activation,
            dtype=dtype,
            device=device,
        )
        self.groups = arguments.integer(self._name, "groups", groups)
        if self.groups < 1 or self.channels % self.groups != 0:
            raise ValueError(
                f"{self._name}: groups is {groups}, expected a divisor of the {self.channels} "
                "channels"
            )

    def _forward_own(
        self, x: Array, residual: Array | None, out: Array | None, stream: Any
    ) -> tuple[Array, Saved | None]:
        if not self._keeps and not self.training:
            y = group_norm(
                x,
                self.groups,
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
        forward = group_norm_train(
            x,
            self.groups,
            self.weight,
            self.bias,
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
        return group_norm_backward(
            dy,
            saved.x,
            self.groups,
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
