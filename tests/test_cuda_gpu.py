"""What only a real GPU can show: graphs, streams, races, more than 2**31 elements.

Needs PyTorch with CUDA, on whose tensors it runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastnorm as fn
from cases import TIERS_OF_SHAPES
from on_device import host

if host.available or not fn.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)
torch: Any = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("this PyTorch has no CUDA", allow_module_level=True)

DTYPES = ("float32", "float64", "float16", "bfloat16")
SHAPES = tuple(TIERS_OF_SHAPES)


def _data(shape: tuple[int, ...], dtype: str, location: float = 0.0) -> dict[str, Any]:
    kind = getattr(torch, dtype)
    channels = shape[1]
    x = (torch.randn(shape, device="cuda") + location).to(kind)
    dy = torch.randn(shape, device="cuda").to(kind)
    vectors = torch.rand(2, channels, device="cuda") + 0.5
    return {"x": x, "dy": dy, "weight": vectors[0].clone(), "bias": vectors[1].clone()}


def _train_and_backward(d: dict[str, Any], **options: Any) -> list[Any]:
    fwd = fn.batch_norm_train(
        d["x"], d["weight"], d["bias"], out=torch.full_like(d["x"], float("nan")), **options
    )
    grads = fn.batch_norm_backward(
        *(d["dy"], d["x"], fwd.mean, fwd.rstd, d["weight"], d["bias"]),
        **{"mask": fwd.mask, "out": torch.full_like(d["x"], float("nan"))},
        **options,
    )
    torch.cuda.synchronize()
    return [a for a in (*fwd, *grads) if a is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_against_float64(shape: tuple[int, ...], dtype: str, channels_last: bool) -> None:
    """Fresh inputs, poisoned outputs, mean/sigma of 0 and 1000; twice, for the same bits."""
    # bfloat16 near 1000 has steps of 4: a channel may be constant.
    for location in (0.0, 100.0 if dtype == "bfloat16" else 1000.0):
        d = _data(shape, dtype, location)
        if channels_last:
            for name in ("x", "dy"):
                d[name] = d[name].contiguous(memory_format=torch.channels_last)
        found = _train_and_backward(d)
        again = _train_and_backward(d)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        y, mean, rstd, dx, dweight, dbias = found
        x, dy = d["x"].double(), d["dy"].double()
        axes, per_channel = (0, 2, 3), (1, -1, 1, 1)
        weight, bias = d["weight"].double(), d["bias"].double()
        true_mean, var = x.mean(axes), x.var(axes, unbiased=False)
        true_rstd = torch.rsqrt(var + 1e-5)
        xhat = (x - true_mean.view(per_channel)) * true_rstd.view(per_channel)
        expected = xhat * weight.view(per_channel) + bias.view(per_channel)
        unit = {"float32": 2e-7, "float64": 1e-15, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
        # The mean's rounding, in standard deviations: of 16-bit data it is a float32, else a
        # float64 (and so is the reference's).
        step = 6e-8 if unit > 1e-4 else 2.3e-16
        of_mean = location * step * float(true_rstd.max())
        assert float((y.double() - expected).abs().max()) < 16 * unit + 4 * of_mean
        torch.testing.assert_close(rstd.double(), true_rstd, rtol=1e-6, atol=0)
        torch.testing.assert_close(mean.double(), true_mean, rtol=1e-7, atol=1e-6)
        sum_dy = dy.sum(axes)
        sum_dy_xhat = (dy * xhat).sum(axes)
        count = x.numel() / shape[1]
        true_dx = (weight * true_rstd).view(per_channel) * (
            dy - sum_dy.view(per_channel) / count - xhat * sum_dy_xhat.view(per_channel) / count
        )
        assert float((dx.double() - true_dx).abs().max()) < 24 * unit + 4 * of_mean
        bound = 1e-5 * float(dy.abs().sum(axes).max())
        assert float((dbias.double() - sum_dy).abs().max()) < bound
        assert float((dweight.double() - sum_dy_xhat).abs().max()) < bound + of_mean * bound * 1e5


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_graph(shape: tuple[int, ...]) -> None:
    """A captured call does on every replay what it did on the first."""
    d = _data(shape, "float32")
    y, dx = torch.empty_like(d["x"]), torch.empty_like(d["x"])
    stream = torch.cuda.Stream()

    def calls() -> None:
        number = torch.cuda.current_stream().cuda_stream
        fwd = fn.batch_norm_train(
            d["x"], d["weight"], d["bias"], out=y, activation="relu", stream=number
        )
        fn.batch_norm_backward(
            *(d["dy"], d["x"], fwd.mean, fwd.rstd, d["weight"], d["bias"]),
            **{"mask": fwd.mask, "out": dx, "activation": "relu", "stream": number},
        )

    with torch.cuda.stream(stream):
        calls()
    torch.cuda.synchronize()
    expected = y.clone(), dx.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    for _ in range(3):
        y.fill_(float("nan"))
        dx.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, expected[0])
        assert torch.equal(dx, expected[1])


def test_calls_on_many_streams() -> None:
    """At once, each with scratch of its own."""
    streams = [torch.cuda.Stream() for _ in range(6)]
    data = [_data((64, 16, 128, 128), "float32") for _ in streams]
    expected = [_train_and_backward(d) for d in data]
    torch.cuda.synchronize()
    for _ in range(10):
        results = []
        for stream, d in zip(streams, data, strict=True):
            with torch.cuda.stream(stream):
                number = stream.cuda_stream
                results.append(fn.batch_norm_train(d["x"], d["weight"], d["bias"], stream=number))
        torch.cuda.synchronize()
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result.y, wanted[0])


def test_more_than_two_to_the_31_elements() -> None:
    x = torch.randn((2, 3, 1 << 29), device="cuda", dtype=torch.float16) + 1
    y = torch.full_like(x, float("nan"))
    fwd = fn.batch_norm_train(x, out=y)
    torch.cuda.synchronize()
    for c in range(3):
        part = x[:, c].double()
        assert abs(float(fwd.mean[c]) - float(part.mean())) < 1e-6
        end = (part[:, -4096:] - part.mean()) / part.std(unbiased=False)
        assert float((y[:, c, -4096:].double() - end).abs().max()) < 4e-3
        del part
    grads = fn.batch_norm_backward(x, x, fwd.mean, fwd.rstd, out=y)
    torch.cuda.synchronize()
    assert float(grads.dx.abs().max()) < 1e-2
    assert np.isfinite(float(grads.dweight[0]))


class _Interface:
    """An array that lies nowhere, of a library that has no memory to give."""

    def __init__(self, like: Any, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = like.__cuda_array_interface__ | {
            "shape": shape,
            "strides": (0,) * len(shape),
        }


def test_an_error_leaves_the_process_usable() -> None:
    x = torch.randn((2, 3, 8), device="cuda")
    with pytest.raises(fn.CudaError, match="there is no device"):
        fn.cuda.asarray(np.ones(3), device=63)
    with pytest.raises(fn.CudaError, match=r"bytes of memory: .*out of memory"):
        fn.batch_norm_train(_Interface(x, (1 << 12, 3, 1 << 26)))
    assert torch.isfinite(fn.batch_norm_train(x).y).all()


def test_layer_in_a_graph() -> None:
    """Its parameters are arrays of our own, made on another stream."""
    x = torch.randn((8, 64, 16, 16), device="cuda")
    layer = fn.BatchNorm(64, device="cuda", activation="relu")
    y = torch.empty_like(x)
    expected = fn.batch_norm_train(x, activation="relu").y
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        layer(x, out=y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        layer(x, out=y)
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(y, expected)
    # The running statistics saw two batches: what is read waits for the other stream's work.
    mean = 0.19 * x.double().mean((0, 2, 3))
    np.testing.assert_allclose(layer.state_dict()["running_mean"], mean.cpu().numpy(), atol=1e-6)


def test_the_current_stream_is_taken() -> None:
    """Nothing waits for results but what follows on PyTorch's own stream."""
    x = torch.randn((64, 64, 64, 64), device="cuda")
    expected = fn.batch_norm_train(x).y + 1
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for _ in range(5):
        with torch.cuda.stream(stream):
            found = fn.batch_norm_train(x).y + 1
        stream.synchronize()
        assert torch.equal(found, expected)


# Tokens, rows in a block, in a cluster and in two passes, rows that are no whole packs; groups.
NORMS = (
    ("layer_norm", (1, 4096)),
    ("layer_norm", (4096, 64)),
    ("layer_norm", (2048, 1600)),
    ("rms_norm", (512, 4096)),
    ("rms_norm", (64, 131072)),
    ("layer_norm", (1001, 777)),
    ("rms_norm", (1 << 20, 8)),
    ("group_norm", (2, 320, 64, 64)),
    ("group_norm", (2, 1280, 12, 12)),
    ("instance_norm", (4, 64, 128, 128)),
)


def _train_and_backward_of(norm: str, d: dict[str, Any], stream: Any = None) -> list[Any]:
    groups = (32,) if norm == "group_norm" else ()
    parameters = (d["weight"], None if norm == "rms_norm" else d["bias"])
    options: dict[str, Any] = {"activation": "relu", "stream": stream}
    fwd = getattr(fn, norm + "_train")(d["x"], *groups, *parameters, out=d["y"], **options)
    statistics = (fwd.rstd,) if norm == "rms_norm" else (fwd.mean, fwd.rstd)
    grads = getattr(fn, norm + "_backward")(
        *(d["dy"], d["x"], *groups, *statistics, *parameters),
        **options | {"mask": fwd.mask, "out": d["dx"]},
    )
    return [fwd.y, grads.dx, grads.dweight, *([] if norm == "rms_norm" else [grads.dbias])]


def _norm_data(norm: str, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    kind = getattr(torch, dtype)
    d = {name: torch.randn(shape, device="cuda").to(kind) for name in ("x", "dy")}
    d |= {name: torch.full_like(d["x"], float("nan")) for name in ("y", "dx")}
    vectors = torch.rand(2, shape[1], device="cuda").to(kind) + 0.5
    return d | {"weight": vectors[0].clone(), "bias": vectors[1].clone()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("norm", "shape"), NORMS)
def test_other_norms_against_float64(norm: str, shape: tuple[int, ...], dtype: str) -> None:
    d = _norm_data(norm, shape, dtype)
    found = [a.clone() for a in _train_and_backward_of(norm, d)]
    again = _train_and_backward_of(norm, d)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    x, weight, bias = (d[name].double().requires_grad_() for name in ("x", "weight", "bias"))
    functional = torch.nn.functional
    z = {
        "layer_norm": lambda: functional.layer_norm(x, shape[1:], weight, bias),
        "rms_norm": lambda: functional.rms_norm(x, shape[1:], weight, eps=1e-5),
        "group_norm": lambda: functional.group_norm(x, 32, weight, bias),
        "instance_norm": lambda: functional.instance_norm(x, weight=weight, bias=bias),
    }[norm]()
    # Where z is within rounding of the kink either side is right.
    unit = {"float32": 2e-7, "float64": 1e-15, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    clear = z.detach().abs() > 16 * unit
    d["dy"] *= clear
    found = _train_and_backward_of(norm, d)
    y = torch.relu(z)
    parameters = (weight,) if norm == "rms_norm" else (weight, bias)
    wanted = [y, *torch.autograd.grad(y, (x, *parameters), d["dy"].double())]
    for one, other in zip(found, wanted, strict=True):
        scale = float(other.abs().max())
        assert float((one.double() - other).abs().max()) < 32 * unit * scale


@pytest.mark.parametrize(("norm", "shape"), NORMS)
def test_other_norms_in_a_graph(norm: str, shape: tuple[int, ...]) -> None:
    d = _norm_data(norm, shape, "float32")
    kept: list[Any] = []

    def calls() -> None:
        number = torch.cuda.current_stream().cuda_stream
        kept[:] = _train_and_backward_of(norm, d, number)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls()
    torch.cuda.synchronize()
    expected = d["y"].clone(), d["dx"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        calls()
    for _ in range(3):
        d["y"].fill_(float("nan"))
        d["dx"].fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(d["y"], expected[0])
        assert torch.equal(d["dx"], expected[1])
