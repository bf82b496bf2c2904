"""JAX on the CPU: jit-compiled functions, as XLA fuses them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from problem import EPS, Problem
from providers import Array, Runner
from suites import Case

# The outputs of the input's size, and what else a user needs, of a value for each channel.
Outputs = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]


def _reduced(case: Case) -> tuple[int, ...]:
    return tuple(axis for axis in range(4) if axis != case.channel_axis)


def _affine(case: Case, x: Any, residual: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Any:
    """What is y, in the type of the vectors."""
    y = (x.astype(weight.dtype) - mean) * (weight * jax.lax.rsqrt(var + EPS)) + bias
    if residual is not None:
        y += residual.astype(weight.dtype)
    return y if case.activation is None else jax.nn.relu(y)


def _inference(case: Case, x: Any, residual: Any, *vectors: Any) -> Outputs:
    return (_affine(case, x, residual, *vectors).astype(x.dtype),), ()


def _training(case: Case, x: Any, residual: Any, weight: Any, bias: Any) -> Outputs:
    wide = x.astype(weight.dtype)
    mean = wide.mean(_reduced(case), keepdims=True)
    var = wide.var(_reduced(case), keepdims=True)
    y = _affine(case, x, residual, weight, bias, mean, var)
    return (y.astype(x.dtype),), (mean, var)


def _backward(
    case: Case, dy: Any, x: Any, positive: Any, weight: Any, bias: Any, mean: Any, rstd: Any
) -> Outputs:
    """By formula: jax.vjp would have XLA compute the statistics again.

    positive is where y is, saved; without a residual x tells, which is read anyway.
    """
    xhat = (x.astype(weight.dtype) - mean) * rstd
    g = dy.astype(weight.dtype)
    if case.activation is not None:
        gate = xhat * weight + bias > 0 if positive is None else positive
        g = jnp.where(gate, g, 0)
    dbias = g.sum(_reduced(case), keepdims=True)
    dweight = (g * xhat).sum(_reduced(case), keepdims=True)
    count = x.size // case.shape[1]
    dx = (g - (dbias + xhat * dweight) / count) * (weight * rstd)
    large = (dx, g) if case.residual else (dx,)
    return tuple(a.astype(x.dtype) for a in large), (dweight, dbias)


OPERATIONS: dict[str, Callable[..., Outputs]] = {
    "inference": _inference,
    "training": _training,
    "backward": _backward,
}


class Jax:
    """XLA's CPU backend."""

    def __init__(self, threads: int) -> None:
        os.environ["PJRT_NPROC"] = str(threads)  # read when the backend starts, once a process
        jax.config.update("jax_platforms", "cpu")
        # For float64; whatever is computed here has the type of its inputs all the same.
        jax.config.update("jax_enable_x64", True)
        self._device = jax.devices("cpu")[0]
        self.version = jax.__version__

    def prepare(self, problem: Problem) -> Runner:
        """Everything; arrays are JAX's own, on the caller's memory only where it is aligned."""
        if problem.case.norm != "batch_norm":
            return self._other_norm(problem)
        case = problem.case
        shape = [1, 1, 1, 1]
        shape[case.channel_axis] = -1

        def put(array: Array | None, vector: bool = False) -> Any:
            if array is None:
                return None
            return jax.device_put(array.reshape(shape) if vector else array, self._device)

        kind = problem.weight.dtype
        vectors = [put(v, True) for v in (problem.weight, problem.bias)]
        if case.op == "inference":
            vectors += [put(v, True) for v in (problem.mean, problem.var)]
        elif case.op == "backward":
            vectors += [put(v.astype(kind), True) for v in (problem.batch_mean, problem.batch_rstd)]
        inputs = []
        for s in problem.sets:
            x, residual = put(s.x), put(s.residual)
            if case.op != "backward":
                inputs.append((x, residual, *vectors))
                continue
            positive = None
            if residual is not None:
                weight, bias, mean, rstd = vectors
                var = rstd**-2 - EPS
                positive = _affine(case, x, residual, weight, bias, mean, var) > 0
            inputs.append((put(s.dy), x, positive, *vectors))

        compute = OPERATIONS[case.op]

        def allocating(*arguments: Any) -> Outputs:
            return compute(case, *arguments)

        def reusing(old: tuple[jax.Array, ...], *arguments: Any) -> Outputs:
            del old  # donated: the result is in its memory
            return compute(case, *arguments)

        allocate = jax.jit(allocating)
        # A call that leaves its result in memory that is there, which is JAX's way to have out=.
        reuse = jax.jit(reusing, donate_argnums=0, keep_unused=True)
        number = 2 if case.op == "backward" and case.residual else 1
        outputs = [
            tuple(jnp.zeros(case.array_shape, problem.sets[0].x.dtype) for _ in range(number))
            for _ in problem.sets
        ]

        def call(i: int) -> None:
            outputs[i], _ = jax.block_until_ready(reuse(outputs[i], *inputs[i]))

        def result(i: int) -> Array:
            # A copy: what a NumPy view refers to cannot be donated any more.
            return np.asarray(outputs[i][0].copy())

        def fresh(i: int) -> Any:
            return jax.block_until_ready(allocate(*inputs[i]))

        return Runner(call, result, fresh)

    def _other_norm(self, problem: Problem) -> Runner:
        """The norms with statistics of their own, gradients by jax.vjp."""
        case = problem.case

        def put(array: Array | None) -> Any:
            return None if array is None else jax.device_put(array, self._device)

        weight, bias = put(problem.weight), put(problem.bias)

        def forward(x: Any, residual: Any, weight: Any, bias: Any) -> Any:
            total = x if residual is None else x + residual
            y = _own_statistics(case, total.astype(weight.dtype), weight, bias)
            if case.activation is not None:
                y = jax.nn.silu(y) if case.activation == "silu" else jax.nn.relu(y)
            y = y.astype(x.dtype)
            return (y, total) if case.prenorm and residual is not None else (y,)

        def gradients(dy: Any, x: Any, dsum: Any, weight: Any, bias: Any) -> Any:
            def of(x: Any, weight: Any, bias: Any) -> Any:
                return forward(x, None, weight, bias)[0]

            dx, *rest = jax.vjp(of, x, weight, bias)[1](dy)
            return (dx if dsum is None else dx + dsum, *rest)

        compute: Callable[..., Any] = gradients if case.op == "backward" else forward
        inputs: list[tuple[Any, ...]]
        if case.op == "backward":
            inputs = [(put(s.dy), put(s.x), put(s.dsum), weight, bias) for s in problem.sets]
        else:
            inputs = [(put(s.x), put(s.residual), weight, bias) for s in problem.sets]

        def reusing(old: Any, *arguments: Any) -> Any:
            del old  # donated: results are in their memory
            return compute(*arguments)

        allocate, reuse = jax.jit(compute), jax.jit(reusing, donate_argnums=0, keep_unused=True)
        outputs = [jax.block_until_ready(allocate(*arguments)) for arguments in inputs]

        def call(i: int) -> None:
            outputs[i] = jax.block_until_ready(reuse(outputs[i], *inputs[i]))

        def result(i: int) -> Array:
            return np.asarray(outputs[i][0].copy())

        return Runner(call, result, lambda i: jax.block_until_ready(allocate(*inputs[i])))


def _own_statistics(case: Case, x: Any, weight: Any, bias: Any) -> Any:
    """Rows, or groups of channels of each sample, by their own statistics."""
    shape = x.shape
    if case.of_rows:
        axes: tuple[int, ...] = (1,)
    else:
        groups = case.groups or case.parameters
        split = (groups, case.parameters // groups)
        if case.layout == "NHWC":
            x = x.reshape(*shape[:3], *split)
            axes = (1, 2, 4)
        else:
            x = x.reshape(shape[0], *split, *shape[2:])
            axes = (2, 3, 4)
    if case.norm != "rms_norm":
        x = x - x.mean(axes, keepdims=True)
    xhat = (x * jax.lax.rsqrt((x * x).mean(axes, keepdims=True) + EPS)).reshape(shape)
    if not case.of_rows and case.layout == "NCHW":
        weight, bias = weight[:, None, None], bias[:, None, None]
    return xhat * weight if case.norm == "rms_norm" else xhat * weight + bias


make = Jax
