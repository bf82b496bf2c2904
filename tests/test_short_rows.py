"""Short rows side by side, which maps take as one, give what rows that lie apart give, bit for bit.

Rows of 32 to 1024 elements are short.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn

Array = npt.NDArray[Any]

DTYPES = ("float32", "float64", "float16", ml_dtypes.bfloat16)
LENGTHS = (31, 32, 33, 40, 47, 48, 49, 57, 63, 64, 65, 196, 335, 1023, 1024, 1025)
FIELDS = {"forward": ("y", "mean", "rstd", "mask"), "backward": ("dx", "dresidual", "dweight")}


def apart(x: Array) -> Array:
    """The same values, with a gap behind each row."""
    shape = (*x.shape[:2], 1 + x.shape[2])
    room = np.full(shape, 7, x.dtype)[:, :, : x.shape[2]]
    room[...] = x
    return room


def at_offset(x: Array, elements: int) -> Array:
    """The same values, so many elements behind the start of a line, before a few others."""
    room = np.full(x.size + 128, 7, x.dtype)
    start = -room.ctypes.data % 64 // x.itemsize + elements
    view = room[start : start + x.size].reshape(x.shape)
    view[...] = x
    return view


def untouched_behind(x: Array) -> bool:
    room = x.base
    assert room is not None
    start = (x.ctypes.data - room.ctypes.data) // x.itemsize
    return bool((room[:start] == 7).all() and (room[start + x.size :] == 7).all())


def same(found: Any, expected: Any, fields: tuple[str, ...]) -> None:
    for field in fields:
        a, b = getattr(found, field), getattr(expected, field)
        assert (a is None) == (b is None), field
        if a is not None:
            assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes(), field


@pytest.fixture(params=map(np.dtype, DTYPES), ids=str)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    found: np.dtype[Any] = request.param
    return found


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("stream", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("length", LENGTHS)
def test_bits(length: int, stream: bool, activation: str | None, dtype: np.dtype[Any]) -> None:
    channels = 37  # more than a group of them
    samples = 1 + ((3 << 20) // (channels * length * dtype.itemsize) if stream else 2)
    shape = (samples, channels, length)
    rng = np.random.default_rng(length)
    x, dy, residual = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(3))
    weight, bias = rng.standard_normal((2, channels))
    options: dict[str, Any] = {"activation": activation}
    assert fn.explain(fn.batch_norm_train, x, residual=residual, **options).stream == stream

    expected = fn.batch_norm_train(apart(x), weight, bias, residual=apart(residual), **options)
    arguments = (weight, bias)
    expected_grads = fn.batch_norm_backward(
        apart(dy), apart(x), expected.mean, expected.rstd, *arguments,
        residual=apart(residual), **options,
    )  # fmt: skip
    for offset in (0, 1, 5, 64 // dtype.itemsize - 1):
        out = at_offset(x, offset)
        fwd = fn.batch_norm_train(out, *arguments, residual=residual, out=out, **options)
        same(fwd, expected, FIELDS["forward"])
        assert untouched_behind(out)
        backward = (x, fwd.mean, fwd.rstd, *arguments)
        for recompute in (True, False):
            if fwd.mask is None and not recompute:
                continue
            how = {"residual": residual} if recompute else {"residual": True, "mask": fwd.mask}
            dx = at_offset(dy, offset)
            grads = fn.batch_norm_backward(dx, *backward, out=dx, **how, **options)
            same(grads, expected_grads, FIELDS["backward"])
            assert untouched_behind(dx)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_inference_and_frozen_gradients(threads: int, dtype: np.dtype[Any]) -> None:
    shape = (211, 131, 49)
    rng = np.random.default_rng(6)
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    mean, weight, bias = rng.standard_normal((3, shape[1]))
    var = rng.uniform(0.5, 2.0, shape[1])
    before = fn.get_num_threads()
    fn.set_num_threads(threads)
    try:
        y = fn.batch_norm(x, mean, var, weight, bias, activation="relu")
        expected = fn.batch_norm(apart(x), mean, var, weight, bias, activation="relu")
        assert y.tobytes() == np.ascontiguousarray(expected).tobytes()
        frozen: dict[str, Any] = {"training": False, "activation": "relu"}
        grads = fn.batch_norm_backward(dy, x, mean, var, weight, bias, **frozen)
        other = fn.batch_norm_backward(apart(dy), apart(x), mean, var, weight, bias, **frozen)
        same(grads, other, ("dx", "dweight", "dbias"))
    finally:
        fn.set_num_threads(before)
