"""Time and error of the normalizations in a trained network: fastnorm beside plain NumPy.

Both compute y = (x - mean) / sqrt(var + eps) * weight + bias with the running statistics, from the
same arrays and into an array that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import fastnorm as fn
from fastnorm import reference
from network import Network

Array = npt.NDArray[Any]

ROUNDS = 50
# Elements that NumPy works on at a time: 512 KiB of float32, which second-level caches hold.
BLOCK = 128 * 1024


@dataclass(frozen=True)
class Measurement:
    """One normalization: seconds for a call (median), largest absolute error against float64."""

    shape: tuple[int, ...]
    fastnorm_seconds: float
    numpy_seconds: float
    fastnorm_error: float
    numpy_error: float


def numpy_batch_norm(
    x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float, out: Array
) -> None:
    """Normalize in plain NumPy, float32: the fastest of the formulations that were tried.

    Statistics and parameters fold into y = x * scale + shift. Spreading these over an image's
    elements gives NumPy long contiguous loops (broadcasting one value a channel took 1.4 times as
    long), and blocks of images are still in the cache when the second of the two passes comes.
    """
    scale = weight / np.sqrt(var + np.float32(eps))
    shift = bias - mean * scale
    pixels = x[0, 0].size
    scale, shift = np.repeat(scale, pixels), np.repeat(shift, pixels)
    x, out = x.reshape(len(x), -1), out.reshape(len(x), -1)
    images = max(1, BLOCK // x.shape[1])
    for start in range(0, len(x), images):
        block = out[start : start + images]
        np.multiply(x[start : start + images], scale, out=block)
        np.add(block, shift, out=block)


def normalizations(network: Network, images: Array) -> Iterator[tuple[fn.BatchNorm, Array]]:
    """Yield each normalization that the images meet, with its input."""
    network.train(False)
    x = network.first(images)
    for layer in network.rest:
        if isinstance(layer, fn.BatchNorm):
            yield layer, x
        x = layer(x)


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def measure(norm: fn.BatchNorm, x: Array) -> Measurement:
    """Time the normalization of x and compare the results with float64."""
    state = norm.state_dict()
    mean, var, weight, bias = (
        state[name] for name in ("running_mean", "running_var", "weight", "bias")
    )
    y, y_numpy = np.empty_like(x), np.empty_like(x)

    def with_fastnorm() -> None:
        fn.batch_norm(x, mean, var, weight, bias, eps=norm.eps, out=y)

    def with_numpy() -> None:
        numpy_batch_norm(x, mean, var, weight, bias, norm.eps, y_numpy)

    # In turn, so that whatever else the machine does in the meantime hits both.
    times = np.array([(seconds(with_fastnorm), seconds(with_numpy)) for _ in range(ROUNDS)])
    exact = reference.batch_norm(x, mean, var, weight, bias, eps=norm.eps)
    return Measurement(
        shape=x.shape,
        fastnorm_seconds=float(np.median(times[:, 0])),
        numpy_seconds=float(np.median(times[:, 1])),
        fastnorm_error=float(np.abs(y - exact).max()),
        numpy_error=float(np.abs(y_numpy - exact).max()),
    )
