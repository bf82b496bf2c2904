"""What the CUDA compiler made of the kernels: for every architecture, no spills, wide accesses.

Read from ptxas' reports, which the build leaves beside its objects, and from the disassembly: no
GPU is needed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections import Counter
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
        assert count >= 60
        assert {a: built.count(a) for a in set(built)} == dict.fromkeys(ARCHITECTURES, count)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name.split(".")[0])
def test_no_spills_and_no_stacks(report: Path) -> None:
    bad = [kernel for kernel in _kernels(report) if kernel[2] != "0 0 0"]
    assert not bad, "\n".join(map(str, bad))


# --- the disassembly: tensors are moved 16 bytes at a time ----------------------------------------


def _disassembly(table: Path) -> str:
    """SASS for sm_90, by PyPI's disassembler."""
    nvidia = importlib.util.find_spec("nvidia")
    places = [] if nvidia is None else nvidia.submodule_search_locations or []
    tools = [p for place in places for p in Path(place).glob("cu*/bin/cuobjdump")]
    if not tools:
        pytest.skip("nvidia-cuda-cuobjdump is not installed")
    path = f"{tools[0].parent}{os.pathsep}{os.environ['PATH']}"  # where it finds nvdisasm
    command = [str(tools[0]), "-sass", "-arch", "sm_90", str(table)]
    found = subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    return found.stdout


_FUNCTION = re.compile(r"Function : (\w+)")
_ACCESS = re.compile(r"\b(LDGSTS|LDG|STG|LDL|STL)\b((?:\.\w+)*)")


def _accesses(text: str) -> dict[str, Counter[tuple[str, int]]]:
    """How often each kernel loads or stores so many bits of global or local memory."""
    found: dict[str, Counter[tuple[str, int]]] = {}
    kernel = ""
    for line in text.splitlines():
        if function := _FUNCTION.search(line):
            kernel = function[1]
            found[kernel] = Counter()
        elif (access := _ACCESS.search(line)) and kernel:
            parts = access[2].split(".")
            widths = [int(p.lstrip("US")) for p in parts if re.fullmatch(r"[US]?\d+", p)]
            if "STRONG" not in parts:  # partial results and counters that blocks meet at
                found[kernel][access[1], widths[-1] if widths else 32] += 1
    return found


# Whether packs are whole, whether the activation is smooth, the statistics of a pack, features.
_NAME = re.compile(
    r"(OnChip|Reduce|Map|ParameterSums).*(Forward|Backward).*Lb([01])ELb([01])ELi(\d+)ELb([01])E"
)


def test_tensors_are_moved_sixteen_bytes_at_a_time() -> None:
    """In kernels of whole packs, what is narrower is of statistics and masks.

    Those have the same dtypes whatever the tensors' is, and so a kernel has about as many accesses
    of its tensors' width as the kernels of other dtypes have. Elements of a tensor, one by one,
    would be more by those of a pack.
    """
    bits = {"bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}
    of_kernel: dict[tuple[str, ...], dict[str, Counter[tuple[str, int]]]] = {}
    for dtype in bits:
        for name, counts in _accesses(_disassembly(REPORTS[0].parent / f"table_{dtype}.o")).items():
            found = _NAME.search(name)
            assert found is not None, name
            whole, columns, features = found[3] == "1", found[5] != "1", found[6] == "1"
            traversal = "features" if features else "columns" if columns else "rows"
            adds_up = "SlotsELb1E" in name  # what belongs to the parameters
            kernel = (found[1] + "WithParameters" * adds_up, *found.groups()[1:4], traversal)
            assert not any(where in ("LDL", "STL") for where, _ in counts), (name, counts)
            if whole or found[1] == "OnChip":
                assert counts["LDG", 128] + counts["LDGSTS", 128] > 0, (name, counts)
                only_reads = kernel[0] in ("Reduce", "ParameterSums")
                assert only_reads or counts["STG", 128] > 0, (name, counts)
                of_kernel.setdefault(kernel, {})[dtype] = counts
    assert len(of_kernel) == 15 + 11 + 14  # rows, in images too, columns and features
    for kernel, by_dtype in of_kernel.items():
        for dtype in by_dtype:
            width = bits[dtype]
            if width == 32 and kernel[-1] == "columns":
                continue  # a mask has as many words as a pack has statistics
            for access in (("LDG", width), ("STG", width)):
                others = [by_dtype[d][access] for d in by_dtype if bits[d] != width]
                of_pack = 128 // width
                found_here = by_dtype[dtype][access]
                assert found_here < max(others) + of_pack, (kernel, dtype, access, others)
