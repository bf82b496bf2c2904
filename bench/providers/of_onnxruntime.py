"""ONNX Runtime on the CPU, as one runs a model that has been exported."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from problem import EPS, Problem
from providers import Runner

TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
OPSET, IR_VERSION = 23, 11
# Each norm's node, and its inputs behind x.
NODES = {
    "batch_norm": ("BatchNormalization", ("weight", "bias", "mean", "var")),
    "layer_norm": ("LayerNormalization", ("weight", "bias")),
    "rms_norm": ("RMSNormalization", ("weight",)),
    "group_norm": ("GroupNormalization", ("weight", "bias")),
    "instance_norm": ("InstanceNormalization", ("weight", "bias")),
}


def _model(problem: Problem) -> ModelProto:
    """The norm and what comes before and after it, a node each."""
    case = problem.case
    kind, parameters = NODES[case.norm]
    groups = {"num_groups": case.groups} if case.groups else {}
    inputs = ["x", *["residual"] * (case.residual or case.prenorm)]
    outputs = ["y", *["total"] * case.prenorm]
    nodes = []
    if case.prenorm:
        nodes.append(helper.make_node("Add", inputs, ["total"]))
    z = "total" if case.prenorm else "x"
    following: list[tuple[str, list[str]]] = [("Add", ["residual"])] * case.residual
    if case.activation == "silu":
        following += [("Sigmoid", []), ("Mul", ["z"])]
    elif case.activation is not None:
        following.append(("Relu", []))
    names = ["z", *(f"z{i}" for i in range(1, len(following))), "y"] if following else ["y"]
    nodes.append(helper.make_node(kind, [z, *parameters], names[:1], epsilon=EPS, **groups))
    for i, (operator, others) in enumerate(following):
        nodes.append(helper.make_node(operator, [names[i], *others], [names[i + 1]]))

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TYPES[case.dtype], case.shape)

    graph = helper.make_graph(
        nodes,
        case.norm,
        [value(name) for name in inputs],
        [value(name) for name in outputs],
        [numpy_helper.from_array(getattr(problem, name), name) for name in parameters],
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
        if case.op != "inference" or case.layout == "NHWC" or case.dtype not in TYPES:
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
            results = {"y": s.out} if s.total is None else {"y": s.out, "total": s.total}
            for name, array in results.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            feeds.append(feed)
            bindings.append(binding)

        def call(i: int) -> None:
            session.run_with_iobinding(bindings[i])

        def fresh(i: int) -> Any:
            return session.run(None, feeds[i])

        return Runner(call, lambda i: sets[i].out, fresh)


make = OnnxRuntime
