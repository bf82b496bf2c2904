"""Batch normalization on handwritten digits: how much faster a network of sigmoid units trains.

Run it as ``python examples/mnist_demo.py``. It trains a small convolutional network in plain NumPy
with fastnorm's batch normalization and without, counts the steps that either takes, plots the
accuracies, and then times the normalizations of the trained network against plain NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from threadpoolctl import threadpool_limits

import fastnorm as fn
from curves import save_plot
from inference import Measurement, measure, normalizations
from training import EVALUATE_EVERY, PLAIN, RECIPES, Result, accuracy_of, run

console = Console()

DEFAULT_PLOT = Path(__file__).with_name("mnist_demo.png")

# Shares of the plain network's steps at which the table shows the accuracies.
KEY_POINTS = (0.04, 0.1, 0.2, 0.4, 1)


def train_all(steps: int, repeats: int, seed: int) -> list[Result]:
    """Train by every recipe, showing the progress.

    The plain network trains for ``steps`` steps, in which it levels off, the others for two fifths
    of that.
    """
    results = []
    with Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps   {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        for recipe in RECIPES:
            own_steps = steps if recipe == PLAIN else steps * 2 // 5
            own_steps -= own_steps % EVALUATE_EVERY
            task = progress.add_task(recipe.name, total=own_steps * repeats, accuracy="")

            def report(accuracy: float, task: TaskID = task) -> None:
                progress.update(task, advance=EVALUATE_EVERY, accuracy=f"{accuracy:6.1%}")

            results.append(run(recipe, steps=own_steps, repeats=repeats, seed=seed, report=report))
    return results


def percent(share: float) -> str:
    """Return 0.9612 as "96.1 %"."""
    return f"{share:.1%}".replace("%", " %")


def key_steps(result: Result) -> list[int]:
    """Return the evaluated steps nearest to the key points."""
    count = len(result.steps)
    columns = (max(0, round(share * count) - 1) for share in KEY_POINTS)
    # Short runs have fewer evaluations than key points.
    return [int(result.steps[column]) for column in dict.fromkeys(columns)]


def runs_table(results: Sequence[Result], plain: Result) -> Table:
    """Return the table of the accuracy curves' key points and the steps to the plain best."""
    target = plain.best_accuracy()
    plain_steps = plain.steps_to(target)
    points = key_steps(plain)
    table = Table(
        title="Accuracy in % on the test digits after so many steps, mean of the repeats",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("network", no_wrap=True)
    for heading in ("rate", *(f"{step:,}" for step in points), "best"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"steps to\n{100 * target:.1f} %", justify="right", no_wrap=True)
    table.add_column("times\nfewer", justify="right", no_wrap=True, style="bold green")
    for result in results:
        curve = dict(zip(result.steps.tolist(), result.mean_accuracy.tolist(), strict=True))
        reached = result.steps_to(target)
        factor = plain_steps / reached if plain_steps and reached else None
        table.add_row(
            "batch norm" if result.recipe.batch_norm else "plain",
            f"{result.recipe.learning_rate:g}",
            *(f"{100 * curve[step]:.1f}" if step in curve else "" for step in points),
            f"{100 * result.best_accuracy():.1f}",
            "never" if reached is None else f"{reached:,}",
            "" if factor is None or result is plain else f"{factor:.1f}",
        )
    return table


def verdict(fastest: Result, plain: Result) -> str:
    """Return the sentence with the factor."""
    target = plain.best_accuracy()
    plain_steps, steps = plain.steps_to(target), fastest.steps_to(target)
    if plain_steps is None or steps is None:
        return "No network with batch norm reached the plain network's best accuracy: train longer."
    return (
        f"With batch norm the network needs [bold green]{plain_steps / steps:.1f} times fewer "
        f"steps[/] to reach the plain network's best accuracy of {percent(target)}: "
        f"{steps:,} instead of {plain_steps:,} (learning rate "
        f"{fastest.recipe.learning_rate:g}), and goes on to {percent(fastest.best_accuracy())}."
    )


def normalizations_table(measurements: Sequence[Measurement]) -> Table:
    """Return the table of times and errors."""
    table = Table(
        title="Its normalizations, float32, into an array that is there (times: medians)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("shape of x", no_wrap=True)
    for heading in ("fastnorm", "NumPy"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("speed-up", justify="right", no_wrap=True, style="bold green")
    for heading in ("largest error\nto float64", "NumPy's\nlargest error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in measurements:
        table.add_row(
            "x".join(map(str, one.shape)),
            f"{1e6 * one.fastnorm_seconds:,.0f} µs",
            f"{1e6 * one.numpy_seconds:,.0f} µs",
            f"{one.numpy_seconds / one.fastnorm_seconds:.1f}x",
            f"{one.fastnorm_error:.1e}",
            f"{one.numpy_error:.1e}",
        )
    return table


def main(
    steps: Annotated[
        int,
        typer.Option(
            min=5 * EVALUATE_EVERY, help="Steps of the plain network; the others take 2/5."
        ),
    ] = 2500,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights and minibatches.")] = 0,
    plot: Annotated[
        Path, typer.Option(dir_okay=False, help="Where to save the plot, a PNG.")
    ] = DEFAULT_PLOT,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short repeat, to see that everything works.")
    ] = False,
) -> None:
    """Train on handwritten digits with and without batch normalization and compare the two."""
    start = perf_counter()
    repeats = 1 if quick else 3
    steps = min(steps, 500) if quick else steps

    info = fn.info()
    console.rule("[bold]Batch normalization on handwritten digits")
    console.print(
        f"fastnorm {info['version']}, {info['isa']}, threads: {fn.get_num_threads()}\n"
        "5,000 MNIST digits, 1,000 of them for testing; convolutions and dense layers of sigmoid "
        f"units in NumPy; repeats with other seeds: {repeats}. Learning rate and initial weights "
        "are the best found for the plain network; batch norm is tried at the same rate and at "
        "higher ones, with weights at Glorot's usual scale.\n"
    )
    # Matrices this small gain nothing from more threads, and with one the results do not depend on
    # the number of cores.
    with threadpool_limits(limits=1, user_api="blas"):
        results = train_all(steps, repeats, seed)
        plain = next(result for result in results if result.recipe == PLAIN)
        target = plain.best_accuracy()
        fastest = min(
            (result for result in results if result.recipe.batch_norm),
            key=lambda result: (result.steps_to(target) or steps, -result.best_accuracy()),
        )
        trained_accuracy = accuracy_of(fastest.network, fastest.test)
        measurements = [
            measure(norm, x) for norm, x in normalizations(fastest.network, fastest.test.images)
        ]

    console.print()
    console.print(runs_table(results, plain))
    console.print(verdict(fastest, plain))
    save_plot(results, plot)
    console.print(f"Plot: {plot}\n", soft_wrap=True)
    console.print(
        f"The trained network ({fastest.recipe.name}) in inference mode, with its running "
        f"statistics, gets {percent(trained_accuracy)} of the {len(fastest.test.images):,} test "
        "digits right."
    )
    console.print(normalizations_table(measurements))
    console.print(f"Done in {perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    typer.run(main)
