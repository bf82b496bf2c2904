"""Training runs with and without batch normalization, at several learning rates.

Section 4.2 of the paper ("Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift", 2015) trains a network without batch normalization at the learning rate
chosen for it, and with it at that rate, at 5 and at 30 times that rate, and counts the steps to the
former's best accuracy. Section 4.1 uses sigmoid units, MNIST and minibatches of 60.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data import Digits, load_digits, minibatches
from network import SGD, Network, softmax_cross_entropy

Array = npt.NDArray[Any]

# The learning rate, momentum and gain were chosen for the plain network, the one that needs the
# choice. Tried with seed 0: gains of 1, 2 and 4, momentum 0.9 with rates from 0.01 to 0.3, and no
# momentum with rates from 0.1 to 3, for 2,500 to 4,000 steps. These reached the best accuracy; a
# rate of 0.03 is slower by far, 0.2 ends lower. With a gain of 1 the plain network stays at chance
# for its first 1,000 steps: a gain of 4 makes up for the sigmoid's slope of 1/4 at 0.
LEARNING_RATE = 0.1
MOMENTUM = 0.9
PLAIN_GAIN = 4.0
# The normalized one takes Glorot's formula as it is: normalized layers do not care for the scale of
# their weights, but their learning rate is relative to it (section 3.3), and a large one slows them
# down: with gains of 2 and 4, tried as well, the factor was 2.5 to 3.5, at 5 times the rate.
BATCH_NORM_GAIN = 1.0

BATCH_SIZE = 60
EVALUATE_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """What tells the runs apart."""

    batch_norm: bool
    rate_factor: int

    @property
    def learning_rate(self) -> float:
        """The learning rate of the run."""
        return LEARNING_RATE * self.rate_factor

    @property
    def name(self) -> str:
        """What tables and plots call the run."""
        network = "batch norm" if self.batch_norm else "plain"
        return network if self.rate_factor == 1 else f"{network}, {self.rate_factor}x rate"


PLAIN = Recipe(batch_norm=False, rate_factor=1)
RECIPES = (
    PLAIN,
    Recipe(batch_norm=False, rate_factor=5),
    Recipe(batch_norm=True, rate_factor=1),
    Recipe(batch_norm=True, rate_factor=5),
    Recipe(batch_norm=True, rate_factor=30),
)


@dataclass(frozen=True)
class Result:
    """Test accuracies of one recipe: one row a repeat, one column for each entry of ``steps``."""

    recipe: Recipe
    steps: Array
    accuracies: Array
    network: Network
    test: Digits

    @property
    def mean_accuracy(self) -> Array:
        """The accuracy curve: the mean over the repeats."""
        curve: Array = self.accuracies.mean(axis=0)
        return curve

    def best_accuracy(self) -> float:
        """Return the highest point of the accuracy curve."""
        return float(self.mean_accuracy.max())

    def steps_to(self, accuracy: float) -> int | None:
        """Return the first step at which the curve is at ``accuracy`` or above, None if never."""
        reached = np.flatnonzero(self.mean_accuracy >= accuracy)
        return int(self.steps[reached[0]]) if reached.size else None


def accuracy_of(network: Network, digits: Digits) -> float:
    """Return the share of digits that the network, in inference mode, gets right."""
    network.train(False)
    # In parts of a few hundred images, whose patches still fit into the processor's cache.
    parts = np.array_split(digits.images, max(1, len(digits.images) // 250))
    predictions = np.concatenate([network(part).argmax(axis=1) for part in parts])
    network.train(True)
    return float(np.mean(predictions == digits.labels))


def run(
    recipe: Recipe, *, steps: int, repeats: int, seed: int, report: Callable[[float], None]
) -> Result:
    """Train ``repeats`` networks for ``steps`` steps each and return their accuracies.

    Repeat r draws the split into training and test digits, the weights and the minibatches with
    ``seed`` + r, so that they are the same for every recipe (the weights but for their gain).
    ``report`` is called with the latest accuracy after each ``EVALUATE_EVERY`` steps.
    """
    evaluated = np.arange(EVALUATE_EVERY, steps + 1, EVALUATE_EVERY)
    accuracies = np.empty((repeats, len(evaluated)))
    for repeat in range(repeats):
        train, test = load_digits(seed + repeat)
        gain = BATCH_NORM_GAIN if recipe.batch_norm else PLAIN_GAIN
        network = Network(seed + repeat, batch_norm=recipe.batch_norm, gain=gain)
        optimizer = SGD(recipe.learning_rate, MOMENTUM)
        batches = minibatches(train, BATCH_SIZE, seed + repeat)
        for column in range(len(evaluated)):
            for _ in range(EVALUATE_EVERY):
                images, labels = next(batches)
                _, dlogits = softmax_cross_entropy(network(images), labels)
                network.backward(dlogits)
                optimizer.step(network)
            accuracies[repeat, column] = accuracy_of(network, test)
            report(accuracies[repeat, column])
    return Result(recipe, evaluated, accuracies, network, test)
