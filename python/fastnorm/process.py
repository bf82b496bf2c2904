"""Threads and what the library runs on."""

from __future__ import annotations

from typing import TypedDict

from fastnorm import _core


class BufferCache(TypedDict):
    """Bytes: what `set_buffer_cache` set, and how many of them are kept at this time."""

    limit: int
    kept: int


class Info(TypedDict):
    """What `info` returns."""

    version: str
    isa: str
    isas: list[str]
    threads: int
    openmp: str
    buffer_cache: BufferCache


def set_num_threads(n: int) -> None:
    """Set the number of threads of all later calls in this process.

    Parameters
    ----------
    n : int
        At least 1. Results do not depend on it, bit for bit (of a NaN, that it is one). A call may
        use fewer threads: one for small inputs, and at most 64 or four times the cores, whichever
        is more.

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
        OpenMP (its year and month) and the compiler that the library was built with;
        ``buffer_cache``, its ``limit`` and what is ``kept``, in bytes.
    """
    limit, kept = _core.buffer_cache()
    return {
        "version": _core.version(),
        "isa": _core.isa(),
        "isas": _core.isas(),
        "threads": _core.get_num_threads(),
        "openmp": _core.openmp_runtime(),
        "buffer_cache": {"limit": limit, "kept": kept},
    }


def set_buffer_cache(limit: int) -> None:
    """Set how much memory of results is kept for later results, in this process.

    A large result (1 MiB and more) that is returned without ``out=`` comes from memory of an
    earlier one where no array uses that any more: the page faults of fresh memory cost several
    times what the arithmetic does. An array and its views are not affected by it, whatever happens
    here: memory is used again only after the last of them is gone.

    Parameters
    ----------
    limit : int
        Bytes that are kept at most, beside the memory that arrays are using; 0 keeps nothing. What
        is kept beyond it is given back to the system at once. At first 512 MiB, or an eighth of the
        machine's memory if that is less.

    Raises
    ------
    ValueError
        If limit < 0, or beyond 64 bits.
    TypeError
        If limit is not an integer.
    """
    _core.set_buffer_cache(limit)


def clear_buffer_cache() -> None:
    """Give the memory that is kept for later results back to the system; the limit stays."""
    _core.clear_buffer_cache()
