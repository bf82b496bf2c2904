"""Normalization kernels for NumPy arrays, forward and backward.

The functions are `batch_norm`, `batch_norm_train` and `batch_norm_backward`; the layer `BatchNorm`
keeps parameters and running statistics. `fastnorm.reference` defines in plain NumPy what they
compute.
"""

from fastnorm import _core, cuda, reference
from fastnorm._core import CudaError
from fastnorm.activation import Activation, clip, leaky_relu
from fastnorm.explanation import Explanation, explain
from fastnorm.functional import (
    BatchNormForward,
    BatchNormGradients,
    batch_norm,
    batch_norm_backward,
    batch_norm_train,
)
from fastnorm.layers import BatchNorm
from fastnorm.process import (
    clear_buffer_cache,
    get_num_threads,
    info,
    set_buffer_cache,
    set_num_threads,
)

__version__ = _core.version()

__all__ = [
    "Activation",
    "BatchNorm",
    "BatchNormForward",
    "BatchNormGradients",
    "CudaError",
    "Explanation",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_train",
    "clear_buffer_cache",
    "clip",
    "cuda",
    "explain",
    "get_num_threads",
    "info",
    "leaky_relu",
    "reference",
    "set_buffer_cache",
    "set_num_threads",
]
