"""Which arrays share memory: found exactly, by the bytes of every element, and quickly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from test_errors import BACKWARD, INFERENCE, OPS, SHAPE, arguments

Array = npt.NDArray[Any]


def _strided(memory: Array, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Such a view, which begins somewhere in the middle half of memory."""
    low = sum(min(s * (n - 1), 0) for n, s in zip(shape, strides, strict=True))
    offset = memory.nbytes // 4 - low
    return np.ndarray(shape, dtype, memory, offset, strides)


def _bytes_of(a: Array) -> Array:
    """The address of every byte of every element."""
    first = sum(
        (np.arange(n) * s).reshape([-1] + [1] * (a.ndim - 1 - i))
        for i, (n, s) in enumerate(zip(a.shape, a.strides, strict=True))
    )
    every = np.asarray(first)[..., None] + np.arange(a.itemsize) + a.ctypes.data
    return np.broadcast_to(every, (*a.shape, a.itemsize)).reshape(-1)


def _random_strides(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Dense ones in a random order, some of them a little off."""
    strides, stride = [0] * len(shape), size
    for axis in rng.permutation(len(shape)):
        strides[axis] = stride * int(rng.choice((-1, 1)))
        stride = stride * shape[axis] + int(rng.integers(0, 3)) * int(rng.integers(0, 5))
    for axis in range(len(shape)):
        if rng.random() < 0.3:
            strides[axis] += int(rng.integers(-2 * size, 2 * size + 1))
    return tuple(strides)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_random_outputs_that_overlap_themselves(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    memory = np.zeros(1 << 16, np.uint8)
    size = np.dtype(dtype).itemsize
    fine = 0
    for _ in range(2000):
        shape = tuple(int(n) for n in rng.integers(1, 5, rng.integers(2, 6)))
        out = _strided(memory, dtype, shape, _random_strides(rng, shape, size))
        x = rng.standard_normal(shape).astype(dtype)
        statistics = np.ones(shape[1])
        found = _bytes_of(out)
        if np.unique(found).size == found.size:
            fine += 1
            fn.batch_norm(x, statistics, statistics, out=out)
            assert np.array_equal(out, fn.batch_norm(x, statistics, statistics))
        else:
            with pytest.raises(ValueError, match="whose elements have memory of their own"):
                fn.batch_norm(x, statistics, statistics, out=out)
    assert 200 < fine < 1800


def test_random_outputs_that_overlap_a_parameter() -> None:
    """Elements of different sizes, with gaps that the other's elements may or may not fit."""
    rng = np.random.default_rng(0)
    memory = np.zeros(1 << 12, np.uint8)
    dtypes = (np.float16, np.float32, np.float64)
    apart = 0
    for _ in range(3000):
        x = np.zeros((2, 3), dtypes[rng.integers(3)])
        step = x.itemsize + int(rng.integers(0, 12))
        out = _strided(memory, x.dtype, x.shape, (3 * step + int(rng.integers(0, 9)), step))
        start = int(rng.integers(-40, 80))
        weight = _strided(
            memory[max(start, 0) :], dtypes[rng.integers(3)], (3,), (int(rng.integers(-24, 25)),)
        )
        statistics = np.ones(3)
        if np.intersect1d(_bytes_of(out), _bytes_of(weight)).size == 0:
            apart += 1
            fn.batch_norm(x, statistics, statistics, weight, out=out)
        else:
            with pytest.raises(ValueError, match="out overlaps weight"):
                fn.batch_norm(x, statistics, statistics, weight, out=out)
    assert 300 < apart < 2700


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_interleaved_views_of_one_buffer_do_not_overlap(op: str, axis: int) -> None:
    """Address ranges cross, elements do not: x and out as the two halves of each row."""
    name = "dy" if op == BACKWARD else "x"
    expected = OPS[op](**arguments(op))[0] if op != INFERENCE else OPS[op](**arguments(op))
    for stepped in (False, True):
        given = arguments(op)
        shape = list(SHAPE)
        shape[axis] *= 2
        buffer = np.zeros(shape, np.float32)
        n = SHAPE[axis]
        halves = (slice(0, None, 2), slice(1, None, 2)) if stepped else (slice(n), slice(n, None))
        source, target = (buffer[(slice(None),) * axis + (half,)] for half in halves)
        source[...] = given[name]
        given[name], given["out"] = source, target
        result = OPS[op](**given)
        assert (result if op == INFERENCE else result[0]) is target
        assert np.array_equal(target, expected)
        assert np.array_equal(source, arguments(op)[name])


# Large enough that a search through all pairs of elements would not end.
@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_large_interleaved_views_are_apart(axis: int, stepped: bool, channel_axis: int) -> None:
    shape = [6, 20, 18, 22, 24]
    n = shape[axis]
    shape[axis] *= 2
    buffer = np.zeros(shape, np.float32)
    halves = (slice(0, None, 2), slice(1, None, 2)) if stepped else (slice(n), slice(n, None))
    x, out = (buffer[(slice(None),) * axis + (half,)] for half in halves)
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    expected = fn.batch_norm_train(x.copy(), channel_axis=channel_axis).y
    y = fn.batch_norm_train(x, channel_axis=channel_axis, out=out).y
    assert y is out
    np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6)  # another layout, other roundings
    # One element further along an axis of one element's step: now they do overlap.
    last = x.shape[-1] - 1
    shifted = buffer[..., 1:] if stepped or axis != 4 else buffer[..., 1 : 1 + n]
    shifted = shifted[tuple(slice(extent) for extent in (*x.shape[:-1], last))]
    with pytest.raises(ValueError, match="out overlaps x"):
        fn.batch_norm_train(x[..., :last], channel_axis=channel_axis, out=shifted)


def test_other_columns_of_other_rows_do_not_overlap() -> None:
    """Strides that differ, but have a divisor in common."""
    n = 300
    buffer = np.zeros((3 * n, 4 * n + 2), np.float32)
    x, out = buffer[:n, ::4][:, :n], buffer[::3, 1::2][:, :n]
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    expected = fn.batch_norm_train(x.copy()).y
    assert np.array_equal(fn.batch_norm_train(x, out=out).y, expected)
    with pytest.raises(ValueError, match="out overlaps x"):
        fn.batch_norm_train(x, out=buffer[::3, ::2][:, :n])


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_slices_of_one_buffer(ndim: int) -> None:
    rng = np.random.default_rng(1)
    buffer = np.zeros((90, 130) if ndim == 2 else (21, 23, 40), np.float32)
    apart = 0
    for _ in range(400):
        most = 5 if ndim == 2 else 2
        shape = [int(rng.integers(2, extent // most)) for extent in buffer.shape]
        views = []
        for _ in range(2):
            index = []
            for extent, n in zip(buffer.shape, shape, strict=True):
                step = int(rng.integers(1, (extent - 1) // (n - 1) + 1))
                start = int(rng.integers(0, extent - (n - 1) * step))
                index.append(slice(start, start + (n - 1) * step + 1, step))
            views.append(buffer[tuple(index)])
        x, out = views
        statistics = np.ones(shape[1])
        if np.intersect1d(_bytes_of(x), _bytes_of(out)).size == 0:
            apart += 1
            fn.batch_norm(x, statistics, statistics, out=out)
        elif x.ctypes.data != out.ctypes.data or x.strides != out.strides:
            with pytest.raises(ValueError, match="out overlaps x"):
                fn.batch_norm(x, statistics, statistics, out=out)
    assert 50 < apart < 350


def test_out_that_is_x_through_another_view() -> None:
    given = arguments(INFERENCE)
    expected = fn.batch_norm(**arguments(INFERENCE))
    given["out"] = given["x"][:]
    assert fn.batch_norm(**given) is given["out"]
    assert np.array_equal(given["x"], expected)


def _sharing() -> dict[str, tuple[str, dict[str, Any], str]]:
    """Calls whose arrays share memory: the op, its arguments, and what it says of them."""
    memory = np.ones(61, np.float32)
    x, shifted, other = (
        memory[:60].reshape(3, 4, 5),
        memory[1:].reshape(3, 4, 5),
        np.ones((3, 4, 5)),
    )
    residual, buffer, running = np.ones_like(x), np.ones_like(x), np.ones(4)
    frozen = np.ones_like(x)
    frozen.flags.writeable = False
    broadcast = np.lib.stride_tricks.as_strided(buffer, x.shape, (0, 20, 4))
    own = "expected memory of its own"
    same = "expected either the very same array or memory of its own"
    prenorm = {"x": x, "residual": residual, "prenorm": True}
    statistics = {"mean": running, "rstd": running}
    return {
        "two outputs": (
            "rms_norm",
            prenorm | {"out": buffer, "sum_out": buffer[:]},
            f"(out overlaps sum_out|sum_out overlaps out), {own}",
        ),
        "a part of x": ("layer_norm", {"x": x, "out": shifted}, f"out overlaps x, {same}"),
        "a part of dy": (
            "batch_norm_backward",
            {"dy": x, "x": residual, "out": shifted} | statistics,
            f"out overlaps dy, {same}",
        ),
        "x in backward": (
            "batch_norm_backward",
            {"dy": residual, "x": x, "out": x} | statistics,
            f"out overlaps x, {own}",
        ),
        "a part of the residual": (
            "layer_norm_train",
            {"x": residual, "residual": x, "prenorm": True, "sum_out": shifted},
            f"sum_out overlaps residual, {same}",
        ),
        "running statistics": (
            "batch_norm_train",
            {"x": x, "running_mean": running, "running_var": running[:]},
            f"(running_mean overlaps running_var|running_var overlaps running_mean), {own}",
        ),
        "itself": (
            "instance_norm",
            {"x": x, "out": broadcast},
            "out is broadcast along axis 0, expected an array whose elements have memory of their "
            "own",
        ),
        "read-only": (
            "group_norm",
            {"x": x, "groups": 2, "out": frozen},
            "out is read-only, expected a writable array",
        ),
        "dtype": (
            "batch_norm_train",
            {"x": other.astype(np.int32)},
            "x has dtype int32, expected float32, float64, float16 or bfloat16",
        ),
    }


@pytest.mark.parametrize("device", [None, "cuda"])
@pytest.mark.parametrize("what", _sharing())
def test_the_same_is_said_for_every_device(what: str, device: str | None) -> None:
    """Copies on a device would not overlap: the check comes before them, so it needs none."""
    op, given, words = _sharing()[what]
    before = {name: a.copy() for name, a in given.items() if isinstance(a, np.ndarray)}
    with pytest.raises((ValueError, TypeError), match=f"^{op}: {words}$"):
        getattr(fn, op)(**given, device=device)
    for name, a in before.items():
        assert np.array_equal(given[name], a)
