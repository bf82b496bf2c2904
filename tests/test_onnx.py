"""The ONNX backend's own cases of its normalization operators, and batch norm's conversions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from onnx_adapter import OPERATORS, run_model, run_node

Array = npt.NDArray[Any]
DataSet = tuple[list[Array], list[Array]]
BackendCase = Any  # onnx has no type hints for its cases


def cases_of_axes(prefix: str) -> tuple[str, ...]:
    """One for each axis of two to four dimensions, counted from either end, and the default."""
    of_axes = [
        f"{prefix}_{rank}d_axis{axis}{'_epsilon' * (rank == 3)}"
        for rank in (2, 3, 4)
        for positive in range(rank)
        for axis in (positive, f"_negative_{rank - positive}")
    ]
    return (*of_axes, f"{prefix}_default_axis")


# By operator, with the opset that its cases are of.
NODE_CASES = {
    "BatchNormalization": (
        15,
        (
            "test_batchnorm_epsilon",
            "test_batchnorm_epsilon_training_mode",
            "test_batchnorm_example",
            "test_batchnorm_example_training_mode",
        ),
    ),
    "LayerNormalization": (17, cases_of_axes("test_layer_normalization")),
    "RMSNormalization": (23, cases_of_axes("test_rms_normalization")),
    "GroupNormalization": (
        21,
        ("test_group_normalization_epsilon", "test_group_normalization_example"),
    ),
    "InstanceNormalization": (22, ("test_instancenorm_epsilon", "test_instancenorm_example")),
    "MeanVarianceNormalization": (13, ("test_mvn",)),
}
# Those of PyTorch's tests whose data lie in the onnx package.
CONVERTED_CASES = (
    "test_BatchNorm1d_3d_input_eval",
    "test_BatchNorm2d_eval",
    "test_BatchNorm2d_momentum_eval",
    "test_BatchNorm3d_eval",
    "test_BatchNorm3d_momentum_eval",
    "test_operator_symbolic_override",  # an InstanceNormalization
)


def is_ours(model: onnx.ModelProto) -> bool:
    """Whether it is of the adapter's operators alone, unlike what expands one of them."""
    operators = {node.op_type for node in model.graph.node}
    return bool(operators) and operators <= set(OPERATORS)


@pytest.fixture(scope="module")
def node_cases() -> dict[str, BackendCase]:
    """The cases that onnx generates, by name."""
    with warnings.catch_warnings():
        # It imports the generators of all operators, some of which divide by zero.
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return {case.name: case for case in found if is_ours(case.model)}


@pytest.fixture(scope="module")
def converted_cases() -> dict[str, BackendCase]:
    """The cases converted from PyTorch's tests, by name."""
    kinds = ("pytorch-converted", "pytorch-operator")
    found = [case for kind in kinds for case in load_model_tests(kind=kind)]
    return {case.name: case for case in found if is_ours(read_model(case))}


def read_model(case: BackendCase) -> onnx.ModelProto:
    return onnx.load(Path(case.model_dir) / "model.onnx")


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
    assert list(NODE_CASES) == list(OPERATORS)
    assert [len(names) for _, names in NODE_CASES.values()] == [4, 19, 19, 2, 2, 1]
    for operator, (_, names) in NODE_CASES.items():
        found = [
            name
            for name, case in node_cases.items()
            if case.model.graph.node[0].op_type == operator
        ]
        assert sorted(found) == sorted(names)
    assert len(node_cases) == 47
    assert len(CONVERTED_CASES) == 6
    assert sorted(converted_cases) == sorted(CONVERTED_CASES)


@pytest.mark.parametrize(
    ("name", "opset"), [(name, opset) for opset, names in NODE_CASES.values() for name in names]
)
def test_node(name: str, opset: int, node_cases: dict[str, BackendCase]) -> None:
    case = node_cases[name]
    assert [o.version for o in case.model.opset_import] == [opset]
    assert len(case.model.graph.node) == 1
    check(case, case.model, case.data_sets)


@pytest.mark.parametrize("name", CONVERTED_CASES)
def test_converted(name: str, converted_cases: dict[str, BackendCase]) -> None:
    case = converted_cases[name]
    data_sets = [
        (read_tensors(data, "input"), read_tensors(data, "output"))
        for data in sorted(Path(case.model_dir).glob("test_data_set_*"))
    ]
    check(case, read_model(case), data_sets)


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
    with pytest.raises(ValueError, match="op is Relu, expected one of BatchNormalization, Layer"):
        run_node(helper.make_node("Relu", ["x"], ["y"]), arguments(), 15)
    with pytest.raises(ValueError, match="node: 2 inputs, expected 5"):
        run_node(batch_norm_node("node", "x", ["y"]), arguments()[:2], 15)
