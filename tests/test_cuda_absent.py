"""Without a CUDA device, or in a build without CUDA: errors say what is missing, all else works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastnorm as fn

if fn.cuda.is_available():
    pytest.skip("there is a CUDA device", allow_module_level=True)

MISSING = "(this fastnorm is built without CUDA|there is no CUDA device)"


class OnDevice:
    """What claims to be on a device."""

    def __init__(self) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (4096, False),
            "version": 3,
        }


def test_there_are_no_devices() -> None:
    assert fn.cuda.device_count() == 0
    assert not fn.cuda.is_available()


def test_errors_say_what_is_missing() -> None:
    x, one = np.ones((2, 3), np.float32), np.ones(3)
    with pytest.raises(fn.CudaError, match=f"^cuda.asarray: {MISSING}"):
        fn.cuda.asarray(x)
    with pytest.raises(fn.CudaError, match=f"^batch_norm: {MISSING}"):
        fn.batch_norm(x, one, one, device="cuda")
    with pytest.raises(fn.CudaError, match=f"^BatchNorm: {MISSING}"):
        fn.BatchNorm(3, device="cuda")
    with pytest.raises(fn.CudaError, match=f"^GroupNorm: {MISSING}"):
        fn.GroupNorm(1, 3, device="cuda")
    with pytest.raises(fn.CudaError, match=f"^InstanceNorm: {MISSING}"):
        fn.InstanceNorm(3, affine=True, device="cuda")
    with pytest.raises(fn.CudaError, match=f"^LayerNorm: {MISSING}"):
        fn.LayerNorm(3, device="cuda")
    with pytest.raises(fn.CudaError, match=f"^RMSNorm: {MISSING}"):
        fn.RMSNorm(3, device="cuda")
    device: Any = OnDevice()
    with pytest.raises(fn.CudaError):
        fn.batch_norm_train(device)
    assert issubclass(fn.CudaError, RuntimeError)
    np.testing.assert_allclose(fn.batch_norm(x, one, one), np.zeros((2, 3)), atol=1e-6)
