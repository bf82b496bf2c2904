"""The ops on NumPy arrays and on arrays on CUDA devices.

Each is one call of the compiled core, which checks every argument and computes where x is.
"""

from fastnorm.functional.batch import batch_norm, batch_norm_backward, batch_norm_train
from fastnorm.functional.group import group_norm, group_norm_backward, group_norm_train
from fastnorm.functional.instance import (
    instance_norm,
    instance_norm_backward,
    instance_norm_train,
)
from fastnorm.functional.layer import layer_norm, layer_norm_backward, layer_norm_train
from fastnorm.functional.results import (
    Array,
    FeatureNormForward,
    NormForward,
    NormGradients,
    RMSNormForward,
)
from fastnorm.functional.rms import rms_norm, rms_norm_backward, rms_norm_train

__all__ = [
    "Array",
    "FeatureNormForward",
    "NormForward",
    "NormGradients",
    "RMSNormForward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_train",
    "group_norm",
    "group_norm_backward",
    "group_norm_train",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_train",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_train",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_train",
]
