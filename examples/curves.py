"""The plot of the training runs: accuracy against steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, StrMethodFormatter

from training import PLAIN, Result

# One hue for each network, a shade for each learning rate.
COLORS = {False: {1: "#d1495b", 5: "#e8a0a8"}, True: {1: "#7fb7e6", 5: "#1f77c9", 30: "#0b3c6f"}}
PERCENT_TICKS = (10, 25, 50, 75, 90, 95, 97, 98)


def save_plot(results: Sequence[Result], path: Path) -> None:
    """Save the accuracy curves as a PNG: means as lines, the repeats' range as shades."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    # Accuracies between chance and 98 % have room side by side only on a scale of log-odds.
    axes.set_yscale("logit")
    target = next(result for result in results if result.recipe == PLAIN).best_accuracy()
    axes.axhline(target, color="#444444", linewidth=1, linestyle="--", zorder=1)
    last = max(int(result.steps[-1]) for result in results)
    axes.annotate(
        f"plain network's best: {target:.1%}",
        (0.6 * last, target),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        color="#444444",
    )
    for result in results:
        color = COLORS[result.recipe.batch_norm][result.recipe.rate_factor]
        low, high = result.accuracies.min(axis=0), result.accuracies.max(axis=0)
        axes.fill_between(result.steps, low, high, color=color, alpha=0.12, linewidth=0)
        label = f"{result.recipe.name} ({result.recipe.learning_rate:g})"
        axes.plot(result.steps, result.mean_accuracy, color=color, linewidth=1.8, label=label)
    mark_arrivals(axes, results, target)
    axes.set_xlim(0, last * 1.02)
    axes.set_ylim(0.07, 0.985)
    axes.yaxis.set_major_locator(FixedLocator([tick / 100 for tick in PERCENT_TICKS]))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{tick} %" for tick in PERCENT_TICKS]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("training steps (minibatches)")
    axes.set_ylabel("accuracy on the test digits")
    axes.set_title(
        "Handwritten digits, sigmoid units: training with and without batch normalization",
        loc="left",
    )
    axes.legend(title="network (learning rate)", loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)


def mark_arrivals(axes: Axes, results: Sequence[Result], target: float) -> None:
    """Mark where the curves reach the target, with the number of steps."""
    arrivals = [(result.steps_to(target), result.recipe) for result in results]
    reached = sorted(
        ((steps, recipe) for steps, recipe in arrivals if steps is not None),
        key=lambda arrival: arrival[0],
    )
    for order, (steps, recipe) in enumerate(reached):
        color = COLORS[recipe.batch_norm][recipe.rate_factor]
        axes.plot([steps], [target], "o", color=color, markeredgecolor="white", zorder=4)
        # The first number goes to the left of its mark: the next one is often close by.
        axes.annotate(
            f"{steps:,}",
            (steps, target),
            xytext=(4 if order else -4, 10),
            textcoords="offset points",
            ha="left" if order and recipe != PLAIN else "right",
            color=color,
            fontweight="bold",
        )
