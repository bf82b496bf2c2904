"""More than 2**31 elements. `make test ARGS="-m large"`: a minute, and 9 GB of memory."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from fastnorm import reference

Array = npt.NDArray[Any]

pytestmark = [pytest.mark.large, pytest.mark.timeout(900)]

REPEATS = 2**11 + 1
PERIOD = 2**20  # the data repeat: what is right for one period is right for all


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_two_billion_elements(channels_last: bool) -> None:
    rng = np.random.default_rng(0)
    shape = (PERIOD // 2, 2) if channels_last else (2, PERIOD // 2)
    period = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    axis = 1 if channels_last else 0
    whole = (REPEATS, *shape)
    x = np.empty(whole, ml_dtypes.bfloat16)
    x[...] = period
    assert x.size > 2**31

    expected = reference.batch_norm_train(period, channel_axis=axis, activation="relu")
    fwd = fn.batch_norm_train(x, channel_axis=axis + 1, activation="relu", out=x)
    step = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
    np.testing.assert_allclose(fwd.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(fwd.rstd, expected.rstd, rtol=1e-6)
    first = x[0].astype(np.float64)
    np.testing.assert_allclose(first, expected.y, rtol=step, atol=1e-5)
    assert all(np.array_equal(x[i], x[0]) for i in range(1, REPEATS))

    # Backward at what is now in x; dx replaces dy.
    dy = np.empty(whole, ml_dtypes.bfloat16)
    dy[...] = period
    mean, rstd = np.zeros(2), np.ones(2)
    grads = fn.batch_norm_backward(dy, x, mean, rstd, training=False, channel_axis=axis + 1, out=dy)
    others = (0,) if channels_last else (1,)
    sums = REPEATS * period.astype(np.float64).sum(axis=others)
    products = REPEATS * (period.astype(np.float64) * first).sum(axis=others)
    scale = 1e-6 * REPEATS * np.abs(period.astype(np.float64)).sum(axis=others)
    assert (np.abs(grads.dbias - sums) <= scale).all()
    assert (np.abs(grads.dweight - products) <= 5.0 * scale).all()
    assert all(np.array_equal(dy[i], period) for i in range(REPEATS))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_more_than_two_billion_elements_of_other_norms(norm: str) -> None:
    """Rows of 1024, or 4 channels of 256, of which the same samples come again and again."""
    rng = np.random.default_rng(0)
    rows = norm in ("layer_norm", "rms_norm")
    shape = (1024, 1024) if rows else (1024, 4, 256)
    period = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    x = np.empty((REPEATS, *shape), ml_dtypes.bfloat16)
    x[...] = period
    x = x.reshape(REPEATS * shape[0], *shape[1:])
    assert x.size > 2**31
    groups = (2,) if norm == "group_norm" else ()

    expected = getattr(fn, f"{norm}_train")(period, *groups)
    fwd = getattr(fn, f"{norm}_train")(x, *groups, out=x)
    assert (fwd.rstd.reshape(REPEATS, -1) == expected.rstd.reshape(-1)).all()
    y = x.reshape(REPEATS, *shape)
    assert all(np.array_equal(y[i], expected.y) for i in range(REPEATS))

    # Backward at what is now in x; dx replaces dy.
    statistics = (fwd.rstd,) if norm == "rms_norm" else (fwd.mean, fwd.rstd)
    of_period = (expected.rstd,) if norm == "rms_norm" else (expected.mean, expected.rstd)
    dy = np.empty_like(x)
    dy.reshape(REPEATS, *shape)[...] = period
    op = getattr(fn, f"{norm}_backward")
    once = op(period, expected.y, *groups, *of_period)
    grads = op(dy, x, *groups, *statistics, out=dy)
    dx = dy.reshape(REPEATS, *shape)
    assert all(np.array_equal(dx[i], once.dx) for i in range(REPEATS))
    scale = 1e-5 * REPEATS * shape[0]
    assert (np.abs(grads.dweight - REPEATS * once.dweight.astype(np.float64)) <= scale).all()
