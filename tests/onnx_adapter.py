"""ONNX's normalization operators in terms of fastnorm: the conversion of their conventions.

https://onnx.ai/onnx/operators/ against fastnorm:

    ONNX                                        fastnorm
    all of them
      X, scale, B or bias                       x, weight, bias
      epsilon                                   eps
      channels are axis 1                       channel_axis=1
    those with stash_type
      1: statistics in float32                  as exact or more so, for every dtype of x
      rounded to X's dtype before scale and     rounded once, at the end
      again behind it
    BatchNormalization                          batch_norm, batch_norm_train
      input_mean, input_var                     mean, var
      momentum, the weight of the old value     momentum, the weight of the new one: 1 - momentum
      running_var takes the biased variance     unbiased=False
      running_mean, running_var, new outputs    updated in place, here on copies
    LayerNormalization                          layer_norm, layer_norm_train
      scale, B broadcast to X                   of shape x.shape[axis:], no other for each row
      Mean, InvStdDev keep the reduced axes     mean, rstd, without these axes
      both float32 with stash_type 1            float32 or float64
    RMSNormalization                            rms_norm
      scale broadcasts to X                     of shape x.shape[axis:], no other for each row
      rounded before scale, too                 cast_before_weight=True
    GroupNormalization                          group_norm
      scale, bias of a group up to opset 20     of a channel: repeated
    InstanceNormalization                       instance_norm
    MeanVarianceNormalization                   batch_norm_train without weight and bias
      axes, those that are reduced              channel_axis, the one that is not
      / (std + 1e-9)                            / sqrt(var + 1e-18): the same where var is 0, and
                                                within 1e-9 / std of it elsewhere
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

import fastnorm as fn

Array = npt.NDArray[Any]

EPSILON = 1e-5  # the default of every operator that has the attribute


@dataclass(frozen=True)
class Node:
    """What a conversion needs of a node besides its inputs."""

    name: str
    attributes: Mapping[str, Any]
    outputs: int
    opset: int

    @property
    def eps(self) -> float:
        return float(self.attributes.get("epsilon", EPSILON))


def _trains(node: Node) -> bool:
    """Whether the node normalizes with the batch's own statistics, which each opset says anew."""
    if node.opset >= 14:
        return bool(node.attributes.get("training_mode", 0))
    # Up to opset 6 an attribute says so, then the number of outputs. Training had other outputs
    # then, which nothing here needs.
    tests = node.attributes.get("is_test", 0) if node.opset < 7 else node.outputs == 1
    if not tests:
        raise ValueError(f"{node.name}: training at opset {node.opset}, expected opset 14 or newer")
    return False


def _check_stash_type(node: Node) -> None:
    stash_type = node.attributes.get("stash_type", onnx.TensorProto.FLOAT)
    if stash_type != onnx.TensorProto.FLOAT:
        raise ValueError(f"{node.name}: stash_type is {stash_type}, expected 1: float32 statistics")


def _of_a_row(node: Node, name: str, values: Array, row: tuple[int, ...]) -> Array:
    """Scale or B, which ONNX broadcasts to all of X, in the shape of a row."""
    leading = values.shape[: -len(row)]
    try:
        # Dimensions in front of a row's may be there, but not tell one row from another.
        return np.broadcast_to(values.reshape(values.shape[len(leading) :]), row)
    except ValueError:
        raise ValueError(
            f"{node.name}: {name} has shape {values.shape}, expected one that broadcasts to {row}, "
            "the same for every row"
        ) from None


def batch_normalization(
    node: Node, x: Array, scale: Array, b: Array, input_mean: Array, input_var: Array
) -> list[Array]:
    """Y and, in training mode, both running statistics."""
    if not node.attributes.get("spatial", 1):
        raise ValueError(f"{node.name}: spatial is 0, expected 1: statistics of whole channels")
    if not _trains(node):
        return [fn.batch_norm(x, input_mean, input_var, scale, b, eps=node.eps)]
    running_mean, running_var = input_mean.copy(), input_var.copy()
    forward = fn.batch_norm_train(
        x,
        scale,
        b,
        running_mean=running_mean,
        running_var=running_var,
        momentum=1.0 - node.attributes.get("momentum", 0.9),
        unbiased=False,
        eps=node.eps,
    )
    return [forward.y, running_mean, running_var]


def layer_normalization(node: Node, x: Array, scale: Array, b: Array | None = None) -> list[Array]:
    """Y and, where the node names more outputs than that, Mean and InvStdDev."""
    _check_stash_type(node)
    axis = node.attributes.get("axis", -1)
    weight = _of_a_row(node, "Scale", scale, x.shape[axis:])
    bias = None if b is None else _of_a_row(node, "B", b, x.shape[axis:])
    if node.outputs == 1:
        return [fn.layer_norm(x, weight, bias, axis=axis, eps=node.eps)]
    forward = fn.layer_norm_train(x, weight, bias, axis=axis, eps=node.eps)
    kept = forward.mean.shape + (1,) * (x.ndim - forward.mean.ndim)
    statistics = [a.astype(np.float32).reshape(kept) for a in (forward.mean, forward.rstd)]
    return [forward.y, *statistics]


def rms_normalization(node: Node, x: Array, scale: Array) -> list[Array]:
    """Y."""
    _check_stash_type(node)
    if scale.dtype != x.dtype:
        # ONNX gives Y scale's type, and defines it by a product of both types, which ONNX lacks.
        raise ValueError(f"{node.name}: scale is of type {scale.dtype}, expected X's {x.dtype}")
    axis = node.attributes.get("axis", -1)
    weight = _of_a_row(node, "scale", scale, x.shape[axis:])
    return [fn.rms_norm(x, weight, axis=axis, eps=node.eps, cast_before_weight=True)]


def group_normalization(node: Node, x: Array, scale: Array, bias: Array) -> list[Array]:
    """Y."""
    _check_stash_type(node)
    groups = node.attributes["num_groups"]
    if node.opset < 21:
        scale, bias = (np.repeat(a, x.shape[1] // groups) for a in (scale, bias))
    return [fn.group_norm(x, groups, scale, bias, eps=node.eps)]


def instance_normalization(node: Node, x: Array, scale: Array, b: Array) -> list[Array]:
    """Y."""
    return [fn.instance_norm(x, scale, b, eps=node.eps)]


def mean_variance_normalization(node: Node, x: Array) -> list[Array]:
    """Y."""
    axes = node.attributes.get("axes", [0, 2, 3])
    kept = [axis for axis in range(x.ndim) if axis not in axes and axis - x.ndim not in axes]
    if len(kept) != 1 or len(axes) != x.ndim - 1:
        raise ValueError(
            f"{node.name}: axes is {list(axes)}, expected all but one of the {x.ndim} of X"
        )
    return [fn.batch_norm_train(x, eps=1e-18, channel_axis=kept[0]).y]


# What converts an operator, and how many inputs it may have.
OPERATORS: Mapping[str, tuple[Callable[..., list[Array]], tuple[int, ...]]] = {
    "BatchNormalization": (batch_normalization, (5,)),
    "LayerNormalization": (layer_normalization, (2, 3)),
    "RMSNormalization": (rms_normalization, (2,)),
    "GroupNormalization": (group_normalization, (3,)),
    "InstanceNormalization": (instance_normalization, (3,)),
    "MeanVarianceNormalization": (mean_variance_normalization, (1,)),
}


def run_node(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The outputs of one node, of an optional input None where it is not given."""
    if node.op_type not in OPERATORS:
        raise ValueError(
            f"{node.name}: op is {node.op_type}, expected one of {', '.join(OPERATORS)}"
        )
    convert, counts = OPERATORS[node.op_type]
    if len(inputs) not in counts:
        expected = " or ".join(str(count) for count in counts)
        raise ValueError(f"{node.name}: {len(inputs)} inputs, expected {expected}")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return convert(Node(node.name, attributes, len(node.output), opset), *inputs)


def run_model(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a graph of these operators, which ONNX keeps in order of use.

    inputs are those of the graph without an initializer, in the graph's order.
    """
    graph = model.graph
    (opset,) = (o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in values]
    values.update(zip(names, inputs, strict=True))
    for node in graph.node:
        # An optional input or output that is left out in between has the name "".
        given = [values[name] if name else None for name in node.input]
        # A node names no more outputs than it wants.
        values.update(zip(node.output, run_node(node, given, opset), strict=False))
    return [np.asarray(values[value.name]) for value in graph.output]
