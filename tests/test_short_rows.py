"""Short rows side by side, which maps take as one, give what rows that lie apart give, bit for bit.

Rows of 32 to 1024 elements are short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from checks import assert_same_numbers, on_isa

Array = npt.NDArray[Any]

DTYPES = ("float32", "float64", "float16", ml_dtypes.bfloat16)
ISAS = tuple(fn._core.isas())
LENGTHS = (32, 33, 49, 57, 63, 64, 65, 127, 196, 335, 1023, 1024)
CHANNELS = 38  # whole groups of rows and a part of one
FIELDS = {"forward": ("y", "mean", "rstd", "mask"), "backward": ("dx", "dweight", "dbias")}


@pytest.fixture(params=map(np.dtype, DTYPES), ids=str)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    found: np.dtype[Any] = request.param
    return found


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = fn.get_num_threads()
    fn.set_num_threads(request.param)
    yield request.param
    fn.set_num_threads(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_isa(request.param) as name:
        yield name


def numbers(length: int, stream: bool, dtype: np.dtype[Any], count: int) -> list[Array]:
    """Arrays, forward to be streamed or not; with a channel of infinities and one of NaN."""
    samples = 1 + ((3 << 20) // (CHANNELS * length * dtype.itemsize) if stream else 2)
    rng = np.random.default_rng(length)
    shape = (samples, CHANNELS, length)
    found = [rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(count)]
    found[0][-1, 3, -1] = np.inf
    found[0][0, 30, 0] = np.nan
    return found


def apart(x: Array) -> Array:
    """The same values, with a gap behind each row."""
    room = np.full((*x.shape[:2], 1 + x.shape[2]), 7, x.dtype)[:, :, : x.shape[2]]
    room[...] = x
    return room


def at_offset(x: Array, elements: int) -> Array:
    """The same values, so many elements behind the start of a line, before a few others."""
    room = np.full(x.size + 128, 7, x.dtype)
    start = -room.ctypes.data % 64 // x.itemsize + elements
    view = room[start : start + x.size].reshape(x.shape)
    view[...] = x
    return view


def untouched_around(x: Array) -> bool:
    room = x.base
    assert room is not None
    start = (x.ctypes.data - room.ctypes.data) // x.itemsize
    return bool((room[:start] == 7).all() and (room[start + x.size :] == 7).all())


def all_same(found: Any, expected: Any, op: str) -> None:
    for field in FIELDS[op]:
        assert_same_numbers(getattr(found, field), getattr(expected, field), field)


def taken_as_one(function: Any, *arguments: Any, **options: Any) -> bool:
    """Whether there are tiles of several rows, whose results are not those of other sums' time."""
    told = fn.explain(function, *arguments, **options)
    return bool(told.traversal == "rows" and told.tile[0] > 1 and not told.interleaved)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("stream", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("length", [n for n in LENGTHS if n < 128])
def test_training(
    length: int, stream: bool, activation: str | None, threads: int, dtype: np.dtype[Any]
) -> None:
    x, dy, residual = numbers(length, stream, dtype, 3)
    weight, bias = np.random.default_rng(1).standard_normal((2, CHANNELS))
    options: dict[str, Any] = {"activation": activation}
    forward = {"residual": residual, **options}
    assert fn.explain(fn.batch_norm_train, x, **forward).stream == stream
    assert taken_as_one(fn.batch_norm_train, x, **forward)

    expected = fn.batch_norm_train(apart(x), weight, bias, residual=apart(residual), **options)
    arguments = (weight, bias)
    backward = (apart(dy), apart(x), expected.mean, expected.rstd, *arguments)
    expected_grads = fn.batch_norm_backward(*backward, residual=apart(residual), **options)
    alone = fn.batch_norm_backward(*backward, **options)
    for offset in (0, 1, 64 // dtype.itemsize - 1):
        in_place, beside = at_offset(x, offset), at_offset(x, offset + 2)
        for given, out in ((in_place, in_place), (x, beside)):
            fwd = fn.batch_norm_train(given, *arguments, out=out, **forward)
            all_same(fwd, expected, "forward")
            assert untouched_around(out)
        backward = (x, fwd.mean, fwd.rstd, *arguments)
        dx = at_offset(dy, offset)
        assert taken_as_one(fn.batch_norm_backward, dx, *backward, out=dx, **forward)
        grads = fn.batch_norm_backward(dx, *backward, out=dx, **forward)
        all_same(grads, expected_grads, "backward")
        assert_same_numbers(grads.dresidual, expected_grads.dresidual)
        assert untouched_around(dx)
        dx = at_offset(dy, offset + 3)
        all_same(fn.batch_norm_backward(dy, *backward, out=dx, **options), alone, "backward")
        assert untouched_around(dx)
        if fwd.mask is None:
            continue
        for with_residual in (True, None):
            dx = at_offset(dy, offset)
            masked = {"mask": fwd.mask, "residual": with_residual, **options}
            grads = fn.batch_norm_backward(dx, *backward, out=dx, **masked)
            all_same(grads, expected_grads, "backward")
            if with_residual:
                assert_same_numbers(grads.dresidual, expected_grads.dresidual)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("stream", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("length", LENGTHS)
def test_inference(length: int, stream: bool, isa: str, dtype: np.dtype[Any]) -> None:
    x, residual = numbers(length, stream, dtype, 2)
    mean, weight, bias = np.random.default_rng(2).standard_normal((3, CHANNELS))
    var = np.random.default_rng(3).uniform(0.5, 2.0, CHANNELS)
    mean[7], weight[8], bias[9] = np.inf, np.nan, -np.inf
    arguments = (mean, var, weight, bias)
    for options in ({}, {"activation": "relu", "residual": residual}):
        assert taken_as_one(fn.batch_norm, x, *arguments, **options)
        lain_apart = {**options, **({"residual": apart(residual)} if options else {})}
        expected = fn.batch_norm(apart(x), *arguments, **lain_apart)
        for offset in (0, 1, 5, 64 // dtype.itemsize - 1):
            y = at_offset(x, offset)
            fn.batch_norm(x, *arguments, out=y, **options)
            assert_same_numbers(y, expected)
            assert untouched_around(y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("length", [32, 49, 63, 64, 196])
def test_masks_on_every_instruction_set(length: int, isa: str, dtype: np.dtype[Any]) -> None:
    """Streamed, as no other test of theirs is."""
    x, dy, residual = numbers(length, True, dtype, 3)
    options: dict[str, Any] = {"activation": "relu"}
    fwd = fn.batch_norm_train(x, residual=residual, **options)
    expected = fn.batch_norm_train(apart(x), residual=apart(residual), **options)
    all_same(fwd, expected, "forward")
    for training in (True, False):
        how: dict[str, Any] = {"mask": fwd.mask, "residual": True, "training": training, **options}
        grads = fn.batch_norm_backward(dy, x, fwd.mean, fwd.rstd, **how)
        lain_apart = fn.batch_norm_backward(apart(dy), apart(x), fwd.mean, fwd.rstd, **how)
        all_same(grads, lain_apart, "backward")
        assert_same_numbers(grads.dresidual, lain_apart.dresidual)


def test_short_rows_are_not_interleaved() -> None:
    x = np.ones((31, 483, 7, 7), np.float32)
    for function in (fn.batch_norm_train, fn.batch_norm_backward):
        arguments = (
            (x,) if function is fn.batch_norm_train else (x, x, x[0, :, 0, 0], x[0, :, 0, 0])
        )
        assert taken_as_one(function, *arguments)
