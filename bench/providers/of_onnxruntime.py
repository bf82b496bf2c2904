"""ONNX Runtime on the CPU, as one runs a model that has been exported."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from problem import EPS, Problem
from providers import Runner

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
OPSET, IR_VERSION = 15, 8


def _model(problem: Problem) -> ModelProto:
    """BatchNormalization and what follows it, a node each."""
    case = problem.case
    following = ["Add"] * case.residual + ["Relu"] * (case.activation is not None)
    names = [*(f"y{i}" for i in range(len(following))), "y"]
    vectors = {v: getattr(problem, v) for v in ("weight", "bias", "mean", "var")}
    inputs = ["x", *["residual"] * case.residual]

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TYPES[case.dtype], case.shape)

    nodes = [helper.make_node("BatchNormalization", ["x", *vectors], names[:1], epsilon=EPS)]
    for i, kind in enumerate(following):
        others = ["residual"] if kind == "Add" else []
        nodes.append(helper.make_node(kind, [names[i], *others], [names[i + 1]]))
    graph = helper.make_graph(
        nodes,
        "batch_norm",
        [value(name) for name in inputs],
        [value("y")],
        [numpy_helper.from_array(v, name) for name, v in vectors.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


class OnnxRuntime:
    """A session with all graph optimizations, its arrays bound once."""

    def __init__(self, threads: int) -> None:
        self.version = ort.__version__
        self._options = options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads spin while a session runs, but not afterwards: that would slow the next library.
        options.add_session_config_entry("session.force_spinning_stop", "1")

    def prepare(self, problem: Problem) -> Runner | None:
        """Inference, in ONNX's layout, of types with a kernel: float16 is cast there and back."""
        case, sets = problem.case, problem.sets
        if case.op != "inference" or case.layout != "NCHW" or case.dtype not in TYPES:
            return None
        session = ort.InferenceSession(
            _model(problem).SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )
        feeds, bindings = [], []
        for s in sets:
            feed = {"x": s.x} if s.residual is None else {"x": s.x, "residual": s.residual}
            binding = session.io_binding()
            for name, array in feed.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            binding.bind_output("y", "cpu", 0, s.out.dtype, s.out.shape, s.out.ctypes.data)
            feeds.append(feed)
            bindings.append(binding)

        def call(i: int) -> None:
            session.run_with_iobinding(bindings[i])

        def fresh(i: int) -> Any:
            return session.run(None, feeds[i])[0]

        return Runner(call, lambda i: sets[i].out, fresh)


make = OnnxRuntime
