"""Every op in straight float64 NumPy: the definition that the kernels are tested against.

    z = (x - mean) * rstd * weight + bias + residual,    rstd = 1 / sqrt(var + eps)
    y = activation(z)

Slow on purpose. Arrays of any dtype go in, everything is computed and returned in float64 (but for
prenorm's sum, of x's dtype). The signatures are those of the ops without `out`, `sum_out`, `mask`,
`stream` and `device`, and so are the results, but that no mask is returned and that
`rms_norm_train` returns a mean, of zeros; arguments are not validated.
"""

from fastnorm.reference.activations import activate, activation_slope
from fastnorm.reference.channels import (
    batch_norm,
    batch_norm_backward,
    batch_norm_train,
    group_norm,
    group_norm_backward,
    group_norm_train,
    instance_norm,
    instance_norm_backward,
    instance_norm_train,
)
from fastnorm.reference.features import (
    FeatureNormForward,
    layer_norm,
    layer_norm_backward,
    layer_norm_train,
    rms_norm,
    rms_norm_backward,
    rms_norm_train,
)
from fastnorm.reference.rule import Forward, Gradients

__all__ = [
    "FeatureNormForward",
    "Forward",
    "Gradients",
    "activate",
    "activation_slope",
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
