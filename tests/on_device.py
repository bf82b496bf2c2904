"""The ops on a CUDA device, called with NumPy arrays: what the tests of the CPU's ops run again.

Each array goes to the device in its own layout, gaps included, and reaches the op as another
library's array would: through DLPack, or ``__cuda_array_interface__`` where DLPack cannot say its
strides. Where fastnorm is built to run its CUDA kernels on the CPU (FASTNORM_CUDA=HOST) `Host`
chooses how, and sees what they did.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fastnorm as fn

Array = npt.NDArray[Any]


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManaged(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


# What is exported, with the array that it is of, until who has taken it gives it back.
_exported: dict[int, tuple[_DLManaged, object]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _give_back(managed: int) -> None:
    del _exported[managed]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_CODES = {"float32": 2, "float64": 2, "float16": 2, "bfloat16": 4, "uint8": 1, "int32": 0}


class Foreign:
    """An array on the device as another library has it, with any strides."""

    def __init__(self, array: Array, device: int = 0) -> None:
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
        low -= low % 16  # as aligned there as here
        memory = (ctypes.c_uint8 * (high - low)).from_address(low) if high > low else b""
        # A copy, so that the gaps between the elements travel too.
        raw = np.frombuffer(memory, np.uint8).copy() if high > low else np.zeros(0, np.uint8)
        self.raw = fn.cuda.asarray(raw, device=device)
        self.offset = array.ctypes.data - low if high > low else 0
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.index = device
        self.writable = True
        self.streams: list[object] = []  # that exports were asked for
        exact = all(s % array.itemsize == 0 for s in array.strides)
        if not exact or self.offset % array.itemsize != 0:
            self.__dict__["__cuda_array_interface__"] = self._interface()

    @property
    def pointer(self) -> int:
        """Where its first element lies."""
        address: int = self.raw.__cuda_array_interface__["data"][0]
        return address + self.offset

    def _interface(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, not self.writable),
            "strides": self.strides,
            "version": 3,
            "stream": 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.index)

    def __dlpack__(self, *, stream: object = None) -> object:
        self.streams.append(stream)
        count = len(self.shape)
        managed = _DLManaged()
        managed.tensor = _DLTensor(
            self.pointer,
            2,
            self.index,
            count,
            _CODES[self.dtype.name],
            8 * self.dtype.itemsize,
            1,
            (ctypes.c_int64 * max(count, 1))(*self.shape),
            (ctypes.c_int64 * max(count, 1))(*(s // self.dtype.itemsize for s in self.strides)),
            0,
        )
        managed.deleter = ctypes.cast(_give_back, ctypes.c_void_p)
        _exported[ctypes.addressof(managed)] = managed, self
        return _new_capsule(ctypes.addressof(managed), b"dltensor", None)

    def numpy(self) -> Array:
        """Its elements, in memory of the same layout."""
        raw = self.raw.numpy()
        return np.ndarray(self.shape, self.dtype, raw, self.offset, self.strides)


class _Interface:
    """What has ``__cuda_array_interface__`` alone."""

    def __init__(self, array: Foreign) -> None:
        self.array = array
        self.__cuda_array_interface__ = array._interface()

    def numpy(self) -> Array:
        return self.array.numpy()


def to_device(array: Any) -> Any:
    """An array on the device; anything else as it is."""
    if not isinstance(array, np.ndarray):
        return array
    foreign = Foreign(array)
    interface = "__cuda_array_interface__" in foreign.__dict__
    return _Interface(foreign) if interface else foreign


def to_host(array: Any) -> Any:
    """A NumPy array of one on the device; anything else as it is."""
    return array.numpy() if hasattr(array, "numpy") else array


class _Ops:
    """fastnorm's ops with NumPy arrays in and out, computed on the device."""

    CudaError = fn.CudaError

    def _call(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *in_place: str) -> Any:
        # One that is given twice, as x and out say, is one on the device too.
        given = {id(a): a for a in (*args, *kwargs.values())}
        moved = {key: to_device(a) for key, a in given.items()}
        named = {name: moved[id(a)] for name, a in kwargs.items()}
        result = op(*(moved[id(a)] for a in args), **named)
        for name in in_place:
            if isinstance(kwargs.get(name), np.ndarray):
                kwargs[name][...] = named[name].numpy()
        return result

    def __getattr__(self, name: str) -> Any:
        op = getattr(fn, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            written = ("out", "sum_out", "running_mean", "running_var")
            result = self._call(op, args, kwargs, *written)
            out, total = kwargs.get("out"), kwargs.get("sum_out")
            if not isinstance(result, tuple):
                return to_host(result) if out is None else out
            first, *rest = map(to_host, result)
            if total is not None:  # which comes last
                rest[-1] = total
            fields = (first if out is None else out, *rest)
            return type(result)(*fields) if hasattr(result, "_fields") else fields

        return call


ops = _Ops()


# --- the machine of a build that runs the kernels on the CPU --------------------------------------


class Limits(NamedTuple):
    """What a machine has; the tests choose one on which a tier is taken."""

    multiprocessors: int = 4
    shared_of_block: int = 232448
    shared_of_multiprocessor: int = 233472
    shared_reserved: int = 1024
    cluster: int = 16
    cache: int = 50 << 20


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: str
    blocks: int
    threads: int
    cluster: int
    shared_bytes: int
    resident: bool
    stream: int


class Traffic(NamedTuple):
    """Bytes of tensors: by accesses of 16, and of one element each."""

    loaded: int
    stored: int
    loaded_elements: int
    stored_elements: int


ORDERS = ("forward", "reversed", "shuffled")


class Host:
    """What a build with FASTNORM_CUDA=HOST lets tests set and see."""

    def __init__(self) -> None:
        library = ctypes.CDLL(fn._core.__file__)
        self.available = hasattr(library, "fastnorm_host_reset")
        if self.available:
            library.fastnorm_host_kernel.restype = ctypes.c_char_p
            library.fastnorm_host_memory_in_use.restype = ctypes.c_int64
        self._library = library

    def reset(self, limits: Limits | None = None, order: str = "forward") -> None:
        """Set the machine, the order in which threads take turns, and all counts to 0."""
        values = (ctypes.c_int64 * 6)(*(limits or Limits()))
        self._library.fastnorm_host_reset(values, ORDERS.index(order))

    def busy(self, is_busy: bool) -> None:
        """Whether what is asked of the device from now on is not done yet."""
        self._library.fastnorm_host_busy(int(is_busy))

    def refuse(self, launch: int) -> None:
        """Let the launch of this number since the last reset fail."""
        self._library.fastnorm_host_refuse(launch)

    def launches(self) -> list[Launch]:
        """All since the last reset."""
        found = (ctypes.c_int64 * 6)()
        count = self._library.fastnorm_host_launches(-1, found)
        result = []
        for i in range(count):
            self._library.fastnorm_host_launches(i, found)
            blocks, threads, cluster, shared, resident, stream = found
            name = self._library.fastnorm_host_kernel(i).decode()
            result.append(Launch(name, blocks, threads, cluster, shared, bool(resident), stream))
        return result

    def traffic(self) -> Traffic:
        """All since the last reset."""
        found = (ctypes.c_int64 * 4)()
        self._library.fastnorm_host_traffic(found)
        return Traffic(*found)

    def waits(self) -> list[tuple[int, int]]:
        """(stream, the stream that it waits for), all since the last reset."""
        found = (ctypes.c_int64 * 2)()
        result = []
        for i in range(self._library.fastnorm_host_waits(-1, found)):
            self._library.fastnorm_host_waits(i, found)
            result.append((found[0], found[1]))
        return result

    def memory_in_use(self) -> int:
        """Allocations that have not been given back."""
        count: int = self._library.fastnorm_host_memory_in_use()
        return count


host = Host()
