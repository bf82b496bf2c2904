"""What a call would do, and why it is as fast as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastnorm import _core, functional

_OPS = tuple(getattr(functional, name) for name in functional.__all__ if name.islower())
_TIMES = {1: "once", 2: "twice", 3: "three times"}


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns; printed, a few lines of text.

    Attributes
    ----------
    isa : str
        The instruction set.
    traversal : str
        How vectors lie on x, which the kernels see as ``view``: "rows", along inner; "columns",
        along stat and inner; "features", along inner, whose elements have weights of their own.
        Empty, like everything else, where x has no elements.
    view : tuple of int
        (batch, outer, stat, inner): sums are over outer and inner, kept per batch and stat.
    group : int
        So many stats side by side have one mean and one variance.
    tile : tuple of int
        (stat, outer, inner): what one call of the map covers, at most.
    units, chunks : int
        A unit is all of some statistics; it is mapped in so many chunks, of one tile or of some
        side by side. The sums' may be larger.
    reduces : bool
        Each unit is summed before it is mapped; otherwise every tile is mapped once.
    threads : int
        How many are used.
    shared : bool
        All threads work on the same units; otherwise each has units of its own.
    interleaved : bool
        The results of a unit are written while the next one is summed.
    stream : bool
        Results are written past the cache.
    reads : int
        How often inputs come from memory: 2 where a unit (two that are interleaved) does not fit
        into the L2 caches of the threads that compute it; some of it may still be found there.
    least_bytes : int
        Every tensor of x's size, and the mask, read or written once: divided by the bandwidth of a
        copy, the time that no implementation undercuts where data come from memory.
    scratch_bytes : int
        Partial results and coefficients, and in the gradient of a smooth activation what the sums
        leave for dx (64 MB at most), in memory that the calling thread keeps; on a device from a
        pool in the stream's order.
    launches : tuple of str
        On a device, the kernels with their blocks, threads and shared memory. There a unit is what
        statistics a warp has at a time, a chunk is what it reduces at a time, reads says how many
        kernels read the inputs, and nothing is said of tile, threads, shared, interleaved and
        stream.
    copied : tuple of str
        Arguments that are copied to dense memory first, or from it: a cost that dense ones, all in
        x's order of dimensions, do not have.
    """

    isa: str
    traversal: str
    view: tuple[int, int, int, int]
    group: int
    tile: tuple[int, int, int]
    units: int
    chunks: int
    reduces: bool
    threads: int
    shared: bool
    interleaved: bool
    stream: bool
    reads: int
    least_bytes: int
    scratch_bytes: int
    launches: tuple[str, ...]
    copied: tuple[str, ...]

    def __str__(self) -> str:
        if not self.traversal:
            return "nothing to do: no elements"
        batch, outer, stat, inner = self.view
        threads = "" if self.launches else f", {_many(self.threads, 'thread')}"
        if self.reduces:
            whose = "shared by all threads" if self.shared else "each by one thread"
            then = "results with the next one's sums" if self.interleaved else "sums, then results"
            units = f"{_many(self.units, 'unit')} of {_many(self.chunks, 'chunk')}, {whose}; {then}"
        else:
            units = f"{_many(self.units * self.chunks, 'tile')}, each mapped once"
        how = [
            "tile:    stat {}, outer {}, inner {}".format(*self.tile),
            f"order:   {units}",
            f"stores:  {'past the cache' if self.stream else 'plain'}",
        ]
        if self.launches:
            how = [f"launch:  {launch}" for launch in self.launches]
        lines = [
            f"{self.isa}, {self.traversal}{threads}",
            f"view:    batch {batch}, outer {outer}, stat {stat}, inner {inner}"
            + (f", groups of {self.group}" if self.group > 1 else ""),
            *how,
            f"memory:  {self.least_bytes:,} bytes at least, inputs read "
            f"{_TIMES[self.reads]}; {self.scratch_bytes:,} bytes of scratch",
        ]
        if self.copied:
            lines.append(f"copied:  {', '.join(self.copied)} (not dense, or in another order)")
        return "\n".join(lines)


def explain(op: Callable[..., object], /, *args: Any, **kwargs: Any) -> Explanation:
    """What ``op(*args, **kwargs)`` would do; nothing is computed or written.

    Parameters
    ----------
    op : callable
        `batch_norm`, `layer_norm_backward` or any other op.
    *args, **kwargs
        Its arguments, which are checked as ever.

    Returns
    -------
    Explanation

    Raises
    ------
    TypeError
        For any other op, and for what the op raises it for.
    ValueError
        For what the op raises it for.
    """
    if not any(op is known for known in _OPS):
        expected = ", ".join(known.__name__ for known in _OPS)
        found = op.__name__ if hasattr(op, "__name__") else f"of type {type(op).__name__}"
        raise TypeError(
            f"explain: op is {found}, expected one of {expected}, with its arguments after it"
        )
    return Explanation(**_core.explain(lambda: op(*args, **kwargs)))
