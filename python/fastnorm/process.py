"""Threads and what the library runs on."""

from __future__ import annotations

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
        At least 1. Results do not depend on it, bit for bit. A call may use fewer threads: one for
        small inputs, and at most 64 or four times the cores, whichever is more.

    Raises
    ------
    ValueError
        If n < 1, or beyond 32 bits.
    TypeError
        If n is not an integer.
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads that calls may use.

    What `set_num_threads` set, else FASTNORM_NUM_THREADS, else OMP_NUM_THREADS (values that are no
    positive number count as not set), else the cores that the process may use (its affinity and
    cgroup quota); 1 in a child of ``os.fork()``.
    """
    return _core.get_num_threads()


def info() -> Info:
    """What the library is and runs on.

    Returns
    -------
    dict
        ``version``; ``isa``, the instruction set in use, and ``isas``, those that could be forced
        with the environment variable FASTNORM_ISA; ``threads``; ``openmp``, the version of
        OpenMP (its year and month) and the compiler that the library was built with.
    """
    return {
        "version": _core.version(),
        "isa": _core.isa(),
        "isas": _core.isas(),
        "threads": _core.get_num_threads(),
        "openmp": _core.openmp_runtime(),
    }
