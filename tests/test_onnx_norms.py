"""The ONNX adapter's conversions of every operator but BatchNormalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_adapter import run_model, run_node

Array = npt.NDArray[Any]


def draw(*shapes: tuple[int, ...], dtype: str = "float32") -> list[Array]:
    rng = np.random.default_rng(9)
    return [rng.uniform(-1.0, 2.0, shape).astype(dtype) for shape in shapes]


def node_of(operator: str, outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, ["x", "scale", "b"], outputs, name="node", **attributes)


def compare(
    node: onnx.NodeProto, arrays: list[Array], opset: int, tolerance: float = 1e-5
) -> list[Array]:
    """The adapter's outputs, close to those of ONNX's reference evaluator."""
    x = arrays[0]
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    inputs = dict(zip([name for name in node.input if name], arrays, strict=True))
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, element, a.shape) for name, a in inputs.items()],
        # All outputs have x's rank, statistics too.
        [
            helper.make_tensor_value_info(name, element, [None] * x.ndim)
            for name in node.output
            if name
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    expected = ReferenceEvaluator(model).run(None, inputs)
    outputs = run_model(model, arrays)
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.shape == wanted.shape
        np.testing.assert_allclose(output, wanted, rtol=tolerance, atol=tolerance)
    assert outputs[0].dtype == x.dtype
    return outputs


@pytest.mark.parametrize("axis", [-4, -2, 0, 1, 2, 3])
@pytest.mark.parametrize(
    "names", [["y"], ["y", "mean"], ["y", "", "deviation"], ["y", "mean", "deviation"]]
)
def test_outputs_of_layer_normalization(axis: int, names: list[str]) -> None:
    shape = (2, 3, 4, 5)
    row = shape[axis:]
    node = node_of("LayerNormalization", names, axis=axis, epsilon=0.25)
    outputs = compare(node, draw(shape, row, row), 17)
    assert len(outputs) == len([name for name in names if name])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 4e-3), ("float32", 1e-5), ("float64", 1e-6)]
)
def test_statistics_are_float32(dtype: str, tolerance: float) -> None:
    arrays = draw((6, 32), (32,), (32,), dtype=dtype)
    node = node_of("LayerNormalization", ["y", "mean", "deviation"])
    _, mean, deviation = compare(node, arrays, 17, tolerance)
    assert mean.dtype == deviation.dtype == np.float32


@pytest.mark.parametrize("inputs", [["x", "scale"], ["x", "scale", ""]])
def test_layer_normalization_without_bias(inputs: list[str]) -> None:
    node = helper.make_node("LayerNormalization", inputs, ["y"], axis=1)
    compare(node, draw((2, 3, 4), (3, 4)), 17)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 1), (4, 5), (1, 4, 5), (1, 1, 1, 5)])
@pytest.mark.parametrize("axis", [2, -2])
def test_scale_broadcasts_to_a_row(shape: tuple[int, ...], axis: int) -> None:
    arrays = draw((2, 3, 4, 5), shape, shape)
    compare(node_of("LayerNormalization", ["y"], axis=axis), arrays, 17)
    node = helper.make_node("RMSNormalization", ["x", "scale"], ["y"], axis=axis, epsilon=0.5)
    compare(node, arrays[:2], 23)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 1, 1, 1), (4,), (2, 5)])
@pytest.mark.parametrize(("place", "name"), [(1, "Scale"), (2, "B")])
def test_scale_of_other_shapes(shape: tuple[int, ...], place: int, name: str) -> None:
    arrays = draw((2, 3, 4, 5), (4, 5), (4, 5))
    arrays[place] = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=rf"node: {name} has shape .* broadcasts to \(4, 5\)"):
        run_node(node_of("LayerNormalization", ["y"], axis=2), arrays, 17)


def test_rms_normalization_rounds_before_the_scale() -> None:
    # The root mean square is 5: 3 times the rounded 1 / 5 is 0.5996, but 3 / 5 rounded once 0.6001.
    x = np.array([[1, 7, -1, -7]], np.float16)
    scale = np.full(4, 3, np.float16)
    node = helper.make_node("RMSNormalization", ["x", "scale"], ["y"], epsilon=0.0)
    (y,) = run_node(node, [x, scale], 23)
    normalized = x / np.float16(5)
    np.testing.assert_array_equal(y, normalized * scale)
    assert y[0, 0] != np.float16(0.6)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_rms_normalization_of_two_types(dtype: str) -> None:
    node = helper.make_node("RMSNormalization", ["x", "scale"], ["y"], name="node")
    with pytest.raises(ValueError, match=f"scale is of type {dtype}, expected X's float32"):
        run_node(node, [np.ones((2, 8), np.float32), np.ones(8, dtype)], 23)


@pytest.mark.parametrize(("opset", "parameters"), [(18, 3), (20, 3), (21, 6), (23, 6)])
@pytest.mark.parametrize("spatial", [(), (7,), (2, 3, 2)])
def test_group_normalization(opset: int, parameters: int, spatial: tuple[int, ...]) -> None:
    node = node_of("GroupNormalization", ["y"], num_groups=3, epsilon=0.25)
    compare(node, draw((2, 6, *spatial), (parameters,), (parameters,)), opset)


@pytest.mark.parametrize(("opset", "dtype"), [(6, "float32"), (22, "float32"), (22, "float64")])
@pytest.mark.parametrize("spatial", [(7,), (3, 4), (2, 3, 2)])
def test_instance_normalization(opset: int, dtype: str, spatial: tuple[int, ...]) -> None:
    arrays = draw((2, 6, *spatial), (6,), (6,), dtype=dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    compare(node_of("InstanceNormalization", ["y"], epsilon=0.25), arrays, opset, tolerance)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 4, 5, 2), None),
        ((3, 4, 5, 2), [3, 0, 2]),
        ((3, 4, 5, 2), [-4, -2, -1]),
        ((3, 4, 5, 2), [0, 1, 2]),
        ((6, 4), [0]),
        ((6, 4), [-1]),
        ((2, 3, 4, 2, 3), [0, 2, 3, 4]),
    ],
)
def test_mean_variance_normalization(shape: tuple[int, ...], axes: list[int] | None) -> None:
    attributes = {} if axes is None else {"axes": axes}
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], **attributes)
    compare(node, draw(shape), 13)


def test_mean_variance_normalization_of_a_constant_channel() -> None:
    (x,) = draw((3, 4, 5, 2))
    x[:, 1] = 2.0
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"])
    (y,) = compare(node, [x], 13)
    np.testing.assert_array_equal(y[:, 1], np.zeros((3, 5, 2), np.float32))


@pytest.mark.parametrize("deviation", [1e-3, 1e-6, 1e-9])
def test_mean_variance_normalization_of_small_values(deviation: float) -> None:
    # ONNX adds its epsilon to the deviation, fastnorm to the variance; ONNX's own evaluator takes
    # the variance as a difference of squares, which is too coarse here.
    x = np.array([-deviation, deviation], np.float32).reshape(2, 1, 1, 1)
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"])
    (y,) = run_node(node, [x], 13)
    np.testing.assert_allclose(y, x / (deviation + 1e-9), rtol=1e-9 / deviation + 1e-6)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 3, 4, 5), [2, 3]),
        ((2, 3, 4, 5), [0, 1, 2, 3]),
        ((2, 3, 4), [0, 2, 4]),
        ((2,) * 5, None),
    ],
)
def test_mean_variance_normalization_over_other_axes(
    shape: tuple[int, ...], axes: list[int] | None
) -> None:
    attributes = {} if axes is None else {"axes": axes}
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], name="node", **attributes)
    with pytest.raises(ValueError, match=f"expected all but one of the {len(shape)} of X"):
        run_node(node, draw(shape), 13)


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [("LayerNormalization", 3), ("RMSNormalization", 2), ("GroupNormalization", 3)],
)
def test_stash_type(operator: str, inputs: int) -> None:
    arrays = draw((2, 4), (4,), (4,))[:inputs]
    node = node_of(operator, ["y"], stash_type=TensorProto.BFLOAT16, num_groups=2)
    with pytest.raises(ValueError, match="node: stash_type is 16, expected 1"):
        run_node(node, arrays, 23)


@pytest.mark.parametrize(
    ("operator", "given", "expected"),
    [
        ("LayerNormalization", 1, "2 or 3"),
        ("RMSNormalization", 3, "2"),
        ("GroupNormalization", 2, "3"),
        ("InstanceNormalization", 1, "3"),
        ("MeanVarianceNormalization", 2, "1"),
    ],
)
def test_number_of_inputs(operator: str, given: int, expected: str) -> None:
    arrays = draw((2, 4, 8), (8,), (8,))[:given]
    with pytest.raises(ValueError, match=f"node: {given} inputs, expected {expected}$"):
        run_node(node_of(operator, ["y"]), arrays, 23)
