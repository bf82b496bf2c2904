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


make = Fastnorm
