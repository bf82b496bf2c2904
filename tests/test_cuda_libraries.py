"""What fastnorm asks of the libraries whose arrays it takes: their streams, and their memory.

Stand-ins for them, on the machine that runs kernels on the CPU, that allow no more than they do.
"""

from __future__ import annotations

import gc
import math
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from checks import assert_same_bits
from on_device import Foreign, host

if not host.available:
    pytest.skip("the kernels do not run on the CPU", allow_module_level=True)

OWN, OTHER = 64, 128  # a library's current stream, and another one


class _Library:
    """The stream that is current, and those on which memory was taken."""

    def __init__(self) -> None:
        self.current = OWN
        self.taken_on: list[int] = []

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def take(self, count: int) -> npt.NDArray[np.uint8]:
        self.taken_on.append(self.current)
        return np.full(max(count, 1), 0xFF, np.uint8)


def _array_class(module: str, device: object) -> type[Foreign]:
    """Arrays of a library over memory that it has taken."""

    class Array(Foreign):
        def __init__(self, array: Any) -> None:
            super().__init__(array)
            self.device = device

    Array.__module__ = module
    return Array


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> _Library:
    library = _Library()
    module: Any = ModuleType("cupy")
    array_of = _array_class("cupy", SimpleNamespace(id=0))

    def ndarray(
        shape: tuple[int, ...], dtype: Any, memptr: Any = None, strides: Any = None
    ) -> Foreign:
        if strides is not None and memptr is None:
            raise ValueError("memptr is required if strides is given.")
        array: Foreign = array_of(np.ndarray(shape, dtype, memptr, strides=strides))
        return array

    @contextmanager
    def of_device(number: int) -> Iterator[None]:
        assert number == 0
        yield

    module.ndarray = ndarray
    module.array_of = array_of
    module.cuda = SimpleNamespace(
        Device=of_device,
        ExternalStream=library.on,
        get_current_stream=lambda: SimpleNamespace(ptr=library.current),
        alloc=library.take,
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    return library


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> _Library:
    library = _Library()
    module: Any = ModuleType("torch")
    array_of = _array_class("torch", "cuda:0")

    def empty_strided(
        shape: tuple[int, ...], strides: tuple[int, ...], *, dtype: Any, device: str
    ) -> Foreign:
        assert device == "cuda:0"
        element = np.dtype(dtype)
        memory = library.take(math.prod(shape) * element.itemsize)
        steps = [s * element.itemsize for s in strides]
        array: Foreign = array_of(np.ndarray(shape, element, memory, strides=steps))
        return array

    def external(pointer: int, device: str) -> int:
        assert device == "cuda:0"
        return pointer

    module.empty_strided = empty_strided
    module.array_of = array_of
    for name in ("float16", "float32", "float64", "uint8"):
        setattr(module, name, name)
    module.cuda = SimpleNamespace(
        current_stream=lambda device: SimpleNamespace(cuda_stream=library.current),
        ExternalStream=external,
        stream=library.on,
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    return library


@pytest.mark.parametrize("name", ["cupy", "torch"])
@pytest.mark.parametrize("stream", [None, OTHER])
def test_results_are_in_memory_of_their_own_library(
    name: str, stream: int | None, request: pytest.FixtureRequest
) -> None:
    """In the order of x's dimensions, and taken on the stream that the call is on."""
    library: _Library = request.getfixturevalue(name)
    values = np.random.default_rng(1).standard_normal((4, 5, 6)).astype(np.float32)
    expected = fn.batch_norm_train(fn.cuda.asarray(values), activation="relu")
    kind = sys.modules[name].array_of
    x = kind(values.transpose(0, 2, 1).copy().transpose(0, 2, 1))
    host.reset()
    forward = fn.batch_norm_train(x, activation="relu", stream=stream)
    assert {launch.stream for launch in host.launches()} == {stream or OWN}
    assert library.taken_on == [stream or OWN] * 4
    assert library.current == OWN
    assert all(type(array) is kind for array in forward)
    assert forward.y.strides == x.strides
    np.testing.assert_allclose(forward.y.numpy(), expected.y.numpy(), rtol=1e-5, atol=1e-6)
    grads = fn.batch_norm_backward(
        *(x, x, forward.mean, forward.rstd),
        **{"activation": "relu", "mask": forward.mask, "stream": stream},
    )
    assert all(type(array) is kind for array in grads if array is not None)
    y = fn.batch_norm(x, forward.mean, forward.rstd, stream=stream)
    assert type(y) is kind


def test_arrays_outlive_a_call_on_a_stream_that_their_library_does_not_know() -> None:
    """Else it might give their memory away while the call is on its way."""
    host.reset()
    mean = var = fn.cuda.asarray(np.ones(3))
    x = Foreign(np.ones((2, 3), np.float32))
    kept = weakref.ref(x)
    expected = fn.batch_norm(x, mean, var).numpy()
    host.busy(True)
    y = fn.batch_norm(x, mean, var)
    del x
    gc.collect()
    assert kept() is not None
    host.busy(False)
    fn.batch_norm(Foreign(np.ones((2, 3), np.float32)), mean, var)  # looks what is done
    gc.collect()
    assert kept() is None
    assert_same_bits(y.numpy(), expected)


def test_new_arrays_without_elements(cupy: _Library) -> None:
    x = sys.modules["cupy"].array_of(np.ones((0, 3), np.float32))
    forward = fn.batch_norm_train(x)
    assert forward.y.shape == (0, 3)
    assert np.isnan(forward.mean.numpy()).all()
