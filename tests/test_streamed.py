"""Results that are written past the cache, line by line, are those that are simply stored.

A map computes each element on its own, so a large tensor must have the bits that its parts have,
which are too small to be streamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn

Array = npt.NDArray[Any]

DTYPES = ("float32", "float64", "float16", ml_dtypes.bfloat16)

# A kind of walk each; all are streamed in every dtype.
SHAPES = {
    "wide_rows": (1283, 1024),  # from line to line, several at a time
    "wider_rows": (331, 2, 2048),  # of two tiles of sums
    "widest_rows": (401, 3264),  # of three
    "odd_rows": (1291, 1031),  # no whole number of lines
    "middling_rows": (4099, 320),
    "grouped_rows": (20_011, 64),
    "short_rows": (54_001, 24),  # several rows side by side as one
    "short_odd_rows": (40_009, 33),
    "shortest_odd_rows": (360_007, 3),
    "planes": (53, 32, 28, 28),
    "small_planes": (211, 131, 7, 7),
}


def at_offset(shape: tuple[int, ...], dtype: npt.DTypeLike, elements: int) -> Array:
    """An empty array whose first element lies so many elements behind the start of a line."""
    itemsize = np.dtype(dtype).itemsize
    size = int(np.prod(shape)) * itemsize
    memory = np.empty(size + 64 * (1 + itemsize), np.uint8)
    start = -memory.ctypes.data % 64 + elements * itemsize
    return memory[start : start + size].view(dtype).reshape(shape)


def parts(rows: int, elements: int) -> list[slice]:
    """Slices of a first axis that are too small to be streamed with six tensors of eight bytes."""
    step = max(1, (4 << 20) // (6 * 8 * (elements // rows)))
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


@pytest.fixture(params=map(np.dtype, DTYPES), ids=str)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    found: np.dtype[Any] = request.param
    return found


@pytest.mark.parametrize("offset", [0, 1, 13])
@pytest.mark.parametrize("name", SHAPES)
def test_streamed_bits_are_stored_bits(name: str, offset: int, dtype: np.dtype[Any]) -> None:
    shape = SHAPES[name]
    axis = 1 if len(shape) == 4 else -1
    channels = shape[axis]
    rng = np.random.default_rng(0)
    x, dy, residual = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(3))
    mean, weight, bias = (rng.standard_normal(channels) for _ in range(3))
    var = rng.uniform(0.5, 2.0, channels)
    options: dict[str, Any] = {"channel_axis": axis, "activation": "relu"}

    y = at_offset(shape, dtype, offset)
    assert fn.explain(fn.batch_norm, x, mean, var, out=y, channel_axis=axis).stream
    fn.batch_norm(x, mean, var, weight, bias, residual=residual, out=y, **options)
    dx = at_offset(shape, dtype, offset)
    backward = {"training": False, **options}
    grads = fn.batch_norm_backward(
        dy, x, mean, var, weight, bias, residual=residual, out=dx, **backward
    )
    assert grads.dresidual is not None
    alone = at_offset(shape, dtype, offset)  # with no second result, which may lie otherwise
    arguments = (dy, x, mean, var, weight, bias)
    told = fn.explain(fn.batch_norm_backward, *arguments, out=alone, **backward)
    assert told.stream
    fn.batch_norm_backward(*arguments, out=alone, **{**backward, "activation": None})
    for part in parts(shape[0], x.size):
        inputs = {"residual": residual[part]}
        small = fn.batch_norm(x[part], mean, var, weight, bias, **inputs, **options)
        assert y[part].tobytes() == small.tobytes()
        few_arguments = (dy[part], x[part], mean, var, weight, bias)
        few = fn.batch_norm_backward(*few_arguments, **inputs, **backward)
        assert few.dresidual is not None
        assert dx[part].tobytes() == few.dx.tobytes()
        assert grads.dresidual[part].tobytes() == few.dresidual.tobytes()
        plain = fn.batch_norm_backward(*few_arguments, **{**backward, "activation": None})
        assert alone[part].tobytes() == plain.dx.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("offset", [0, 4, 13])
@pytest.mark.parametrize("name", SHAPES)
def test_streamed_masks_say_where_relu_was_open(
    name: str, offset: int, threads: int, dtype: np.dtype[Any]
) -> None:
    shape = SHAPES[name]
    axis = 1 if len(shape) == 4 else -1
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    options: dict[str, Any] = {"channel_axis": axis, "activation": "relu"}
    before = fn.get_num_threads()
    fn.set_num_threads(threads)
    try:
        y = at_offset(shape, dtype, offset)
        assert fn.explain(fn.batch_norm_train, x, out=y, **options).stream
        fwd = fn.batch_norm_train(x, out=y, **options)
        arguments = (dy, x, fwd.mean, fwd.rstd)
        masked = fn.batch_norm_backward(*arguments, mask=fwd.mask, residual=True, **options)
        recomputed = fn.batch_norm_backward(*arguments, **options)
        dx = at_offset(shape, dtype, offset)
        fn.batch_norm_backward(*arguments, mask=fwd.mask, out=dx, **options)
    finally:
        fn.set_num_threads(before)
    assert masked.dresidual is not None
    open_ = y.astype(np.float32) > 0
    np.testing.assert_array_equal(masked.dresidual, np.where(open_, dy, np.zeros((), dtype)))
    assert masked.dx.tobytes() == recomputed.dx.tobytes() == dx.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_smooth_gradients_do_not_depend_on_where_they_are_kept(dtype: str) -> None:
    """For one thread dy * act'(z) of a plane is kept in memory of the call's own; for two of them
    that would take too much: in dx's place, or, in 16 bits and where dx is dy, it is computed
    twice. Channels last are in test_norm_bits."""
    shape = (1, 2, 1475 if dtype == "float64" else 2950, 2900)
    rng = np.random.default_rng(2)
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    options: dict[str, Any] = {"activation": "silu"}
    fwd = fn.instance_norm_train(x, **options)
    arguments = (dy, x, fwd.mean, fwd.rstd)
    before = fn.get_num_threads()
    found, scratch = [], []
    try:
        for threads, out in ((1, None), (2, None), (2, dy.copy())):
            fn.set_num_threads(threads)
            given = arguments if out is None else (out, *arguments[1:])
            told = fn.explain(fn.instance_norm_backward, *given, out=out, **options)
            scratch.append(told.scratch_bytes)
            found.append(fn.instance_norm_backward(*given, out=out, **options))
            assert told.stream == (threads == 1 or dtype == "bfloat16" or out is not None)
    finally:
        fn.set_num_threads(before)
    assert scratch[0] > 2e7 > 1e6 > scratch[1] == scratch[2]
    for result in ("dx", "dweight", "dbias"):
        one, *others = (getattr(f, result).tobytes() for f in found)
        assert all(other == one for other in others), result


@pytest.mark.parametrize("images", [1, 60])
def test_smooth_gradients_do_not_depend_on_where_dx_lies(images: int) -> None:
    """Rows of dx that do not follow each other: of one image, and of 63 MB, so that dy * act'(z) is
    kept in dx's place if a last cache of less than 80 MB does not hold it, but beside a gapped dx.
    """
    shape = (images, 64, 64, 64)
    rng = np.random.default_rng(3)
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    options: dict[str, Any] = {"channel_axis": -1, "activation": "silu"}
    fwd = fn.batch_norm_train(x, **options)
    arguments = (dy, x, fwd.mean, fwd.rstd)
    gapped = np.zeros((*shape[:-1], 80), np.float32)[..., :64]
    assert fn.explain(fn.batch_norm_backward, *arguments, out=gapped, **options).copied == ()
    dense, other = (
        fn.batch_norm_backward(*arguments, out=out, **options) for out in (None, gapped)
    )
    for result in ("dx", "dweight", "dbias"):
        assert getattr(dense, result).tobytes() == getattr(other, result).tobytes(), result


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("op", ["train", "backward"])
@pytest.mark.parametrize("channels", [24, 64, 320, 1024, 1280, 1312, 2048])
def test_sums_are_the_same_in_and_out_of_the_cache(
    channels: int, op: str, activation: str, dtype: np.dtype[Any]
) -> None:
    """Gradients' sums read rows one by one where they come from memory, else four at a time; maps
    write them one by one unless they are streamed."""
    of_op: dict[str, tuple[Callable[..., Any], int]] = {
        "train": (fn.batch_norm_train, 3 << 19),
        "backward": (fn.batch_norm_backward, 5 << 18),
    }
    function, size = of_op[op]
    shape = (size // channels // dtype.itemsize, channels)
    rng = np.random.default_rng(2)
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    mean, rstd = (rng.uniform(0.5, 2.0, channels) for _ in range(2))
    arguments = (x,) if op == "train" else (dy, x, mean, rstd)
    few: dict[str, Any] = {"channel_axis": -1, "activation": activation}
    many = {"residual": np.zeros(shape, dtype), **few}  # enough tensors to be streamed
    relu = {"activation": "relu"}  # silu's gradients may be left in dx's place, in the cache
    told = [fn.explain(function, *arguments, **{**o, **relu}).stream for o in (few, many)]
    assert told == [False, True]
    stored, streamed = (function(*arguments, **options) for options in (few, many))
    for name in {"train": ("y", "mean", "rstd"), "backward": ("dx", "dweight", "dbias")}[op]:
        assert getattr(stored, name).tobytes() == getattr(streamed, name).tobytes(), name


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((264_705, 8), "float16"),
        ((395_137, 8), "float16"),
        ((1_058_817, 2), "float16"),
        ((1_580_545, 2), "float16"),
    ],
    ids=str,
)
def test_a_last_chunk_may_end_before_the_first_line(
    shape: tuple[int, int], dtype: str, threads: int
) -> None:
    """Of one row, behind which there is nothing to be written, and other threads' rows before."""
    x = np.random.default_rng(3).standard_normal(shape, np.float32).astype(dtype)
    options: dict[str, Any] = {"channel_axis": -1, "activation": "relu"}
    before = fn.get_num_threads()
    fn.set_num_threads(threads)
    try:
        on_a_line = fn.batch_norm_train(x, out=at_offset(shape, dtype, 0), **options)
        assert on_a_line.mask is not None
        for offset in range(1, 32, 4):
            room = at_offset((x.size + 64,), dtype, offset)
            room[x.size :] = 7
            y = room[: x.size].reshape(shape)
            y[...] = x
            found = fn.batch_norm_train(y, out=y, **options)
            assert found.mask is not None
            assert y.tobytes() == on_a_line.y.tobytes()
            assert found.mask.tobytes() == on_a_line.mask.tobytes()
            assert (room[x.size :] == 7).all()
    finally:
        fn.set_num_threads(before)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((300_007, 8), "float32"), ((400_009, 3), "float16")], ids=str
)
def test_two_results_lie_anywhere(shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(4)
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    mean, rstd = (rng.uniform(0.5, 2.0, shape[1]) for _ in range(2))
    options: dict[str, Any] = {"channel_axis": -1, "activation": "relu", "residual": x}
    found = [
        fn.batch_norm_backward(
            dy, x, mean, rstd, training=False, out=at_offset(shape, dtype, offset), **options
        )
        for offset in range(64 // np.dtype(dtype).itemsize)
    ]
    for one in found:
        assert one.dresidual is not None
        assert found[0].dresidual is not None
        assert one.dx.tobytes() == found[0].dx.tobytes()
        assert one.dresidual.tobytes() == found[0].dresidual.tobytes()


@pytest.mark.parametrize("channels", [3, 24])
def test_sums_do_not_depend_on_a_residual_that_is_not_read(channels: int) -> None:
    rng = np.random.default_rng(5)
    dy, x = (rng.standard_normal((20_011, channels), np.float32) for _ in range(2))
    mean, rstd = (rng.uniform(0.5, 2.0, channels) for _ in range(2))
    strided = rng.standard_normal((40_022, channels), np.float32)[::2]
    without = fn.batch_norm_backward(dy, x, mean, rstd, channel_axis=-1)
    beside = fn.batch_norm_backward(dy, x, mean, rstd, channel_axis=-1, residual=strided)
    assert without.dweight.tobytes() == beside.dweight.tobytes()
