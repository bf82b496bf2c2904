"""Arrays in memory that ends and begins at protected pages.

    protected page | canaries ... array | protected page      at the "end"
    protected page | array ... canaries | protected page      at the "begin"

A byte touched in a protected page kills the process; a canary that was written is found.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Place = Literal["begin", "end"]
PLACES: tuple[Place, ...] = ("end", "begin")

# In every floating dtype, bytes of ones are a NaN: one that is read into a result shows.
CANARY = 0xFF

# From <sys/mman.h>; Python's mmap module has no PROT_NONE.
PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mprotect.restype = ctypes.c_int


def _protect(address: int, size: int, protection: int) -> None:
    if _libc.mprotect(address, size, protection) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


class Arena:
    """Pages between two protected ones, for one array at a time.

    The memory is never given back: arenas are for a process that ends with its test.
    """

    def __init__(self, capacity: int) -> None:
        """Room for at least capacity bytes."""
        page = mmap.PAGESIZE
        self._size = -(-capacity // page) * page
        whole = np.frombuffer(mmap.mmap(-1, self._size + 2 * page), np.uint8)
        self._bytes = whole[page : page + self._size]
        self._bytes[:] = CANARY
        self._taken = np.zeros(self._size, bool)
        self._address = self._bytes.ctypes.data
        _protect(self._address - page, page, PROT_NONE)
        _protect(self._address + self._size, page, PROT_NONE)

    def place(self, values: Array, at: Place, offset: int = 0) -> Array:
        """A copy of values, with their strides, whose bytes are offset bytes from the page."""
        self.writable()
        self._bytes[self._taken] = CANARY
        self._taken[:] = False
        reaches = [(n - 1) * stride for n, stride in zip(values.shape, values.strides, strict=True)]
        before = -sum(reach for reach in reaches if reach < 0)
        length = before + sum(reach for reach in reaches if reach > 0) + values.itemsize
        if offset + length > self._size:
            raise ValueError(f"{length} bytes at {offset} do not fit into {self._size}")
        start = before + (offset if at == "begin" else self._size - offset - length)
        placed: Array = np.ndarray(
            values.shape, values.dtype, self._bytes.data, start, values.strides
        )
        placed[...] = values
        owned: Array = np.ndarray(
            (*values.shape, values.itemsize), bool, self._taken.data, start, (*values.strides, 1)
        )
        owned[...] = True
        return placed

    def read_only(self) -> None:
        """From now on a write to the array kills the process as well."""
        _protect(self._address, self._size, PROT_READ)

    def writable(self) -> None:
        """Take read_only back."""
        _protect(self._address, self._size, PROT_READ | PROT_WRITE)

    def intact(self) -> bool:
        """Whether all bytes that are not the array's are as they were."""
        return bool(((self._bytes == CANARY) | self._taken).all())
