"""The ONNX backend's own BatchNormalization cases, and the adapter's conversions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from onnx_adapter import run_model, run_node

Array = npt.NDArray[Any]
DataSet = tuple[list[Array], list[Array]]
BackendCase = Any  # onnx has no type hints for its cases

NODE_CASES = (
    "test_batchnorm_epsilon",
    "test_batchnorm_epsilon_training_mode",
    "test_batchnorm_example",
    "test_batchnorm_example_training_mode",
)
CONVERTED_CASES = (
    "test_BatchNorm1d_3d_input_eval",
    "test_BatchNorm2d_eval",
    "test_BatchNorm2d_momentum_eval",
    "test_BatchNorm3d_eval",
    "test_BatchNorm3d_momentum_eval",
)


@pytest.fixture(scope="module")
def node_cases() -> dict[str, BackendCase]:
    """The cases that onnx generates, by name."""
    with warnings.catch_warnings():
        # It imports the generators of all operators, some of which divide by zero.
        warnings.simplefilter("ignore")
        found = collect_testcases("BatchNormalization")
    operators = [{node.op_type for node in case.model.graph.node} for case in found]
    return {
        case.name: case
        for case, ops in zip(found, operators, strict=True)
        if ops == {"BatchNormalization"}
    }


@pytest.fixture(scope="module")
def converted_cases() -> dict[str, BackendCase]:
    """The cases converted from PyTorch's tests whose data lie in the onnx package, by name."""
    found = load_model_tests(kind="pytorch-converted")
    return {case.name: case for case in found if case.name.startswith("test_BatchNorm")}


def read_tensors(folder: Path, stem: str) -> list[Array]:
    """The arrays of stem_0.pb, stem_1.pb, ..."""
    files = sorted(folder.glob(f"{stem}_*.pb"), key=lambda path: int(path.stem.split("_")[-1]))
    return [numpy_helper.to_array(TensorProto.FromString(path.read_bytes())) for path in files]


def check(case: BackendCase, model: onnx.ModelProto, data_sets: list[DataSet]) -> None:
    assert data_sets
    for inputs, expected in data_sets:
        assert expected
        before = [a.tobytes() for a in inputs]
        outputs = run_model(model, inputs)
        assert [a.tobytes() for a in inputs] == before
        for output, wanted in zip(outputs, expected, strict=True):
            assert output.dtype == wanted.dtype
            assert output.shape == wanted.shape
            np.testing.assert_allclose(output, wanted, rtol=case.rtol, atol=case.atol)


def test_every_case_is_run(
    node_cases: dict[str, BackendCase], converted_cases: dict[str, BackendCase]
) -> None:
    assert len(NODE_CASES) == 4
    assert sorted(node_cases) == sorted(NODE_CASES)
    assert len(CONVERTED_CASES) == 5
    assert sorted(converted_cases) == sorted(CONVERTED_CASES)


@pytest.mark.parametrize("name", NODE_CASES)
def test_node(name: str, node_cases: dict[str, BackendCase]) -> None:
    case = node_cases[name]
    assert [o.version for o in case.model.opset_import] == [15]
    check(case, case.model, case.data_sets)


@pytest.mark.parametrize("name", CONVERTED_CASES)
def test_converted(name: str, converted_cases: dict[str, BackendCase]) -> None:
    case = converted_cases[name]
    folder = Path(case.model_dir)
    data_sets = [
        (read_tensors(data, "input"), read_tensors(data, "output"))
        for data in sorted(folder.glob("test_data_set_*"))
    ]
    check(case, onnx.load(folder / "model.onnx"), data_sets)


# --- the adapter's own conversions, against ONNX's reference evaluator ---------------------------

CHANNELS = 3


def batch_norm_node(prefix: str, x: str, outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    names = [f"{prefix}_{name}" for name in ("scale", "b", "mean", "var")]
    return helper.make_node("BatchNormalization", [x, *names], outputs, name=prefix, **attributes)


def two_layers(dtype: str) -> onnx.ModelProto:
    """Training with a momentum of its own, then inference on what it gave."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(7)
    initializers = [
        numpy_helper.from_array(rng.uniform(0.5, 2.0, CHANNELS).astype(dtype), f"{prefix}_{name}")
        for prefix in ("first", "second")
        for name in ("scale", "b", "mean", "var")
    ]
    nodes = [
        batch_norm_node(
            "first", "x", ["hidden", "new_mean", "new_var"], training_mode=1, momentum=0.25
        ),
        batch_norm_node("second", "hidden", ["y"], epsilon=0.125),
    ]
    outputs = [
        helper.make_tensor_value_info("y", element, ["n", CHANNELS, "l"]),
        helper.make_tensor_value_info("new_mean", element, [CHANNELS]),
        helper.make_tensor_value_info("new_var", element, [CHANNELS]),
    ]
    inputs = [helper.make_tensor_value_info("x", element, ["n", CHANNELS, "l"])]
    graph = helper.make_graph(nodes, "two_layers", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_graph_of_two_nodes(dtype: str, tolerance: float) -> None:
    # Two values per channel, so that biased and unbiased variances are far apart.
    x = np.random.default_rng(8).standard_normal((2, CHANNELS, 1)).astype(dtype)
    model = two_layers(dtype)
    expected = ReferenceEvaluator(model).run(None, {"x": x})
    outputs = run_model(model, [x])
    assert len(outputs) == len(expected) == 3
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == x.dtype
        np.testing.assert_allclose(output, wanted, rtol=tolerance, atol=tolerance)


def arguments() -> list[Array]:
    channel = np.ones(CHANNELS, np.float32)
    return [np.ones((2, CHANNELS, 4), np.float32), *[channel] * 4]


@pytest.mark.parametrize(("opset", "attributes"), [(6, {"is_test": 1}), (9, {}), (15, {})])
def test_inference_at_every_generation_of_the_operator(
    opset: int, attributes: dict[str, int]
) -> None:
    node = batch_norm_node("node", "x", ["y"], **attributes)
    (y,) = run_node(node, arguments(), opset)
    np.testing.assert_array_equal(y, np.ones((2, CHANNELS, 4), np.float32))


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes", "message"),
    [
        (6, ["y"], {}, "training at opset 6"),
        (9, ["y", "m", "v", "sm", "sv"], {}, "training at opset 9"),
        (7, ["y"], {"spatial": 0}, "spatial is 0"),
    ],
)
def test_what_the_adapter_does_not_convert(
    opset: int, outputs: list[str], attributes: dict[str, int], message: str
) -> None:
    node = batch_norm_node("node", "x", outputs, **attributes)
    with pytest.raises(ValueError, match=message):
        run_node(node, arguments(), opset)


def test_another_operator() -> None:
    with pytest.raises(ValueError, match="op is Relu, expected BatchNormalization"):
        run_node(helper.make_node("Relu", ["x"], ["y"]), arguments())
    with pytest.raises(ValueError, match="2 inputs, expected 5"):
        run_node(batch_norm_node("node", "x", ["y"]), arguments()[:2])
