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


NORMS = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm")
CENTRED = tuple(norm for norm in NORMS if norm != "rms_norm")


def norm_of(op: Call) -> str:
    """Which norm an op is of."""
    name: str = op.__name__
    return name.removesuffix("_train").removesuffix("_backward")


def takes(op: Call) -> tuple[str, ...]:
    """The arrays that an op takes."""
    norm = norm_of(op)
    parameters = ("weight", "bias")
    if op.__name__.endswith("_backward"):
        mean = ("mean",) if norm in CENTRED else ()
        return ("dy", "x", *mean, "rstd", *parameters, "residual", "mask", "out")
    if op.__name__.endswith("_train"):
        running = ("running_mean", "running_var") if norm in ("batch_norm", "instance_norm") else ()
        return ("x", *parameters, *running, "residual", "out")
    statistics = ("mean", "var") if norm == "batch_norm" else ()
    return ("x", *statistics, *parameters, "residual", "out")


def arguments(op: Call) -> dict[str, Any]:
    """All that an op takes, arrays of x's shape of 132 KiB each; x is a part of a larger one."""
    rng = np.random.default_rng(0)
    norm = norm_of(op)
    elements = ("dy", "residual", "out")
    parameters = ("weight", "bias", "var", "running_mean", "running_var")
    count = SHAPE[-1] if norm in ("layer_norm", "rms_norm") else SHAPE[1]
    found: dict[str, Any] = {n: rng.standard_normal(SHAPE).astype(np.float32) for n in elements}
    found |= {n: rng.uniform(0.5, 1.5, count).astype(np.float32) for n in parameters}
    found["x"] = rng.standard_normal((SHAPE[0] + 1, *SHAPE[1:])).astype(np.float32)[:-1]
    groups = {"groups": 4} if norm == "group_norm" else {}
    fwd = getattr(fn, f"{norm}_train")(found["x"], **groups, activation="relu")
    if norm in CENTRED:
        found["mean"] = fwd.mean
    return found | groups | {"rstd": fwd.rstd, "mask": fwd.mask}


OPS = pytest.mark.parametrize(
    "op",
    [getattr(fn, norm + step) for norm in NORMS for step in ("", "_train", "_backward")],
    ids=lambda op: op.__name__,
)


def options_of(values: dict[str, Any]) -> dict[str, Any]:
    """What is no array."""
    return {n: values[n] for n in ("groups",) if n in values} | {"activation": "relu"}


def wrong_values(op: Call, valid: dict[str, Any]) -> list[dict[str, Any]]:
    """Arguments that make the op raise, early and late."""
    read_only = valid["out"].view()
    read_only.flags.writeable = False
    return [
        {"x": valid["x"].astype(np.int32)},
        {"x": [[1.0]]},
        {"weight": valid["weight"][:3]},
        {"weight": "ones"},
        {"bias": valid["bias"].astype(np.complex64)},
        {"residual": valid["residual"][:, :, :, :1]},
        {"out": read_only},
        {"out": valid["out"][..., ::2]},
        {"out": valid["x"].base[1:]},
        {"activation": "abacus"},
        {"axis" if norm_of(op) in ("layer_norm", "rms_norm") else "channel_axis": 9},
        *([{"mask": valid["mask"][:-1]}] if "mask" in takes(op) else [{"eps": -1.0}]),
    ]


def call(op: Call, values: dict[str, Any], wrong: dict[str, Any] | None = None) -> None:
    """Call op, and see it raise if anything is wrong."""
    given = {name: values[name] for name in takes(op)} | options_of(values)
    if wrong is None:
        op(**given)
        return
    with pytest.raises((TypeError, ValueError)):
        op(**(given | wrong))


def reference_counts(values: dict[str, Any]) -> dict[str, int]:
    gc.collect()
    return {n: sys.getrefcount(a) for n, a in values.items() if isinstance(a, np.ndarray)}


@OPS
def test_references_after_success(op: Call) -> None:
    values = arguments(op)
    before = reference_counts(values)
    for _ in range(10):
        call(op, values)
    assert reference_counts(values) == before


@OPS
def test_references_after_errors(op: Call) -> None:
    values = arguments(op)
    wrong = wrong_values(op, values)
    before = reference_counts(values)
    for _ in range(3):
        for argument in wrong:
            call(op, values, argument)
    assert reference_counts(values) == before


@OPS
def test_results_belong_to_the_caller(op: Call) -> None:
    values = arguments(op)
    given = {name: values[name] for name in takes(op) if name != "out"} | options_of(values)
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
    values = arguments(op)
    wrong = wrong_values(op, values)
    # Without out, and from strides that take a copy: all that an op allocates.
    fresh = {n: values[n] for n in takes(op) if n != "out"} | options_of(values)
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
