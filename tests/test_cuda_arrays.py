"""Arrays on a device: how they come in and go out, streams, copies, errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastnorm as fn
from cases import DTYPES, Case, make, to_dtype
from checks import assert_same_bits
from on_device import Foreign, host, to_device

if not fn.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

on_host = pytest.mark.skipif(not host.available, reason="the kernels run on a GPU")

CASE = Case("arrays", (3, 6, 4, 8), residual=True, activation="relu")


@pytest.mark.parametrize("dtype", [*DTYPES, "uint8"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4, 5), (2, 3, 0), ()])
def test_there_and_back(shape: tuple[int, ...], dtype: str) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(to_dtype(dtype))
    array = fn.cuda.asarray(values)
    assert array.shape == shape
    assert array.ndim == len(shape)
    assert array.dtype == values.dtype
    assert array.nbytes == values.nbytes
    assert array.strides == values.strides or values.size == 0
    assert array.device == 0
    assert_same_bits(array.numpy(), values)
    assert_same_bits(array.copy().numpy(), values)
    assert repr(array) == f"fastnorm.cuda.Array(shape={shape}, dtype={values.dtype}, device=0)"


def test_order_of_dimensions_is_kept() -> None:
    values = np.arange(24.0).reshape(2, 3, 4).transpose(0, 2, 1)
    array = fn.cuda.asarray(values)
    assert array.strides == values.strides
    assert_same_bits(array.numpy(), values)
    gaps = np.arange(48.0).reshape(2, 3, 8)[:, :, ::2]
    array = fn.cuda.asarray(gaps)
    assert array.strides == np.ascontiguousarray(gaps).strides
    assert_same_bits(array.numpy(), gaps)


def test_assign() -> None:
    array = fn.cuda.asarray(np.zeros((2, 3)))
    before = array.__cuda_array_interface__["data"]
    array.assign(np.arange(6.0).reshape(3, 2).T)
    assert_same_bits(array.numpy(), np.arange(6.0).reshape(3, 2).T.copy())
    assert array.__cuda_array_interface__["data"] == before
    with pytest.raises(ValueError, match=r"cuda\.Array\.assign: values has another shape"):
        array.assign(np.zeros((3, 2)))
    with pytest.raises(TypeError, match=r"cuda\.Array\.assign: values has dtype float32"):
        array.assign(np.zeros((2, 3), np.float32))


def test_results_are_arrays_of_our_own_where_x_is() -> None:
    data = make(CASE, "float32")
    fwd = fn.batch_norm_train(fn.cuda.asarray(data.x), activation="relu")
    assert all(isinstance(a, fn.cuda.Array) for a in fwd)


class _Library:
    """A library that takes DLPack."""

    @staticmethod
    def from_dlpack(array: Any) -> Any:
        return ("taken", array)


class _OfLibrary(Foreign):
    def __array_namespace__(self) -> type[_Library]:
        return _Library


def test_results_come_back_in_the_library_of_x() -> None:
    data = make(CASE, "float32")
    mean, var = fn.cuda.asarray(data.mean), fn.cuda.asarray(data.var)
    kind, y = fn.batch_norm(_OfLibrary(data.x), mean, var)
    assert kind == "taken"
    assert_same_bits(y.numpy(), fn.batch_norm(fn.cuda.asarray(data.x), mean, var).numpy())
    fwd = fn.batch_norm_train(_OfLibrary(data.x), activation="relu")
    assert [a[0] for a in fwd] == ["taken"] * 4
    out = _OfLibrary(np.zeros_like(data.x))
    assert fn.batch_norm(_OfLibrary(data.x), mean, var, out=out) is out
    assert_same_bits(out.numpy(), y.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_of_our_own(dtype: str) -> None:
    """Both versions of the struct say what the array is."""
    x = fn.cuda.asarray(np.arange(12).reshape(3, 4).T.astype(to_dtype(dtype)))
    assert x.__dlpack_device__() == (2, 0)

    class Reexported:
        """Not our own type, so that it is read through DLPack."""

        def __init__(self, version: tuple[int, int] | None) -> None:
            self.version = version

        def __dlpack_device__(self) -> tuple[int, int]:
            return x.__dlpack_device__()

        def __dlpack__(self, *, stream: Any, max_version: Any = None) -> Any:
            return x.__dlpack__(stream=stream, max_version=self.version)

    mean, var = fn.cuda.asarray(np.zeros(3)), fn.cuda.asarray(np.ones(3))
    expected = fn.batch_norm(x, mean, var).numpy()
    for version in (None, (0, 8), (1, 0), (1, 3)):
        y = fn.batch_norm(Reexported(version), mean, var)
        assert_same_bits(y.numpy(), expected)
    with pytest.raises(BufferError, match="its own device alone"):
        x.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="without a copy"):
        x.__dlpack__(copy=True)
    x.__dlpack__()  # nobody takes it


def test_interface_of_our_own() -> None:
    x = fn.cuda.asarray(np.zeros((2, 3), np.float16))
    interface = x.__cuda_array_interface__
    assert interface["shape"] == (2, 3)
    assert interface["typestr"] == "<f2"
    assert interface["strides"] == (6, 2)
    assert interface["version"] == 3
    assert interface["stream"] == 1
    bfloat = fn.cuda.asarray(np.zeros(3, to_dtype("bfloat16")))
    with pytest.raises(AttributeError, match="use DLPack"):
        _ = bfloat.__cuda_array_interface__


def test_through_a_device() -> None:
    """device= copies NumPy's arrays there and results back."""
    data = make(CASE, "float32")
    options: dict[str, Any] = {"residual": data.residual, "activation": "relu"}
    moved = {
        "residual": fn.cuda.asarray(data.residual),
        "activation": "relu",
    }
    arguments = (data.x, data.mean, data.var, data.weight, data.bias)
    y = fn.batch_norm(*arguments, **options, device="cuda")
    expected = fn.batch_norm(*map(fn.cuda.asarray, arguments), **moved).numpy()
    assert isinstance(y, np.ndarray)
    assert_same_bits(y, expected)
    out = np.zeros_like(data.x)
    assert fn.batch_norm(*arguments, **options, device="cuda:0", out=out) is out
    assert_same_bits(out, expected)
    in_place = data.x.copy()
    fn.batch_norm(in_place, *arguments[1:], **options, device="cuda", out=in_place)
    assert_same_bits(in_place, expected)

    running_mean = np.zeros(6)
    fwd = fn.batch_norm_train(data.x, **options, running_mean=running_mean, device="cuda")
    assert isinstance(fwd, fn.NormForward)
    assert all(isinstance(a, np.ndarray) for a in fwd)
    np.testing.assert_allclose(running_mean, 0.1 * fwd.mean, rtol=1e-6)
    grads = fn.batch_norm_backward(
        data.dy,
        data.x,
        fwd.mean,
        fwd.rstd,
        residual=True,
        mask=fwd.mask,
        activation="relu",
        device="cuda",
    )
    assert isinstance(grads, fn.NormGradients)
    assert all(isinstance(a, np.ndarray) for a in grads)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu", 0])
def test_device_that_is_none(device: Any) -> None:
    x, one = np.ones((2, 3), np.float32), np.ones(3)
    with pytest.raises(ValueError, match=r"batch_norm: device is .*, expected 'cuda', 'cuda"):
        fn.batch_norm(x, one, one, device=device)
    with pytest.raises(ValueError, match=r"BatchNorm: device is .*, expected 'cuda', 'cuda"):
        fn.BatchNorm(3, device=device)


def test_device_that_is_not_there() -> None:
    x, one = np.ones((2, 3), np.float32), np.ones(3)
    with pytest.raises(fn.CudaError, match="there is no device 63, expected 0 to"):
        fn.batch_norm(x, one, one, device="cuda:63")
    out = np.zeros_like(x)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fn.batch_norm(x, one, one, device="cuda", out=out)


def test_arrays_in_two_places() -> None:
    x, one = np.ones((2, 3), np.float32), np.ones(3)
    on_device = fn.cuda.asarray(x)
    with pytest.raises(ValueError, match="batch_norm: mean is on the CPU, expected cuda:0 as x is"):
        fn.batch_norm(on_device, one, one)
    with pytest.raises(ValueError, match="batch_norm: var is on cuda:0, expected the CPU as x is"):
        fn.batch_norm(x, one, fn.cuda.asarray(one))
    with pytest.raises(ValueError, match="batch_norm_train: out is on the CPU, expected cuda:0"):
        fn.batch_norm_train(on_device, out=x)
    with pytest.raises(ValueError, match="batch_norm: stream is given, expected None"):
        fn.batch_norm(x, one, one, stream=7)


def test_wrong_arrays() -> None:
    mean = var = fn.cuda.asarray(np.ones(3))
    integers = Foreign(np.ones((2, 3), np.uint8))
    with pytest.raises(TypeError, match="batch_norm: x has dtype uint8, expected float32"):
        fn.batch_norm(integers, mean, var)
    odd = Foreign(np.ones((2, 3), np.int32))
    with pytest.raises(TypeError, match="x has dtype of DLPack code 0 and 32 bits, expected float"):
        fn.batch_norm(odd, mean, var)
    x = Foreign(np.ones((2, 3), np.float32))
    interface = x._interface()

    class Described:
        def __init__(self, **changes: Any) -> None:
            self.__cuda_array_interface__ = interface | changes

    with pytest.raises(TypeError, match="batch_norm: x has dtype <i4, expected float32"):
        fn.batch_norm(Described(typestr="<i4"), mean, var)
    with pytest.raises(TypeError, match="batch_norm: x is a masked array"):
        fn.batch_norm(Described(mask=x), mean, var)
    with pytest.raises(ValueError, match="batch_norm: out is read-only"):
        fn.batch_norm(x, mean, var, out=Described(data=(x.pointer, True)))
    assert_same_bits(
        fn.batch_norm(Described(strides=None, stream=None), mean, var).numpy(),
        fn.batch_norm(x, mean, var).numpy(),
    )


class _Stream:
    def __init__(self, number: int, *, called: bool) -> None:
        self.__cuda_stream__: Any = (lambda: (0, number)) if called else (0, number)


@on_host
def test_streams() -> None:
    """Work goes where the caller says, behind what is done to the arrays elsewhere."""
    x = Foreign(np.ones((2, 3, 8), np.float32))
    mean = var = fn.cuda.asarray(np.ones(3))
    for stream, number, asked in [
        (None, 0, 1),
        (1, 0, 1),
        (2, 2, 2),
        (4096, 4096, 4096),
        (_Stream(4096, called=True), 4096, 4096),
        (_Stream(4096, called=False), 4096, 4096),
    ]:
        host.reset()
        x.streams.clear()
        y = fn.batch_norm(x, mean, var, stream=stream)
        assert [launch.stream for launch in host.launches()] == [number]
        assert x.streams == [asked]  # DLPack: the producer sees to it
        # Arrays of our own were made on the default stream, which then waits for the call.
        ordered = [(number, 0), (number, 0), (0, number)]
        assert host.waits() == ([] if number == 0 else ordered)
        host.reset()
        y.__dlpack__(stream=number or 1)
        assert host.waits() == []
        y.__dlpack__(stream=-1)
        assert host.waits() == []
        y.__dlpack__(stream=8192)
        assert host.waits() == [(8192, number)]
        assert y.__cuda_array_interface__["stream"] == (number or 1)

    class Described:
        __cuda_array_interface__ = x._interface() | {"stream": 512}

    host.reset()
    fn.batch_norm(Described(), mean, var)
    assert host.waits() == [(0, 512)]
    host.reset()
    fn.batch_norm(Described(), mean, var, stream=512)
    assert (512, 512) not in host.waits()


@pytest.mark.parametrize("stream", ["x", 1.5, _Stream, -1])
def test_wrong_streams(stream: Any) -> None:
    x = fn.cuda.asarray(np.ones((2, 3), np.float32))
    with pytest.raises((TypeError, ValueError), match="stream is"):
        fn.batch_norm_train(x, stream=stream)


@on_host
def test_memory_is_given_back() -> None:
    before = host.memory_in_use()
    data = make(CASE, "float16")
    x = fn.cuda.asarray(data.x)
    fwd = fn.batch_norm_train(x, activation="relu")
    assert host.memory_in_use() == before + 5
    del fwd
    assert host.memory_in_use() == before + 1
    with pytest.raises(ValueError, match="eps is -1"):
        fn.batch_norm_train(x, eps=-1.0)
    del x
    assert host.memory_in_use() == before


def test_mask_of_another_call_makes_results_nan() -> None:
    data = make(CASE, "float32")
    x, dy = to_device(data.x), to_device(data.dy)
    fwd = fn.batch_norm_train(x, activation="relu")
    for activation in ("leaky_relu", fn.clip(0.0, 2.0)):
        grads = fn.batch_norm_backward(
            dy, x, fwd.mean, fwd.rstd, residual=True, activation=activation, mask=fwd.mask
        )
        assert all(np.isnan(a.numpy()).all() for a in grads)
    with pytest.raises(ValueError, match="mask has shape"):
        fn.batch_norm_backward(
            dy, x, fwd.mean, fwd.rstd, activation="relu", mask=fn.cuda.asarray(np.ones(9, "u1"))
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_elements(dtype: str) -> None:
    for shape in ((0, 3), (2, 3, 0), (2, 0), (0, 3, 4, 5)):
        x = fn.cuda.asarray(np.zeros(shape, to_dtype(dtype)))
        running = fn.cuda.asarray(np.full(shape[1], 2.0))
        fwd = fn.batch_norm_train(x, running_mean=running, activation="relu")
        assert fwd.y.shape == shape
        assert np.isnan(fwd.mean.numpy()).all()
        assert np.isnan(fwd.rstd.numpy()).all()
        assert (running.numpy() == 2.0).all()
        grads = fn.batch_norm_backward(x, x, fwd.mean, fwd.rstd, activation="relu", mask=fwd.mask)
        assert (grads.dweight.numpy() == 0).all()
        assert grads.dx.shape == shape


def test_example_of_the_readme() -> None:
    readme = Path(__file__).resolve().parent.parent / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    names: dict[str, Any] = {"np": np, "fn": fn}
    (example,) = (block for block in blocks if "fn.cuda.asarray" in block)
    exec(compile(example, "README.md", "exec"), names)
    assert isinstance(names["fwd"].y, fn.cuda.Array)
    assert isinstance(names["bn"].weight, fn.cuda.Array)
    assert isinstance(names["y"], np.ndarray)
    assert isinstance(names["z"], fn.cuda.Array)


def _layers() -> tuple[fn.BatchNorm, fn.BatchNorm]:
    return fn.BatchNorm(6, activation="relu"), fn.BatchNorm(6, activation="relu", device="cuda")


def test_layer() -> None:
    data = make(CASE, "float32")
    on_cpu, on_device = _layers()
    rng = np.random.default_rng(3)
    state = {
        "weight": rng.standard_normal(6),
        "bias": rng.standard_normal(6),
        "running_mean": rng.standard_normal(6),
        "running_var": rng.uniform(1, 2, 6),
    }
    for layer in (on_cpu, on_device):
        layer.load_state_dict(state | {"num_batches_tracked": 3})
    assert isinstance(on_device.weight, fn.cuda.Array)
    for mode in (True, False):
        on_cpu.train(mode)
        on_device.train(mode)
        y = on_cpu(data.x, residual=data.residual)
        y2 = on_device(to_device(data.x), residual=to_device(data.residual))
        np.testing.assert_allclose(y2.numpy(), y, rtol=1e-5, atol=1e-5)
        dx = on_cpu.backward(data.dy)
        launched = len(host.launches()) if host.available else 0
        dx2 = on_device.backward(to_device(data.dy))
        if host.available and not mode:  # rstd is not waited for
            assert [launch.kernel for launch in host.launches()][launched] == "rstd"
        np.testing.assert_allclose(dx2.numpy(), dx, rtol=1e-4, atol=1e-5)
        for name in ("dweight", "dbias", "dresidual"):
            np.testing.assert_allclose(
                getattr(on_device, name).numpy(), getattr(on_cpu, name), rtol=1e-4, atol=1e-4
            )
    for name, value in on_cpu.state_dict().items():
        np.testing.assert_allclose(on_device.state_dict()[name], value, rtol=1e-5)
    # All or none, whatever the layer's arrays were replaced by.
    before = on_device.weight.numpy()
    on_device.bias = fn.cuda.asarray(np.ones(5))
    with pytest.raises(ValueError, match=r"the layer's bias has shape \(5,\), expected \(6,\)"):
        on_device.load_state_dict(state)
    assert_same_bits(on_device.weight.numpy(), before)
    on_device.bias = fn.cuda.asarray(np.ones(6))
    # Without elements there is nothing that out= could have overwritten.
    nothing = to_device(np.ones((0, 6, 2), np.float32))
    on_device(nothing, out=nothing)
    assert on_device.backward(nothing).shape == (0, 6, 2)
    x = to_device(data.x)
    on_device(x, out=x)
    with pytest.raises(RuntimeError, match="no input to differentiate at"):
        on_device.backward(to_device(data.dy))
    with pytest.raises(ValueError, match=r"BatchNorm: x has shape \(2, 5\), expected 6 channels"):
        on_device(fn.cuda.asarray(np.ones((2, 5), np.float32)))
    with pytest.raises(ValueError, match="is on the CPU, expected cuda:0 as x is"):
        on_cpu(to_device(data.x))
