"""A layer of each norm beside batch norm, and the functional calls that it stands for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import fastnorm as fn
from layer_cases import batch

Array = npt.NDArray[Any]

SHAPE = (3, 4, 5)  # of x
# What follows the class's options, and the shape of the parameters.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "GroupNorm": (partial(fn.GroupNorm, 2, 4), (4,)),
    "InstanceNorm": (partial(fn.InstanceNorm, 4, affine=True), (4,)),
    "LayerNorm": (partial(fn.LayerNorm, (4, 5)), (4, 5)),
    "RMSNorm": (partial(fn.RMSNorm, 5), (5,)),
}
OF_FEATURES = ("LayerNorm", "RMSNorm")
OPS = {
    "GroupNorm": "group_norm",
    "InstanceNorm": "instance_norm",
    "LayerNorm": "layer_norm",
    "RMSNorm": "rms_norm",
}


def make(name: str, **options: Any) -> Any:
    """The layer with parameters of its own, other than the initial ones."""
    layer = LAYERS[name][0](**options)
    rng = np.random.default_rng(7)
    for array in (layer.weight, layer.bias):
        if array is not None:
            array[...] = rng.standard_normal(array.shape)
    return layer


def x_of(seed: int = 0, dtype: str = "float32") -> Array:
    """Data that every layer here takes."""
    return batch(seed, SHAPE, dtype)


def op(layer: Any, suffix: str = "", **options: Any) -> Any:
    """The functional op, with what it takes of the layer's options and parameters."""
    name = type(layer).__name__
    given: dict[str, Any] = {"activation": layer.activation}
    given |= {"weight": layer.weight, "bias": layer.bias}
    if name in OF_FEATURES:
        given |= {"axis": -len(layer.shape), "weight_offset": layer.weight_offset}
    else:
        given["channel_axis"] = layer.channel_axis
    if name == "GroupNorm":
        given["groups"] = layer.groups
    if suffix != "_backward":
        given["eps"] = layer.eps
        if name == "RMSNorm":
            given["cast_before_weight"] = layer.cast_before_weight
    return partial(getattr(fn, OPS[name] + suffix), **given, **options)


def backward(layer: Any, x: Array, dy: Array, forward: Any, **options: Any) -> fn.NormGradients:
    """The op's gradients, given what its forward pass returned."""
    statistics = {
        name: getattr(forward, name) for name in ("mean", "rstd", "mask") if hasattr(forward, name)
    }
    gradients: fn.NormGradients = op(layer, "_backward", dy=dy, x=x, **statistics, **options)()
    return gradients
