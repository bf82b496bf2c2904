"""Times the norms on a CUDA device: fastnorm, PyTorch, its compiler, and a copy.

Each competitor's calls are captured in a CUDA graph that rotates over sets of tensors of 256 MB and
more in all, so that each finds its data cold; the replays of all graphs are timed in turns, with
events. The limit is the fewest bytes at the best rate of two copies and a triad. Every result is
checked against float64 first, from a poisoned output. The JSON is written after every case. Needs
PyTorch with CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import fastnorm as fn
from gpu_providers import EPS, PROVIDERS, Problem, Runner, Tensors, limits_of, plain_forward
from results import Measurement, context, save
from suites import DTYPES, EPILOGUES, LAYOUTS, OPS, QUICK, Case, cases_of

COLD_BYTES = 256 << 20
LEAST_CALLS = 24  # of a graph
ROUNDS = 7
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "float16": 4e-3, "bfloat16": 3e-2}


def make_problem(case: Case) -> Problem:
    """Random tensors, fresh in every run, of a mean that is not zero."""
    dtype = getattr(torch, case.dtype)
    last = case.layout == "NHWC"
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    of_parameters = wide if case.norm == "batch_norm" else dtype

    def tensor(needed: bool = True) -> torch.Tensor | None:
        if not needed:
            return None
        values = torch.randn(case.shape, device="cuda", dtype=torch.float32) + 0.5
        form = torch.channels_last if last else torch.contiguous_format
        return values.to(dtype).contiguous(memory_format=form)

    def one() -> Tensors:
        x = tensor()
        assert x is not None
        added = tensor(case.residual or case.prenorm)
        total = torch.empty_like(x) if case.prenorm else None
        return Tensors(x, torch.empty_like(x), tensor(case.op == "backward"), added, total)

    first = one()
    size = sum(t.nbytes for t in vars(first).values() if t is not None)
    sets = [first, *(one() for _ in range(-(-COLD_BYTES // size) - 1))]

    def vector(of: torch.dtype) -> torch.Tensor:
        return (torch.rand(case.parameters, device="cuda") + 0.5).to(of)

    parameters = (vector(of_parameters), vector(of_parameters))
    return Problem(case, sets, *parameters, vector(wide), vector(wide))


def exact(problem: Problem) -> torch.Tensor:
    """y or dx of the first set, in float64."""
    p, case, s = problem, problem.case, problem.sets[0]

    def wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.detach().double()

    x = s.x.detach().double().requires_grad_(case.op == "backward")
    if case.norm == "batch_norm":
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        mean, var = p.mean.double(), p.var.double()
        if case.op != "inference":
            mean, var = x.mean(axes), x.var(axes, unbiased=False)
        scale = p.weight.double() / torch.sqrt(var + EPS)
        y = (x - mean.view(shape)) * scale.view(shape) + p.bias.double().view(shape)
        y = y if s.residual is None else y + s.residual.double()
        y = torch.relu(y) if case.activation is not None else y
        return y if case.op != "backward" else torch.autograd.grad(y, x, wide(s.dy))[0]
    found = plain_forward(p)(x, wide(s.residual), wide(p.weight), wide(p.bias))
    if case.op != "backward":
        return found[0] if case.prenorm else found
    gradients = (wide(s.dy), wide(s.residual)) if case.prenorm else wide(s.dy)
    return torch.autograd.grad(found, x, gradients)[0]


def error_of(problem: Problem, runner: Runner, expected: torch.Tensor) -> float:
    """The norm of the error over that of the exact result; NaN where nothing is written."""
    problem.sets[0].out.fill_(float("nan"))
    found = runner.call(0).double()
    return float((found - expected).norm() / expected.norm())


def graph_of(runner: Runner, sets: int, stream: Any) -> Callable[[], None]:
    """A graph of calls on one set after the other, captured on the stream."""
    for i in range(3):  # what a first call sets up is not to be captured
        runner.call(i % sets)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept = []
    with torch.cuda.graph(graph, stream=stream):
        for i in range(calls_of(sets)):
            kept.append(runner.call(i % sets))
    del kept
    replay: Callable[[], None] = graph.replay
    return replay


def calls_of(sets: int) -> int:
    """How many calls a graph has: as many on each set."""
    return -(-LEAST_CALLS // sets) * sets


def seconds_of(replay: Callable[[], None], calls: int) -> float:
    """Of one call of a replay."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / calls


def measure(case: Case, names: list[str]) -> tuple[list[Measurement], list[str]]:
    """Everyone on one case, and what was wrong with those that were not timed."""
    replays: dict[str, Callable[[], None]] = {}
    errors: dict[str, float] = {}
    wrong = []
    # Autograd runs each backward on the stream of its forward, which has to be the graph's.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        problem = make_problem(case)
        expected = exact(problem)
        for name in names:
            try:
                runner = PROVIDERS[name](problem)
                if runner is None:
                    continue
                errors[name] = error_of(problem, runner, expected)
                if not errors[name] < TOLERANCE[case.dtype]:
                    wrong.append(f"{name} {case.name}: error {errors[name]:.1e}")
                    continue
                replays[name] = graph_of(runner, len(problem.sets), stream)
            except Exception as failure:  # one that fails must not end the others' run
                torch.cuda.synchronize()
                wrong.append(f"{name} {case.name}: {type(failure).__name__}: {failure}"[:300])
        del expected
        moved = {}
        for k, (runner, tensors) in enumerate(limits_of(problem)):
            replays[f"limit {k}"] = graph_of(runner, len(problem.sets), stream)
            moved[f"limit {k}"] = tensors * case.tensor_bytes
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(ROUNDS + 1):
        for name, replay in replays.items():
            times[name].append(seconds_of(replay, calls_of(len(problem.sets))))
    best = max(of / sorted(times.pop(name)[1:])[ROUNDS // 2] for name, of in moved.items())
    limit = case.least_bytes / best
    return [
        Measurement(case, name, tuple(found[1:]), limit, errors[name])
        for name, found in times.items()
    ], wrong


def cases(
    suite: str,
    batch: int,
    ops: list[str],
    epilogues: list[str],
    dtypes: list[str],
    layouts: list[str],
) -> list[Case]:
    """Every combination on the shapes of a suite."""
    if suite != "quick":
        return cases_of(suite, batch, ops, epilogues, dtypes, layouts)
    return [
        Case(suite, op, epilogue, dtype, layout, (batch, *shape[1:]))
        for epilogue in epilogues
        for dtype in dtypes
        for layout in layouts
        for op in ops
        for shape in QUICK
    ]


def table_of(measurements: list[Measurement], names: list[str]) -> Table:
    """A row a case: fastnorm's time and rate, and everyone's time over fastnorm's."""
    table = Table(caption="efficiency: the fewest bytes at a copy's rate; times over fastnorm's")
    for column in ("case", "µs", "TB/s", "efficiency", *names[1:]):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in dict.fromkeys(m.case for m in measurements):
        found = {m.provider: m for m in measurements if m.case == case}
        own = found.get("fastnorm")
        if own is None:
            continue
        rate = case.least_bytes / own.typical * 1e-12
        row = [case.name, f"{own.typical * 1e6:.1f}", f"{rate:.2f}", f"{own.efficiency:.2f}"]
        for name in names[1:]:
            peer = found.get(name)
            row.append(f"{peer.typical / own.typical:.2f}" if peer else "-")
        table.add_row(*row)
    return table


def main(
    suite: Annotated[str, typer.Option(help="quick, or a suite of bench/run.py.")] = "quick",
    batch: Annotated[int, typer.Option(help="N of all shapes.")] = 32,
    op: Annotated[str, typer.Option(help=", ".join(OPS))] = "training,backward,inference",
    epilogue: Annotated[str, typer.Option(help=", ".join(EPILOGUES))] = "plain",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    layout: Annotated[str, typer.Option(help=", ".join(LAYOUTS))] = "NCHW,NHWC",
    provider: Annotated[str, typer.Option(help=", ".join(PROVIDERS))] = ",".join(PROVIDERS),
    seconds: Annotated[float, typer.Option(help="No case is begun after so long.")] = 1e9,
    out: Annotated[Path, typer.Option(help="The JSON file.")] = Path("build/bench/gpu.json"),
) -> None:
    """Measure, write JSON after every case, show a table."""
    console = Console(width=200)
    names = provider.split(",")
    device = torch.cuda.get_device_properties(0)
    about: dict[str, Any] = context(
        {"fastnorm": fn.__version__, "torch": torch.__version__}, 1, ROUNDS
    ) | {"device": device.name, "multiprocessors": device.multi_processor_count}
    chosen = cases(
        suite, batch, op.split(","), epilogue.split(","), dtype.split(","), layout.split(",")
    )
    measurements: list[Measurement] = []
    begin = monotonic()
    for case in chosen:
        if monotonic() - begin > seconds:
            console.print(f"out of time before {case.name}")
            break
        try:
            found, wrong = measure(case, names)
        except Exception as failure:  # nor must one case end the others'
            found, wrong = [], [f"{case.name}: {type(failure).__name__}: {failure}"[:300]]
        measurements += found
        save(out, about, measurements)
        for line in wrong:
            console.print(f"wrong: {line}", highlight=False, markup=False)
        torch.cuda.empty_cache()
    console.print(table_of(measurements, names))
    console.print(f"{device.name}; written: {out}")


if __name__ == "__main__":
    typer.run(main)
