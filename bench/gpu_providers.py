"""Who is timed on a CUDA device: fastnorm, PyTorch with cuDNN and without, and its compiler.

All work on the same PyTorch tensors, on PyTorch's current stream, so that one CUDA graph can hold
any of them. Each gets what a user of it would write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch.nn import functional

import fastnorm as fn
from suites import Case

EPS = 1e-5


@dataclass(frozen=True)
class Tensors:
    """One set of the large arrays, in the case's layout; None where not needed."""

    x: torch.Tensor
    out: torch.Tensor
    dy: torch.Tensor | None
    residual: torch.Tensor | None


@dataclass(frozen=True)
class Problem:
    """A case on the device: sets of tensors that calls take turns on, and the parameters."""

    case: Case
    sets: list[Tensors]
    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor


@dataclass(frozen=True)
class Runner:
    """A provider on a problem: call(i) puts set i's work on the stream, and gives y or dx."""

    call: Callable[[int], torch.Tensor]


Make = Callable[[Problem], Runner | None]


def of_fastnorm(problem: Problem) -> Runner:
    """The library, into tensors that are there."""
    case, p = problem.case, problem

    def stream() -> int:
        number: int = torch.cuda.current_stream().cuda_stream
        return number

    def inference(i: int) -> torch.Tensor:
        s = p.sets[i]
        y: torch.Tensor = fn.batch_norm(
            s.x,
            p.mean,
            p.var,
            p.weight,
            p.bias,
            eps=EPS,
            residual=s.residual,
            activation=case.activation,
            out=s.out,
            stream=stream(),
        )
        return y

    def train(i: int) -> fn.NormForward:
        s = p.sets[i]
        return fn.batch_norm_train(
            s.x,
            p.weight,
            p.bias,
            running_mean=p.mean,
            running_var=p.var,
            eps=EPS,
            residual=s.residual,
            activation=case.activation,
            out=s.out,
            stream=stream(),
        )

    if case.op == "inference":
        return Runner(inference)
    if case.op == "training":
        return Runner(lambda i: train(i).y)
    saved = [train(i) for i in range(len(p.sets))]

    def backward(i: int) -> torch.Tensor:
        s, f = p.sets[i], saved[i]
        dx: torch.Tensor = fn.batch_norm_backward(
            s.dy,
            s.x,
            f.mean,
            f.rstd,
            p.weight,
            p.bias,
            residual=True if case.residual else None,
            activation=case.activation,
            mask=f.mask,
            out=s.out,
            stream=stream(),
        ).dx
        return dx

    return Runner(backward)


def _forward(p: Problem, training: bool) -> Callable[..., torch.Tensor]:
    case = p.case

    def forward(
        x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        y = functional.batch_norm(x, p.mean, p.var, weight, bias, training, 0.1, EPS)
        if residual is not None:
            y = y + residual
        return functional.relu(y) if case.activation is not None else y

    return forward


def _torch(problem: Problem, wrap: Callable[[Any], Any]) -> Runner:
    """PyTorch's own; backward through autograd, as its users run it."""
    p, case = problem, problem.case
    forward = wrap(_forward(p, case.op != "inference"))
    if case.op != "backward":

        def run(i: int) -> torch.Tensor:
            with torch.no_grad():
                y: torch.Tensor = forward(p.sets[i].x, p.sets[i].residual, p.weight, p.bias)
            return y

        return Runner(run)
    weight, bias = (v.clone().requires_grad_() for v in (p.weight, p.bias))
    leaves, outputs = [], []
    for s in p.sets:
        x = s.x.detach().requires_grad_()
        residual = None if s.residual is None else s.residual.detach().requires_grad_()
        leaves.append([t for t in (x, weight, bias, residual) if t is not None])
        outputs.append(forward(x, residual, weight, bias))

    def backward(i: int) -> torch.Tensor:
        gradients = torch.autograd.grad(outputs[i], leaves[i], p.sets[i].dy, retain_graph=True)
        return gradients[0]

    return Runner(backward)


def of_torch(problem: Problem) -> Runner:
    """With cuDNN where PyTorch takes it."""
    torch.backends.cudnn.enabled = True
    return _torch(problem, lambda f: f)


def of_torch_native(problem: Problem) -> Runner:
    """Without cuDNN."""
    with torch.backends.cudnn.flags(enabled=False):
        runner = _torch(problem, lambda f: f)

    def call(i: int) -> torch.Tensor:
        torch.backends.cudnn.enabled = False
        try:
            return runner.call(i)
        finally:
            torch.backends.cudnn.enabled = True

    return Runner(call)


def of_torch_compile(problem: Problem) -> Runner:
    """Through its compiler, for these very shapes."""
    torch._dynamo.reset()
    # Else a compiled backward gives memory away that its second run needs.
    torch._functorch.config.donated_buffer = False
    return _torch(
        problem, lambda f: torch.compile(f, dynamic=False, mode="max-autotune-no-cudagraphs")
    )


def limits_of(problem: Problem) -> list[tuple[Runner, int]]:
    """What moves memory and computes nothing, and how many tensors of x's size each moves.

    The copy engine's copy, a kernel's, and a triad where there are two inputs.
    """
    sets = problem.sets
    copies: list[tuple[Runner, int]] = [
        (Runner(lambda i: sets[i].out.copy_(sets[i].x)), 2),
        (Runner(lambda i: torch.neg(sets[i].x, out=sets[i].out)), 2),
    ]

    def triad(i: int) -> torch.Tensor:
        other = sets[i].dy if sets[i].dy is not None else sets[i].residual
        return torch.add(sets[i].x, other, out=sets[i].out)

    if sets[0].dy is not None or sets[0].residual is not None:
        copies.append((Runner(triad), 3))
    return copies


PROVIDERS: dict[str, Make] = {
    "fastnorm": of_fastnorm,
    "torch": of_torch,
    "torch_native": of_torch_native,
    "torch_compile": of_torch_compile,
}
