"""The BatchNorm layer: options, mode and backward, step by step against the reference."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import DTYPES, to_dtype
from fastnorm import reference
from layer_cases import NAMES, batch, trained

Array = npt.NDArray[Any]


def test_initial_state() -> None:
    bn = fn.BatchNorm(3)
    assert bn.training
    state = bn.state_dict()
    assert list(state) == NAMES
    np.testing.assert_array_equal(state["weight"], np.ones(3))
    np.testing.assert_array_equal(state["bias"], np.zeros(3))
    np.testing.assert_array_equal(state["running_mean"], np.zeros(3))
    np.testing.assert_array_equal(state["running_var"], np.ones(3))
    assert state["num_batches_tracked"].shape == ()
    assert state["num_batches_tracked"].dtype == np.int64
    assert state["num_batches_tracked"] == 0
    assert bn.dweight is None
    assert bn.dbias is None
    assert bn.dresidual is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_that_of_the_parameters(dtype: str) -> None:
    for given in (dtype, to_dtype(dtype)):
        bn = fn.BatchNorm(3, dtype=given)
        for array in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            assert array is not None
            assert array.dtype == to_dtype(dtype)
        assert bn(batch()).dtype == np.float32
        bn.backward(batch(1))
        assert bn.dweight is not None
        assert bn.dweight.dtype == to_dtype(dtype)


def test_mode() -> None:
    bn = fn.BatchNorm(3)
    assert bn.eval() is bn
    assert not bn.training
    assert bn.train() is bn
    assert bn.training
    assert not bn.train(False).training


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_steps_against_the_reference(activation: str | None, momentum: float | None) -> None:
    bn = fn.BatchNorm(3, momentum=momentum, activation=activation, dtype="float64", eps=1e-3)
    assert bn.weight is not None
    assert bn.bias is not None
    weight, bias = np.ones(3), np.zeros(3)
    mean, var = np.zeros(3), np.ones(3)
    for step in range(4):
        x, dy = batch(step, dtype="float64"), batch(50 + step, dtype="float64")
        new = 1.0 / (step + 1) if momentum is None else momentum
        expected = reference.batch_norm_train(
            x,
            weight,
            bias,
            running_mean=mean,
            running_var=var,
            momentum=new,
            eps=1e-3,
            activation=activation,
        )
        np.testing.assert_allclose(bn(x), expected.y, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-13)
        np.testing.assert_allclose(bn.running_var, var, rtol=1e-13)
        assert bn.num_batches_tracked == step + 1

        grads = reference.batch_norm_backward(
            dy, x, expected.mean, expected.rstd, weight, bias, activation=activation
        )
        np.testing.assert_allclose(bn.backward(dy), grads.dx, rtol=1e-11, atol=1e-12)
        assert bn.dweight is not None
        assert bn.dbias is not None
        np.testing.assert_allclose(bn.dweight, grads.dweight, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(bn.dbias, grads.dbias, rtol=1e-11, atol=1e-12)
        assert bn.dresidual is None
        bn.weight -= 0.1 * bn.dweight
        bn.bias -= 0.1 * bn.dbias
        weight -= 0.1 * grads.dweight
        bias -= 0.1 * grads.dbias

    x, dy = batch(9, dtype="float64"), batch(10, dtype="float64")
    y = bn.eval()(x)
    np.testing.assert_allclose(
        y,
        reference.batch_norm(x, mean, var, weight, bias, eps=1e-3, activation=activation),
        rtol=1e-11,
        atol=1e-12,
    )
    rstd = 1.0 / np.sqrt(var + 1e-3)
    grads = reference.batch_norm_backward(
        dy, x, mean, rstd, weight, bias, training=False, activation=activation
    )
    np.testing.assert_allclose(bn.backward(dy), grads.dx, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(bn.dweight, grads.dweight, rtol=1e-10, atol=1e-12)
    assert bn.num_batches_tracked == 4


def test_cumulative_average() -> None:
    bn = fn.BatchNorm(3, momentum=None, dtype="float64")
    batches = [batch(seed, dtype="float64") for seed in range(5)]
    for x in batches:
        bn(x)
    means = [x.mean(axis=(0, 2)) for x in batches]
    variances = [x.var(axis=(0, 2), ddof=1) for x in batches]
    np.testing.assert_allclose(bn.running_mean, np.mean(means, axis=0))
    np.testing.assert_allclose(bn.running_var, np.mean(variances, axis=0))


@pytest.mark.parametrize("activation", [None, "relu", "clip", "gelu", fn.leaky_relu(0.3)])
@pytest.mark.parametrize("training", [True, False])
def test_residual(training: bool, activation: Any) -> None:
    bn = trained(activation=activation).train(training)
    x, residual, dy = batch(1), batch(2), batch(3)
    if training:
        fwd = reference.batch_norm_train(
            x, bn.weight, bn.bias, residual=residual, activation=activation
        )
        y, mean, rstd = fwd
    else:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        mean, var = bn.running_mean.copy(), bn.running_var.copy()
        rstd = 1.0 / np.sqrt(var.astype(np.float64) + 1e-5)
        y = reference.batch_norm(
            x, mean, var, bn.weight, bn.bias, residual=residual, activation=activation
        )
    np.testing.assert_allclose(bn(x, residual=residual), y, rtol=1e-5, atol=1e-5)
    expected = reference.batch_norm_backward(
        dy,
        x,
        mean,
        rstd,
        bn.weight,
        bn.bias,
        training=training,
        residual=residual,
        activation=activation,
    )
    np.testing.assert_allclose(bn.backward(dy), expected.dx, rtol=1e-4, atol=1e-5)
    assert bn.dresidual is not None
    np.testing.assert_allclose(bn.dresidual, expected.dresidual, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bn.dweight, expected.dweight, rtol=1e-4, atol=1e-4)
    # A call without a residual has no gradient of one.
    bn(x)
    bn.backward(dy)
    assert bn.dresidual is None


def test_channels_last_and_out() -> None:
    bn = fn.BatchNorm(5, channel_axis=-1)
    x, out = batch(), np.empty((6, 3, 5), np.float32)
    assert bn(x, out=out) is out
    np.testing.assert_allclose(out, reference.batch_norm_train(x, channel_axis=-1).y, atol=1e-5)
    dx = np.empty_like(x)
    assert bn.backward(batch(1), out=dx) is dx


def test_in_place_call_has_no_backward() -> None:
    bn = trained()
    x, expected = batch(1), bn(batch(1))
    assert bn(x, out=x) is x
    np.testing.assert_array_equal(x, expected)
    with pytest.raises(RuntimeError, match=r"BatchNorm\.backward"):
        bn.backward(batch(2))


def test_out_between_the_elements_of_x_is_not_in_place() -> None:
    bn = trained().eval()
    dy = batch(2)
    bn(batch(1))
    expected = bn.backward(dy)
    both = np.empty((6, 3, 10), np.float32)
    both[..., ::2] = batch(1)
    bn(both[..., ::2], out=both[..., 1::2])
    np.testing.assert_allclose(bn.backward(dy), expected, rtol=1e-6)


def test_without_backward_nothing_of_a_call_is_kept() -> None:
    bn = trained()
    x = batch(1)
    expected = bn.eval()(x)
    bn.backward(batch(2))
    references = sys.getrefcount(x)
    assert bn.eval(backward=False) is bn
    assert not bn.training
    assert sys.getrefcount(x) == references - 1  # that of the call before is gone
    np.testing.assert_array_equal(bn(x), expected)
    assert sys.getrefcount(x) == references - 1
    with pytest.raises(RuntimeError, match=r"BatchNorm\.backward: .*backward=False"):
        bn.backward(batch(2))
    bn.eval()
    bn(x)
    bn.backward(batch(2))
    bn.eval(backward=False).train()
    bn(x)
    bn.backward(batch(2))
    bn.eval(backward=False).training = True
    bn(x)
    bn.backward(batch(2))


def test_without_backward_nor_running_statistics() -> None:
    bn = fn.BatchNorm(3, track_running_stats=False)
    y = bn(batch())
    np.testing.assert_array_equal(bn.eval(backward=False)(batch()), y)
    with pytest.raises(RuntimeError, match=r"BatchNorm\.backward"):
        bn.backward(batch(2))


def test_backward_before_a_call() -> None:
    with pytest.raises(RuntimeError, match=r"BatchNorm\.backward"):
        fn.BatchNorm(3).backward(batch())


def test_backward_uses_the_statistics_of_its_call() -> None:
    bn = trained().eval()
    x, dy = batch(1), batch(2)
    bn(x)
    expected = bn.backward(dy)
    bn(x)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean += 1.0
    bn.running_var *= 2.0
    bn.eps = 1.0
    np.testing.assert_array_equal(bn.backward(dy), expected)


class TestWithoutParts:
    """affine=False and track_running_stats=False."""

    def test_not_affine(self) -> None:
        bn = fn.BatchNorm(3, affine=False)
        assert bn.weight is None
        assert bn.bias is None
        assert list(bn.state_dict()) == NAMES[2:]
        x, dy = batch(), batch(1)
        y = bn(x)
        expected = reference.batch_norm_train(x)
        np.testing.assert_allclose(y, expected.y, atol=1e-5)
        dx = bn.backward(dy)
        grads = reference.batch_norm_backward(dy, x, expected.mean, expected.rstd)
        np.testing.assert_allclose(dx, grads.dx, atol=1e-5)
        assert bn.dweight is None
        assert bn.dbias is None

    def test_not_tracking_uses_the_batch_in_both_modes(self) -> None:
        bn = fn.BatchNorm(3, track_running_stats=False)
        assert bn.running_mean is None
        assert bn.running_var is None
        assert bn.num_batches_tracked is None
        assert list(bn.state_dict()) == NAMES[:2]
        x, dy = batch(), batch(1)
        y, dx = bn(x), bn.backward(dy)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bn.eval()
            np.testing.assert_array_equal(bn(x), y)
        np.testing.assert_array_equal(bn.backward(dy), dx)

    def test_neither(self) -> None:
        bn = fn.BatchNorm(3, affine=False, track_running_stats=False)
        assert bn.state_dict() == {}
        bn.load_state_dict({})
        assert bn(batch()).shape == (6, 3, 5)
        with pytest.raises(ValueError, match=r"x has shape \(6, 4\), expected 3 channels"):
            bn(np.ones((6, 4), np.float32))


def test_failed_call_changes_nothing() -> None:
    bn = trained()
    before = bn.state_dict()
    x = batch()
    for wrong in (x[:1, :, :1], x[:, :2], x.astype(np.int32), x.tolist()):
        with pytest.raises((ValueError, TypeError)):
            bn(wrong)
    with pytest.raises(ValueError, match="residual"):
        bn(x, residual=x[:1])
    for name, value in before.items():
        np.testing.assert_array_equal(bn.state_dict()[name], value)


def test_empty_batch_does_not_count() -> None:
    bn = trained()
    before = bn.state_dict()
    assert bn(batch()[:0]).shape == (0, 3, 5)
    assert bn.backward(batch()[:0]).shape == (0, 3, 5)
    np.testing.assert_array_equal(bn.dweight, np.zeros(3))
    for name, value in before.items():
        np.testing.assert_array_equal(bn.state_dict()[name], value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"channels": -1}, ValueError, "BatchNorm: channels is -1"),
        ({"channels": 2**62}, ValueError, "BatchNorm: channels is 4611686018427387904, expected"),
        ({"channels": 10**30}, ValueError, "BatchNorm: channels is 10+, expected"),
        ({"channels": 2.5}, TypeError, "BatchNorm: channels is of type float"),
        ({"channel_axis": "C"}, TypeError, "BatchNorm: channel_axis is of type str"),
        ({"channel_axis": 5}, ValueError, "BatchNorm: channel_axis is 5, expected -5 to 4"),
        ({"channel_axis": -6}, ValueError, "BatchNorm: channel_axis is -6, expected -5 to 4"),
        ({"affine": "no"}, TypeError, "BatchNorm: affine is of type str, expected a bool"),
        ({"track_running_stats": 1}, TypeError, "BatchNorm: track_running_stats is of type int"),
        ({"activation": "foo"}, ValueError, "BatchNorm: activation is 'foo', expected None or one"),
        ({"eps": -1}, ValueError, "BatchNorm: eps is -1, expected a number >= 0"),
        ({"eps": float("nan")}, ValueError, "BatchNorm: eps is nan, expected a number >= 0"),
        ({"eps": None}, TypeError, "BatchNorm: eps is of type NoneType, expected a number >= 0"),
        ({"momentum": 3}, ValueError, "BatchNorm: momentum is 3, expected a number from 0 to 1"),
        ({"momentum": "a"}, TypeError, "BatchNorm: momentum is of type str, expected a number"),
        ({"activation": 3}, TypeError, "BatchNorm: activation is of type int"),
        ({"dtype": "int32"}, TypeError, "BatchNorm: dtype is int32, expected one of"),
        ({"dtype": "foo"}, TypeError, "BatchNorm: dtype is 'foo'"),
        ({"dtype": ">f4"}, TypeError, "BatchNorm: dtype is >f4"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fn.BatchNorm(**({"channels": 3} | options))


@pytest.mark.parametrize("options", [{"eps": -1.0}, {"momentum": 2.0}])
def test_options_that_the_op_checks(options: dict[str, Any]) -> None:
    """What was right when the layer was made may have been changed since."""
    bn = fn.BatchNorm(3)
    for name, value in options.items():
        setattr(bn, name, value)
    with pytest.raises(ValueError, match=next(iter(options))):
        bn(batch())


def test_repr_says_the_options() -> None:
    text = repr(fn.BatchNorm(3, eps=0.25, activation="relu"))
    assert text.startswith("BatchNorm(3, eps=0.25, momentum=0.1")
    assert "relu" in text
