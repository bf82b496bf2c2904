"""Layers: a normalization together with its parameters, running statistics and mode.

A layer owns arrays and remembers what backward needs; the ops of `fastnorm.functional` compute.
"""

from fastnorm.layers.batch import BatchNorm
from fastnorm.layers.group import GroupNorm
from fastnorm.layers.instance import InstanceNorm
from fastnorm.layers.layer import LayerNorm
from fastnorm.layers.rms import RMSNorm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]
