"""Loops with a normalization's arithmetic and nothing else: what it takes beside memory."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_void_p
from math import prod

import numpy as np

import fastnorm as fn
from compiled import compiled
from problem import EPS, Problem
from providers import Array, Runner

LINE = 64
VECTOR = 16  # elements, of the widest one
# Results of more bytes go past the cache, as they do in fastnorm.
CACHED = 4 << 20
# Calls on less have one thread, as a copy has.
LEAST_SHARED = 128 << 10
PLANES = {"NCHW": 1, "NHWC": 2}


class _Problem(ctypes.Structure):
    """BareProblem of bare_loops.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "dy", "out", "weight", "bias", "mean", "rstd")),
        *((name, c_void_p) for name in ("dweight", "dbias")),
        *((name, c_int64) for name in ("samples", "groups", "channels", "pixels")),
        ("eps", c_float),
        *((name, c_int) for name in ("backward", "silu", "past", "threads")),
    )


class Bare:
    """The norms beside batch norm, of float32 and bfloat16, on arrays that begin with a line.

    Attributes
    ----------
    arrays : list of dict
        What the loops have of each set of the last problem.
    """

    def __init__(self, threads: int) -> None:
        self._run = compiled("bare_loops.cpp").bare_run
        self._run.argtypes = [POINTER(_Problem), c_int, c_int]
        self._run.restype = None
        self._threads = threads
        self.version = fn.info()["version"]
        self.arrays: list[dict[str, Array | None]] = []

    def prepare(self, problem: Problem) -> Runner | None:
        """Plain, or with SiLU after planes; extents of whole vectors."""
        case = problem.case
        if case.norm == "batch_norm" or case.dtype not in ("float32", "bfloat16"):
            return None
        if case.epilogue not in (("plain",) if case.of_rows else ("plain", "silu")):
            return None
        n, channels = case.shape[:2]
        pixels = prod(case.shape[2:])
        if (channels if case.of_rows or case.layout == "NHWC" else pixels) % VECTOR:
            return None
        backward = case.op == "backward"
        groups = case.groups or (1 if case.of_rows else channels)
        bytes_moved = case.tensor_bytes * (case.reads + case.writes)
        bias = None if case.norm == "rms_norm" else _aligned(problem.bias)
        weight = _aligned(problem.weight)
        self.arrays = keep = []  # what the pointers point to
        problems = []
        for s in problem.sets:
            statistics = _statistics(problem, s.x) if backward else (None, None)
            arrays = {
                "x": _aligned(s.x),
                "dy": _aligned(s.dy),
                "out": _aligned(s.out),
                "weight": weight,
                "bias": bias,
                "mean": statistics[0],
                "rstd": statistics[1],
                "dweight": np.empty(channels, np.float32),
                "dbias": np.empty(channels, np.float32),
            }
            keep.append(arrays)
            problems.append(
                _Problem(
                    **{k: None if a is None else a.ctypes.data for k, a in arrays.items()},
                    samples=n,
                    groups=groups,
                    channels=channels,
                    pixels=pixels,
                    eps=EPS,
                    backward=backward,
                    silu=case.epilogue == "silu",
                    past=bytes_moved > CACHED,
                    threads=self._threads if case.tensor_bytes > LEAST_SHARED else 1,
                )
            )
        layout, half = PLANES.get(case.layout, 0), case.dtype == "bfloat16"

        def call(i: int) -> None:
            self._run(byref(problems[i]), layout, half)

        def result(i: int) -> Array:
            out = keep[i]["out"]
            assert out is not None
            return out

        return Runner(call, result)


def _aligned(array: Array | None) -> Array | None:
    """A copy that begins with a line."""
    if array is None:
        return None
    memory = np.empty(array.nbytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    copy: Array = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _statistics(problem: Problem, x: Array) -> tuple[Array | None, Array]:
    """The mean and rstd of each row, or of each group of each sample."""
    case = problem.case
    groups = [case.groups] if case.groups else []
    options = {} if case.of_rows else {"channel_axis": case.channel_axis}
    forward = getattr(fn, f"{case.norm}_train")(x, *groups, eps=EPS, **options)
    mean = getattr(forward, "mean", None)
    return None if mean is None else mean.astype(np.float32), forward.rstd.astype(np.float32)


make = Bare
