"""What the linker sees of the kernels of each instruction set.

The kernels are compiled once per instruction set, each time with that set's compiler flags. A
function with vague linkage in a namespace of all of them (an inline function or a template that the
compiler did not inline) would exist once per object file under one name. The linker keeps any one
of them, maybe the AVX-512 one, for everybody: an illegal instruction on most machines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

import fastnorm as fn

BUILD_DIR = os.environ.get("FASTNORM_BUILD_DIR")  # `make test` sets it

pytestmark = pytest.mark.skipif(BUILD_DIR is None, reason="FASTNORM_BUILD_DIR is not set")

# What compilers call by themselves, whatever the source says.
COMPILER_CALLS = {"memcpy", "memmove", "memset", "memcmp", "_GLOBAL_OFFSET_TABLE_"}


class Symbol(NamedTuple):
    """A line of nm: the kind is upper case for a global symbol, but u, v and w are global too."""

    kind: str
    name: str


# What each object exports.
EXPORTS = {
    "kernels.cpp.o": "kernels",
    "rows.cpp.o": "rows_kernels",
    "columns.cpp.o": "columns_kernels",
    "features.cpp.o": "features_kernels",
}


def kernel_objects() -> list[tuple[str, Path]]:
    """The object files of each instruction set's kernels."""
    folders = Path(BUILD_DIR or "", "CMakeFiles").glob("fastnorm_kernels_*.dir")
    return [
        (folder.name.removeprefix("fastnorm_kernels_").removesuffix(".dir"), object_file)
        for folder in folders
        for object_file in sorted(folder.rglob("*.o"))
    ]


def exported_name(isa: str, name: str) -> str:
    return f"_ZN8fastnorm{len(isa)}{isa}{len(name)}{name}E"


def symbols_of(object_file: Path) -> list[Symbol]:
    nm = shutil.which("nm")
    assert nm is not None, "nm (binutils, which comes with the compiler) is missing"
    lines = subprocess.run(
        [nm, "--format=posix", object_file], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return [Symbol(kind, name) for name, kind, *_ in map(str.split, lines)]


def in_namespace(name: str, isa: str) -> bool:
    """Whether the mangled name is of something in fastnorm::isa (or its vtable, guard, ...)."""
    return re.match(rf"_Z[A-Z]*N[rVKRO]*8fastnorm{len(isa)}{isa}", name) is not None


def test_namespace_of_mangled_names() -> None:
    assert in_namespace("_ZN8fastnorm4avx27kernelsE", "avx2")
    assert in_namespace("_ZNK8fastnorm4avx23VecIfE3sumEv", "avx2")
    assert in_namespace("_ZGVN8fastnorm4avx21fEvE1x", "avx2")
    assert not in_namespace("_ZN8fastnorm6avx5127kernelsE", "avx2")
    assert not in_namespace("_ZN8fastnorm5clampIfEET_S1_", "avx2")
    assert not in_namespace("_ZSt3maxIlERKT_S2_S2_", "avx2")


def test_objects_are_those_of_the_instruction_sets() -> None:
    objects = kernel_objects()
    assert objects, f"there are no kernels in {BUILD_DIR}"
    for isa in fn.info()["isas"]:
        assert {path.name for name, path in objects if name == isa} == set(EXPORTS)


def test_no_weak_symbol_outside_the_own_namespace() -> None:
    for isa, object_file in kernel_objects():
        weak = [symbol.name for symbol in symbols_of(object_file) if symbol.kind in "uVvWw"]
        assert [name for name in weak if not in_namespace(name, isa)] == [], isa


def test_a_table_is_all_that_is_exported() -> None:
    for isa, object_file in kernel_objects():
        exported = [
            symbol.name
            for symbol in symbols_of(object_file)
            if symbol.kind.isupper() and symbol.kind not in "UVW"
        ]
        assert exported == [exported_name(isa, EXPORTS[object_file.name])], isa


def test_kernels_call_nothing() -> None:
    """No allocation, no exception, no thread: not even a function of the library itself."""
    for isa, object_file in kernel_objects():
        called = {symbol.name for symbol in symbols_of(object_file) if symbol.kind == "U"}
        if object_file.name == "kernels.cpp.o":  # which has the others' addresses
            called -= {exported_name(isa, name) for name in EXPORTS.values()}
        assert called <= COMPILER_CALLS, isa
