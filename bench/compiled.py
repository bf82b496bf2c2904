"""C++ beside the benchmark, compiled when it is needed, for the machine that it runs on."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"


def compiled(source: str, *flags: str) -> ctypes.CDLL:
    """The shared library of a source file of this folder.

    Raises
    ------
    OSError
        If the compiler (CXX, else c++) fails, with what it said.
    """
    path = HERE / source
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    options = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", *flags]
    key = hashlib.sha256(path.read_bytes() + repr((compiler, options)).encode()).hexdigest()[:16]
    library = BUILD / f"{path.stem}-{key}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        new = library.with_suffix(f".{os.getpid()}")
        command = [*compiler, str(path), *options, "-o", str(new)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            raise OSError(f"{shlex.join(command)} failed:\n{process.stderr}")
        new.replace(library)
    return ctypes.CDLL(str(library))
