"""Batch normalization against PyTorch on a CPU: one process, in turns, into arrays that are there.

For each case: the median time of fastnorm; the medians of PyTorch's time and of a plain copy of x
(``numpy.copyto``), each divided by fastnorm's of the same round; and the largest error of either
library's result against float64. Before it is timed every competitor has run once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fastnorm as fn
from fastnorm import reference

Array = npt.NDArray[Any]

EPS = 1e-5
OPERATIONS = ("training forward", "backward", "inference")
# Layers of ResNet-50 at batch size 32: (N, C, H, W).
SHAPES = (
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
)


@dataclass(frozen=True)
class Case:
    """One operation on one tensor, float32."""

    operation: str
    shape: tuple[int, int, int, int]
    channels_last: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        n, c, h, w = self.shape
        return f"{n}x{h}x{w}x{c} NHWC" if self.channels_last else f"{n}x{c}x{h}x{w} NCHW"


class Competitors(NamedTuple):
    """Calls without arguments; the libraries' return y or dx, in memory order."""

    fastnorm: Callable[[], Array]
    torch: Callable[[], Array]
    copy: Callable[[], None]
    exact: Callable[[], Array]


class Result(NamedTuple):
    """A row of the table."""

    seconds: float
    torch_ratio: float
    copy_ratio: float
    error: float
    torch_error: float


def competitors(case: Case) -> Competitors:
    """Both libraries on copies of the same data, and float64."""
    rng = np.random.default_rng(0)
    n, c, h, w = case.shape
    shape = (n, h, w, c) if case.channels_last else case.shape
    axis = 3 if case.channels_last else 1
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    out = np.zeros(shape, np.float32)
    weight, bias = rng.uniform(0.5, 1.5, c), rng.standard_normal(c)
    weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    mean, var = np.zeros(c, np.float32), np.ones(c, np.float32)
    running = {"running_mean": mean.copy(), "running_var": var.copy()}

    def tensor(array: Array) -> torch.Tensor:
        copied = torch.from_numpy(array.copy())
        return copied.movedim(-1, 1) if case.channels_last and copied.ndim == 4 else copied

    def array(t: torch.Tensor) -> Array:
        return np.asarray((t.movedim(1, -1) if case.channels_last else t).numpy())

    tx, tdy, tout = tensor(x), tensor(dy), tensor(out)
    tw, tb, tmean, tvar = tensor(weight), tensor(bias), tensor(mean), tensor(var)
    saved = torch.zeros(c), torch.zeros(c)
    aten = torch.ops.aten
    forward_args = (tx, tw, tb, tmean.clone(), tvar.clone(), True, 0.1, EPS)
    forward_out = {"out": tout, "save_mean": saved[0], "save_invstd": saved[1]}

    def copy() -> None:
        np.copyto(out, x)

    if case.operation == "inference":

        def torch_inference() -> Array:
            aten.native_batch_norm.out(tx, tw, tb, tmean, tvar, False, 0.1, EPS, **forward_out)
            return array(tout)

        return Competitors(
            lambda: fn.batch_norm(x, mean, var, weight, bias, eps=EPS, channel_axis=axis, out=out),
            torch_inference,
            copy,
            lambda: reference.batch_norm(x, mean, var, weight, bias, eps=EPS, channel_axis=axis),
        )

    def torch_forward() -> Array:
        aten.native_batch_norm.out(*forward_args, **forward_out)
        return array(tout)

    if case.operation == "training forward":
        options: dict[str, Any] = {"eps": EPS, "channel_axis": axis}
        return Competitors(
            lambda: fn.batch_norm_train(x, weight, bias, **running, **options, out=out).y,
            torch_forward,
            copy,
            lambda: reference.batch_norm_train(x, weight, bias, **options).y,
        )

    torch_forward()
    forward = fn.batch_norm_train(x, eps=EPS, channel_axis=axis)
    gradients = (torch.zeros_like(tx), torch.zeros(c), torch.zeros(c))

    def torch_backward() -> Array:
        aten.native_batch_norm_backward.out(
            *(tdy, tx, tw, tmean, tvar, *saved, True, EPS, [True, True, True]),
            **dict(zip(("out0", "out1", "out2"), gradients, strict=True)),
        )
        return array(gradients[0])

    arguments = (dy, x, forward.mean, forward.rstd, weight, bias)
    return Competitors(
        lambda: fn.batch_norm_backward(*arguments, channel_axis=axis, out=out).dx,
        torch_backward,
        copy,
        lambda: reference.batch_norm_backward(*arguments, channel_axis=axis).dx,
    )


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def measure(case: Case, rounds: int) -> Result:
    """The errors, then the times of ``rounds`` rounds in which each competitor runs once."""
    own, theirs, copy, exact_of = competitors(case)
    exact = exact_of()
    error, torch_error = (float(np.abs(call() - exact).max()) for call in (own, theirs))
    copy()
    times = np.array([[seconds(call) for call in (own, theirs, copy)] for _ in range(rounds)])
    ratios = np.median(times / times[:, :1], axis=0)
    return Result(float(np.median(times[:, 0])), ratios[1], ratios[2], error, torch_error)


def main(
    rounds: Annotated[int, typer.Option(min=3, help="Rounds per case.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads of either library.")] = 2,
    only: Annotated[str, typer.Option(help="Cases whose name holds this, e.g. 56x56.")] = "",
) -> None:
    """Time fastnorm against PyTorch on the shapes of ResNet-50."""
    fn.set_num_threads(threads)
    torch.set_num_threads(threads)
    console = Console()
    table = Table(caption="times: fastnorm = 1; errors: the largest difference to float64")
    for column in ("x, float32", "fastnorm", "PyTorch", "copy", "error", "PyTorch's error"):
        table.add_column(column, justify="left" if column.startswith("x") else "right")
    cases = [
        case
        for operation in OPERATIONS
        for channels_last in (False, True)
        for shape in SHAPES
        if only in (case := Case(operation, shape, channels_last)).name
    ]
    last = ""
    for case in track(cases, "Measuring", console=console, transient=True):
        result = measure(case, rounds)
        if case.operation != last:
            table.add_section()
            table.add_row(f"[bold]{case.operation}")
            last = case.operation
        table.add_row(
            case.name,
            f"{1e3 * result.seconds:.2f} ms",
            f"{result.torch_ratio:.2f}",
            f"{result.copy_ratio:.2f}",
            f"{result.error:.1e}",
            f"{result.torch_error:.1e}",
        )
    info = fn.info()
    console.print(
        f"fastnorm {info['version']} ({info['isa']}), PyTorch {torch.__version__}, "
        f"threads: {threads}, median of {rounds} rounds"
    )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
