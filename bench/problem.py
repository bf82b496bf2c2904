"""The data of a case: arrays that every provider gets alike, and the exact result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fastnorm import reference
from providers import Runner
from suites import Case

Array = npt.NDArray[Any]

EPS = 1e-5
# Tensors of more elements are checked on a sample of their channels, groups or rows.
CHECK_ALL = 1 << 21
CHECKED = 12
# Errors beyond this are no rounding: a wrong provider. In units of the largest exact value.
TOLERANCE = {"float32": 2e-3, "float64": 2e-3, "float16": 8e-3, "bfloat16": 4e-2}
# How far from relu's kink a rounded input of it may lie on the other side.
KINK = {"float32": 1e-4, "float64": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Tensors:
    """One set of the large arrays, C-contiguous in the case's layout; None where not needed.

    dsum and total are prenorm's: the gradient of the sum, and where the forward pass writes it.
    """

    x: Array
    out: Array
    dy: Array | None
    residual: Array | None
    dresidual: Array | None
    dsum: Array | None
    total: Array | None

    def copy(self) -> Tensors:
        """The same values elsewhere."""
        given = {name: array.copy() for name, array in vars(self).items() if array is not None}
        return replace(self, **given)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Also of bfloat16."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


class Problem:
    """A case with its data.

    Attributes
    ----------
    sets : list of Tensors
        The same values in different memory: calls take turns so that each finds its data cold.
    weight, bias, mean, var : ndarray
        One for each channel or feature; float32 (float64 for float64). mean and var are for batch
        norm's inference.
    batch_mean, batch_rstd : ndarray of shape (C,)
        Of batch norm the batch's own statistics in float64, for backward.
    """

    def __init__(self, case: Case, cold_bytes: int) -> None:
        self.case = case
        rng = np.random.default_rng(0)
        channels = case.parameters
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
            tensor(case.residual or (case.prenorm and not backward)),
            np.zeros_like(x) if backward and case.residual else None,
            tensor(backward and case.prenorm),
            np.zeros_like(x) if case.prenorm and not backward else None,
        )
        arrays = [a for a in vars(first).values() if a is not None]
        copies = 1 if case.hot else -(-cold_bytes // sum(a.nbytes for a in arrays))
        self.sets = [first]
        self.sets += [first.copy() for _ in range(min(copies, 512) - 1)]
        self.weight = rng.uniform(0.5, 1.5, channels).astype(wide)
        self.bias = rng.standard_normal(channels).astype(wide)
        self.mean = rng.standard_normal(channels).astype(wide)
        self.var = rng.uniform(0.5, 1.5, channels).astype(wide)
        self.axis, self.sample = self._sample()
        if case.norm == "batch_norm":
            self.batch_mean, self.batch_rstd = self._statistics(x)
            self.exact, self.judged = self._exact_batch_norm(first)
        else:
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

    def _sample(self) -> tuple[int, Array]:
        """The axis of channels, or rows, and which are checked: whole groups of channels."""
        case = self.case
        axis = 0 if case.of_rows else case.channel_axis
        all_of_them = case.array_shape[axis]
        group = case.parameters // case.groups if case.groups else 1
        number = all_of_them // group
        if prod(case.shape) > CHECK_ALL and number > CHECKED:
            chosen = np.unique(np.linspace(0, number - 1, CHECKED).astype(int))
        else:
            chosen = np.arange(number)
        return axis, (chosen[:, None] * group + np.arange(group)).reshape(-1)

    def _part(self, a: Array | None) -> Array | None:
        """What the sample has of an array."""
        return None if a is None else np.take(a, self.sample, axis=self.axis).astype(np.float64)

    def _exact(self, tensors: Tensors) -> tuple[Array, Array]:
        """As `_exact_batch_norm`, of the norms whose statistics a sample has whole."""
        case, part = self.case, self._part
        options: dict[str, Any] = {} if case.of_rows else {"channel_axis": case.channel_axis}
        options["activation"] = case.activation
        weight, bias = self.weight, None if case.norm == "rms_norm" else self.bias
        if not case.of_rows:
            weight, bias = weight[self.sample], self.bias[self.sample]
        groups = [len(self.sample) * case.groups // case.parameters] if case.groups else []
        x = part(tensors.x)
        assert x is not None
        everywhere = np.ones(x.shape, bool)
        forward = getattr(reference, f"{case.norm}_train")
        if case.op != "backward":
            residual = part(tensors.residual)
            if case.prenorm:  # what is normalized is the sum as it is rounded
                assert residual is not None
                x, residual = (x + residual).astype(tensors.x.dtype).astype(np.float64), None
            if residual is not None:
                options["residual"] = residual
            return forward(x, *groups, weight, bias, eps=EPS, **options).y, everywhere
        saved = forward(x, *groups, weight, bias, eps=EPS, **options)
        statistics = (saved.rstd,) if case.norm == "rms_norm" else (saved.mean, saved.rstd)
        dsum = {} if tensors.dsum is None else {"dsum": part(tensors.dsum)}
        backward = getattr(reference, f"{case.norm}_backward")
        dy = part(tensors.dy)
        exact = backward(dy, x, *groups, *statistics, weight, bias, **options, **dsum).dx
        if case.activation != "relu":
            return exact, everywhere
        options["activation"] = None
        z = forward(x, *groups, weight, bias, eps=EPS, **options).y
        return exact, np.abs(z) > KINK[case.dtype]

    def _exact_batch_norm(self, tensors: Tensors) -> tuple[Array, Array]:
        """The exact y or dx of the sampled channels, and which elements of it are to be met.

        Beside the kink of relu either slope is right.
        """
        axis, chosen, part = self.axis, self.sample, self._part
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
        found = np.take(runner.result(0), self.sample, axis=self.axis)
        difference = np.abs(found.astype(np.float64) - self.exact)
        return float(difference[self.judged].max() / np.abs(self.exact).max())


def _each(x: Array) -> list[Array]:
    """The images of x, each with a batch dimension."""
    return [x[i : i + 1] for i in range(x.shape[0])]
