"""No call keeps a reference or memory, whether it returns or raises."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastnorm as fn

SHAPE = (4, 8, 32, 33)
Call = Callable[..., Any]


def arguments() -> dict[str, Any]:
    """Every array that an op takes, 132 KiB each of x's shape; x is a part of a larger one."""
    rng = np.random.default_rng(0)
    elements = ("dy", "residual", "out")
    channels = ("weight", "bias", "mean", "var", "rstd", "running_mean", "running_var")
    found: dict[str, Any] = {n: rng.standard_normal(SHAPE).astype(np.float32) for n in elements}
    found |= {n: rng.uniform(0.5, 1.5, SHAPE[1]).astype(np.float32) for n in channels}
    found["x"] = rng.standard_normal((SHAPE[0] + 1, *SHAPE[1:])).astype(np.float32)[:-1]
    found["mask"] = fn.batch_norm_train(found["x"], activation="relu").mask
    return found


TAKES: dict[Call, tuple[str, ...]] = {
    fn.batch_norm: ("x", "mean", "var", "weight", "bias", "residual", "out"),
    fn.batch_norm_train: (
        *("x", "weight", "bias", "running_mean", "running_var", "residual", "out"),
    ),
    fn.batch_norm_backward: (
        *("dy", "x", "mean", "rstd", "weight", "bias", "residual", "mask", "out"),
    ),
}
OPS = pytest.mark.parametrize("op", TAKES, ids=lambda op: op.__name__)


def wrong_values(op: Call, valid: dict[str, Any]) -> list[dict[str, Any]]:
    """Arguments that make the op raise, early and late."""
    read_only = valid["out"].view()
    read_only.flags.writeable = False
    return [
        {"x": valid["x"].astype(np.int32)},
        {"x": [[1.0]]},
        {"weight": valid["weight"][:3]},
        {"weight": "ones"},
        {"bias": np.ones(SHAPE[1], np.complex64)},
        {"residual": valid["residual"][:, :, :, :1]},
        {"out": read_only},
        {"out": valid["out"][..., ::2]},
        {"out": valid["x"].base[1:]},
        {"activation": "abacus"},
        {"channel_axis": 9},
        *([{"mask": valid["mask"][:-1]}] if op is fn.batch_norm_backward else [{"eps": -1.0}]),
    ]


def call(op: Call, values: dict[str, Any], wrong: dict[str, Any] | None = None) -> None:
    """Call op, and see it raise if anything is wrong."""
    given = {name: values[name] for name in TAKES[op]} | {"activation": "relu"}
    if wrong is None:
        op(**given)
        return
    with pytest.raises((TypeError, ValueError)):
        op(**(given | wrong))


def reference_counts(values: dict[str, Any]) -> dict[str, int]:
    gc.collect()
    return {name: sys.getrefcount(a) for name, a in values.items()}


@OPS
def test_references_after_success(op: Call) -> None:
    values = arguments()
    before = reference_counts(values)
    for _ in range(10):
        call(op, values)
    assert reference_counts(values) == before


@OPS
def test_references_after_errors(op: Call) -> None:
    values = arguments()
    wrong = wrong_values(op, values)
    before = reference_counts(values)
    for _ in range(3):
        for argument in wrong:
            call(op, values, argument)
    assert reference_counts(values) == before


@OPS
def test_results_belong_to_the_caller(op: Call) -> None:
    values = arguments()
    given = {name: values[name] for name in TAKES[op] if name != "out"} | {"activation": "relu"}
    result = op(**given)
    arrays = [result] if isinstance(result, np.ndarray) else [a for a in result if a is not None]
    assert len({a.ctypes.data for a in arrays}) == len(arrays)
    for a in arrays:
        # Held by the op's tuple, by the list, by the loop and by the question, not by the library.
        assert sys.getrefcount(a) <= 4
        assert a.flags.writeable
        assert a.flags.owndata


def resident_bytes() -> int:
    """What the process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


ROUNDS = 400
# A leak of one array of x's shape a round is 50 MiB. Allocators keep a few of the pages they had.
ALLOWED_BYTES = 12 << 20


@OPS
def test_memory_does_not_grow(op: Call) -> None:
    values = arguments()
    wrong = wrong_values(op, values)
    # Without out, and from strides that take a copy: all that an op allocates.
    fresh = {n: values[n] for n in TAKES[op] if n != "out"} | {"activation": "relu"}
    wide = np.repeat(values["x"], 2, axis=-1)
    copied = fresh | {"x": wide[..., ::2]}
    copied.pop("mask", None)

    def rounds(count: int) -> None:
        for i in range(count):
            op(**fresh)
            op(**copied)
            given = fresh | wrong[i % len(wrong)]
            with pytest.raises((TypeError, ValueError)):
                op(**given)

    rounds(50)
    gc.collect()
    before = resident_bytes()
    rounds(ROUNDS)
    gc.collect()
    assert resident_bytes() - before < ALLOWED_BYTES
