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
    """native_batch_norm and its backward, which is what torch.nn.BatchNorm2d calls."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.version = torch.__version__

    def prepare(self, problem: Problem) -> Runner:
        """Everything; what is not fused is a call of its own, in place."""
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


def _in_inference_mode(call: Any) -> Any:
    """Without autograd's bookkeeping."""

    def wrapped(i: int) -> Any:
        with torch.inference_mode():
            return call(i)

    return wrapped


make = Torch
