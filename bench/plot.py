"""Plots of a result of bench/run.py: bandwidth, speed-up per network, threads, efficiency."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import typer

from results import Measurement, load
from suites import OPS

COLOURS = dict(
    zip(
        ("fastnorm", "torch", "onednn", "onednn_blocked", "onnxruntime", "jax", "numpy"),
        plt.rcParams["axes.prop_cycle"].by_key()["color"],
        strict=False,
    )
)

MARKERS = {"NCHW": "o", "NHWC": "x", "rows": "o"}


def beside_each_other(measurements: list[Measurement], height: float) -> tuple[Any, dict[str, Any]]:
    """A figure with axes for each of the result's operations."""
    ops = [op for op in OPS if any(m.case.op == op for m in measurements)]
    size = (5 * len(ops), height)
    figure, axes = plt.subplots(1, len(ops), figsize=size, sharey=True, squeeze=False)
    return figure, dict(zip(ops, axes[0], strict=True))


def plain(measurements: list[Measurement]) -> list[Measurement]:
    """Those into memory that is there."""
    return [m for m in measurements if not m.allocates]


def bandwidth(measurements: list[Measurement], about: dict[str, Any], to: Path) -> None:
    """The rate at which the fewest bytes are moved, over the size of x; the copy's as a line."""
    figure, axes_of = beside_each_other(measurements, 4.5)
    all_axes = list(axes_of.values())
    for op, axes in axes_of.items():
        found = [m for m in plain(measurements) if m.case.op == op and m.case.epilogue == "plain"]
        for provider, colour in COLOURS.items():
            for layout, marker in MARKERS.items():
                points = [m for m in found if (m.provider, m.case.layout) == (provider, layout)]
                axes.plot(
                    [m.case.tensor_bytes for m in points],
                    [m.case.least_bytes / m.typical / 1e9 for m in points],
                    marker,
                    color=colour,
                    alpha=0.7,
                    label=f"{provider} {layout}" if points else None,
                )
        limits = {m.case: m.case.least_bytes / m.limit / 1e9 for m in found}
        sizes = [case.tensor_bytes for case in limits]
        axes.plot(sizes, list(limits.values()), "k_", ms=12, label="best copy")
        for cache in about["caches"]:
            axes.axvline(cache["size"], color="grey", lw=0.7, ls=":")
            axes.text(cache["size"], 0, f"L{cache['level']}", color="grey")
        axes.set(title=op, xscale="log", xlabel="bytes of x")
    all_axes[0].set_ylabel("fewest bytes / time, GB/s")
    all_axes[0].set_ylim(bottom=0)
    # Not every library has every op.
    entries = {
        label: handle
        for axes in all_axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    all_axes[-1].legend(
        list(entries.values()),
        list(entries),
        fontsize="x-small",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    _save(figure, to)


def ratios_to_peers(measurements: list[Measurement]) -> dict[tuple[str, str, str], float]:
    """(suite, op, provider): its time over fastnorm's, for all of the suite's norms."""
    times: dict[tuple[str, str, str], float] = {}
    own: dict[tuple[str, str, str], float] = {}
    fastnorm = {m.case: m.typical for m in measurements if m.provider == "fastnorm"}
    for m in plain(measurements):
        if m.case in fastnorm and m.provider != "fastnorm":
            key = (m.case.suite, m.case.op, m.provider)
            times[key] = times.get(key, 0.0) + m.case.count * m.typical
            own[key] = own.get(key, 0.0) + m.case.count * fastnorm[m.case]
    return {key: times[key] / own[key] for key in times}


def speedup(measurements: list[Measurement], to: Path) -> None:
    """For each suite: the peers' time for all its norms over fastnorm's."""
    ratios = ratios_to_peers(measurements)
    suites = list(dict.fromkeys(suite for suite, _, peer in ratios if peer in COLOURS))
    figure, axes_of = beside_each_other(measurements, 4)
    all_axes = list(axes_of.values())
    for op, axes in axes_of.items():
        peers = [p for p in COLOURS if any(key[1:] == (op, p) for key in ratios)]
        for k, peer in enumerate(peers):
            places = [i + 0.8 * k / len(peers) for i in range(len(suites))]
            heights = [ratios.get((suite, op, peer), 0.0) for suite in suites]
            axes.bar(places, heights, 0.75 / len(peers), color=COLOURS[peer], label=peer)
        axes.axhline(1.0, color="black", lw=0.8)
        axes.set(title=op, xticks=[i + 0.4 for i in range(len(suites))])
        axes.set_xticklabels(suites)
        if max(ratios.values(), default=1.0) > 10:  # RMS norm of 16 bits, say
            axes.set(yscale="log")
    all_axes[0].set_ylabel("time / fastnorm's")
    all_axes[0].legend(fontsize="x-small", loc="center right", bbox_to_anchor=(-0.15, 0.5))
    _save(figure, to)


def scaling(results: list[tuple[int, list[Measurement]]], to: Path) -> None:
    """fastnorm's speed over that of one thread, for results of several numbers of threads."""
    figure, axes = plt.subplots(figsize=(6, 4))
    results = sorted(results, key=lambda result: result[0])
    first = {m.case: m.typical for m in results[0][1] if m.provider == "fastnorm"}
    for op in OPS:
        points = []
        for threads, measurements in results:
            gains = [
                log(first[m.case] / m.typical)
                for m in measurements
                if m.provider == "fastnorm" and m.case.op == op and m.case in first
            ]
            if gains:
                points.append((threads, exp(sum(gains) / len(gains))))
        axes.plot(*zip(*points, strict=True), "o-", label=op)
    axes.set(xlabel="threads", ylabel=f"speed over that of {results[0][0]} thread(s)")
    axes.legend()
    _save(figure, to)


def heat_map(measurements: list[Measurement], to: Path) -> None:
    """fastnorm's efficiency, a row for each shape, a column for each operation and layout."""
    own = [m for m in measurements if m.provider == "fastnorm"]
    rows = list(dict.fromkeys((m.case.norm, m.case.shape) for m in own))
    columns = list(
        dict.fromkeys((m.case.op, m.case.epilogue, m.case.dtype, m.case.layout) for m in own)
    )
    values = [[float("nan")] * len(columns) for _ in rows]
    for m in own:
        column = (m.case.op, m.case.epilogue, m.case.dtype, m.case.layout)
        values[rows.index((m.case.norm, m.case.shape))][columns.index(column)] = m.efficiency
    figure, axes = plt.subplots(figsize=(3 + 0.7 * len(columns), 2 + 0.28 * len(rows)))
    image = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value == value:
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(columns)), [" ".join(c) for c in columns], rotation=60, ha="right")
    names = [f"{norm.replace('_', ' ')} {'x'.join(map(str, shape))}" for norm, shape in rows]
    axes.set_yticks(range(len(rows)), names)
    figure.colorbar(image, label="efficiency: the best copy's time / fastnorm's")
    _save(figure, to)


def _save(figure: Any, to: Path) -> None:
    figure.savefig(to, dpi=130, bbox_inches="tight")
    plt.close(figure)


def main(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="JSON of bench/run.py; one or, for the scaling, one for each number of threads."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="A folder; default: the first file's.")] = None,
) -> None:
    """Draw PNGs beside the results."""
    about, measurements = load(results[0])
    folder, stem = out or results[0].parent, results[0].stem
    folder.mkdir(parents=True, exist_ok=True)
    bandwidth(measurements, about, folder / f"{stem}-bandwidth.png")
    speedup(measurements, folder / f"{stem}-speedup.png")
    heat_map(measurements, folder / f"{stem}-efficiency.png")
    if len(results) > 1:
        loaded = [load(path) for path in results]
        scaling([(a["threads"], m) for a, m in loaded], folder / f"{stem}-threads.png")
    typer.echo(f"written: {folder}/{stem}-*.png")


if __name__ == "__main__":
    typer.run(main)
