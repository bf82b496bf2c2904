"""Threads and what the library runs on."""

from __future__ import annotations

import operator
from typing import TypedDict

from fastnorm import _core


class Info(TypedDict):
    """What `info` returns."""

    version: str
    isa: str
    isas: list[str]
    threads: int
    openmp: str


def set_num_threads(n: int) -> None:
    """Set the number of threads of all later calls in this process.

    Parameters
    ----------
    n : int
        At least 1. Results do not depend on it, bit for bit; small inputs use one thread anyway.

    Raises
    ------
    ValueError
        If n < 1.
    TypeError
        If n is not an integer.
    """
    try:
        number = operator.index(n)
    except TypeError:
        found = type(n).__name__
        raise TypeError(f"set_num_threads: n is of type {found}, expected int") from None
    if not 1 <= number < 2**31:
        raise ValueError(f"set_num_threads: n is {number}, expected a number from 1 to 2147483647")
    _core.set_num_threads(number)


def get_num_threads() -> int:
    """The number of threads that calls may use.

    What `set_num_threads` set, else FASTNORM_NUM_THREADS, else OMP_NUM_THREADS, else the cores that
    the process may use (its affinity and cgroup quota); 1 in a child of ``os.fork()``.
    """
    return _core.get_num_threads()


def info() -> Info:
    """What the library is and runs on.

    Returns
    -------
    dict
        ``version``; ``isa``, the instruction set in use, and ``isas``, those that could be forced
        with the environment variable FASTNORM_ISA; ``threads``; ``openmp``, the runtime.
    """
    return {
        "version": _core.version(),
        "isa": _core.isa(),
        "isas": _core.isas(),
        "threads": _core.get_num_threads(),
        "openmp": _core.openmp_runtime(),
    }
