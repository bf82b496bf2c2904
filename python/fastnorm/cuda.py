"""CUDA devices: what there are, and arrays on them.

The ops take arrays of any library that exports DLPack or ``__cuda_array_interface__`` (CuPy,
PyTorch, JAX, Numba) without a copy. Who has none of them: `asarray` copies a NumPy array to a
device, `Array.numpy` copies it back. The memory of an `Array` is given back in the order of the
stream that it was made on: who works on it in another one keeps it until that work is done.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastnorm import _core
from fastnorm._core import Array, CudaError

_Result = TypeVar("_Result")

__all__ = ["Array", "CudaError", "asarray", "device_count", "is_available"]


def device_count() -> int:
    """The number of CUDA devices; 0 without a driver, or in a build without CUDA."""
    return _core.cuda_device_count()


def is_available() -> bool:
    """Whether there is a device to compute on."""
    return device_count() > 0


def asarray(array: npt.NDArray[Any], *, device: int = 0, stream: Any = None) -> Array:
    """Copy a NumPy array to a device.

    Parameters
    ----------
    array : ndarray
        Of at most 5 dimensions; float32, float64, float16, ml_dtypes.bfloat16 or uint8.
    device : int
        The device's number.
    stream : int or object with ``__cuda_stream__``, optional
        Where the copy is made; it has been made on return.

    Returns
    -------
    Array
        Dense, with the dimensions in the same order in memory.

    Raises
    ------
    CudaError
        Where there is no such device, or no memory on it.
    """
    return _core.cuda_asarray(array, device, stream, "cuda.asarray", "array")


def rstd_of(var: Array, eps: float, x: Any, stream: Any) -> Array:
    """1 / sqrt(var + eps), in float64, for a call on x: in its stream, and nobody waits for it."""
    return _core.cuda_rstd_of(var, eps, current_stream(x) if stream is None else stream)


def device_index(op: str, device: object) -> int:
    """The number of a device that is named "cuda" or "cuda:<number>"."""
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise ValueError(f"{op}: device is {device!r}, expected 'cuda', 'cuda:<number>' or None")
    return int(number or 0)


def to_device(op: str, argument: str, array: npt.NDArray[Any], index: int) -> Array:
    """A copy of an argument of op on a device."""
    return _core.cuda_asarray(array, index, None, op, argument)


# The arguments that an op writes in place, and the input that each may be: in backward out is dy.
_WRITTEN = {"out": "x", "sum_out": "residual", "running_mean": None, "running_var": None}


def through_device(
    op: str, function: Callable[..., _Result], device: object, arguments: dict[str, Any]
) -> _Result:
    """Call an op on copies of NumPy arrays on a device; what it returns and writes, as NumPy's."""
    index = device_index(op, device)
    if arguments.get("stream") is not None:
        raise ValueError(f"{op}: stream is given, expected None with device: NumPy's arrays wait")
    given = {name: a for name, a in arguments.items() if isinstance(a, np.ndarray)}
    written = {name: source for name, source in _WRITTEN.items() if name in given}
    if "dy" in given and "out" in given:
        written["out"] = "dy"
    # The op sees copies, which never overlap: what the arrays themselves do is looked at here.
    _core.check_memory(op, given, written)
    # One that is given twice, as x and out, is one on the device too.
    copies = {id(a): to_device(op, name, a, index) for name, a in given.items()}
    moved = arguments | {name: copies[id(a)] for name, a in given.items()}
    result = function(**moved)
    for name in written:
        given[name][...] = moved[name].numpy()

    def back(value: Any) -> Any:
        for name in written:
            if value is moved[name]:
                return given[name]
        return value.numpy() if isinstance(value, Array) else value

    if not isinstance(result, tuple):
        found: _Result = back(result)
        return found
    values = map(back, result)
    named = hasattr(result, "_fields")
    found = type(result)(*values) if named else type(result)(values)
    return found


# How the libraries that do not say so through __array_namespace__ take DLPack.
_FROM_DLPACK = {"torch": "torch", "cupy": "cupy", "jaxlib": "jax.dlpack", "jax": "jax.dlpack"}


def current_stream(x: Any) -> int | None:
    """The stream on which x's library does its work at this time; None if it does not say."""
    library = type(x).__module__.partition(".")[0]
    if library == "torch":
        stream: int = importlib.import_module("torch").cuda.current_stream(x.device).cuda_stream
        return stream
    if library == "cupy":
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(x.device.id):
            number: int = cupy.cuda.get_current_stream().ptr
        return number
    return None


def new_array(
    x: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str, stream: int
) -> Any:
    """Memory of x's own library beside x, where that can be had: strides are in elements.

    Such an array is as long-lived, and as safe in a CUDA graph, as the library's own, which knows
    that it belongs to the stream. None for a library that offers nothing of the kind.
    """
    library = type(x).__module__.partition(".")[0]
    if library == "torch":
        torch = importlib.import_module("torch")

        def empty() -> Any:
            return torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=x.device)

        if current_stream(x) == stream:
            return empty()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=x.device)):
            return empty()
    if library == "cupy" and dtype != "bfloat16":
        cupy = importlib.import_module("cupy")
        element = np.dtype(dtype)
        with cupy.cuda.Device(x.device.id), cupy.cuda.ExternalStream(stream):
            memory = cupy.cuda.alloc(max(math.prod(shape), 1) * element.itemsize)
        steps = [s * element.itemsize for s in strides]
        return cupy.ndarray(shape, element, memory, strides=steps)
    return None


def hand_over(x: Any, array: Array) -> Any:
    """An array in the library that x is of; as it is where that cannot take it."""
    library = _FROM_DLPACK.get(type(x).__module__.partition(".")[0])
    if library is not None:
        return importlib.import_module(library).from_dlpack(array)
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__().from_dlpack(array)
    return array
