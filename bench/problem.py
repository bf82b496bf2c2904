"""The data of a case: arrays that every provider gets alike, and the exact result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fastnorm import reference
from providers import Runner
from suites import Case

Array = npt.NDArray[Any]

EPS = 1e-5
# Tensors of more elements are checked on a sample of their channels.
CHECK_ALL = 1 << 21
CHECKED_CHANNELS = 12
# Errors beyond this are no rounding: a wrong provider. In units of the largest exact value.
TOLERANCE = {"float32": 2e-3, "float64": 2e-3, "float16": 8e-3, "bfloat16": 4e-2}
# How far from relu's kink a rounded input of it may lie on the other side.
KINK = {"float32": 1e-4, "float64": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Tensors:
    """One set of the large arrays, C-contiguous in the case's layout; None where not needed."""

    x: Array
    out: Array
    dy: Array | None
    residual: Array | None
    dresidual: Array | None

    def copy(self) -> Tensors:
        """The same values elsewhere."""

        def elsewhere(array: Array | None) -> Array | None:
            return None if array is None else array.copy()

        return Tensors(
            self.x.copy(),
            self.out.copy(),
            elsewhere(self.dy),
            elsewhere(self.residual),
            elsewhere(self.dresidual),
        )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Also of bfloat16."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


class Problem:
    """A case with its data.

    Attributes
    ----------
    sets : list of Tensors
        The same values in different memory: calls take turns so that each finds its data cold.
    weight, bias, mean, var : ndarray of shape (C,)
        float32 (float64 for float64); mean and var are for inference.
    batch_mean, batch_rstd : ndarray of shape (C,)
        The batch's own statistics in float64, for backward.
    """

    def __init__(self, case: Case, cold_bytes: int) -> None:
        self.case = case
        rng = np.random.default_rng(0)
        channels = case.shape[1]
        dtype = numpy_dtype(case.dtype)
        wide = np.dtype(np.float64 if case.dtype == "float64" else np.float32)

        def tensor(needed: bool = True) -> Array | None:
            if not needed:
                return None
            values: Array = rng.standard_normal(case.array_shape, np.float32)
            return values.astype(dtype, copy=False)

        x = tensor()
        assert x is not None
        backward = case.op == "backward"
        first = Tensors(
            x,
            np.zeros_like(x),
            tensor(backward),
            tensor(case.residual),
            np.zeros_like(x) if backward and case.residual else None,
        )
        arrays = [a for a in vars(first).values() if a is not None]
        copies = 1 if case.hot else -(-cold_bytes // sum(a.nbytes for a in arrays))
        self.sets = [first]
        self.sets += [first.copy() for _ in range(min(copies, 512) - 1)]
        self.weight = rng.uniform(0.5, 1.5, channels).astype(wide)
        self.bias = rng.standard_normal(channels).astype(wide)
        self.mean = rng.standard_normal(channels).astype(wide)
        self.var = rng.uniform(0.5, 1.5, channels).astype(wide)
        self.batch_mean, self.batch_rstd = self._statistics(x)
        self.sample = self._sample()
        self.exact, self.judged = self._exact(first)

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        axes = tuple(axis for axis in range(4) if axis != self.case.channel_axis)
        # One image at a time: no float64 copy of all of x.
        count = x.size / self.case.shape[1]
        mean = sum(image.sum(axis=axes[1:], keepdims=True, dtype=np.float64) for image in _each(x))
        mean = mean / count
        square = sum(
            np.square(image.astype(np.float64) - mean).sum(axis=axes[1:], keepdims=True)
            for image in _each(x)
        )
        rstd = 1.0 / np.sqrt(square / count + EPS)
        return np.asarray(mean).reshape(-1), np.asarray(rstd).reshape(-1)

    def _sample(self) -> Array:
        n, c, h, w = self.case.shape
        if n * c * h * w <= CHECK_ALL or c <= CHECKED_CHANNELS:
            return np.arange(c)
        return np.unique(np.linspace(0, c - 1, CHECKED_CHANNELS).astype(int))

    def _exact(self, tensors: Tensors) -> tuple[Array, Array]:
        """The exact y or dx of the sampled channels, and which elements of it are to be met.

        Beside the kink of relu either slope is right.
        """
        axis, chosen = self.case.channel_axis, self.sample

        def part(a: Array | None) -> Array | None:
            return None if a is None else np.take(a, chosen, axis=axis).astype(np.float64)

        x, residual = part(tensors.x), part(tensors.residual)
        assert x is not None
        weight, bias = self.weight[chosen], self.bias[chosen]
        options: dict[str, Any] = {
            "channel_axis": axis,
            "activation": self.case.activation,
            "residual": residual,
        }
        if self.case.op == "inference":
            mean, var = self.mean[chosen], self.var[chosen]
            y = reference.batch_norm(x, mean, var, weight, bias, eps=EPS, **options)
            return y, np.ones(x.shape, bool)
        if self.case.op == "training":
            y = reference.batch_norm_train(x, weight, bias, eps=EPS, **options).y
            return y, np.ones(x.shape, bool)
        mean, rstd = self.batch_mean[chosen], self.batch_rstd[chosen]
        dy = part(tensors.dy)
        assert dy is not None
        exact = reference.batch_norm_backward(dy, x, mean, rstd, weight, bias, **options).dx
        if self.case.activation is None:
            return exact, np.ones(x.shape, bool)
        options |= {"activation": None}
        z = reference.batch_norm(x, mean, rstd**-2.0, weight, bias, eps=0.0, **options)
        return exact, np.abs(z) > KINK[self.case.dtype]

    def error(self, runner: Runner) -> float:
        """The largest difference of a call's result to the exact one, over the latter's largest.

        A provider that writes nothing must not pass by what another has left in the output.
        """
        self.sets[0].out[...] = 0
        runner.call(0)
        found = np.take(runner.result(0), self.sample, axis=self.case.channel_axis)
        difference = np.abs(found.astype(np.float64) - self.exact)
        return float(difference[self.judged].max() / np.abs(self.exact).max())


def _each(x: Array) -> list[Array]:
    """The images of x, each with a batch dimension."""
    return [x[i : i + 1] for i in range(x.shape[0])]
