"""ONNX's BatchNormalization in terms of fastnorm: the conversion of its conventions.

https://onnx.ai/onnx/operators/onnx__BatchNormalization.html against fastnorm:

    ONNX                                        fastnorm
    inputs X, scale, B, input_mean, input_var   x, weight, bias, mean, var
    epsilon                                     eps
    momentum, the weight of the old value       momentum, the weight of the new one: 1 - momentum
    running_var takes the biased variance       unbiased=False
    running_mean, running_var are new outputs   updated in place, here on copies
    channels are axis 1                         channel_axis=1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

import fastnorm as fn

Array = npt.NDArray[Any]

NODE_INPUTS = 5


def _trains(node: onnx.NodeProto, attributes: Mapping[str, Any], opset: int) -> bool:
    """Whether the node normalizes with the batch's own statistics, which each opset says anew."""
    if opset >= 14:
        return bool(attributes.get("training_mode", 0))
    # Up to opset 6 an attribute says so, then the number of outputs. Training had other outputs
    # then, which nothing here needs.
    tests = attributes.get("is_test", 0) if opset < 7 else len(node.output) == 1
    if not tests:
        raise ValueError(f"{node.name}: training at opset {opset}, expected opset 14 or newer")
    return False


def run_node(node: onnx.NodeProto, inputs: Sequence[Array], opset: int = 15) -> list[Array]:
    """The outputs of one BatchNormalization node: Y and, in training mode, both running ones."""
    if node.op_type != "BatchNormalization":
        raise ValueError(f"{node.name}: op is {node.op_type}, expected BatchNormalization")
    if len(inputs) != NODE_INPUTS:
        raise ValueError(f"{node.name}: {len(inputs)} inputs, expected {NODE_INPUTS}")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if not attributes.get("spatial", 1):
        raise ValueError(f"{node.name}: spatial is 0, expected 1: statistics of whole channels")
    x, scale, b, input_mean, input_var = inputs
    eps = attributes.get("epsilon", 1e-5)
    if not _trains(node, attributes, opset):
        return [fn.batch_norm(x, input_mean, input_var, scale, b, eps=eps)]
    running_mean, running_var = input_mean.copy(), input_var.copy()
    forward = fn.batch_norm_train(
        x,
        scale,
        b,
        running_mean=running_mean,
        running_var=running_var,
        momentum=1.0 - attributes.get("momentum", 0.9),
        unbiased=False,
        eps=eps,
    )
    return [forward.y, running_mean, running_var]


def run_model(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a graph of BatchNormalization nodes, which ONNX keeps in order of use.

    inputs are those of the graph without an initializer, in the graph's order.
    """
    graph = model.graph
    (opset,) = (o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in values]
    values.update(zip(names, inputs, strict=True))
    for node in graph.node:
        outputs = run_node(node, [values[name] for name in node.input], opset)
        # A node names no more outputs than it wants, and an unwanted one in between "".
        values.update(zip(node.output, outputs, strict=False))
    return [np.asarray(values[value.name]) for value in graph.output]
