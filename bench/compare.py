"""What became slower, and what faster, from one result of bench/run.py to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from results import Measurement, load


def by_name(measurements: list[Measurement]) -> dict[str, Measurement]:
    """Each measurement under its case and provider."""
    return {f"{m.case.name}/{m.provider}": m for m in measurements}


def change(before: Measurement, after: Measurement) -> tuple[float, float]:
    """The factor by which the efficiency fell (over 1: slower), and what is noise: both spreads.

    Efficiencies, not times: the limit was measured in the same rounds, and carries the machine's
    mood with it.
    """
    factor = before.efficiency / after.efficiency
    return factor, 1.0 + before.spread + after.spread


def main(
    before: Annotated[Path, typer.Argument(help="JSON of bench/run.py.")],
    after: Annotated[Path, typer.Argument(help="JSON of bench/run.py.")],
    provider: Annotated[str, typer.Option(help="Whose lines; empty for all.")] = "fastnorm",
    least: Annotated[float, typer.Option(help="Smaller changes are not shown, e.g. 0.05.")] = 0.05,
) -> None:
    """Show the cases that changed by more than their spread; exit with 1 if one became slower."""
    old, new = (by_name(load(path)[1]) for path in (before, after))
    table = Table(caption="more than the spread of both; a factor over 1 is slower")
    for column in ("case", "factor", "before", "after", "noise"):
        table.add_column(column, justify="left" if column == "case" else "right")
    slower = 0
    common = [n for n in old if n in new and old[n].provider.startswith(provider)]
    for name in common:
        factor, noise = change(old[name], new[name])
        if max(factor, 1 / factor) < max(noise, 1 + least):
            continue
        slower += factor > 1
        table.add_row(
            name,
            f"[{'red' if factor > 1 else 'green'}]{factor:.2f}[/]",
            f"{1e3 * old[name].typical:.3f} ms ({old[name].efficiency:.2f})",
            f"{1e3 * new[name].typical:.3f} ms ({new[name].efficiency:.2f})",
            f"{noise:.2f}",
        )
    console = Console()
    if table.row_count:
        console.print(table)
    only = [
        f"{len(set(a) - set(b))} only {w}"
        for a, b, w in ((old, new, "before"), (new, old, "after"))
    ]
    console.print(f"{len(common)} cases in common ({', '.join(only)}), {slower} slower")
    raise typer.Exit(1 if slower else 0)


if __name__ == "__main__":
    typer.run(main)
