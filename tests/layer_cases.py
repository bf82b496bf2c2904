"""A layer of three channels that has parameters of its own and has seen a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import fastnorm as fn
from cases import to_dtype

Array = npt.NDArray[Any]

NAMES = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def batch(seed: int = 0, shape: tuple[int, ...] = (6, 3, 5), dtype: str = "float32") -> Array:
    """Data with a mean of 1 and a deviation of 2."""
    rng = np.random.default_rng(seed)
    return (2.0 * rng.standard_normal(shape) + 1.0).astype(to_dtype(dtype))


def trained(**options: Any) -> fn.BatchNorm:
    """The layer, after one call."""
    bn = fn.BatchNorm(3, **options)
    if bn.weight is not None and bn.bias is not None:
        bn.weight[...] = [0.5, -1.0, 2.0]
        bn.bias[...] = [0.1, 0.2, 0.3]
    bn(batch(100))
    return bn
