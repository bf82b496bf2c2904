"""What `explain` tells is what the arguments imply, and it does nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = fn.get_num_threads()
    fn.set_num_threads(2)
    yield
    fn.set_num_threads(before)


def some(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def vector(channels: int) -> Array:
    return np.ones(channels, np.float32)


def test_channels_first_are_rows_and_channels_last_are_columns() -> None:
    first = fn.explain(fn.batch_norm_train, some((4, 64, 14, 14)))
    assert first.isa == fn.info()["isa"]
    assert first.traversal == "rows"
    assert first.view == (1, 4, 64, 196)
    last = fn.explain(fn.batch_norm_train, some((4, 14, 14, 64)), channel_axis=-1)
    assert last.traversal == "columns"
    assert last.view == (1, 784, 64, 1)
    # The memory decides, not the axis.
    moved = fn.explain(fn.batch_norm_train, some((4, 14, 14, 64)).transpose(0, 3, 1, 2))
    assert moved == last


@pytest.mark.parametrize(
    ("shape", "axis"), [((32, 24, 56, 56), 1), ((8, 2048, 7, 7), 1), ((5, 30, 30, 24), -1)]
)
@pytest.mark.parametrize("op", [fn.batch_norm, fn.batch_norm_train])
def test_tiles_cover_the_view(op: Any, shape: tuple[int, ...], axis: int) -> None:
    x = some(shape)
    given = [vector(x.shape[axis])] * (2 if op is fn.batch_norm else 0)
    e = fn.explain(op, x, *given, channel_axis=axis)
    batch, *sides = e.view
    assert batch * int(np.prod(sides)) == x.size
    assert all(1 <= t <= s for t, s in zip(e.tile, (sides[1], sides[0], sides[2]), strict=True))
    assert e.units == batch * -(-sides[1] // e.tile[0])
    assert e.chunks == -(-sides[0] // e.tile[1]) * -(-sides[2] // e.tile[2])
    assert e.reduces == (op is fn.batch_norm_train)


def test_small_tensors_use_one_thread_and_plain_stores() -> None:
    small = fn.explain(fn.batch_norm_train, some((2, 8, 16, 16)))
    assert (small.threads, small.shared, small.stream, small.reads) == (1, False, False, 1)
    large = fn.explain(fn.batch_norm_train, some((16, 64, 56, 56)))
    assert (large.threads, large.shared, large.stream, large.reads) == (2, False, True, 1)
    assert large.interleaved
    assert not small.interleaved
    assert "results with the next one's sums" in str(large)
    assert not fn.explain(
        fn.batch_norm_train, some((16, 64, 56, 56)), activation="silu"
    ).interleaved
    fn.set_num_threads(1)
    assert fn.explain(fn.batch_norm_train, some((16, 64, 56, 56))).threads == 1


def test_what_fits_no_cache_is_read_twice() -> None:
    # A thousand times what a megabyte of cache holds of one channel.
    last = np.broadcast_to(np.float32(1), (1024, 512, 512, 1)).transpose(0, 3, 1, 2)
    e = fn.explain(fn.batch_norm_train, last, out=np.empty((1024, 1, 512, 512), np.float32))
    assert e.reads == 2
    assert e.shared


def test_fewest_bytes_count_every_tensor_once() -> None:
    x, c = some((4, 64, 14, 14)), vector(64)
    mask = x.size // 8 + 4 * 64 // 2  # 196 bits are 24.5 bytes

    def least(op: Any, *args: Any, **options: Any) -> int:
        return fn.explain(op, *args, **options).least_bytes

    assert least(fn.batch_norm, x, c, c) == 2 * x.nbytes
    assert least(fn.batch_norm, x, c, c, residual=x) == 3 * x.nbytes
    assert least(fn.batch_norm_train, x, activation="silu") == 2 * x.nbytes
    assert least(fn.batch_norm_train, x, activation="relu") == 2 * x.nbytes + mask
    assert least(fn.batch_norm_backward, x, x, c, c) == 3 * x.nbytes
    assert least(fn.batch_norm_backward, x, x, c, c, residual=True) == 4 * x.nbytes
    assert least(fn.batch_norm_backward, x, x, c, c, residual=x) == 5 * x.nbytes
    half = x.astype(np.float16)
    assert least(fn.batch_norm, half, c, c) == x.nbytes


def test_copies_are_named() -> None:
    x, c = some((4, 8, 12, 12)), vector(8)
    assert fn.explain(fn.batch_norm, x, c, c).copied == ()
    other = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    e = fn.explain(fn.batch_norm, x, c, c, residual=other, out=np.empty_like(other))
    assert e.copied == ("residual", "out")
    assert "copied:  residual, out" in str(e)
    # Statistics of 2 of its 8 channels: their planes are dense, and that is enough.
    assert fn.explain(fn.batch_norm_train, x[:, 3:5]).copied == ()
    assert fn.explain(fn.batch_norm_train, x[:, :, :, ::2]).copied == ("x",)


def test_nothing_is_computed_or_written() -> None:
    x, c = some((4, 8, 12, 12)), vector(8)
    out = np.full_like(x, 7)
    running = [np.full(8, 3.0), np.full(8, 5.0)]
    fn.explain(fn.batch_norm, x, c, c, out=out)
    fn.explain(fn.batch_norm, x, c, c, out=np.moveaxis(out, 1, 1)[:, :, :, :])
    fn.explain(fn.batch_norm_train, x, running_mean=running[0], running_var=running[1], out=out)
    fn.explain(fn.batch_norm_backward, x, x, c, c, out=out)
    strided = np.full((4, 8, 12, 24), 7, np.float32)
    fn.explain(fn.batch_norm, x, c, c, out=strided[..., ::2])
    assert (out == 7).all()
    assert (strided == 7).all()
    assert (running[0] == 3).all()
    assert (running[1] == 5).all()
    empty = [np.full(8, 3.0), np.full(8, 5.0)]
    fn.explain(fn.batch_norm_train, x[:0], running_mean=empty[0], running_var=empty[1])
    assert (empty[0] == 3).all()


def test_arguments_are_checked_and_an_error_ends_the_explaining() -> None:
    x, c = some((4, 8, 12, 12)), vector(8)
    with pytest.raises(ValueError, match=r"batch_norm: mean has shape \(3,\), expected \(8,\)"):
        fn.explain(fn.batch_norm, x, c[:3], c)
    with pytest.raises(TypeError, match=r"explain: op is .*, expected one of batch_norm, "):
        fn.explain(np.add, x, x)
    y = fn.batch_norm(x, 0 * c, c, eps=0.0)
    np.testing.assert_array_equal(y, x)


def test_no_elements() -> None:
    e = fn.explain(fn.batch_norm, some((0, 8, 12, 12)), vector(8), vector(8))
    assert (e.traversal, e.least_bytes, e.threads) == ("", 0, 0)
    assert str(e) == "nothing to do: no elements"


def test_text() -> None:
    text = str(fn.explain(fn.batch_norm_train, some((16, 64, 56, 56)), activation="relu"))
    lines = text.splitlines()
    assert lines[0] == f"{fn.info()['isa']}, rows, 2 threads"
    assert lines[1] == "view:    batch 1, outer 16, stat 64, inner 3136"
    assert lines[4] == "stores:  past the cache"
    assert len(lines) == 6


def test_the_family() -> None:
    rows, image = some((64, 768)), some((2, 320, 24, 24))
    e = fn.explain(fn.rms_norm, rows)
    assert (e.traversal, e.view, e.group) == ("features", (1, 1, 64, 768), 1)
    assert e.least_bytes == 2 * rows.nbytes
    e = fn.explain(fn.layer_norm, rows, residual=rows, prenorm=True)
    assert e.least_bytes == 4 * rows.nbytes
    e = fn.explain(fn.group_norm, image, 32)
    assert (e.traversal, e.view, e.group) == ("rows", (2, 1, 320, 576), 10)
    assert "stat 320, inner 576, groups of 10" in str(e)
    assert e.units * e.tile[0] == 2 * 320
    assert fn.explain(fn.instance_norm, image).group == 1
    heads = some((4, 6, 3, 64))[:, :, 1:]  # as q and k of one projection: two strides of rows
    e = fn.explain(fn.rms_norm, heads)
    assert (e.view, e.copied) == ((24, 1, 2, 64), ())
    nested = some((4, 7, 5, 64))[:, ::2, ::2]
    assert fn.explain(fn.rms_norm, nested).copied == ("x",)
