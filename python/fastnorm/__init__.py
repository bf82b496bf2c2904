"""Normalization kernels for NumPy arrays, forward and backward.

The functions are `batch_norm`, `group_norm`, `instance_norm`, `layer_norm` and `rms_norm`, each
with a `_train` that also returns what its `_backward` needs; the layers `BatchNorm`, `GroupNorm`,
`InstanceNorm`, `LayerNorm` and `RMSNorm` keep parameters and running statistics.
`fastnorm.reference` defines in plain NumPy what they compute.
"""

from fastnorm import _core, cuda, reference
from fastnorm._core import CudaError
from fastnorm.activation import Activation, clip, leaky_relu
from fastnorm.explanation import Explanation, explain
from fastnorm.functional import (
    FeatureNormForward,
    NormForward,
    NormGradients,
    RMSNormForward,
    batch_norm,
    batch_norm_backward,
    batch_norm_train,
    group_norm,
    group_norm_backward,
    group_norm_train,
    instance_norm,
    instance_norm_backward,
    instance_norm_train,
    layer_norm,
    layer_norm_backward,
    layer_norm_train,
    rms_norm,
    rms_norm_backward,
    rms_norm_train,
)
from fastnorm.layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
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
    "CudaError",
    "Explanation",
    "FeatureNormForward",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "NormForward",
    "NormGradients",
    "RMSNorm",
    "RMSNormForward",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_train",
    "clear_buffer_cache",
    "clip",
    "cuda",
    "explain",
    "get_num_threads",
    "group_norm",
    "group_norm_backward",
    "group_norm_train",
    "info",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_train",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_train",
    "leaky_relu",
    "reference",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_train",
    "set_buffer_cache",
    "set_num_threads",
]
