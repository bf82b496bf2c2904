"""PyTorch's ATen on the CPU, on the same memory; ops with out= where it has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from problem import EPS, Problem, numpy_dtype
from providers import Array, Runner

aten = torch.ops.aten


def _tensor(array: Array, channels_last: bool) -> torch.Tensor:
    """A tensor on the array's memory, its dimensions in PyTorch's order."""
    if array.dtype == numpy_dtype("bfloat16"):
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.movedim(-1, 1) if channels_last and tensor.ndim == 4 else tensor


class Torch:
    """The native ops that torch.nn's modules call."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.version = torch.__version__

    def prepare(self, problem: Problem) -> Runner:
        """Everything; what is not fused is a call of its own, in place."""
        if problem.case.norm != "batch_norm":
            return _OtherNorm(problem).runner()
        case = problem.case
        last = case.layout == "NHWC"
        sets: list[dict[str, torch.Tensor]] = [
            {name: _tensor(a, last) for name, a in vars(s).items() if a is not None}
            for s in problem.sets
        ]
        weight, bias, mean, var = (
            torch.from_numpy(v.copy())
            for v in (problem.weight, problem.bias, problem.mean, problem.var)
        )
        running = mean.clone(), var.clone()
        saved = torch.zeros_like(mean), torch.zeros_like(var)

        def epilogue(y: torch.Tensor, i: int) -> torch.Tensor:
            if case.residual:
                y += sets[i]["residual"]
            return y.relu_() if case.activation is not None else y

        def into(i: int) -> torch.Tensor:
            s = sets[i]
            training = case.op != "inference"
            statistics = running if training else (mean, var)
            aten.native_batch_norm.out(
                *(s["x"], weight, bias, *statistics, training, 0.1, EPS),
                **{"out": s["out"], "save_mean": saved[0], "save_invstd": saved[1]},
            )
            return epilogue(s["out"], i)

        def result(i: int) -> Array:
            return problem.sets[i].out

        def fresh(i: int) -> torch.Tensor:
            training = case.op != "inference"
            statistics = running if training else (mean, var)
            y = functional.batch_norm(sets[i]["x"], *statistics, weight, bias, training, 0.1, EPS)
            return epilogue(y, i)

        if case.op != "backward":
            with torch.inference_mode():
                return Runner(_in_inference_mode(into), result, _in_inference_mode(fresh))

        # What the activation's backward needs: y, for each set, as the forward pass leaves it.
        with torch.inference_mode():
            outputs = [into(i).clone() for i in range(len(sets) if case.activation else 1)]
        gated = torch.empty_like(sets[0]["x"])
        gradients = torch.zeros_like(mean), torch.zeros_like(mean)

        def backward(i: int) -> None:
            s = sets[i]
            g = s["dy"]
            if case.activation is not None:
                target = s["dresidual"] if case.residual else gated
                g = aten.threshold_backward.grad_input(g, outputs[i], 0, grad_input=target)
            aten.native_batch_norm_backward.out(
                *(g, s["x"], weight, mean, var, *saved, True, EPS, [True, True, True]),
                **{"out0": s["out"], "out1": gradients[0], "out2": gradients[1]},
            )

        def backward_fresh(i: int) -> Any:
            s = sets[i]
            g = s["dy"]
            if case.activation is not None:
                g = aten.threshold_backward(g, outputs[i], 0)
            return g, aten.native_batch_norm_backward(
                *(g, s["x"], weight, mean, var, *saved, True, EPS, [True, True, True])
            )

        return Runner(_in_inference_mode(backward), result, _in_inference_mode(backward_fresh))


class _OtherNorm:
    """Layer and group norm by ops with out=; RMS and instance norm have none, nor a backward op."""

    def __init__(self, problem: Problem) -> None:
        self.case = case = problem.case
        self._outs = [s.out for s in problem.sets]
        last = case.layout == "NHWC"
        self.sets: list[dict[str, torch.Tensor]] = [
            {name: _tensor(a, last) for name, a in vars(s).items() if a is not None}
            for s in problem.sets
        ]
        dtype = self.sets[0]["x"].dtype
        # ATen wants parameters of x's type on the CPU.
        self.weight = torch.from_numpy(problem.weight).to(dtype)
        self.bias = torch.from_numpy(problem.bias).to(dtype)
        self.results: dict[int, torch.Tensor] = {}

    def runner(self) -> Runner:
        """The ops with out= where there are, else what allocates."""
        has_out = self.case.norm in ("layer_norm", "group_norm")
        if self.case.op != "backward":
            call = _in_inference_mode(self.into if has_out else self._kept(self.fresh))
            return Runner(call, self.result, _in_inference_mode(self.fresh))
        if has_out:
            with torch.inference_mode():
                self.saved = [self._normalized(s["x"]) for s in self.sets]
            call = _in_inference_mode(self.backward_into)
            return Runner(call, self.result, _in_inference_mode(self.backward_fresh))
        self.graphs = [self._graph(s["x"]) for s in self.sets]
        return Runner(self._kept(self.backward_by_autograd), self.result, self.backward_by_autograd)

    def result(self, i: int) -> Array:
        """y or dx in the problem's layout."""
        if i not in self.results:
            return self._outs[i]
        found = self.results[i]
        if self.case.layout == "NHWC":
            found = found.movedim(1, -1)
        array: Array = found.float().contiguous().numpy()
        return array

    def _kept(self, fresh: Any) -> Any:
        def call(i: int) -> None:
            found = fresh(i)
            self.results[i] = found[0] if isinstance(found, tuple) else found

        return call

    def _shape(self, x: torch.Tensor) -> tuple[Any, ...]:
        """What the native ops are told of x, behind weight and bias (or before them)."""
        if self.case.of_rows:
            return ([self.case.shape[1]],)
        return (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], self.case.groups)

    def _normalized(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """y without an activation, mean and rstd."""
        if self.case.of_rows:
            found = aten.native_layer_norm(x, *self._shape(x), self.weight, self.bias, EPS)
        else:
            found = aten.native_group_norm(x, self.weight, self.bias, *self._shape(x), EPS)
        return tuple(found)

    def _activate(self, y: torch.Tensor) -> torch.Tensor:
        if self.case.activation is None:
            return y
        return aten.silu_(y) if self.case.activation == "silu" else y.relu_()

    def into(self, i: int) -> None:
        """Into out, and the sum into total."""
        s = self.sets[i]
        x = s["x"]
        if self.case.prenorm:
            x = torch.add(x, s["residual"], out=s["total"])
        if not hasattr(self, "places"):
            self.places = [torch.empty_like(a) for a in self._normalized(x)[1:]]
        outs = {"out0": s["out"], "out1": self.places[0], "out2": self.places[1]}
        shape = self._shape(x)
        if self.case.of_rows:
            aten.native_layer_norm.out(x, *shape, self.weight, self.bias, EPS, **outs)
        else:
            aten.native_group_norm.out(x, self.weight, self.bias, *shape, EPS, **outs)
        self._activate(s["out"])

    def fresh(self, i: int) -> Any:
        """As a user calls it."""
        s, case = self.sets[i], self.case
        x = s["x"] + s["residual"] if case.prenorm else s["x"]
        return (
            (self._activate(self._functional(x)), x)
            if case.prenorm
            else self._activate(self._functional(x))
        )

    def _functional(self, x: torch.Tensor) -> torch.Tensor:
        if self.case.norm == "rms_norm":
            return functional.rms_norm(x, x.shape[1:], self.weight, EPS)
        if self.case.norm == "layer_norm":
            return functional.layer_norm(x, x.shape[1:], self.weight, self.bias, EPS)
        if self.case.norm == "group_norm":
            return functional.group_norm(x, self.case.groups, self.weight, self.bias, EPS)
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=EPS)

    def _gradient(self, i: int) -> torch.Tensor:
        """That of z."""
        dy, z = self.sets[i]["dy"], self.saved[i][0]
        if self.case.activation is None:
            return dy
        if self.case.activation == "silu":
            return aten.silu_backward(dy, z)
        return aten.threshold_backward(dy, z, 0)

    def _backward(self, i: int, op: Any, **outs: torch.Tensor) -> Any:
        x, (_, mean, rstd) = self.sets[i]["x"], self.saved[i]
        g, all_three = self._gradient(i), [True, True, True]
        if self.case.of_rows:
            shape = self._shape(x)
            found = op(g, x, *shape, mean, rstd, self.weight, self.bias, all_three, **outs)
        else:
            found = op(g, x, mean, rstd, self.weight, *self._shape(x), all_three, **outs)
        if self.case.prenorm:
            found[0].add_(self.sets[i]["dsum"])
        return found

    def _op(self) -> Any:
        return (
            aten.native_layer_norm_backward
            if self.case.of_rows
            else aten.native_group_norm_backward
        )

    def backward_into(self, i: int) -> None:
        """dx into out."""
        if not hasattr(self, "gradients"):
            self.gradients = [torch.empty_like(self.weight), torch.empty_like(self.bias)]
        outs = {"out0": self.sets[i]["out"], "out1": self.gradients[0], "out2": self.gradients[1]}
        self._backward(i, self._op().out, **outs)

    def backward_fresh(self, i: int) -> Any:
        """All gradients, new."""
        return self._backward(i, self._op())

    def _graph(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        inputs = [x.detach().requires_grad_(), self.weight.detach().requires_grad_()]
        weight, self.weight = self.weight, inputs[1]
        if self.case.norm != "rms_norm":
            inputs.append(self.bias.detach().requires_grad_())
        bias, self.bias = self.bias, inputs[-1]
        y = self._functional(inputs[0])
        if self.case.activation == "silu":
            y = functional.silu(y)
        elif self.case.activation == "relu":
            y = functional.relu(y)
        self.weight, self.bias = weight, bias
        return y, inputs

    def backward_by_autograd(self, i: int) -> Any:
        """All gradients, through the graph that the forward pass has left."""
        y, inputs = self.graphs[i]
        found = torch.autograd.grad(y, inputs, self.sets[i]["dy"], retain_graph=True)
        if self.case.prenorm:
            found[0].add_(self.sets[i]["dsum"])
        return found


def _in_inference_mode(call: Any) -> Any:
    """Without autograd's bookkeeping."""

    def wrapped(i: int) -> Any:
        with torch.inference_mode():
            return call(i)

    return wrapped


make = Torch
