"""fastnorm on NumPy arrays."""

from __future__ import annotations

from typing import Any

import fastnorm as fn
from problem import EPS, Problem
from providers import Runner


class Fastnorm:
    """The library itself."""

    def __init__(self, threads: int) -> None:
        fn.set_num_threads(threads)
        self.version = f"{fn.info()['version']} ({fn.info()['isa']})"

    def prepare(self, problem: Problem) -> Runner:
        """Everything is supported."""
        if problem.case.norm != "batch_norm":
            return _other_norm(problem)
        case, sets = problem.case, problem.sets
        weight, bias = problem.weight, problem.bias
        options: dict[str, Any] = {
            "channel_axis": case.channel_axis,
            "activation": case.activation,
        }
        if case.op == "inference":
            mean, var = problem.mean, problem.var

            def inference(i: int, out: Any = None) -> Any:
                s = sets[i]
                return fn.batch_norm(
                    s.x, mean, var, weight, bias, eps=EPS, residual=s.residual, out=out, **options
                )

            return Runner(lambda i: inference(i, sets[i].out), lambda i: sets[i].out, inference)

        running_mean, running_var = problem.mean.copy(), problem.var.copy()

        def train(i: int, out: Any = None) -> Any:
            s = sets[i]
            return fn.batch_norm_train(
                s.x,
                weight,
                bias,
                running_mean=running_mean,
                running_var=running_var,
                eps=EPS,
                residual=s.residual,
                out=out,
                **options,
            )

        if case.op == "training":
            return Runner(lambda i: train(i, sets[i].out), lambda i: sets[i].out, train)

        saved = [train(i) for i in range(len(sets))]
        residual = True if case.residual else None

        def backward(i: int, out: Any = None) -> Any:
            s, forward = sets[i], saved[i]
            assert s.dy is not None
            return fn.batch_norm_backward(
                s.dy,
                s.x,
                forward.mean,
                forward.rstd,
                weight,
                bias,
                residual=residual,
                mask=forward.mask,
                out=out,
                **options,
            )

        return Runner(lambda i: backward(i, sets[i].out), lambda i: sets[i].out, backward)


def _other_norm(problem: Problem) -> Runner:
    """Those without running statistics: their forward pass has one form."""
    case, sets = problem.case, problem.sets
    weight, bias = problem.weight, None if case.norm == "rms_norm" else problem.bias
    groups = [case.groups] if case.groups else []
    options: dict[str, Any] = {} if case.of_rows else {"channel_axis": case.channel_axis}
    options["activation"] = case.activation
    forward_op = getattr(fn, case.norm)

    def forward(i: int, out: Any = None, total: Any = None) -> Any:
        s = sets[i]
        prenorm = {"prenorm": True, "sum_out": total} if case.prenorm else {}
        return forward_op(
            s.x, *groups, weight, bias, eps=EPS, residual=s.residual, out=out, **prenorm, **options
        )

    if case.op != "backward":
        into = [(s.out, s.total) for s in sets]
        return Runner(lambda i: forward(i, *into[i]), lambda i: sets[i].out, forward)

    train, backward_op = getattr(fn, f"{case.norm}_train"), getattr(fn, f"{case.norm}_backward")
    saved = [train(s.x, *groups, weight, bias, eps=EPS, **options) for s in sets]

    def backward(i: int, out: Any = None) -> Any:
        s, fwd = sets[i], saved[i]
        statistics = (fwd.rstd,) if case.norm == "rms_norm" else (fwd.mean, fwd.rstd)
        added = {"dsum": s.dsum} if case.prenorm else {}
        return backward_op(
            s.dy,
            s.x,
            *groups,
            *statistics,
            weight,
            bias,
            mask=fwd.mask,
            out=out,
            **added,
            **options,
        )

    return Runner(lambda i: backward(i, sets[i].out), lambda i: sets[i].out, backward)


make = Fastnorm
