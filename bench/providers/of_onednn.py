"""oneDNN by its own C++ API, on the caller's memory and in its layout."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from compiled import compiled
from problem import EPS, Problem
from providers import Array, Runner, Unavailable
from suites import OPS

DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("NCHW", "NHWC", "blocked")
UNIMPLEMENTED = 3


def _folder(package: str, name: str) -> str:
    """Where the package has put a file whose path ends like this."""
    for path in distribution(package).files or ():
        if path.match(name):
            return str(Path(str(path.locate())).resolve().parent)
    raise Unavailable(f"{package} has no {name}")


def _compiled(source: str) -> ctypes.CDLL:
    headers = _folder("onednn-devel-cpu-gomp", "include/dnnl.hpp")
    libraries = _folder("onednn-cpu-gomp", "libdnnl.so")
    return compiled(source, f"-I{headers}", f"-L{libraries}", "-ldnnl", f"-Wl,-rpath,{libraries}")


def _rows_driver() -> ctypes.CDLL:
    driver = _compiled("onednn_rows.cpp")
    driver.onednn_rows_make.argtypes = [
        *(c_bool, c_int, c_void_p, c_float, c_void_p, c_void_p, c_int, c_void_p)
    ]
    driver.onednn_rows_add.argtypes = [c_void_p] * 4
    driver.onednn_rows_run.argtypes = [c_void_p, c_size_t]
    driver.onednn_rows_free.argtypes = [c_void_p]
    for name in ("add", "run", "free"):
        getattr(driver, f"onednn_rows_{name}").restype = None
    return driver


def _driver() -> ctypes.CDLL:
    driver = _compiled("onednn_driver.cpp")
    driver.onednn_version.restype = c_char_p
    driver.onednn_make.argtypes = [
        *(c_int, c_int, c_int, c_void_p, c_bool, c_bool, c_float),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p),
    ]
    driver.onednn_add.argtypes = [c_void_p] * 6
    driver.onednn_run.argtypes = [c_void_p, c_size_t]
    driver.onednn_read.argtypes = [c_void_p, c_size_t, c_void_p]
    driver.onednn_free.argtypes = [c_void_p]
    for function in (driver.onednn_add, driver.onednn_run, driver.onednn_read, driver.onednn_free):
        function.restype = None
    return driver


def _address(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


class OneDNN:
    """batch_normalization primitives; fuse_norm_relu, and a binary primitive for a residual."""

    blocked = False

    def __init__(self, threads: int) -> None:
        self._driver, self._threads = _driver(), threads
        self.version = self._driver.onednn_version().decode()

    def prepare(self, problem: Problem) -> Runner | None:
        """All but float64, and float16 only where the CPU computes in it."""
        if problem.case.norm != "batch_norm":
            return self._layer_norm(problem)
        case, driver = problem.case, self._driver
        if case.dtype not in DTYPES:
            return None
        handle = c_void_p()
        status = driver.onednn_make(
            OPS.index(case.op),
            FORMATS.index("blocked" if self.blocked else case.layout),
            DTYPES.index(case.dtype),
            (c_int64 * 4)(*case.shape),
            case.activation is not None,
            case.residual,
            EPS,
            *map(_address, (problem.weight, problem.bias, problem.mean, problem.var)),
            self._threads,
            byref(handle),
        )
        if status == UNIMPLEMENTED:
            return None
        if status != 0:
            raise RuntimeError(f"oneDNN fails with status {status} on {case.name}")
        for s in problem.sets:
            driver.onednn_add(handle, *map(_address, (s.x, s.out, s.dy, s.residual, s.dresidual)))
        plan, run = handle.value, driver.onednn_run

        def call(i: int) -> None:
            run(plan, i)

        def result(i: int) -> Array:
            if not self.blocked:
                return problem.sets[i].out
            y = np.empty_like(problem.sets[i].out)
            driver.onednn_read(plan, i, _address(y))
            return y

        weakref.finalize(call, driver.onednn_free, plan)
        return Runner(call, result)

    def _layer_norm(self, problem: Problem) -> Runner | None:
        """Without a residual; of RMS and group norm this version has no primitives."""
        case, sets = problem.case, problem.sets
        if case.norm != "layer_norm" or case.epilogue != "plain" or case.dtype not in DTYPES:
            return None
        if self.blocked:
            return None
        driver = _rows_driver()
        handle = c_void_p()
        status = driver.onednn_rows_make(
            case.op == "backward",
            DTYPES.index(case.dtype),
            (c_int64 * 2)(*case.shape),
            EPS,
            *map(_address, (problem.weight, problem.bias)),
            self._threads,
            byref(handle),
        )
        if status == UNIMPLEMENTED:
            return None
        if status != 0:
            raise RuntimeError(f"oneDNN fails with status {status} on {case.name}")
        for s in sets:
            driver.onednn_rows_add(handle, *map(_address, (s.x, s.out, s.dy)))
        rows, run = handle.value, driver.onednn_rows_run

        def call(i: int) -> None:
            run(rows, i)

        weakref.finalize(call, driver.onednn_rows_free, rows)
        return Runner(call, lambda i: sets[i].out)


make = OneDNN
