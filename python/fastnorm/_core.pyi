from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from fastnorm.activation import Activation

_Array = npt.NDArray[Any]

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
) -> tuple[_Array, _Array, _Array, _Array | None]: ...
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
