"""Plain NumPy, as one would write it with care for temporaries: what fastnorm replaces."""

from __future__ import annotations

import numpy as np

from problem import EPS, Problem
from providers import Array, Runner


class Numpy:
    """Float types that NumPy computes in."""

    def __init__(self, threads: int) -> None:
        del threads  # NumPy's loops have one
        self.version = np.__version__

    def prepare(self, problem: Problem) -> Runner | None:
        """float32 and float64, without an epilogue in backward."""
        if problem.case.norm != "batch_norm":
            return _rows(problem)
        case, sets = problem.case, problem.sets
        if case.dtype not in ("float32", "float64"):
            return None
        axes = tuple(axis for axis in range(4) if axis != case.channel_axis)
        shape = [1, 1, 1, 1]
        shape[case.channel_axis] = -1
        weight, bias, mean, var = (
            v.reshape(shape) for v in (problem.weight, problem.bias, problem.mean, problem.var)
        )

        def affine(i: int, mean: Array, var: Array, out: Array | None) -> Array:
            scale = weight / np.sqrt(var + x_type(EPS))
            y: Array = np.multiply(sets[i].x, scale, out=out)
            y += bias - mean * scale
            if case.residual:
                y += sets[i].residual
            if case.activation is not None:
                np.maximum(y, 0, out=y)
            return y

        x_type = sets[0].x.dtype.type
        if case.op == "inference":
            return Runner(
                lambda i: affine(i, mean, var, sets[i].out),
                lambda i: sets[i].out,
                lambda i: affine(i, mean, var, None),
            )
        if case.op == "training":

            def train(i: int, out: Array | None) -> Array:
                x = sets[i].x
                return affine(i, x.mean(axes, keepdims=True), x.var(axes, keepdims=True), out)

            return Runner(
                lambda i: train(i, sets[i].out), lambda i: sets[i].out, lambda i: train(i, None)
            )
        if case.activation is not None:
            return None
        batch_mean = problem.batch_mean.astype(x_type).reshape(shape)
        rstd = problem.batch_rstd.astype(x_type).reshape(shape)

        def backward(i: int, out: Array | None) -> Array:
            s = sets[i]
            assert s.dy is not None
            xhat = (s.x - batch_mean) * rstd
            count = x_type(s.x.size // case.shape[1])
            dbias = s.dy.sum(axes, keepdims=True)
            dweight = (s.dy * xhat).sum(axes, keepdims=True)
            xhat *= dweight / count
            dx: Array = np.subtract(s.dy, xhat, out=out)
            dx -= dbias / count
            dx *= weight * rstd
            return dx

        return Runner(
            lambda i: backward(i, sets[i].out), lambda i: sets[i].out, lambda i: backward(i, None)
        )


def _rows(problem: Problem) -> Runner | None:
    """The forward pass of layer and RMS norm."""
    case, sets = problem.case, problem.sets
    if case.dtype not in ("float32", "float64") or not case.of_rows or case.op == "backward":
        return None
    x_type = sets[0].x.dtype.type

    def normalize(i: int, out: Array | None, total: Array | None) -> Array:
        s = sets[i]
        x = s.x if s.residual is None else np.add(s.x, s.residual, out=total)
        if case.norm == "layer_norm":
            x = x - x.mean(1, keepdims=True)
        square = np.einsum("ij,ij->i", x, x)[:, None] / x_type(x.shape[1])
        y: Array = np.multiply(x, problem.weight, out=out)
        y /= np.sqrt(square + x_type(EPS))
        if case.norm == "layer_norm":
            y += problem.bias
        return y

    return Runner(
        lambda i: normalize(i, sets[i].out, sets[i].total),
        lambda i: sets[i].out,
        lambda i: normalize(i, None, None),
    )


make = Numpy
