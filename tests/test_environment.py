"""The calling thread's floating-point environment: it changes no result, and no call changes it."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import to_dtype
from checks import assert_same_bits

Array = npt.NDArray[Any]

ALTERS_THE_ENVIRONMENT = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="reads and writes the environment in glibc's layout for x86-64",
)

# glibc's layout: the control word of the x87 first, MXCSR in bytes 28 to 31.
CONTROL_WORD, MXCSR = slice(0, 2), slice(28, 32)
FLAGS = 0x3F  # what has happened so far, in MXCSR
# Both what fesetround() takes and the bits of the x87; MXCSR has them three bits further up.
ROUNDINGS = {"down": 0x400, "up": 0x800, "towards_zero": 0xC00}
FLUSH = 0x8000 | 0x0040  # FTZ and DAZ, as a library built with -ffast-math leaves them


def libm() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("m"))


def environment() -> bytes:
    """The thread's floating-point environment without the sticky exception flags."""
    buffer = ctypes.create_string_buffer(256)
    libm().fegetenv(buffer)
    mxcsr = int.from_bytes(buffer.raw[MXCSR], "little") & ~FLAGS
    return buffer.raw[CONTROL_WORD] + mxcsr.to_bytes(4, "little")


@contextmanager
def altered(rounding: int = 0, mxcsr: int = 0) -> Iterator[None]:
    """Sets a rounding mode, and bits of MXCSR."""
    original = ctypes.create_string_buffer(256)
    libm().fegetenv(original)
    changed = ctypes.create_string_buffer(original.raw, 256)
    bits = int.from_bytes(original.raw[MXCSR], "little") | mxcsr
    changed[MXCSR] = bits.to_bytes(4, "little")
    libm().fesetenv(changed)
    libm().fesetround(rounding)
    try:
        yield
    finally:
        libm().fesetenv(original)


ENVIRONMENTS = pytest.mark.parametrize(
    "change",
    [
        {},
        *({"rounding": rounding} for rounding in ROUNDINGS.values()),
        {"mxcsr": FLUSH},
        {"rounding": ROUNDINGS["up"], "mxcsr": FLUSH},
    ],
    ids=["default", *ROUNDINGS, "flush", "up_and_flush"],
)


class Arguments:
    """Enough elements for threads; a third of the channels are subnormal, parameters included."""

    def __init__(self, dtype: str, channel_axis: int) -> None:
        """Made in the default environment: NumPy computes in that of the caller."""
        rng = np.random.default_rng(11)
        element = to_dtype(dtype)
        smallest = np.finfo(np.float64 if dtype == "float64" else np.float32).smallest_normal
        self.channel_axis = channel_axis
        channels = 24
        scale = np.where(np.arange(channels) % 3 == 1, 0.1 * smallest, 1.0)
        shape = (5, 43, 47, channels)
        self.x, self.dy, self.residual = (
            np.ascontiguousarray(
                np.moveaxis((rng.standard_normal(shape) * scale).astype(element), -1, channel_axis)
            )
            for _ in range(3)
        )
        storage = np.float64 if dtype == "float64" else np.float32
        self.mean, self.weight, self.bias = (
            (rng.standard_normal(channels) * scale).astype(storage) for _ in range(3)
        )
        self.var = (rng.uniform(0.5, 2.0, channels) * scale).astype(storage)

    def results(self, activation: str | None) -> dict[str, Array | None]:
        """What every op gives for them."""
        options: dict[str, Any] = {
            "channel_axis": self.channel_axis,
            "activation": activation,
            "residual": self.residual,
        }
        parameters = (self.weight, self.bias)
        running = {"running_mean": self.mean.copy(), "running_var": self.var.copy()}
        y = fn.batch_norm(self.x, self.mean, self.var, *parameters, **options)
        fwd = fn.batch_norm_train(self.x, *parameters, **running, **options)
        grads = fn.batch_norm_backward(self.dy, self.x, fwd.mean, fwd.rstd, *parameters, **options)
        frozen = fn.batch_norm_backward(
            self.dy, self.x, self.mean, self.var, *parameters, training=False, **options
        )
        return {
            "inference": y,
            **fwd._asdict(),
            **running,
            **grads._asdict(),
            **{f"frozen {name}": value for name, value in frozen._asdict().items()},
        }


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    threads = fn.get_num_threads()
    yield
    fn.set_num_threads(threads)


@ALTERS_THE_ENVIRONMENT
@ENVIRONMENTS
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize(
    ("dtype", "activation"),
    [("float32", None), ("float32", "relu"), ("float64", "silu"), ("bfloat16", "gelu")],
)
def test_same_bits_in_every_environment(
    dtype: str, activation: str | None, channel_axis: int, change: dict[str, int]
) -> None:
    arguments = Arguments(dtype, channel_axis)
    assert arguments.x.size > 200_000
    fn.set_num_threads(1)
    expected = arguments.results(activation)
    for threads in (1, 2, 3):
        fn.set_num_threads(threads)
        with altered(**change):
            before = environment()
            found = arguments.results(activation)
            after = environment()
        assert after == before
        for name, value in found.items():
            assert_same_bits(value, expected[name], f"{name} with {threads} threads")


@ALTERS_THE_ENVIRONMENT
@ENVIRONMENTS
def test_same_bits_of_small_inputs(change: dict[str, int]) -> None:
    x = np.random.default_rng(12).standard_normal((4, 3, 5)).astype(np.float32) * np.float32(1e-39)
    zeros, ones = np.zeros(3), np.ones(3)
    expected = fn.batch_norm(x, zeros, ones)
    assert ((expected != 0.0) & (abs(expected) < np.finfo(np.float32).smallest_normal)).any()
    with altered(**change):
        found = fn.batch_norm(x, zeros, ones)
    assert_same_bits(found, expected)


@ALTERS_THE_ENVIRONMENT
@ENVIRONMENTS
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_same_bits_of_the_other_norms(norm: str, change: dict[str, int]) -> None:
    """Of subnormal weights, too."""
    rng = np.random.default_rng(13)
    shape = (40, 300) if norm in ("layer_norm", "rms_norm") else (5, 12, 5, 60)
    parameters = shape[-1:] if norm in ("layer_norm", "rms_norm") else shape[1:2]
    x, dy = (rng.standard_normal(shape).astype(np.float32) * np.float32(1e-30) for _ in range(2))
    tiny = np.full(parameters, 1e-39, np.float32)
    some = np.where(rng.random(parameters) < 0.5, tiny, np.float32(1.5))
    groups = (4,) if norm == "group_norm" else ()

    def results() -> list[Array]:
        found = []
        for w in (some, tiny):
            fwd = getattr(fn, f"{norm}_train")(x, *groups, w, eps=0.0)
            statistics = (fwd.rstd,) if norm == "rms_norm" else (fwd.mean, fwd.rstd)
            grads = getattr(fn, f"{norm}_backward")(dy, x, *groups, *statistics, w)
            found += [a for a in (*fwd, *grads) if a is not None]
        return found

    expected = results()
    assert all(a.any() for a in expected)
    with altered(**change):
        found = results()
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


@ALTERS_THE_ENVIRONMENT
def test_the_environment_can_be_altered() -> None:
    """Else the tests above would prove nothing."""
    default = environment()
    for change in ({"rounding": 0x400}, {"mxcsr": FLUSH}):
        with altered(**change):
            found = environment()
        assert found != default
        assert environment() == default


def test_denormal_arithmetic_of_the_caller_survives() -> None:
    tiny = np.full(1, 1e-40, np.float32)
    x = np.ones((512, 16, 33), np.float32)
    fn.batch_norm_train(x, activation="relu")
    assert (tiny * np.float32(0.5))[0] > 0.0
