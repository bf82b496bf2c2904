"""Times normalizations on a CPU: fastnorm and everything else that can be called, in turns.

Every result is checked against float64 before it is timed. Times are medians over the rounds, in
each of which every competitor runs once; `efficiency` is the time that the fewest bytes would take
at the rate of the best copy in the same rounds, over fastnorm's time.
"""

from __future__ import annotations

from datetime import datetime, timezone
from math import exp, log
from os import environ
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import fastnorm as fn
from limits import Limits
from protocol import measure
from providers import PROVIDERS, Provider, Unavailable, load
from results import ALLOC, Measurement, context, last_level_cache, save
from suites import (
    DIFFUSION,
    DTYPES,
    EPILOGUES,
    LAYOUTS,
    NETWORKS,
    OPS,
    TRANSFORMERS,
    Case,
    cases_of,
    quick_cases,
)

# Peers take the caller's array as it is; these keep a layout of their own, which costs a reorder
# that is not timed.
OWN_LAYOUT = ("onednn_blocked",)
# Loops for the case alone: no library.
NO_PEERS = ("bare",)


def available(names: list[str], threads: int, console: Console) -> dict[str, Provider]:
    """The providers whose libraries are there; a line for each of the others."""
    found = {}
    for name in names:
        try:
            found[name] = load(name, threads)
        except Unavailable as missing:
            console.print(f"[yellow]skipped[/] {missing}", highlight=False)
    return found


def as_time(seconds: float) -> str:
    """With a unit that suits."""
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.2f} µs"


def by_case(measurements: list[Measurement]) -> dict[Case, dict[str, Measurement]]:
    """Each case's measurements by their providers."""
    found: dict[Case, dict[str, Measurement]] = {}
    for m in measurements:
        found.setdefault(m.case, {})[m.provider] = m
    return found


def table_of(measurements: list[Measurement], names: list[str]) -> Table:
    """A row a case: fastnorm's time and efficiency, and everyone's time over fastnorm's."""
    table = Table(caption="times over fastnorm's; in brackets without an output array (+alloc)")
    names = [name for name in names if any(m.provider == name for m in measurements)]
    for column in ("case", "fastnorm", "efficiency", *(n for n in names if n != "fastnorm")):
        table.add_column(column, justify="left" if column == "case" else "right", overflow="fold")
    last = None
    for case, found in by_case(measurements).items():
        if case.op != last and last is not None:
            table.add_section()
        last = case.op
        own = found.get("fastnorm")
        if own is None:
            continue
        own_fresh = found.get("fastnorm" + ALLOC)
        row = [case.name.replace("/cold", "")]
        time = as_time(own.typical)
        row.append(f"{time} ({as_time(own_fresh.typical)})" if own_fresh else time)
        row.append(f"{own.efficiency:.2f}")
        for name in names:
            if name == "fastnorm":
                continue
            peer, fresh = found.get(name), found.get(name + ALLOC)
            text = f"{peer.typical / own.typical:.2f}" if peer else "-"
            if peer and peer.typical < own.typical:
                text = f"[red]{text}[/]"
            if fresh and own_fresh:
                text += f" ({fresh.typical / own_fresh.typical:.1f})"
            row.append(text)
        table.add_row(*row)
    return table


def geometric_means(measurements: list[Measurement]) -> list[str]:
    """For each op: the best peer's time over fastnorm's, and where a peer is faster."""
    lines = []
    for op in OPS:
        ratios = []
        for case, found in by_case(measurements).items():
            own = found.get("fastnorm")
            peers = [
                m.typical
                for name, m in found.items()
                if name not in ("fastnorm", *OWN_LAYOUT, *NO_PEERS) and not m.allocates
            ]
            if case.op == op and own is not None and peers:
                ratios.append(min(peers) / own.typical)
        if ratios:
            mean = exp(sum(map(log, ratios)) / len(ratios))
            slower = sum(r < 1 for r in ratios)
            lines.append(
                f"{op}: the best peer takes {mean:.2f} times as long (geometric mean of "
                f"{len(ratios)} cases), at least {min(ratios):.2f}; it is faster in {slower}"
            )
    return lines


def chosen_cases(
    suites: list[str],
    batches: list[int],
    ops: list[str],
    epilogues: list[str],
    dtypes: list[str],
    layouts: list[str],
    only: str,
) -> list[Case]:
    """Each case once, whatever suites have it."""
    cases: dict[str, Case] = {}
    for suite in suites:
        if suite == "quick":
            found = [c for c in quick_cases() if c.op in ops]
        else:
            found = [
                case
                for batch in batches
                for case in cases_of(suite, batch, ops, epilogues, dtypes, layouts)
            ]
        for case in found:
            if only in case.name:
                cases.setdefault(f"{case.suite}/{case.name}", case)
    return list(cases.values())


def among(*names: str, help: str = "") -> Any:
    """An option of one or more of these names, with commas between them, or "all"."""

    def parse(text: str) -> str:
        unknown = [name for name in text.split(",") if names and name not in (*names, "all")]
        if unknown:
            raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(names)}")
        return ",".join(names) if names and text == "all" else text

    return typer.Option(help=help or ", ".join(names) + "; several with commas.", callback=parse)


def main(
    suite: Annotated[
        str, among("quick", *NETWORKS, "edges", "tiny", *TRANSFORMERS, *DIFFUSION, "style")
    ] = "quick",
    batch: Annotated[str, among(help="N of the networks' shapes: 1,8,32.")] = "32",
    op: Annotated[str, among(*OPS)] = "all",
    epilogue: Annotated[str, among(*EPILOGUES)] = "plain",
    dtype: Annotated[str, among(*DTYPES)] = "float32",
    layout: Annotated[str, among(*LAYOUTS)] = "all",
    provider: Annotated[str, among(*PROVIDERS)] = "all",
    threads: Annotated[int, typer.Option(min=0, help="Of every library; 0: fastnorm's.")] = 0,
    rounds: Annotated[int, typer.Option(min=3)] = 7,
    only: Annotated[str, typer.Option(help="Cases whose name holds this: 56x56, relu/, ...")] = "",
    alloc: Annotated[bool, typer.Option(help="Also time calls that allocate their output.")] = True,
    cold: Annotated[
        int, typer.Option(help="Bytes that cold arrays take in all; default: over the cache's.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="The JSON file.")] = None,
) -> None:
    """Measure, show a table and write JSON; Ctrl-C keeps what was measured."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in environ:  # a file has room for the whole table
        console.width = max(console.width, 180)
    threads = threads or fn.get_num_threads()
    cold_bytes = cold or min(last_level_cache() + (64 << 20), 640 << 20)
    path = out or Path("build/bench") / f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
    providers = available(provider.split(","), threads, console)
    limits = Limits(threads)
    cases = chosen_cases(
        suite.split(","),
        [int(n) for n in batch.split(",")],
        op.split(","),
        epilogue.split(","),
        dtype.split(","),
        layout.split(","),
        only,
    )
    if not cases:
        raise typer.BadParameter(f"no case of these is named like {only!r}", param_hint="--only")
    about = context({name: p.version for name, p in providers.items()}, threads, rounds)
    measurements: list[Measurement] = []
    wrong: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=len(cases))
            for case in cases:
                progress.update(task, description=case.name)
                outcome = measure(
                    case, providers, limits, rounds=rounds, cold_bytes=cold_bytes, fresh=alloc
                )
                measurements += outcome.measurements
                wrong += outcome.wrong
                save(path, about, measurements)
                progress.advance(task)
    except KeyboardInterrupt:
        console.print("interrupted: what follows was measured before")
    console.print(table_of(measurements, list(providers)))
    for name in providers:
        if not any(m.provider == name for m in measurements):
            console.print(f"{name} has none of these cases", highlight=False)
    for line in [*geometric_means(measurements), *(f"[red]wrong[/] {w}" for w in wrong)]:
        console.print(line, highlight=False)
    console.print(f"{about['cpu']}, {threads} threads, {rounds} rounds; written: {path}")


if __name__ == "__main__":
    typer.run(main)
