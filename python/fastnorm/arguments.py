"""What the layers' arguments must be, said as the compiled core says it of the ops'."""

from __future__ import annotations

import operator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastnorm._core import Array as DeviceArray

DTYPES = ("float32", "float64", "float16", "bfloat16")
EXPECTED_DTYPE = f"expected one of {', '.join(DTYPES)}"
MOST_DIMENSIONS = 5


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    return f"of type {type(value).__name__}"


def parameter_dtype(op: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype of a layer's parameters, one of the four."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        # NumPy knows the name only once ml_dtypes has registered it.
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(
                f"{op}: dtype is bfloat16, expected ml_dtypes to be installed"
            ) from None
        dtype = ml_dtypes.bfloat16
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{op}: dtype is {dtype!r}, {EXPECTED_DTYPE}") from None
    if found.name not in DTYPES or not found.isnative:
        raise TypeError(f"{op}: dtype is {found}, {EXPECTED_DTYPE}")
    return found


def integer(op: str, argument: str, value: object, words: str = "an int") -> int:
    """An int, or what NumPy takes for one; no bool. Words say what is expected."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{op}: {argument} is {_kind(value)}, expected {words}")


def flag(op: str, argument: str, value: object) -> bool:
    """A bool, Python's or NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {argument} is {_kind(value)}, expected a bool")
    return bool(value)


def axis(op: str, argument: str, value: object, first: int) -> int:
    """An axis that some array has, from its first allowed one on."""
    found = integer(op, argument, value)
    least, last = first - MOST_DIMENSIONS, MOST_DIMENSIONS - 1
    if not (least <= found < 0 or first <= found <= last):
        expected = f"{least} to {last}" if first == 0 else f"{least} to -1 or {first} to {last}"
        raise ValueError(f"{op}: {argument} is {found}, expected {expected}")
    return found


def number(op: str, argument: str, value: object, words: str = "a number") -> float:
    """Any number; words say what is expected."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {argument} is {_kind(value)}, expected {words}") from None


def number_within(
    op: str, argument: str, value: object, least: float, most: float, words: str
) -> float:
    """A number in [least, most]; words say so."""
    found = number(op, argument, value, words)
    if not least <= found <= most:
        raise ValueError(f"{op}: {argument} is {found:g}, expected {words}")
    return found


def feature_shape(op: str, shape: object, most: int) -> tuple[int, ...]:
    """The lengths of the axes that a layer normalizes over: of one, or of up to five."""
    words = f"an int or a tuple of 1 to {MOST_DIMENSIONS} ints"
    if isinstance(shape, (tuple, list)):
        lengths = tuple(integer(op, f"shape[{i}]", length) for i, length in enumerate(shape))
    else:
        lengths = (integer(op, "shape", shape, words),)
    if not 1 <= len(lengths) <= MOST_DIMENSIONS:
        raise ValueError(f"{op}: shape is {lengths}, expected {words}")
    # An axis of length 0 leaves the others as long as they are: NumPy multiplies them all the same.
    if min(lengths) < 0 or prod(max(length, 1) for length in lengths) > most:
        raise ValueError(
            f"{op}: shape is {lengths}, expected lengths >= 0 and at most {most} elements"
        )
    return lengths


def of_shape(what: str, array: npt.NDArray[Any] | DeviceArray, shape: tuple[int, ...]) -> None:
    """An array of one of the four dtypes and of this very shape."""
    if array.dtype.name not in DTYPES:
        raise TypeError(f"{what} has dtype {array.dtype}, {EXPECTED_DTYPE}")
    if array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}, expected {shape}")


def own_array(op: str, name: str, array: object, shape: tuple[int, ...]) -> None:
    """An array of a layer that can be copied into: a user may have replaced it."""
    whose = f"{op}: the layer's {name}"
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{whose} is {_kind(array)}, expected a NumPy array")
    of_shape(whose, array, shape)
    if not array.flags.writeable:
        raise ValueError(f"{whose} is read-only, expected writable memory")
