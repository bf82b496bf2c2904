"""No byte is read or written outside the arrays: they lie between protected pages.

A byte too far kills the process, so each sweep runs in one of its own (memory_sweep.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastnorm as fn
from guarded import Arena

SWEEP = Path(__file__).parent / "memory_sweep.py"
LIMIT_S = 300


def sweep(*arguments: str, isa: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run memory_sweep.py; what it printed, and how it ended."""
    environment = {**os.environ, "FASTNORM_NUM_THREADS": "2"}
    if isa is not None:
        environment["FASTNORM_ISA"] = isa
    return subprocess.run(
        [sys.executable, str(SWEEP), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def assert_survived(process: subprocess.CompletedProcess[str], isa: str) -> None:
    lines = process.stdout.splitlines()
    last = lines[-1] if lines else "before the first case"
    assert process.returncode == 0, f"died ({process.returncode}) in: {last}\n{process.stderr}"
    assert last.startswith(f"{isa}: ")
    assert int(last.split()[1]) > 0


@pytest.mark.parametrize("isa", fn._core.isas())
def test_edge_shapes_between_protected_pages(isa: str) -> None:
    assert_survived(sweep("small", isa=isa), isa)


@pytest.mark.parametrize("isa", fn._core.isas())
def test_large_outputs_at_every_offset(isa: str) -> None:
    assert_survived(sweep("large", isa=isa), isa)


@pytest.mark.parametrize("isa", fn._core.isas())
def test_other_norms_between_protected_pages(isa: str) -> None:
    assert_survived(sweep("norms", isa=isa), isa)


# --- the net itself has to catch ------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_byte_too_far_is_caught(where: str) -> None:
    process = sweep("touch", where)
    assert process.stdout.splitlines() == [f"touching the byte {where}"]
    # AddressSanitizer catches the signal and exits by itself.
    assert process.returncode in (-signal.SIGSEGV, -signal.SIGBUS, 1)


@pytest.mark.parametrize("offset", [0, 12])
def test_a_spoilt_canary_is_found(offset: int) -> None:
    arena = Arena(1000)
    placed = arena.place(np.arange(12.0).reshape(3, 4)[:, ::2], "begin", offset)
    placed[...] = 7
    assert arena.intact()
    ctypes.memset(placed.ctypes.data + placed.itemsize, 0, 1)
    assert not arena.intact()
