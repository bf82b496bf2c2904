"""Who is timed on a CUDA device: fastnorm, PyTorch with cuDNN and without, and its compiler.

Parameters are float32 (float64) for batch norm, else of x's type, as their users have them.

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
    residual: torch.Tensor | None  # in backward with prenorm the sum's gradient
    total: torch.Tensor | None = None  # of prenorm


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
    batch = case.norm == "batch_norm"
    names = ("", "_train", "_backward")
    normalize, train, differentiate = (getattr(fn, case.norm + suffix) for suffix in names)
    groups = (case.groups,) if case.groups else ()
    parameters = (p.weight, None if case.norm == "rms_norm" else p.bias)
    given = (p.mean, p.var) if batch else ()
    running = {"running_mean": p.mean, "running_var": p.var} if batch else {}
    prenorm = {"prenorm": True} if case.prenorm else {}

    def options(i: int) -> dict[str, Any]:
        stream: int = torch.cuda.current_stream().cuda_stream
        return {"activation": case.activation, "out": p.sets[i].out, "stream": stream}

    def forward(op: Callable[..., Any], first: tuple[Any, ...], i: int, **more: Any) -> Any:
        s = p.sets[i]
        total = {"sum_out": s.total} if case.prenorm else {}
        return op(
            *(s.x, *first, *parameters),
            **{"eps": EPS, "residual": s.residual},
            **options(i) | prenorm | total | more,
        )

    def y_of(result: Any) -> torch.Tensor:
        y: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return y

    if case.op == "inference":
        return Runner(lambda i: y_of(forward(normalize, (*given, *groups), i)))
    if case.op == "training":
        return Runner(lambda i: y_of(forward(train, groups, i, **running)))
    saved = [forward(train, groups, i, **running) for i in range(len(p.sets))]

    def backward(i: int) -> torch.Tensor:
        s, f = p.sets[i], saved[i]
        statistics = (f.rstd,) if case.norm == "rms_norm" else (f.mean, f.rstd)
        if case.prenorm:
            x, of_residual = s.total, {"dsum": s.residual}
        else:
            x, of_residual = s.x, {"residual": True if case.residual else None}
        dx: torch.Tensor = differentiate(
            *(s.dy, x, *groups, *statistics, *parameters),
            **options(i) | of_residual | ({"mask": f.mask} if f.mask is not None else {}),
        ).dx
        return dx

    return Runner(backward)


def plain_forward(p: Problem) -> Callable[..., Any]:
    """What PyTorch's users write: y of (x, residual, weight, bias), with prenorm and the sum."""
    case = p.case
    features = (case.parameters,)
    norms: dict[str, Callable[..., torch.Tensor]] = {
        "batch_norm": lambda x, w, b: functional.batch_norm(
            x, p.mean.to(w.dtype), p.var.to(w.dtype), w, b, case.op != "inference", 0.1, EPS
        ),
        "layer_norm": lambda x, w, b: functional.layer_norm(x, features, w, b, EPS),
        "rms_norm": lambda x, w, b: functional.rms_norm(x, features, w, EPS),
        "group_norm": lambda x, w, b: functional.group_norm(x, case.groups, w, b, EPS),
        "instance_norm": lambda x, w, b: functional.instance_norm(x, weight=w, bias=b, eps=EPS),
    }
    norm = norms[case.norm]
    activations: dict[str | None, Callable[..., torch.Tensor]] = {
        None: lambda y: y,
        "relu": functional.relu,
        "silu": functional.silu,
    }
    activation = activations[case.activation]

    def forward(
        x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor
    ) -> Any:
        if case.prenorm:
            total = x + residual
            return activation(norm(total, weight, bias)), total
        y = norm(x, weight, bias)
        return activation(y if residual is None else y + residual)

    return forward


def _torch(problem: Problem, wrap: Callable[[Any], Any]) -> Runner:
    """PyTorch's own; backward through autograd, as its users run it."""
    p, case = problem, problem.case
    forward = wrap(plain_forward(p))
    if case.op != "backward":

        def run(i: int) -> torch.Tensor:
            with torch.no_grad():
                found = forward(p.sets[i].x, p.sets[i].residual, p.weight, p.bias)
            y: torch.Tensor = found[0] if case.prenorm else found
            return y

        return Runner(run)
    weight, bias = (v.clone().requires_grad_() for v in (p.weight, p.bias))
    parameters = (weight,) if case.norm == "rms_norm" else (weight, bias)
    leaves, outputs = [], []
    for s in p.sets:
        x = s.x.detach().requires_grad_()
        residual = None if s.residual is None else s.residual.detach().requires_grad_()
        leaves.append([t for t in (x, *parameters, residual) if t is not None])
        outputs.append(forward(x, residual, weight, bias))

    def backward(i: int) -> torch.Tensor:
        s = p.sets[i]
        of_outputs = (s.dy, s.residual) if case.prenorm else s.dy
        gradients = torch.autograd.grad(outputs[i], leaves[i], of_outputs, retain_graph=True)
        return gradients[0]

    return Runner(backward)


def of_torch(problem: Problem) -> Runner:
    """With cuDNN where PyTorch takes it."""
    torch.backends.cudnn.enabled = True
    return _torch(problem, lambda f: f)


def of_torch_native(problem: Problem) -> Runner | None:
    """Without cuDNN, which has batch norm alone."""
    if problem.case.norm != "batch_norm":
        return None
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
