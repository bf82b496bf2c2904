"""What the CUDA compiler made of the kernels: for every architecture, without spills or stacks.

Read from ptxas' reports, which the build leaves beside its objects; no GPU is needed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
REPORTS = sorted(Path(os.environ.get("FASTNORM_BUILD_DIR", "/nowhere"), "cuda").glob("*.ptxas"))
if not REPORTS:
    pytest.skip("no build with CUDA is known", allow_module_level=True)

_KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def _kernels(report: Path) -> list[tuple[str, str, str, str]]:
    """(name, architecture, what was said of its stack, of its registers)."""
    text = report.read_text()
    names = _KERNEL.findall(text)
    stacks = _STACK.findall(text)
    registers = _REGISTERS.findall(text)
    assert len(names) == len(stacks) == len(registers), report
    return [(*name, " ".join(s), r) for name, s, r in zip(names, stacks, registers, strict=True)]


def test_every_table_is_built_for_every_architecture() -> None:
    tables = [report for report in REPORTS if report.name.startswith("table_")]
    assert [report.name.split(".")[0] for report in tables] == [
        f"table_{dtype}" for dtype in ("bfloat16", "float16", "float32", "float64")
    ]
    for report in tables:
        built = [architecture for _, architecture, _, _ in _kernels(report)]
        count = built.count(ARCHITECTURES[0])
        assert count >= 18
        assert {a: built.count(a) for a in set(built)} == dict.fromkeys(ARCHITECTURES, count)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name.split(".")[0])
def test_no_spills_and_no_stacks(report: Path) -> None:
    bad = [kernel for kernel in _kernels(report) if kernel[2] != "0 0 0"]
    assert not bad, "\n".join(map(str, bad))
