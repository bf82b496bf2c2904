"""Memory of large results that is used again: bounded, thread-safe, never while an array has it."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastnorm as fn

MIB = 1 << 20
# 4 MiB: large enough to be kept.
SHAPE = (4, 64, 64, 64)
SIZE = 4 * MIB


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    limit = fn.info()["buffer_cache"]["limit"]
    fn.clear_buffer_cache()
    yield
    fn.set_buffer_cache(limit)
    fn.clear_buffer_cache()


def normalized(value: float = 0.0, shape: tuple[int, ...] = SHAPE) -> Any:
    channels = shape[1]
    x = np.full(shape, value, np.float32)
    return fn.batch_norm(x, np.zeros(channels), np.ones(channels), eps=0.0)


def kept() -> int:
    return fn.info()["buffer_cache"]["kept"]


def test_a_result_takes_the_place_of_one_that_is_gone() -> None:
    y = normalized(1.0)
    address = y.ctypes.data
    assert (y == 1.0).all()
    assert kept() == 0
    del y
    assert SIZE <= kept() <= SIZE + SIZE // 8
    y = normalized(2.0)
    assert y.ctypes.data == address
    assert (y == 2.0).all()
    assert kept() == 0


def test_a_slightly_smaller_result_does_too() -> None:
    address = normalized().ctypes.data
    assert normalized(3.0, (4, 64, 63, 63)).ctypes.data == address


def test_not_while_a_view_is_alive() -> None:
    y = normalized(1.0)
    address, view = y.ctypes.data, y[1:, ::2].T
    del y
    assert kept() == 0
    other = normalized(2.0)
    assert other.ctypes.data != address
    assert (view == 1.0).all()


def test_every_large_result_of_a_training_step() -> None:
    x = np.random.default_rng(0).standard_normal((8, 64, 128, 128)).astype(np.float32)
    addresses = []
    for _ in range(3):
        fwd = fn.batch_norm_train(x, activation="relu", residual=x)
        assert fwd.mask is not None
        arrays = [fwd.y, fwd.mask]
        arrays += fn.batch_norm_backward(
            fwd.y, x, fwd.mean, fwd.rstd, residual=True, activation="relu", mask=fwd.mask
        )
        addresses.append({a.ctypes.data for a in arrays if a is not None and a.nbytes >= MIB})
        del fwd, arrays
    assert len(addresses[0]) == 4  # y, mask, dx, dresidual
    assert addresses[0] == addresses[1] == addresses[2]


def test_results_are_arrays_as_any_other() -> None:
    y = normalized()
    assert y.flags.writeable
    assert y.flags.c_contiguous
    assert y.flags.aligned
    assert y.ctypes.data % 64 == 0
    y[...] = 7.0
    assert (y == 7.0).all()
    small = normalized(shape=(4, 64, 8, 8))
    assert small.flags.owndata


def test_layouts_are_kept() -> None:
    x = np.moveaxis(np.ones((4, 64, 64, 64), np.float32), -1, 1)
    y = fn.batch_norm_train(x).y
    assert y.strides == x.strides


@pytest.mark.parametrize("limit", [0, SIZE // 2, 3 * SIZE, 64 * MIB])
def test_no_more_is_kept_than_the_limit(limit: int) -> None:
    fn.set_buffer_cache(limit)
    assert fn.info()["buffer_cache"] == {"limit": limit, "kept": 0}
    arrays = [normalized() for _ in range(6)]
    while arrays:
        arrays.pop()
        assert kept() <= limit
    assert kept() == min(6, limit // SIZE) * SIZE


def test_a_lower_limit_gives_back_the_oldest() -> None:
    first, second = normalized(), normalized()
    address = second.ctypes.data
    del first
    del second
    assert kept() == 2 * SIZE
    fn.set_buffer_cache(SIZE)
    assert kept() == SIZE
    assert normalized().ctypes.data == address


def test_clearing_gives_all_back_and_touches_no_array() -> None:
    alive = normalized(5.0)
    normalized()
    assert kept() == SIZE
    fn.clear_buffer_cache()
    assert kept() == 0
    assert (alive == 5.0).all()


def test_the_default_is_bounded() -> None:
    code = "import fastnorm as fn; print(fn.info()['buffer_cache'])"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    found = eval(process.stdout)
    assert 0 < found["limit"] <= 512 * MIB
    assert found["kept"] == 0


def test_an_error_keeps_nothing() -> None:
    x = np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match="weight"):
        fn.batch_norm(x, np.zeros(64), np.ones(64), np.ones(3))
    gc.collect()
    assert kept() <= SIZE


def test_threads_at_once() -> None:
    """Each thread's results stay its own."""
    fn.set_buffer_cache(6 * SIZE)
    wrong: list[float] = []

    def work(value: float) -> None:
        held = []
        for i in range(20):
            y = normalized(value)
            held.append(y[:, :1])
            if i % 3 == 2:
                held.clear()
            if not (y == value).all() or any((h != value).any() for h in held):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept() <= 6 * SIZE


def test_arrays_may_outlive_the_module() -> None:
    code = (
        "import sys, atexit, numpy as np, fastnorm as fn\n"
        "x = np.ones((4, 64, 64, 64), np.float32)\n"
        "y = fn.batch_norm_train(x).y\n"
        "view = y[1:]\n"
        "np.kept_to_the_end = fn.batch_norm_train(x).y\n"
        "for name in [n for n in sys.modules if n.startswith('fastnorm')]: del sys.modules[name]\n"
        "del fn, y\n"
        "assert (view == 0).all()\n"
        "del view\n"
        "print('fine')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "fine"
    assert not process.stderr


@pytest.mark.parametrize(
    ("limit", "error", "words"),
    [
        (-1, ValueError, "limit is -1, expected a number of bytes >= 0"),
        (2**70, ValueError, "limit is out of range"),
        (1.5, TypeError, "limit is of type float, expected an integer"),
        ("1", TypeError, "limit is of type str, expected an integer"),
    ],
)
def test_wrong_limits(limit: Any, error: type[Exception], words: str) -> None:
    before = fn.info()["buffer_cache"]
    with pytest.raises(error, match=f"^set_buffer_cache: {words}"):
        fn.set_buffer_cache(limit)
    assert fn.info()["buffer_cache"] == before
