"""Statistics that are summed while others' results are written are those that are summed alone.

A channel's results depend on nothing but its own values, so a tensor of many channels, which is
computed in that way, must have the bits of a few of them, which are not.
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
FEW = 3  # channels that make too small a tensor (a single one would be one long row)

SHAPES = {
    "planes": (5, 303, 28, 28),  # several rows a block, channels in twos or fours
    "odd_rows": (3, 75, 5003),  # two blocks a row, neither of whole lines
    "long_rows": (1, 66, 20_011),  # several chunks a row
}


@pytest.fixture(params=map(np.dtype, DTYPES), ids=str)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    found: np.dtype[Any] = request.param
    return found


@pytest.fixture(
    params=[(ISAS[-1], 1), *((isa, 2) for isa in ISAS)],
    ids=str,
    autouse=True,
)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every instruction set, and one thread, to whom all units but the first are interleaved."""
    threads = fn.get_num_threads()
    fn.set_num_threads(request.param[1])
    with on_isa(request.param[0]):
        yield
    fn.set_num_threads(threads)


def beside(x: Array, elements: int = 1) -> Array:
    """A copy that begins so many elements behind the start of x's cache line."""
    memory = np.empty(x.size + elements + 64, x.dtype)
    first = (x.ctypes.data - memory.ctypes.data) % 64 // x.itemsize + elements
    copy = memory[first : first + x.size].reshape(x.shape)
    copy[...] = x
    return copy


def ugly(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> Array:
    """Numbers, some channels of which take every detour that a reduction has."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    x[:, 4] = 7.0
    x[:, 7] += 1000.0
    x[:, 8] *= 1e-30
    with np.errstate(over="ignore"):
        x[:, 11] *= 1e37
        x = x.astype(dtype)
    x[0, 14].flat[5] = np.inf
    x[-1, 15].flat[-1] = np.nan
    return x


def parts(channels: int) -> list[slice]:
    return [slice(c, min(c + FEW, channels)) for c in range(0, channels, FEW)]


def assert_part(result: Array | None, expected: Array | None, part: slice, what: str = "") -> None:
    """These channels of a result are as expected."""
    assert result is not None
    channels = result[:, part] if result.ndim > 1 else result[part]
    assert_same_numbers(channels, expected, f"{what} {part}")


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_forward(name: str, activation: str | None, dtype: np.dtype[Any]) -> None:
    shape = SHAPES[name]
    x, residual = ugly(shape, dtype, 0), ugly(shape, dtype, 1)
    weight, bias = np.random.default_rng(2).standard_normal((2, shape[1]))
    assert fn.explain(fn.batch_norm_train, x, activation=activation).interleaved
    plain = fn.batch_norm_train(x, weight, bias, activation=activation)
    added = fn.batch_norm_train(x, weight, bias, residual=residual, activation=activation)
    for out in (x.copy(), beside(x)):  # in place, wherever it lies
        fn.batch_norm_train(out, weight, bias, activation=activation, out=out)
        assert_part(plain.y, out, slice(None))
    for part in parts(shape[1]):
        few, few_added = x[:, part].copy(), residual[:, part].copy()
        told = fn.explain(fn.batch_norm_train, few, residual=few_added, activation=activation)
        assert not told.interleaved
        alone = fn.batch_norm_train(few, weight[part], bias[part], activation=activation)
        for field in ("y", "mean", "rstd"):
            assert_part(getattr(plain, field), getattr(alone, field), part, field)
        alone = fn.batch_norm_train(
            few, weight[part], bias[part], residual=few_added, activation=activation
        )
        assert_part(added.y, alone.y, part)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_backward(name: str, activation: str | None, dtype: np.dtype[Any]) -> None:
    shape = SHAPES[name]
    x, residual = ugly(shape, dtype, 3), ugly(shape, dtype, 4)
    dy = residual[:, ::-1].copy()
    weight, bias = np.random.default_rng(5).standard_normal((2, shape[1]))
    fwd = fn.batch_norm_train(x, weight, bias, residual=residual, activation=activation)
    arguments = (dy, x, fwd.mean, fwd.rstd, weight, bias)
    options: dict[str, Any] = {"activation": activation}
    assert fn.explain(fn.batch_norm_backward, *arguments, **options).interleaved
    plain = fn.batch_norm_backward(*arguments, **options)
    added = fn.batch_norm_backward(*arguments, residual=residual, **options)
    masked = fn.batch_norm_backward(*arguments, mask=fwd.mask, residual=True, **options)
    for dx in (dy.copy(), beside(dy)):
        fn.batch_norm_backward(dx, *arguments[1:], **options, out=dx)
        assert_part(plain.dx, dx, slice(None))
    for part in parts(shape[1]):
        few = (dy[:, part].copy(), x[:, part].copy(), *(a[part] for a in arguments[2:]))
        few_added = residual[:, part].copy()
        told = fn.explain(fn.batch_norm_backward, *few, residual=few_added, **options)
        assert not told.interleaved
        alone = fn.batch_norm_backward(*few, **options)
        for field in ("dx", "dweight", "dbias"):
            assert_part(getattr(plain, field), getattr(alone, field), part, field)
        alone = fn.batch_norm_backward(*few, residual=few_added, **options)
        for field in ("dx", "dresidual", "dweight", "dbias"):
            expected = getattr(alone, field)
            assert_part(getattr(added, field), expected, part, field)
            assert_part(getattr(masked, field), expected, part, field)


def test_units_larger_than_a_cache(dtype: np.dtype[Any]) -> None:
    """A channel of 3 MB or more, to each thread its own: with SiLU it is not interleaved."""
    shape = (3, 8, 1000, 521)
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape, np.float32).astype(dtype)
    dy = rng.standard_normal(shape, np.float32).astype(dtype)
    told = fn.explain(fn.batch_norm_train, x)
    assert told.interleaved
    assert not told.shared
    fwd = fn.batch_norm_train(x)
    silu = fn.batch_norm_train(x, activation="silu")
    assert_same_numbers(fwd.mean, silu.mean, "mean")
    assert_same_numbers(fwd.rstd, silu.rstd, "rstd")
    grads = fn.batch_norm_backward(dy, x, fwd.mean, fwd.rstd)
    fn.set_num_threads(3 - fn.get_num_threads())
    again = fn.batch_norm_train(x)
    assert_same_numbers(fwd.y, again.y, "y")
    again = fn.batch_norm_backward(dy, x, fwd.mean, fwd.rstd)
    for name in ("dx", "dweight", "dbias"):
        assert_same_numbers(getattr(grads, name), getattr(again, name), name)
    y = fwd.y[:, 3].astype(np.float64)
    assert abs(y.mean()) < 1e-3
    assert abs(y.var() - 1) < 1e-2
