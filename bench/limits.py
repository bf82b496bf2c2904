"""The limit: what the fewest bytes of a case cost at the rate of the best copy in the same run."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int, c_size_t, c_void_p
from functools import partial
from typing import Any

import numpy.typing as npt

from compiled import compiled
from problem import Problem, Tensors

Array = npt.NDArray[Any]

PLAIN, STREAM, MEMCPY, FETCH = 0, 1, 2, 3
BLOCK = 64 << 10
LINE = 64
# From one stretch a thread to blocks in turns, in every manner of storing.
MANNERS = {
    "plain": (PLAIN, 0),
    "streamed": (STREAM, 0),
    "plain blocks": (PLAIN, BLOCK),
    "streamed blocks": (STREAM, BLOCK),
    "fetched": (FETCH, 0),
    "fetched blocks": (FETCH, BLOCK),
    "memcpy": (MEMCPY, 0),
}


class Limits:
    """Copies (or triads) with as many reads and writes as an operation has at least."""

    def __init__(self, threads: int) -> None:
        self._move = compiled("bandwidth.cpp").bandwidth_move
        self._move.argtypes = [*[c_void_p] * 4, c_size_t, c_int, c_size_t, c_int]
        self._move.restype = None
        self._threads = threads

    def runners(self, problem: Problem) -> dict[str, Callable[[int], None]]:
        """Calls on set i of a problem, by their names. A dy or residual is the second read."""
        case = problem.case
        threads = self._threads if case.tensor_bytes > 128 << 10 else 1
        found: dict[str, Callable[[int], None]] = {}
        size = self._bytes(problem)
        for name, (manner, block) in MANNERS.items():
            if manner == MEMCPY and case.reads + case.writes > 2:
                continue
            arguments = [
                (*self._pointers(problem, tensors), size, manner, block, threads)
                for tensors in problem.sets
            ]
            found[name] = partial(self._call, arguments)
        return found

    def _call(self, arguments: list[tuple[Any, ...]], i: int) -> None:
        self._move(*arguments[i])

    def scale(self, problem: Problem) -> float:
        """The fewest bytes of the case over those that a call of a runner moves."""
        case = problem.case
        return case.least_bytes / ((case.reads + case.writes) * self._bytes(problem))

    @staticmethod
    def _bytes(problem: Problem) -> int:
        """Whole lines of an array, whatever its alignment."""
        return max(problem.case.tensor_bytes - LINE, 0) // LINE * LINE

    @staticmethod
    def _pointers(problem: Problem, tensors: Tensors) -> tuple[int | None, ...]:
        def address(array: Array | None, aligned: bool = False) -> int | None:
            if array is None:
                return None
            return -(-array.ctypes.data // LINE) * LINE if aligned else array.ctypes.data

        case = problem.case
        second = tensors.dy if tensors.dy is not None else tensors.residual
        also = tensors.dresidual if tensors.dresidual is not None else tensors.total
        return (
            address(tensors.x),
            address(second) if case.reads > 1 else None,
            address(tensors.out, aligned=True),
            address(also, aligned=True) if case.writes > 1 else None,
        )
