"""The same calls in PyTorch, gradients by its autograd; only where PyTorch is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastnorm as fn
from norm_cases import Case

torch = pytest.importorskip("torch")
F = torch.nn.functional

ACTIVATIONS: dict[Any, Callable[[Any], Any]] = {
    None: lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    fn.leaky_relu(0.2): lambda z: F.leaky_relu(z, 0.2),
    "clip": F.relu6,
    fn.clip(-1.0, 0.5): lambda z: F.hardtanh(z, -1.0, 0.5),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardswish": F.hardswish,
}
SHAPES = [(16, 5), (4, 5, 9), (3, 5, 7, 6), (2, 5, 3, 4, 5)]
CLOSE = {"float64": {"rtol": 1e-10, "atol": 1e-11}, "float32": {"rtol": 2e-4, "atol": 2e-5}}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_same_as_torch(activation: Any, training: bool, shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(3)
    x, residual, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    weight, bias, mean = (rng.standard_normal(5).astype(dtype) for _ in range(3))
    var = rng.uniform(0.5, 2.0, 5).astype(dtype)
    close = CLOSE[dtype]

    tx, tr, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, residual, weight, bias))
    tm, tv = torch.tensor(mean), torch.tensor(var)
    z = F.batch_norm(tx, tm, tv, tw, tb, training=training, momentum=0.3, eps=1e-3) + tr
    ty = ACTIVATIONS[activation](z)
    ty.backward(torch.tensor(dy))

    options: dict[str, Any] = {"activation": activation, "residual": residual}
    if training:
        fwd = fn.batch_norm_train(
            x,
            weight,
            bias,
            running_mean=mean,
            running_var=var,
            momentum=0.3,
            eps=1e-3,
            **options,
        )
        y, used, rstd, mask = fwd
        np.testing.assert_allclose(mean, tm.numpy(), **close)
        np.testing.assert_allclose(var, tv.numpy(), **close)
    else:
        y = fn.batch_norm(x, mean, var, weight, bias, eps=1e-3, **options)
        used, rstd, mask = mean, 1.0 / np.sqrt(var.astype(np.float64) + 1e-3), None
    np.testing.assert_allclose(y, ty.detach().numpy(), **close)
    for saved in {id(mask): mask, id(None): None}.values():
        grads = fn.batch_norm_backward(
            dy, x, used, rstd, weight, bias, training=training, mask=saved, **options
        )
        np.testing.assert_allclose(grads.dx, tx.grad.numpy(), **close)
        np.testing.assert_allclose(grads.dweight, tw.grad.numpy(), **close)
        np.testing.assert_allclose(grads.dbias, tb.grad.numpy(), **close)
        np.testing.assert_allclose(grads.dresidual, tr.grad.numpy(), **close)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_checkpoint_of_a_module(momentum: float | None) -> None:
    module = torch.nn.BatchNorm2d(6, momentum=momentum, dtype=torch.float64)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    rng = np.random.default_rng(4)
    batches = [rng.standard_normal((3, 6, 4, 5)) for _ in range(4)]
    for x in batches[:2]:
        module(torch.tensor(x))
    bn = fn.BatchNorm(6, momentum=momentum, dtype="float64")
    bn.load_state_dict({name: value.numpy() for name, value in module.state_dict().items()})
    # Training goes on from the checkpoint as the module does.
    for x in batches[2:3]:
        expected = module(torch.tensor(x)).detach().numpy()
        np.testing.assert_allclose(bn(x), expected, rtol=1e-11, atol=1e-12)
    expected = module.eval()(torch.tensor(batches[3])).detach().numpy()
    np.testing.assert_allclose(bn.eval()(batches[3]), expected, rtol=1e-11, atol=1e-12)
    state = bn.state_dict()
    assert list(state) == list(module.state_dict())
    for name, value in module.state_dict().items():
        np.testing.assert_allclose(state[name], value.numpy(), rtol=1e-12)
        assert state[name].shape == tuple(value.shape)


def _modules() -> dict[str, tuple[Any, Any]]:
    """Modules, and the layers that take their checkpoints."""
    tracked: dict[str, Any] = {"affine": True, "track_running_stats": True}
    nn = torch.nn
    return {
        "group": (nn.GroupNorm(2, 6), fn.GroupNorm(2, 6, dtype="float64")),
        "instance": (nn.InstanceNorm1d(6), fn.InstanceNorm(6, dtype="float64")),
        "tracked": (
            nn.InstanceNorm1d(6, **tracked),
            fn.InstanceNorm(6, **tracked, dtype="float64"),
        ),
        "layer": (nn.LayerNorm((6, 7)), fn.LayerNorm((6, 7), dtype="float64")),
        "no_bias": (nn.LayerNorm(7, bias=False), fn.LayerNorm(7, bias=False, dtype="float64")),
        "rms": (nn.RMSNorm(7, eps=1e-5), fn.RMSNorm(7, dtype="float64")),
    }


@pytest.mark.parametrize("name", ["group", "instance", "tracked", "layer", "no_bias", "rms"])
def test_checkpoints_of_the_other_norms(name: str) -> None:
    module, layer = _modules()[name]
    module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    rng = np.random.default_rng(4)
    batches = [rng.standard_normal((3, 6, 7)) for _ in range(3)]
    module(torch.tensor(batches[0]))
    layer.load_state_dict({key: value.numpy() for key, value in module.state_dict().items()})
    for x in batches[1:]:
        tx = torch.tensor(x, requires_grad=True)
        ty = module(tx)
        np.testing.assert_allclose(layer(x), ty.detach().numpy(), rtol=1e-10, atol=1e-12)
        dy = rng.standard_normal(x.shape)
        module.zero_grad()
        ty.backward(torch.tensor(dy))
        np.testing.assert_allclose(layer.backward(dy), tx.grad.numpy(), rtol=1e-9, atol=1e-11)
        for key, parameter in module.named_parameters():
            grad = getattr(layer, f"d{key}")
            np.testing.assert_allclose(grad, parameter.grad.numpy(), rtol=1e-9, atol=1e-11)
        module.eval()
        layer.eval()
    state = layer.state_dict()
    assert list(state) == list(module.state_dict())
    for key, value in module.state_dict().items():
        if key != "num_batches_tracked":  # which PyTorch's instance norm leaves at 0
            np.testing.assert_allclose(state[key], value.numpy(), rtol=1e-12)


def check_norm(case: Case, dtype: str, theirs: Callable[..., Any], eps: float = 1e-3) -> None:
    """y and every gradient of one norm with a residual and an activation, mask or none."""
    rng = np.random.default_rng(5)
    x, residual, dy = (rng.standard_normal(case.shape).astype(dtype) for _ in range(3))
    weight, bias = (rng.standard_normal(case.parameters_shape).astype(dtype) for _ in range(2))
    close = CLOSE[dtype]
    tx, tr, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, residual, weight, bias))
    ty = ACTIVATIONS[case.activation](theirs(tx, tw, tb, eps) + tr)
    ty.backward(torch.tensor(dy))

    options: dict[str, Any] = {"activation": case.activation, "residual": residual}
    options |= case.where()
    groups = (case.groups,) if case.norm == "group_norm" else ()
    fwd = case.op("_train")(x, *groups, weight, bias, eps=eps, **options)
    np.testing.assert_allclose(fwd.y, ty.detach().numpy(), **close)
    statistics = (fwd.rstd,) if case.norm == "rms_norm" else (fwd.mean, fwd.rstd)
    for mask in {id(m): m for m in (None, fwd.mask)}.values():
        grads = case.op("_backward")(
            dy, x, *groups, *statistics, weight, bias, mask=mask, **options
        )
        pairs = zip(grads, (tx, tw, tb, tr), strict=True)
        for gradient, tensor in pairs:
            np.testing.assert_allclose(gradient, tensor.grad.numpy(), **close)


EVERY_ACTIVATION = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
OF_DTYPES = pytest.mark.parametrize("dtype", CLOSE)


@OF_DTYPES
@pytest.mark.parametrize("axis", [-1, 2])
@EVERY_ACTIVATION
def test_layer_norm_as_torch_has_it(activation: Any, axis: int, dtype: str) -> None:
    case = Case("torch", "layer_norm", (3, 5, 7, 6), axis, activation=activation)
    shape = case.parameters_shape
    check_norm(case, dtype, lambda x, w, b, eps: F.layer_norm(x, shape, w, b, eps))


@OF_DTYPES
@pytest.mark.parametrize("axis", [-1, 2])
@EVERY_ACTIVATION
def test_rms_norm_as_torch_has_it(activation: Any, axis: int, dtype: str) -> None:
    case = Case("torch", "rms_norm", (3, 5, 7, 6), axis, activation=activation)
    shape = case.parameters_shape
    check_norm(case, dtype, lambda x, w, b, eps: F.rms_norm(x, shape, w, eps) + b)


@OF_DTYPES
@pytest.mark.parametrize("groups", [1, 2, 6])
@EVERY_ACTIVATION
def test_group_norm_as_torch_has_it(activation: Any, groups: int, dtype: str) -> None:
    case = Case("torch", "group_norm", (3, 6, 5, 7), 1, groups, activation=activation)
    check_norm(case, dtype, lambda x, w, b, eps: F.group_norm(x, groups, w, b, eps))


@OF_DTYPES
@EVERY_ACTIVATION
def test_instance_norm_as_torch_has_it(activation: Any, dtype: str) -> None:
    case = Case("torch", "instance_norm", (3, 6, 5, 7), 1, activation=activation)
    check_norm(case, dtype, lambda x, w, b, eps: F.instance_norm(x, weight=w, bias=b, eps=eps))


@OF_DTYPES
def test_running_statistics_of_instances(dtype: str) -> None:
    module = torch.nn.InstanceNorm1d(4, momentum=0.3, track_running_stats=True)
    module = module.to(getattr(torch, dtype))
    mean, var = np.zeros(4, dtype), np.ones(4, dtype)
    for x in np.random.default_rng(6).standard_normal((3, 5, 4, 9)).astype(dtype):
        expected = module(torch.tensor(x)).numpy()
        fwd = fn.instance_norm_train(x, running_mean=mean, running_var=var, momentum=0.3)
        np.testing.assert_allclose(fwd.y, expected, **CLOSE[dtype])
    np.testing.assert_allclose(mean, module.running_mean.numpy(), **CLOSE[dtype])
    np.testing.assert_allclose(var, module.running_var.numpy(), **CLOSE[dtype])


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_transformer_block_with_prenorm(norm: str) -> None:
    """Two norms along one residual stream, whose sum is returned and goes on; weights about 1."""
    rng = np.random.default_rng(8)
    x, branch, dy, dstream = rng.standard_normal((4, 3, 5, 16))
    weight = 0.1 * rng.standard_normal(16)
    tx, tb, tw = (torch.tensor(a, requires_grad=True) for a in (x, branch, weight))
    stream = tx + tb
    ty = getattr(F, norm)(stream, (16,), tw + 1.0, eps=1e-5)
    ((ty * torch.tensor(dy)).sum() + (stream * torch.tensor(dstream)).sum()).backward()

    case = Case("torch", norm, x.shape)
    fwd = case.op("_train")(x, weight, residual=branch, prenorm=True, weight_offset=1.0)
    np.testing.assert_allclose(fwd.y, ty.detach().numpy(), **CLOSE["float64"])
    np.testing.assert_allclose(fwd.sum, stream.detach().numpy(), **CLOSE["float64"])
    statistics = (fwd.rstd,) if norm == "rms_norm" else (fwd.mean, fwd.rstd)
    grads = case.op("_backward")(dy, fwd.sum, *statistics, weight, dsum=dstream, weight_offset=1.0)
    np.testing.assert_allclose(grads.dx, tx.grad.numpy(), **CLOSE["float64"])
    np.testing.assert_allclose(grads.dx, tb.grad.numpy(), **CLOSE["float64"])
    np.testing.assert_allclose(grads.dweight, tw.grad.numpy(), **CLOSE["float64"])
