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
from norm_cases import Case
from norm_checks import parameter_gradients

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


# --- the norms beside batch norm ------------------------------------------------------------------

NORMS = (
    Case("layer", "layer_norm", (3, 2, 4), 1),
    Case("layer_prenorm", "layer_norm", (3, 5), prenorm=True),
    Case("layer_offset", "layer_norm", (3, 5), options={"weight_offset": 1.0}),
    Case("layer_of_all", "layer_norm", (2, 3), 0),
    Case("rms", "rms_norm", (3, 2, 4), 1),
    Case("rms_prenorm", "rms_norm", (3, 5), prenorm=True, options={"weight_offset": 1.0}),
    Case("group", "group_norm", (2, 4, 3), 1, 2),
    Case("group_last", "group_norm", (2, 3, 4), -1, 2),
    Case("one_group", "group_norm", (2, 4), 1, 1),
    Case("instance", "instance_norm", (2, 3, 4), 1),
    Case("instance_last", "instance_norm", (2, 4, 3), -1),
)
EVERY_NORM = pytest.mark.parametrize("case", NORMS, ids=lambda case: case.name)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", EVERY, ids=activation_id)
@EVERY_NORM
def test_gradients_of_norms_by_central_differences(
    case: Case, activation: str | fn.Activation | None, with_residual: bool
) -> None:
    rng = np.random.default_rng(7)
    x = 2.0 * rng.standard_normal(case.shape) + 1.0
    dy, dsum = rng.standard_normal((2, *case.shape))
    residual = 2.0 * rng.standard_normal(x.shape) if with_residual or case.prenorm else None
    weight, bias = rng.standard_normal((2, *case.parameters_shape)) + 2.0
    shared: dict[str, Any] = case.where() | case.options
    groups = (case.groups,) if case.norm == "group_norm" else ()
    train, backward = case.op("_train", reference), case.op("_backward", reference)

    def forward(activation: str | fn.Activation | None) -> Any:
        prenorm = {"prenorm": True} if case.prenorm else {}
        options = shared | {"residual": residual, "activation": activation} | prenorm
        return train(x, *groups, weight, bias, **options)

    # Next to a kink a difference quotient is no derivative.
    fwd = forward(None)
    dy[np.abs(fwd.y[..., None] - KINKS).min(axis=-1) < 1e-3] = 0.0

    statistics = (fwd.rstd,) if case.norm == "rms_norm" else (fwd.mean, fwd.rstd)
    options = shared | {"activation": activation}
    options |= {"dsum": dsum} if case.prenorm else {"residual": residual}
    seen = fwd.sum if case.prenorm else x
    grads = backward(dy, seen, *groups, *statistics, weight, bias, **options)

    def loss() -> float:
        fwd = forward(activation)
        return float((dy * fwd.y).sum() + ((dsum * fwd.sum).sum() if case.prenorm else 0.0))

    pairs = [(grads.dx, x), (grads.dweight, weight), (grads.dbias, bias)]
    if case.prenorm:
        pairs += [(grads.dx, residual)]  # the sum's, which is that of both
    elif with_residual:
        pairs += [(grads.dresidual, residual)]
    for gradient, argument in pairs:
        np.testing.assert_allclose(gradient, numeric_gradient(loss, argument), rtol=1e-6, atol=1e-7)
    assert (grads.dresidual is None) == (case.prenorm or not with_residual)


def test_norms_on_plain_numbers() -> None:
    x = np.array([[1.0, 2.0, 6.0, 7.0], [4.0, 4.0, 4.0, 4.0]])
    layer = reference.layer_norm_train(x, eps=0.5)
    np.testing.assert_allclose(layer.mean, [4.0, 4.0])
    # Squared deviations 9 + 4 + 4 + 9 over 4 values.
    np.testing.assert_allclose(layer.rstd, [1.0 / math.sqrt(7.0), 1.0 / math.sqrt(0.5)])
    np.testing.assert_allclose(layer.y[0] * math.sqrt(7.0), [-3.0, -2.0, 2.0, 3.0])
    assert (layer.y[1] == 0.0).all()
    rms = reference.rms_norm_train(x, eps=0.5)  # squares 1 + 4 + 36 + 49 over 4 values
    np.testing.assert_allclose(rms.rstd, [1.0 / math.sqrt(23.0), 1.0 / math.sqrt(16.5)])
    np.testing.assert_allclose(rms.y[0] * math.sqrt(23.0), x[0])
    assert not rms.mean.any()
    group = reference.group_norm_train(x, 2, eps=0.5)  # 0.25 is the variance of 1, 2 and of 6, 7
    np.testing.assert_allclose(group.mean, [[1.5, 6.5], [4.0, 4.0]])
    np.testing.assert_allclose(group.rstd[0], 1.0 / math.sqrt(0.75))
    np.testing.assert_allclose(group.y[0] * math.sqrt(0.75), [-0.5, 0.5, -0.5, 0.5])


def test_norms_are_each_other() -> None:
    """What they have in common: one group is a row, as many as channels are instances."""
    x = np.random.default_rng(3).standard_normal((3, 4, 5)) + 2.0
    one, rows = reference.group_norm_train(x, 1), reference.layer_norm_train(x, axis=1)
    np.testing.assert_allclose(one.y, rows.y, rtol=1e-12)
    instances = reference.instance_norm_train(x)
    np.testing.assert_allclose(instances.y, reference.layer_norm(x, axis=2), rtol=1e-12)
    np.testing.assert_allclose(instances.y, reference.group_norm(x, 4), rtol=1e-12)
    each = [reference.batch_norm_train(sample[None]).y for sample in x]
    np.testing.assert_allclose(instances.y, np.concatenate(each), rtol=1e-12)
    centred = x - x.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        reference.rms_norm(centred), reference.layer_norm(centred), rtol=1e-9, atol=1e-12
    )


def test_running_statistics_of_instances_on_plain_numbers() -> None:
    x = np.array([[[1.0, 3.0]], [[2.0, 10.0]]])  # means 2 and 6, variances 1 and 16, or 2 and 32
    for unbiased, var in [(True, 17.0), (False, 8.5)]:
        running = {"running_mean": np.array([1.0]), "running_var": np.array([2.0])}
        reference.instance_norm_train(x, momentum=0.25, unbiased=unbiased, **running)
        np.testing.assert_allclose(running["running_mean"], 0.75 * 1.0 + 0.25 * 4.0)
        np.testing.assert_allclose(running["running_var"], 0.75 * 2.0 + 0.25 * var)


def test_weight_offset_prenorm_and_cast_before_weight() -> None:
    x, residual = np.random.default_rng(4).standard_normal((2, 3, 8)).astype(np.float16)
    weight = np.linspace(-1.0, 1.0, 8).astype(np.float16)
    for norm in (reference.layer_norm, reference.rms_norm):
        y, total = norm(x, weight, weight_offset=1.0, residual=residual, prenorm=True)
        assert total.dtype == np.float16
        assert np.array_equal(total, x + residual)
        np.testing.assert_array_equal(y, norm(total, weight.astype(np.float64) + 1.0))
        np.testing.assert_array_equal(norm(x, weight_offset=1.0), norm(x))
    xhat = reference.rms_norm(x)
    cast = reference.rms_norm(x, weight, cast_before_weight=True)
    np.testing.assert_array_equal(cast, xhat.astype(np.float16).astype(np.float64) * weight)
    assert (cast != xhat * weight).any()
    unchanged = reference.rms_norm(x.astype(np.float64), weight, cast_before_weight=True)
    np.testing.assert_array_equal(unchanged, xhat * weight)


def test_zero_elements_of_norms() -> None:
    for case in (Case("", "layer_norm", (0, 3)), Case("", "rms_norm", (0, 3))):
        x = np.zeros(case.shape)
        statistics = (np.ones(0),) * (1 if case.norm == "rms_norm" else 2)
        grads = case.op("_backward", reference)(x, x, *statistics)
        for name in parameter_gradients(case, None, grads):
            np.testing.assert_array_equal(getattr(grads, name), np.zeros(3))
    fwd = reference.group_norm_train(np.zeros((2, 4, 0)), 2)
    assert np.isnan([fwd.mean, fwd.rstd]).all()
    grads = reference.group_norm_backward(fwd.y, fwd.y, 2, fwd.mean, fwd.rstd)
    np.testing.assert_array_equal([grads.dweight, grads.dbias], np.zeros((2, 4)))
