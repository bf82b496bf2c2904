from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastnorm.activation import Activation

# NumPy's, or another library's on a CUDA device.
_Array: TypeAlias = Any

class CudaError(RuntimeError): ...

class Array:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def device(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def numpy(self) -> npt.NDArray[Any]: ...
    def copy(self) -> Array: ...
    def assign(self, values: npt.NDArray[Any]) -> None: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

def batch_norm(
    x: _Array,
    mean: _Array,
    var: _Array,
    weight: _Array | None,
    bias: _Array | None,
    eps: float,
    channel_axis: int,
    residual: _Array | None,
    activation: Activation | None,
    out: _Array | None,
    stream: Any,
) -> _Array: ...
def batch_norm_train(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    running_mean: _Array | None,
    running_var: _Array | None,
    momentum: float,
    unbiased: bool,
    eps: float,
    channel_axis: int,
    residual: _Array | None,
    activation: Activation | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
def batch_norm_backward(
    dy: _Array,
    x: _Array,
    mean: _Array,
    rstd: _Array,
    weight: _Array | None,
    bias: _Array | None,
    training: bool,
    channel_axis: int,
    residual: _Array | bool | None,
    activation: Activation | None,
    mask: _Array | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
def group_norm(
    x: _Array,
    groups: int,
    weight: _Array | None,
    bias: _Array | None,
    eps: float,
    channel_axis: int,
    residual: _Array | None,
    activation: Activation | None,
    out: _Array | None,
    stream: Any,
) -> _Array: ...
def group_norm_train(
    x: _Array,
    groups: int,
    weight: _Array | None,
    bias: _Array | None,
    eps: float,
    channel_axis: int,
    residual: _Array | None,
    activation: Activation | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
def group_norm_backward(
    dy: _Array,
    x: _Array,
    groups: int,
    mean: _Array,
    rstd: _Array,
    weight: _Array | None,
    bias: _Array | None,
    channel_axis: int,
    residual: _Array | bool | None,
    activation: Activation | None,
    mask: _Array | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
def instance_norm(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    eps: float,
    channel_axis: int,
    residual: _Array | None,
    activation: Activation | None,
    out: _Array | None,
    stream: Any,
) -> _Array: ...
def instance_norm_train(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    running_mean: _Array | None,
    running_var: _Array | None,
    momentum: float,
    unbiased: bool,
    eps: float,
    channel_axis: int,
    residual: _Array | None,
    activation: Activation | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
def instance_norm_backward(
    dy: _Array,
    x: _Array,
    mean: _Array,
    rstd: _Array,
    weight: _Array | None,
    bias: _Array | None,
    channel_axis: int,
    residual: _Array | bool | None,
    activation: Activation | None,
    mask: _Array | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
def check_instance_norm(op: str, x: _Array, channel_axis: int) -> None: ...
def layer_norm(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    axis: int,
    eps: float,
    residual: _Array | None,
    prenorm: bool,
    weight_offset: float,
    activation: Activation | None,
    out: _Array | None,
    sum_out: _Array | None,
    stream: Any,
) -> Any: ...
def layer_norm_train(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    axis: int,
    eps: float,
    residual: _Array | None,
    prenorm: bool,
    weight_offset: float,
    activation: Activation | None,
    out: _Array | None,
    sum_out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None, _Array | None]: ...
def layer_norm_backward(
    dy: _Array,
    x: _Array,
    mean: _Array,
    rstd: _Array,
    weight: _Array | None,
    bias: _Array | None,
    axis: int,
    residual: _Array | bool | None,
    dsum: _Array | None,
    weight_offset: float,
    activation: Activation | None,
    mask: _Array | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
def rms_norm(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    axis: int,
    eps: float,
    residual: _Array | None,
    prenorm: bool,
    weight_offset: float,
    cast_before_weight: bool,
    activation: Activation | None,
    out: _Array | None,
    sum_out: _Array | None,
    stream: Any,
) -> Any: ...
def rms_norm_train(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    axis: int,
    eps: float,
    residual: _Array | None,
    prenorm: bool,
    weight_offset: float,
    cast_before_weight: bool,
    activation: Activation | None,
    out: _Array | None,
    sum_out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array | None, _Array | None]: ...
def rms_norm_backward(
    dy: _Array,
    x: _Array,
    rstd: _Array,
    weight: _Array | None,
    bias: _Array | None,
    axis: int,
    residual: _Array | bool | None,
    dsum: _Array | None,
    weight_offset: float,
    activation: Activation | None,
    mask: _Array | None,
    out: _Array | None,
    stream: Any,
) -> tuple[_Array, _Array, _Array | None, _Array | None]: ...
def same_memory(a: _Array, b: _Array) -> bool: ...
def check_memory(
    op: str, arrays: dict[str, npt.NDArray[Any]], written: dict[str, str | None]
) -> None: ...
def cuda_asarray(
    array: npt.NDArray[Any], device: int, stream: Any, op: str, argument: str
) -> Array: ...
def cuda_device_count() -> int: ...
def cuda_rstd_of(var: Array, eps: float, stream: Any) -> Array: ...
def cuda_why_unavailable() -> str: ...
def explain(call: Callable[[], object]) -> dict[str, Any]: ...
def activations() -> dict[str, tuple[tuple[str, float], ...]]: ...
def check_activation(name: str, alpha: float, beta: float) -> None: ...
def version() -> str: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def openmp_runtime() -> str: ...
def set_buffer_cache(limit: int) -> None: ...
def clear_buffer_cache() -> None: ...
def buffer_cache() -> tuple[int, int]: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
