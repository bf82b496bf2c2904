"""The program that test_memory.py runs: every op on arrays between protected pages.

    python memory_sweep.py small             edge shapes, each array at either end of its pages
    python memory_sweep.py large             outputs written past the cache, at every offset
    python memory_sweep.py norms             the same of the other norms, small cases and large ones
    python memory_sweep.py touch WHERE       touch the byte before or after an array, and die

It prints what it is about to do, so that the last line tells where it died. Results have to be
those of ordinary arrays, bit for bit. FASTNORM_ISA says which kernels run.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import fastnorm as fn
import norm_cases
from cases import DTYPES, LAYOUTS, Array, Case, Data, make, to_dtype
from guarded import PLACES, Arena, Place
from norm_checks import forward_options, leading

Result = dict[str, Array | None]
Options = dict[str, Any]


def say(text: str) -> None:
    """Print past Python's buffers, which a killed process loses."""
    os.write(1, f"{text}\n".encode())


class Placer:
    """Places the arguments of a call, and looks at the bytes around them afterwards."""

    def __init__(self, room: int) -> None:
        """One arena of room bytes for each name of an argument."""
        self._room = room
        self._arenas: dict[str, Arena] = {}
        self._used: set[str] = set()
        self.at: Place = "end"

    def write(self, name: str, values: Any) -> Any:
        """An argument that the op may write to; None as it is."""
        if values is None:
            return None
        if name not in self._arenas:
            self._arenas[name] = Arena(self._room)
        self._used.add(name)
        return self._arenas[name].place(values, self.at)

    def read(self, name: str, values: Any) -> Any:
        """An argument in pages that cannot be written; None as it is."""
        placed = self.write(name, values)
        if placed is not None:
            self._arenas[name].read_only()
        return placed

    def check(self) -> None:
        """Raise if a byte beside an argument was written; forget the arguments."""
        spoilt = [name for name in sorted(self._used) if not self._arenas[name].intact()]
        self._used.clear()
        if spoilt:
            raise AssertionError(f"bytes written around {', '.join(spoilt)}")


def check_same(found: Result, expected: Result) -> None:
    """Raise unless all results have equal bits."""
    for name, wanted in expected.items():
        value = found[name]
        if (value is None) != (wanted is None):
            raise AssertionError(f"{name} is {value}, expected {wanted}")
        if value is not None and wanted is not None and value.tobytes() != wanted.tobytes():
            raise AssertionError(f"{name} depends on the bytes around the arguments")


def new_output(case: Case, data: Data) -> Array:
    """An array to write y or dx to, laid out like x."""
    return LAYOUTS[case.layout](np.zeros(data.x.shape, data.x.dtype))


def check_inference(case: Case, data: Data, placer: Placer, options: Options) -> None:
    """batch_norm between protected pages."""
    arguments = {name: getattr(data, name) for name in ("x", "mean", "var", "weight", "bias")}
    expected = fn.batch_norm(**arguments, residual=data.residual, **options)
    y = fn.batch_norm(
        **{name: placer.read(name, a) for name, a in arguments.items()},
        residual=placer.read("residual", data.residual),
        out=placer.write("out", new_output(case, data)),
        **options,
    )
    check_same({"y": y}, {"y": expected})
    placer.check()


def train(data: Data, options: Options) -> Result:
    """batch_norm_train, the running statistics among the results."""
    forward = fn.batch_norm_train(
        data.x,
        data.weight,
        data.bias,
        running_mean=data.running_mean,
        running_var=data.running_var,
        residual=data.residual,
        **options,
    )
    running = {"running_mean": data.running_mean, "running_var": data.running_var}
    return {**forward._asdict(), **running}


def check_training(case: Case, data: Data, placer: Placer, options: Options) -> Result:
    """batch_norm_train between protected pages; its results on ordinary arrays."""
    placed = dataclasses.replace(
        data,
        **{n: placer.read(n, getattr(data, n)) for n in ("x", "weight", "bias", "residual")},
        **{n: placer.write(n, getattr(data, n)) for n in ("running_mean", "running_var")},
    )
    ordinary = dataclasses.replace(
        data, running_mean=data.running_mean.copy(), running_var=data.running_var.copy()
    )
    expected = train(ordinary, options)
    out = placer.write("out", new_output(case, data))
    check_same(train(placed, {**options, "out": out}), expected)
    placer.check()
    return expected


def check_backward(
    case: Case, data: Data, forward: Result, mask: Array | None, placer: Placer, options: Options
) -> None:
    """batch_norm_backward between protected pages, its statistics those of forward."""
    arguments: dict[str, Any] = {
        name: getattr(data, name) for name in ("dy", "x", "weight", "bias", "residual")
    } | {"mean": forward["mean"], "rstd": forward["rstd"], "mask": mask}
    expected = fn.batch_norm_backward(**arguments, **options)
    found = fn.batch_norm_backward(
        **{name: placer.read(name, a) for name, a in arguments.items()},
        out=placer.write("out", new_output(case, data)),
        **options,
    )
    check_same(dict(found._asdict()), dict(expected._asdict()))
    placer.check()


LENGTHS = sorted({lanes + d for lanes in (4, 8, 16, 32, 64) for d in (-1, 0, 1)})


def edge_cases() -> Iterator[Case]:
    """Shapes whose rows, planes and channels end at a vector's end or one off."""
    for i, length in enumerate(LENGTHS):
        yield Case("plane", (2, 3, length), residual=i % 2 == 0)
        yield Case("channels", (3, length), residual=i % 2 == 1)
        yield Case("rows", (length, 3), residual=i % 2 == 0)
    for plane in ((1, 1), (1, 2), (7, 7), (14, 14)):
        yield Case("plane", (3, 5, *plane), residual=True)
        yield Case("plane, channels last", (3, 5, *plane), 1, "channels_last", "channels_last")
    for channels in (1, 3, 15, 16, 17, 33):
        yield Case("nhwc", (2, 3, 3, channels), -1, residual=channels != 16)
    yield Case("ndhwc", (2, 2, 3, 2, 5), -1, residual=True)
    yield Case("middle", (3, 2, 5, 7), 2)
    yield Case("no parameters", (2, 3, 21), weight=False, bias=False, residual=True)
    # Bytes between the elements, which are canaries too.
    for layout in ("strided_outer", "strided_channel", "strided_inner", "negative", "field"):
        yield Case(layout, (3, 4, 3, 7), 1, layout, layout, residual=True)
        yield Case(f"{layout}, last", (3, 4, 17), -1, layout, layout, residual=True)


# Large enough for threads to share, with an end of each one's share that is no vector's end.
SHARED = (
    Case("shared planes", (4, 29, 17, 31), residual=True),
    Case("shared channel", (3, 1, 11_003)),
    Case("shared columns", (53, 641), residual=True),
    Case("shared nhwc", (3, 31, 19, 23), -1),
)


def sweep_small() -> int:
    """All edge shapes, dtypes, ops and both places; the number of calls checked."""
    return sweep(edge_cases(), Placer(1 << 16)) + sweep(SHARED, Placer(1 << 20))


def sweep(cases: Iterable[Case], placer: Placer) -> int:
    """All ops on the cases, on every dtype and at both places; the number of calls checked."""
    checked = 0
    masking, others = ("relu", "clip", "leaky_relu"), ("silu", None, "gelu", "hardswish", "tanh")
    for i, (case, dtype) in enumerate(itertools.product(cases, DTYPES)):
        # Parameters of every dtype with data of every dtype.
        data = make(case, dtype, DTYPES[(i + i // 4) % 4])
        axis = {"channel_axis": case.channel_axis}
        for at, name in itertools.product(PLACES, (masking[i % 3], others[i % 5])):
            say(f"{case.name} {case.shape} {dtype} {name}, at the {at}")
            placer.at = at
            options = {**axis, "activation": name}
            check_inference(case, data, placer, options)
            forward = check_training(case, data, placer, options)
            for training in (True, False):
                check_backward(case, data, forward, None, placer, {**options, "training": training})
            mask = forward["mask"]
            if mask is not None:
                check_backward(case, data, forward, mask, placer, options)
            checked += 4 + (mask is not None)
    return checked


# More than 16 MiB go through each call, input and output together: past the cache.
LARGE = (
    Case("rows", (9, 256, 33, 33)),
    Case("rows side by side", (9, 256, 32, 32)),
    Case("odd planes", (193, 251, 7, 7)),
    Case("nhwc", (9, 1024, 257), -1),
)


def sweep_large() -> int:
    """Large outputs at every offset in a cache line; the number of offsets checked."""
    checked = 0
    for case, (dtype, step) in itertools.product(LARGE, (("float32", 4), ("float16", 14))):
        element = to_dtype(dtype)
        shape = (case.shape[0] * 4 // element.itemsize, *case.shape[1:])
        numbers = np.arange(np.prod(shape), dtype=np.uint32)
        x = (numbers * 40503 % 1021).astype(element).reshape(shape)
        weight = np.linspace(-0.01, 0.01, shape[case.channel_axis], dtype=np.float32)
        axis: Options = {"channel_axis": case.channel_axis}
        inference = (x, weight, weight + 1, weight, weight)
        y = fn.batch_norm(*inference, **axis)
        forward = fn.batch_norm_train(x, weight, weight, **axis)
        backward = (x, x, forward.mean, forward.rstd, weight)
        dx = fn.batch_norm_backward(*backward, **axis).dx
        blank = np.zeros_like(x)
        arena = Arena(x.nbytes + 64)
        for i, offset in enumerate(range(0, 64, step)):
            at = PLACES[i % 2]
            say(f"{case.name} {shape} {dtype}, {offset} bytes from the {at}")
            out = arena.place(blank, at, offset)
            check_same({"y": fn.batch_norm(*inference, out=out, **axis)}, {"y": y})
            if i % 3 == 0:
                trained = fn.batch_norm_train(x, weight, weight, out=out, **axis)
                check_same({"y": trained.y}, {"y": forward.y})
                found = fn.batch_norm_backward(*backward, out=out, **axis)
                check_same({"dx": found.dx}, {"dx": dx})
            if not arena.intact():
                raise AssertionError("bytes written around out")
            checked += 1
    return checked


# Past the cache, with rows that end within a line.
LARGE_NORMS = (
    norm_cases.Case("large_rows", "layer_norm", (1031, 1101), residual=True, activation="relu"),
    norm_cases.Case("large_prenorm", "rms_norm", (1031, 1101), prenorm=True),
    norm_cases.Case("large_short_rows", "layer_norm", (19_001, 61), activation="clip"),
    norm_cases.Case("large_groups", "group_norm", (3, 24, 131, 133), 1, 4, activation="silu"),
    norm_cases.Case("large_groups_last", "group_norm", (3, 131, 133, 24), -1, 4),
)


def sweep_norms() -> int:
    """All ops of the other norms on their cases; the number of calls checked."""
    small = [case for case in norm_cases.CASES if np.prod(case.shape) <= 2000]
    checked = 0
    placer, roomy = Placer(1 << 16), Placer(1 << 23)
    for case, dtype in itertools.product(small, DTYPES):
        checked += check_norm(case, dtype, placer)
    for i, case in enumerate(LARGE_NORMS):
        checked += check_norm(case, ("float32", "bfloat16")[i % 2], roomy)
    return checked


def check_norm(case: norm_cases.Case, dtype: str, placer: Placer) -> int:
    """The forward and the backward op of a case between protected pages; how many calls."""
    data = norm_cases.make(case, dtype)
    options = forward_options(case, data)
    del options["residual"]
    blank = LAYOUTS[case.layout](np.zeros(case.shape, data.x.dtype))
    if not blank.flags.writeable:
        blank = np.zeros(case.shape, data.x.dtype)
    names = ("x", "weight", "bias", "residual")
    given = {name: getattr(data, name) for name in names}
    expected = case.op("_train")(given.pop("x"), *leading(case), **given, **options)
    statistics = {name: getattr(expected, name, None) for name in ("mean", "rstd")}
    backward: Options = case.where() | {"activation": case.activation}
    backward |= {k: v for k, v in case.options.items() if k == "weight_offset"}
    x = expected.sum if case.prenorm else data.x
    into = {"dy": data.dy, "x": x, "weight": data.weight, "bias": data.bias}
    into |= {"residual": None if case.prenorm else data.residual, "mask": expected.mask}
    into |= {name: a for name, a in statistics.items() if a is not None}
    if data.dsum is not None:
        into["dsum"] = data.dsum
    if case.norm == "group_norm":
        backward["groups"] = case.groups
    gradients = case.op("_backward")(**into, **backward)
    for at in PLACES:
        say(f"{case.name} {case.shape} {dtype}, at the {at}")
        placer.at = at
        placed = {name: placer.read(name, getattr(data, name)) for name in names}
        outputs = {"out": placer.write("out", blank)}
        if case.prenorm:
            outputs["sum_out"] = placer.write("sum_out", np.zeros(case.shape, blank.dtype))
        found = case.op("_train")(placed.pop("x"), *leading(case), **placed, **outputs, **options)
        check_same(found._asdict(), expected._asdict())
        placer.check()
        found = case.op("_backward")(
            **{name: placer.read(name, a) for name, a in into.items()},
            out=placer.write("out", blank),
            **backward,
        )
        check_same(found._asdict(), gradients._asdict())
        placer.check()
    return 2 * len(PLACES)


def touch(where: str) -> None:
    """Read the byte before an array that begins at a page, or the one after one that ends there."""
    arena = Arena(100)
    placed = arena.place(np.zeros(3, np.float32), "begin" if where == "before" else "end")
    beside = placed.ctypes.data + (-1 if where == "before" else placed.nbytes)
    say(f"touching the byte {where}")
    say(f"alive: {ctypes.c_ubyte.from_address(beside).value}")


def main() -> None:
    """Do what the command line names."""
    if sys.argv[1] == "touch":
        touch(sys.argv[2])
        return
    checked = {"small": sweep_small, "large": sweep_large, "norms": sweep_norms}[sys.argv[1]]()
    say(f"{fn.info()['isa']}: {checked} checked")


if __name__ == "__main__":
    main()
