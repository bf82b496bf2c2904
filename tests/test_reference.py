"""The reference itself: gradients by central differences, and formulas on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import ACTIVATIONS, activation_id
from fastnorm import reference
from fastnorm.activation import PARAMETERS, as_activation

Array = npt.NDArray[Any]

EVERY = (None, *ACTIVATIONS)
KINKS = np.array([-3.0, -1.0, 0.0, 0.75, 3.0, 6.0])


def numeric_gradient(loss: Callable[[], float], a: Array, step: float = 1e-5) -> Array:
    """Central differences of loss with respect to each element of a."""
    gradient = np.zeros_like(a)
    for index in np.ndindex(a.shape):
        old = a[index]
        a[index] = old + step
        above = loss()
        a[index] = old - step
        gradient[index] = (above - loss()) / (2.0 * step)
        a[index] = old
    return gradient


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", EVERY, ids=activation_id)
def test_gradients_by_central_differences(
    activation: str | fn.Activation | None, training: bool, channel_axis: int, with_residual: bool
) -> None:
    rng = np.random.default_rng(7)
    x = 2.0 * rng.standard_normal((3, 2, 3)) + 1.0
    dy = rng.standard_normal(x.shape)
    residual = 2.0 * rng.standard_normal(x.shape) if with_residual else None
    channels = x.shape[channel_axis]
    weight, bias = rng.standard_normal(channels) + 2.0, rng.standard_normal(channels)
    mean, var = rng.standard_normal(channels), rng.uniform(0.5, 2.0, channels)
    options: dict[str, Any] = {
        "channel_axis": channel_axis,
        "residual": residual,
        "activation": activation,
    }

    def forward(**changed: Any) -> tuple[Array, Array, Array]:
        if training:
            return reference.batch_norm_train(x, weight, bias, **(options | changed))
        y = reference.batch_norm(x, mean, var, weight, bias, **(options | changed))
        return y, mean, 1.0 / np.sqrt(var + 1e-5)

    # Next to a kink a difference quotient is no derivative.
    z, used_mean, rstd = forward(activation=None)
    dy[np.abs(z[..., None] - KINKS).min(axis=-1) < 1e-3] = 0.0

    grads = reference.batch_norm_backward(
        dy, x, used_mean, rstd, weight, bias, training=training, **options
    )

    def loss() -> float:
        return float((dy * forward()[0]).sum())

    for gradient, argument in [(grads.dx, x), (grads.dweight, weight), (grads.dbias, bias)]:
        np.testing.assert_allclose(gradient, numeric_gradient(loss, argument), rtol=1e-6, atol=1e-8)
    if residual is None:
        assert grads.dresidual is None
    else:
        assert grads.dresidual is not None
        np.testing.assert_allclose(
            grads.dresidual, numeric_gradient(loss, residual), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=activation_id)
def test_slopes_by_central_differences(activation: str | fn.Activation) -> None:
    z = np.linspace(-9.0, 9.0, 721) + 0.003
    step = 1e-5
    above, below = (reference.activate(z + d, activation) for d in (step, -step))
    slope = reference.activation_slope(z, activation)
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-9)


def test_activation_values() -> None:
    z = np.array([-4.0, -1.0, 0.0, 0.5, 2.0, 7.0])
    scale = math.sqrt(2.0 / math.pi)
    plain: dict[str, Callable[[float], float]] = {
        "relu": lambda v: max(v, 0.0),
        "leaky_relu": lambda v: v if v > 0 else 0.01 * v,
        "clip": lambda v: min(max(v, 0.0), 6.0),
        "sigmoid": lambda v: 1.0 / (1.0 + math.exp(-v)),
        "tanh": math.tanh,
        "silu": lambda v: v / (1.0 + math.exp(-v)),
        "gelu": lambda v: 0.5 * v * (1.0 + math.erf(v / math.sqrt(2.0))),
        "gelu_tanh": lambda v: 0.5 * v * (1.0 + math.tanh(scale * (v + 0.044715 * v**3))),
        "hardswish": lambda v: v * min(max(v + 3.0, 0.0), 6.0) / 6.0,
    }
    assert plain.keys() == PARAMETERS.keys()
    for name, function in plain.items():
        expected = [function(float(v)) for v in z]
        np.testing.assert_allclose(reference.activate(z, name), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", EVERY, ids=activation_id)
def test_activations_pass_nan_on(activation: str | fn.Activation | None) -> None:
    assert np.isnan(reference.activate(np.array([np.nan]), activation)).all()


@pytest.mark.parametrize(
    ("activation", "z", "slope"),
    [
        ("relu", 0.0, 0.0),
        ("leaky_relu", 0.0, 0.01),
        (fn.leaky_relu(0.2), 0.0, 0.2),
        ("clip", 0.0, 0.0),
        ("clip", 6.0, 0.0),
        (fn.clip(-1.0, 1.0), 0.0, 1.0),
        ("hardswish", -3.0, 0.0),
        ("hardswish", 3.0, 1.0),
        ("relu", np.nan, 1.0),
        ("clip", np.nan, 1.0),
    ],
)
def test_slopes_at_the_kinks(activation: str | fn.Activation, z: float, slope: float) -> None:
    assert reference.activation_slope(np.array([z]), activation)[0] == slope


def test_statistics_and_running_statistics_on_plain_numbers() -> None:
    x = np.array([[1.0, 10.0], [2.0, 10.0], [6.0, 10.0]])
    mean, var = np.array([1.0, -1.0]), np.array([2.0, 4.0])
    fwd = reference.batch_norm_train(x, running_mean=mean, running_var=var, momentum=0.25)
    np.testing.assert_allclose(fwd.mean, [3.0, 10.0])
    # Squared deviations 4 + 1 + 9 over 3 values; the running variance divides by 2.
    np.testing.assert_allclose(
        fwd.rstd, [1.0 / math.sqrt(14.0 / 3.0 + 1e-5), 1.0 / math.sqrt(1e-5)]
    )
    np.testing.assert_allclose(mean, [0.75 * 1.0 + 0.25 * 3.0, 0.75 * -1.0 + 0.25 * 10.0])
    np.testing.assert_allclose(var, [0.75 * 2.0 + 0.25 * 7.0, 0.75 * 4.0])
    np.testing.assert_allclose(fwd.y[:, 0] / fwd.rstd[0], [-2.0, -1.0, 3.0])
    assert (fwd.y[:, 1] == 0.0).all()

    var = np.array([2.0, 4.0])
    reference.batch_norm_train(x, running_var=var, momentum=0.25, unbiased=False)
    np.testing.assert_allclose(var, [0.75 * 2.0 + 0.25 * 14.0 / 3.0, 0.75 * 4.0])


def test_momentum_is_the_weight_of_the_new_batch() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3))
    mean, var = np.full(3, 9.0), np.full(3, 9.0)
    reference.batch_norm_train(x, running_mean=mean, running_var=var, momentum=0.0)
    np.testing.assert_array_equal([mean, var], np.full((2, 3), 9.0))
    reference.batch_norm_train(x, running_mean=mean, running_var=var, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    np.testing.assert_allclose(var, x.var(axis=0, ddof=1))


def test_running_statistics_keep_their_dtype() -> None:
    mean = np.zeros(3, np.float16)
    reference.batch_norm_train(np.eye(3), running_mean=mean)
    assert mean.dtype == np.float16
    assert (mean != 0).all()


def test_training_normalizes() -> None:
    x = 5.0 * np.random.default_rng(1).standard_normal((6, 4, 5)) + 3.0
    y = reference.batch_norm_train(x, eps=0.0).y
    np.testing.assert_allclose(y.mean(axis=(0, 2)), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=(0, 2)), 1.0)


def test_zero_elements_and_one_value_per_channel() -> None:
    mean = np.full(4, 2.0)
    fwd = reference.batch_norm_train(np.zeros((0, 4, 3)), running_mean=mean)
    assert fwd.y.shape == (0, 4, 3)
    assert np.isnan([fwd.mean, fwd.rstd]).all()
    assert (mean == 2.0).all()
    grads = reference.batch_norm_backward(fwd.y, fwd.y, fwd.mean, fwd.rstd)
    np.testing.assert_array_equal([grads.dweight, grads.dbias], np.zeros((2, 4)))
    with pytest.raises(ValueError, match="1 value per channel"):
        reference.batch_norm_train(np.zeros((1, 4, 1)), running_mean=mean)
    assert (mean == 2.0).all()


def test_everything_is_returned_in_float64() -> None:
    x = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float16)
    fwd = reference.batch_norm_train(x)
    grads = reference.batch_norm_backward(x, x, fwd.mean, fwd.rstd, residual=True)
    for a in (*fwd, *grads, reference.batch_norm(x, fwd.mean, fwd.rstd)):
        assert a is not None
        assert a.dtype == np.float64


class TestActivation:
    """The values that users give as `activation`."""

    def test_defaults(self) -> None:
        assert fn.leaky_relu() == fn.Activation("leaky_relu", 0.01, 0.0)
        assert fn.clip() == fn.Activation("clip", 0.0, 6.0)
        assert as_activation("leaky_relu", "op") == fn.leaky_relu()
        assert as_activation("clip", "op") == fn.clip()
        assert as_activation(None, "op") is None
        assert as_activation(fn.clip(1, 2), "op") == fn.Activation("clip", 1.0, 2.0)
        assert fn.clip(1, 1).alpha == 1.0
        assert fn.clip(-math.inf, math.inf).beta == math.inf

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_every_name_has_its_functions(self, name: str) -> None:
        activation = as_activation(name, "op")
        assert activation is not None
        assert activation.name == name
        assert reference.activate(np.ones(1), name).shape == (1,)

    def test_is_frozen_and_hashable(self) -> None:
        activation = fn.clip(0.0, 1.0)
        with pytest.raises(AttributeError):
            activation.alpha = 2.0  # type: ignore[misc]
        assert len({activation, fn.clip(0.0, 1.0)}) == 1

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: fn.clip(2.0, 1.0), "clip has min 2 and max 1, expected min <= max"),
            (lambda: fn.clip(math.nan, 1.0), "clip has min nan"),
            (lambda: fn.clip(0.0, math.nan), "max nan"),
            (lambda: fn.leaky_relu(math.nan), "leaky_relu has negative_slope nan"),
            (lambda: fn.leaky_relu(math.inf), "leaky_relu has negative_slope inf"),
            (lambda: fn.Activation("foo", 0.0, 0.0), "Activation: name is 'foo', expected one of"),
            (lambda: fn.Activation("relu", 1.0, 0.0), "relu: alpha is 1.0"),
            (
                lambda: as_activation("foo", "op"),
                "op: activation is 'foo', expected None or one of relu,",
            ),
        ],
    )
    def test_wrong_values(self, make: Callable[[], object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            make()

    @pytest.mark.parametrize(
        "make",
        [
            lambda: fn.clip("a", 1.0),
            lambda: fn.leaky_relu(None),  # type: ignore[arg-type]
            lambda: fn.Activation(3, 0.0, 0.0),  # type: ignore[arg-type]
            lambda: as_activation(3, "op"),  # type: ignore[arg-type]
            lambda: as_activation(np.tanh, "op"),  # type: ignore[arg-type]
        ],
    )
    def test_wrong_types(self, make: Callable[[], object]) -> None:
        with pytest.raises(TypeError, match="is of type"):
            make()
