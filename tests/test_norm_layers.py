"""The layers beside BatchNorm: calls, backward and options, bit by bit as the ops have them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import DTYPES, to_dtype
from checks import assert_same_bits
from norm_layer_cases import LAYERS, OF_FEATURES, SHAPE, backward, make, op, x_of

Array = npt.NDArray[Any]

EACH = pytest.mark.parametrize("name", LAYERS)
OF_ROWS = pytest.mark.parametrize("name", OF_FEATURES)


def assert_gradients(layer: Any, dx: Array, expected: fn.NormGradients) -> None:
    """Those that the layer's backward returned and set."""
    assert_same_bits(dx, expected.dx)
    assert_same_bits(layer.dweight, expected.dweight if layer.weight is not None else None)
    assert_same_bits(layer.dbias, expected.dbias if layer.bias is not None else None)
    assert_same_bits(layer.dresidual, expected.dresidual)


@EACH
def test_initial_state(name: str) -> None:
    make_layer, shape = LAYERS[name]
    layer = make_layer()
    assert layer.training
    assert_same_bits(layer.weight, np.ones(shape, np.float32))
    if name == "RMSNorm":
        assert layer.bias is None
    else:
        assert_same_bits(layer.bias, np.zeros(shape, np.float32))
    assert layer.dweight is None
    assert layer.dbias is None
    assert layer.dresidual is None
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train() is layer
    assert layer.training
    assert not layer.train(False).training
    for wrong in ("no", 0, None):
        with pytest.raises(TypeError, match=f"^{name}.train: mode is of type .*, expected a bool"):
            layer.train(wrong)
        with pytest.raises(TypeError, match=f"^{name}.eval: backward is of type .*, expected a"):
            layer.train().eval(backward=wrong)
        assert layer.training  # as it was
        layer.eval()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", fn.leaky_relu(0.3)], ids=str)
@EACH
def test_same_bits_as_the_op(name: str, activation: Any, residual: bool, training: bool) -> None:
    layer = make(name, activation=activation, eps=1e-2).train(training)
    x, dy = x_of(), x_of(1)
    added = x_of(2) if residual else None
    forward = op(layer, "_train", residual=added)(x)
    assert_same_bits(layer(x, residual=added), forward.y)
    assert_gradients(layer, layer.backward(dy), backward(layer, x, dy, forward, residual=added))
    # Gradients are replaced, not added to; a call without a residual has no gradient of one.
    forward = op(layer, "_train")(x)
    layer(x)
    assert_gradients(layer, layer.backward(dy), backward(layer, x, dy, forward))
    assert_same_bits(layer.eval(backward=False)(x, residual=added), op(layer, residual=added)(x))


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"weight_offset": 1.0}], ids=str)
@OF_ROWS
def test_prenorm(name: str, options: dict[str, Any]) -> None:
    layer = make(name, **options)
    x, residual, dy, dsum = (x_of(seed) for seed in range(4))
    forward = op(layer, "_train", residual=residual, prenorm=True)(x)
    for out in (None, np.empty_like(x)):
        y, total = layer(x, residual=residual, prenorm=True, out=out)
        assert out is None or y is out
        assert_same_bits(y, forward.y)
        assert_same_bits(total, forward.sum)
        for given in (dsum, None):
            dx = layer.backward(dy, dsum=given)
            assert layer.dresidual is dx
            expected = backward(layer, forward.sum, dy, forward, dsum=given)
            assert_gradients(layer, dx, expected._replace(dresidual=expected.dx))
    only = layer.eval(backward=False)(x, residual=residual, prenorm=True)
    for actual, expected in zip(only, (forward.y, forward.sum), strict=True):
        assert_same_bits(actual, expected)
    with pytest.raises(RuntimeError, match=rf"^{name}\.backward: there is no input"):
        layer.backward(dy)


@OF_ROWS
def test_prenorm_in_place(name: str) -> None:
    layer = make(name)
    x, stream, dy = x_of(), x_of(1), x_of(2)
    forward = op(layer, "_train", residual=stream.copy(), prenorm=True)(x)
    expected = backward(layer, forward.sum, dy, forward)
    y, total = layer(x, residual=stream, prenorm=True, out=x, sum_out=stream)
    assert y is x
    assert total is stream
    assert_same_bits(y, forward.y)
    assert_same_bits(total, forward.sum)
    assert_same_bits(layer.backward(dy), expected.dx)  # which needs the sum, not x


@OF_ROWS
def test_gradient_of_the_sum_needs_prenorm(name: str) -> None:
    layer = make(name)
    layer(x_of())
    words = rf"^{name}\.backward: dsum is given, expected None: the last call was one without"
    with pytest.raises(ValueError, match=words):
        layer.backward(x_of(1), dsum=x_of(2))
    layer(x_of(), residual=x_of(1))
    with pytest.raises(ValueError, match=words):
        layer.backward(x_of(1), dsum=x_of(2))


@EACH
def test_out(name: str) -> None:
    layer = make(name)
    x, dy, out, dx = x_of(), x_of(1), np.empty(SHAPE, np.float32), np.empty(SHAPE, np.float32)
    y, expected = layer(x), layer.backward(dy)
    assert layer(x, out=out) is out
    assert_same_bits(out, y)
    assert layer.backward(dy, out=dx) is dx
    assert_same_bits(dx, expected)
    assert layer.backward(dy, out=dy) is dy
    assert_same_bits(dy, expected)
    assert layer(x, out=x) is x
    assert_same_bits(x, y)
    with pytest.raises(RuntimeError, match=rf"^{name}\.backward: .* with out other than x"):
        layer.backward(dy)


@EACH
def test_what_is_kept_of_a_call(name: str) -> None:
    layer = make(name, activation="silu")
    x, residual = x_of(), x_of(1)
    x_references, residual_references = sys.getrefcount(x), sys.getrefcount(residual)
    y = layer.eval()(x, residual=residual)
    assert sys.getrefcount(x) == x_references + 1
    assert sys.getrefcount(residual) == residual_references + 1
    assert layer.eval(backward=False) is layer
    assert sys.getrefcount(x) == x_references
    np.testing.assert_allclose(layer(x, residual=residual), y, rtol=1e-6)
    assert sys.getrefcount(x) == x_references
    assert sys.getrefcount(residual) == residual_references
    with pytest.raises(RuntimeError, match=rf"^{name}\.backward: .*eval\(backward=False\)"):
        layer.backward(x_of(2))
    for mode in (layer.eval(), layer.eval(backward=False).train()):
        mode(x)
        mode.backward(x_of(2))
    # What follows from the mask, or needs no residual, does not keep it.
    for activation in ("relu", None):
        layer = make(name, activation=activation)
        layer(x, residual=residual)
        assert sys.getrefcount(residual) == residual_references


@EACH
def test_backward_before_a_call(name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"^{name}\.backward: there is no input to diff"):
        make(name).backward(x_of())


@EACH
def test_parameters_may_be_replaced(name: str) -> None:
    layer = make(name)
    x, dy = x_of(), x_of(1)
    before = layer(x)
    layer.weight = (2.0 * layer.weight).astype(np.float64)
    layer.bias = np.full(layer.weight.shape, 0.5)  # RMSNorm has none, but takes one
    forward = op(layer, "_train")(x)
    assert not np.array_equal(forward.y, before)
    assert_same_bits(layer(x), forward.y)
    assert_gradients(layer, layer.backward(dy), backward(layer, x, dy, forward))
    # Backward takes them as they are at that time.
    layer.weight *= 2.0
    assert_same_bits(layer.backward(dy), backward(layer, x, dy, forward).dx)
    layer.weight = np.ones(7)
    with pytest.raises(ValueError, match=r"_train: weight has shape \(7,\), expected"):
        layer(x)


@pytest.mark.parametrize("affine", [True, False])
@EACH
def test_gradients_are_those_of_the_arrays_that_there_are(name: str, affine: bool) -> None:
    """Whatever the layer was made with."""
    layer = make(name, affine=affine)
    shape = LAYERS[name][1]
    x, dy = x_of(), x_of(1)
    for weight, bias in [(True, False), (False, True), (True, True), (False, False)]:
        layer.weight = np.full(shape, 2.0) if weight else None
        layer.bias = np.full(shape, 0.5) if bias else None
        forward = op(layer, "_train")(x)
        assert_same_bits(layer(x), forward.y)
        assert_gradients(layer, layer.backward(dy), backward(layer, x, dy, forward))


@pytest.mark.parametrize("dtype", DTYPES)
@EACH
def test_dtype_is_that_of_the_parameters(name: str, dtype: str) -> None:
    for given in (dtype, to_dtype(dtype)):
        layer = make(name, dtype=given)
        for x_dtype in ("float32", "bfloat16"):
            x, dy = x_of(0, x_dtype), x_of(1, x_dtype)
            forward = op(layer, "_train")(x)
            y = layer(x)
            assert y.dtype == x.dtype
            assert_same_bits(y, forward.y)
            dx = layer.backward(dy)
            assert layer.dweight.dtype == layer.weight.dtype == to_dtype(dtype)
            assert_gradients(layer, dx, backward(layer, x, dy, forward))


@EACH
def test_without_parameters(name: str) -> None:
    layer = make(name, affine=False)
    assert layer.weight is None
    assert layer.bias is None
    assert layer.state_dict() == {}
    layer.load_state_dict({})
    x, dy = x_of(), x_of(1)
    forward = op(layer, "_train")(x)
    assert_same_bits(layer(x), forward.y)
    assert_gradients(layer, layer.backward(dy), backward(layer, x, dy, forward))
    # Nothing but the layer knows the shape.
    for mode in (layer, layer.eval(), layer.eval(backward=False)):
        with pytest.raises(ValueError, match=rf"^{name}: x has shape \(2, 6, 6\), expected "):
            mode(np.ones((2, 6, 6), np.float32))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("GroupNorm", (2, 6, 5), r"x has shape \(2, 6, 5\), expected 4 channels on axis 1"),
        ("InstanceNorm", (2, 3, 5), r"x has shape \(2, 3, 5\), expected 4 channels on axis 1"),
        ("LayerNorm", (2, 5), r"x has shape \(2, 5\), expected \(4, 5\) on the last 2 axes"),
        ("LayerNorm", (5,), r"x has shape \(5,\), expected \(4, 5\) on the last 2 axes"),
        ("RMSNorm", (2, 5, 4), r"x has shape \(2, 5, 4\), expected \(5,\) on the last axis"),
    ],
)
def test_wrong_shapes(name: str, shape: tuple[int, ...], words: str) -> None:
    layer = make(name)
    for mode in (layer, layer.eval(), layer.eval(backward=False)):
        with pytest.raises(ValueError, match=f"^{name}: {words}$"):
            mode(np.ones(shape, np.float32))


@EACH
def test_failed_call_changes_nothing(name: str) -> None:
    layer = make(name)
    x, dy = x_of(), x_of(1)
    layer(x)
    expected = layer.backward(dy)
    with pytest.raises(ValueError, match="residual has shape"):
        layer(x, residual=x[:1])
    for wrong in (x.tolist(), x.astype(np.int32)):
        for given in (layer, make(name, affine=False)):
            with pytest.raises(TypeError, match="x "):
                given(wrong)
    if name in OF_FEATURES:
        with pytest.raises(ValueError, match="residual is missing, expected an array: prenorm"):
            layer(x, prenorm=True)
        with pytest.raises(ValueError, match="sum_out is given, expected None without prenorm"):
            layer(x, sum_out=x_of(2))
        with pytest.raises(TypeError, match="prenorm is of type int"):
            layer(x, residual=dy, prenorm=1)
    assert_same_bits(layer.backward(dy), expected)


COMMON: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"eps": -1}, ValueError, "eps is -1, expected a number >= 0"),
    ({"eps": "a"}, TypeError, "eps is of type str, expected a number >= 0"),
    ({"activation": "foo"}, ValueError, "activation is 'foo', expected None or one"),
    ({"dtype": "int32"}, TypeError, "dtype is int32, expected one of"),
    ({"device": "gpu"}, ValueError, "device is 'gpu', expected 'cuda', 'cuda:<number>' or None"),
    ({"affine": "no"}, TypeError, "affine is of type str, expected a bool"),
    ({"affine": 1}, TypeError, "affine is of type int, expected a bool"),
)
CHANNELS: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"channels": -1}, ValueError, "channels is -1, expected a number from 0 to"),
    ({"channels": 2.5}, TypeError, "channels is of type float, expected an int"),
    ({"channel_axis": "C"}, TypeError, "channel_axis is of type str, expected an int"),
    ({"channel_axis": 0}, ValueError, "channel_axis is 0, expected -4 to -1 or 1 to 4$"),
    ({"channel_axis": -5}, ValueError, "channel_axis is -5, expected -4 to -1 or 1 to 4$"),
    ({"channel_axis": 5}, ValueError, "channel_axis is 5, expected -4 to -1 or 1 to 4$"),
)
GROUPS: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"groups": 3}, ValueError, "groups is 3, expected a divisor of the 4 channels"),
    ({"groups": 0}, ValueError, "groups is 0, expected a divisor of the 4 channels"),
    ({"groups": -2}, ValueError, "groups is -2, expected a divisor"),
    ({"groups": True}, TypeError, "groups is of type bool, expected an int"),
    ({"groups": "2"}, TypeError, "groups is of type str, expected an int"),
)
FEATURES: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"shape": ()}, ValueError, r"shape is \(\), expected an int or a tuple of 1 to 5 ints"),
    ({"shape": (1,) * 6}, ValueError, r"shape is \(1, .*\), expected an int or a tuple of"),
    ({"shape": (3, -1)}, ValueError, r"shape is \(3, -1\), expected lengths >= 0 and at most"),
    ({"shape": (0, 2**62)}, ValueError, r"shape is \(0, \d+\), expected lengths >= 0 and at most"),
    ({"shape": 10**30}, ValueError, r"shape is \(10+,\), expected lengths"),
    ({"shape": 2.5}, TypeError, "shape is of type float, expected an int or a tuple of"),
    ({"shape": True}, TypeError, "shape is of type bool, expected an int or a tuple of"),
    ({"shape": (3, 2.5)}, TypeError, r"shape\[1\] is of type float, expected an int"),
    ({"weight_offset": float("inf")}, ValueError, "weight_offset is inf, expected a finite number"),
    ({"weight_offset": float("nan")}, ValueError, "weight_offset is nan, expected a finite"),
    ({"weight_offset": None}, TypeError, "weight_offset is of type NoneType, expected a finite"),
)
RUNNING: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"momentum": 3}, ValueError, "momentum is 3, expected a number from 0 to 1, or None"),
    ({"momentum": "a"}, TypeError, "momentum is of type str, expected a number"),
    ({"track_running_stats": None}, TypeError, "track_running_stats is of type NoneType, expected"),
)
CASTS = ({"cast_before_weight": 1}, TypeError, "cast_before_weight is of type int, expected a bool")
SIZES: dict[str, dict[str, Any]] = {
    "GroupNorm": {"groups": 2, "channels": 4},
    "InstanceNorm": {"channels": 4},
    "LayerNorm": {"shape": 5},
    "RMSNorm": {"shape": 5},
}


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        (name, *wrong)
        for name, table in {
            "GroupNorm": (*COMMON, *CHANNELS, *GROUPS),
            "InstanceNorm": (*COMMON, *CHANNELS, *RUNNING),
            "LayerNorm": (*COMMON, *FEATURES, ({"bias": 0}, TypeError, "bias is of type int")),
            "RMSNorm": (*COMMON, *FEATURES, CASTS),
        }.items()
        for wrong in table
    ],
)
def test_wrong_options(
    name: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{name}: {words}"):
        getattr(fn, name)(**(SIZES[name] | options))


def test_flags_of_numpy() -> None:
    layer = fn.RMSNorm(5, affine=np.bool_(False), cast_before_weight=np.bool_(True))
    assert layer.weight is None
    assert layer.cast_before_weight is True


def test_sizes() -> None:
    assert fn.LayerNorm(5).shape == (5,)
    assert fn.RMSNorm([3, 5]).shape == (3, 5)
    assert fn.LayerNorm((np.int64(3), 5)).shape == (3, 5)
    assert fn.LayerNorm((4, 0))(np.ones((2, 4, 0), np.float32)).shape == (2, 4, 0)
    assert fn.GroupNorm(1, 0)(np.ones((2, 0, 3), np.float32)).shape == (2, 0, 3)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["GroupNorm", "InstanceNorm"])
def test_channels_last(name: str, affine: bool) -> None:
    first, last = make(name, affine=affine), make(name, affine=affine, channel_axis=-1)
    x, dy = x_of(), x_of(1)
    moved = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    y = np.moveaxis(last(moved), -1, 1)
    np.testing.assert_allclose(y, first(x), rtol=1e-5, atol=1e-6)
    dx = np.moveaxis(last.backward(np.moveaxis(dy, 1, -1)), -1, 1)
    np.testing.assert_allclose(dx, first.backward(dy), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match=f"^{name}: x has shape .*, expected 4 channels on axis -1"
    ):
        last(x)


@pytest.mark.parametrize("dtype", DTYPES)
@OF_ROWS
def test_initial_weight_with_an_offset(name: str, dtype: str) -> None:
    layer = LAYERS[name][0](weight_offset=0.25, dtype=dtype)
    assert_same_bits(layer.weight, np.full(LAYERS[name][1], 0.75, to_dtype(dtype)))
    x = x_of()
    np.testing.assert_array_equal(layer(x), LAYERS[name][0]()(x))


def test_layer_norm_without_a_bias() -> None:
    layer = fn.LayerNorm(5, bias=False)
    assert layer.bias is None
    x, dy = x_of(), x_of(1)
    forward = op(layer, "_train")(x)
    assert_same_bits(layer(x), forward.y)
    assert_gradients(layer, layer.backward(dy), backward(layer, x, dy, forward))
    assert layer.dweight is not None
    assert layer.dbias is None


def test_rms_norm_that_casts_before_the_weight() -> None:
    x = x_of(0, "bfloat16")
    layer = make("RMSNorm", cast_before_weight=True)
    y = layer(x)
    assert_same_bits(y, op(layer, "_train")(x).y)
    assert_same_bits(layer.eval(backward=False)(x), y)
    assert (y != make("RMSNorm")(x)).any()


def test_repr_says_the_options() -> None:
    norm = fn.LayerNorm((4, 5), eps=0.25, bias=False, weight_offset=1, activation="silu")
    assert repr(norm).startswith("LayerNorm((4, 5), eps=0.25, affine=True, bias=False, weight_of")
    assert "silu" in repr(norm)
    assert repr(fn.LayerNorm(5)).startswith("LayerNorm((5,), eps=1e-05, affine=True, bias=True")
    assert "cast_before_weight=True" in repr(fn.RMSNorm(5, cast_before_weight=True))
    assert repr(fn.GroupNorm(2, 4)).startswith("GroupNorm(2, 4, eps=1e-05, affine=True, channel_a")
    assert "momentum" not in repr(fn.GroupNorm(2, 4))
    assert repr(fn.InstanceNorm(4)).startswith("InstanceNorm(4, eps=1e-05, momentum=0.1, affine=F")


def test_import_paths() -> None:
    for name in ("BatchNorm", *LAYERS):
        assert getattr(fn.layers, name) is getattr(fn, name)
        assert name in fn.__all__
        assert name in fn.layers.__all__
