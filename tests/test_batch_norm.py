"""Batch normalization against the float64 reference, over the table of cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastnorm as fn
import tolerances as tol
from cases import ACTIVATIONS, CASES, DTYPES, EMPTY_SHAPES, LAYOUTS, TRAINABLE, Case, make, to_dtype
from cases import activation_id as activation_name
from checks import (
    assert_like,
    assert_same_bits,
    check_backward,
    check_inference,
    check_train,
    forward_options,
    statistics_dtype,
)
from fastnorm import reference


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_inference(case: Case, dtype: str) -> None:
    check_inference(case, make(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRAINABLE, ids=by_name)
def test_train(case: Case, dtype: str) -> None:
    check_train(case, make(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRAINABLE, ids=by_name)
def test_backward_training(case: Case, dtype: str) -> None:
    check_backward(case, make(case, dtype), training=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_backward_inference(case: Case, dtype: str) -> None:
    check_backward(case, make(case, dtype), training=False)


# A case for each traversal, with everything switched on.
ROWS = Case("everything_rows", (3, 6, 5, 7), residual=True, activation="relu")
COLUMNS = Case("everything_columns", (3, 5, 7, 6), -1, residual=True, activation="clip")
BOTH = pytest.mark.parametrize("case", [ROWS, COLUMNS], ids=by_name)


@pytest.mark.parametrize("parameter_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_parameters_of_any_dtype(case: Case, dtype: str, parameter_dtype: str) -> None:
    check_inference(case, make(case, dtype, parameter_dtype))
    check_train(case, make(case, dtype, parameter_dtype))
    check_backward(case, make(case, dtype, parameter_dtype), training=True)


def test_parameters_of_different_dtypes_and_strides() -> None:
    data = make(ROWS, "float32")
    assert data.weight is not None
    assert data.bias is not None
    strided = np.zeros((6, 3), to_dtype("float16"))[:, 1]
    strided[...] = data.weight
    data.weight = strided
    data.bias = data.bias.astype(to_dtype("bfloat16"))[::-1]
    data.running_mean = np.zeros((6, 2), np.float64)[:, 0]
    check_inference(ROWS, data)
    check_train(ROWS, data)
    fwd = fn.batch_norm_train(data.x, data.weight, data.bias)
    grads = fn.batch_norm_backward(data.dy, data.x, fwd.mean, fwd.rstd, data.weight, data.bias)
    assert grads.dweight.dtype == np.float16
    assert grads.dbias.dtype == to_dtype("bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_dtype_without_weight_or_bias(dtype: str) -> None:
    data = make(ROWS, dtype)
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    half = np.zeros(6, np.float16)
    mean, rstd = np.zeros(6), np.ones(6)
    for weight, bias, expected in [
        (None, None, wide),
        (half, None, half.dtype),
        (None, half, half.dtype),
    ]:
        grads = fn.batch_norm_backward(data.dy, data.x, mean, rstd, weight, bias)
        assert grads.dweight.dtype == expected
        assert grads.dbias.dtype == expected
        assert grads.dweight.shape == grads.dbias.shape == (6,)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unbiased", [True, False])
@BOTH
def test_momentum_and_unbiased(case: Case, momentum: float, unbiased: bool) -> None:
    check_train(case, make(case, "float32"), momentum=momentum, unbiased=unbiased)


def test_one_running_statistic_alone() -> None:
    data = make(ROWS, "float64")
    both = make(ROWS, "float64")
    fn.batch_norm_train(both.x, running_mean=both.running_mean, running_var=both.running_var)
    fn.batch_norm_train(data.x, running_mean=data.running_mean)
    fn.batch_norm_train(data.x, running_var=data.running_var)
    assert_same_bits(data.running_mean, both.running_mean)
    assert_same_bits(data.running_var, both.running_var)


# An array that is broadcast cannot be written to.
WRITABLE = [name for name in LAYOUTS if not name.startswith("broadcast")]


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_out(case: Case, dtype: str, layout: str) -> None:
    data = make(case, dtype)
    parameters = (data.weight, data.bias)
    options = forward_options(case, data)

    def written(expected: np.ndarray, call: Any) -> Any:
        out = LAYOUTS[layout](np.full(data.x.shape, 55, data.x.dtype))
        whole = out if out.base is None else out.base
        gaps = whole.copy() if layout in ("strided_outer", "strided_inner") else None
        result = call(out)
        assert_same_bits(out, expected)
        if gaps is not None:
            out[...] = 55
            assert_same_bits(whole, gaps, "the gaps between the elements of out")
            call(out)
        return out, result

    y = fn.batch_norm(data.x, data.mean, data.var, *parameters, **options)
    out, result = written(
        y, lambda o: fn.batch_norm(data.x, data.mean, data.var, *parameters, **options, out=o)
    )
    assert result is out
    fwd = fn.batch_norm_train(data.x, *parameters, **options)
    out, result = written(
        fwd.y, lambda o: fn.batch_norm_train(data.x, *parameters, **options, out=o)
    )
    assert result.y is out
    assert_same_bits(result.mask, fwd.mask)
    arguments = (data.dy, data.x, fwd.mean, fwd.rstd, *parameters)
    backward: dict[str, Any] = {
        "channel_axis": case.channel_axis,
        "activation": case.activation,
        "residual": True,
    }
    grads = fn.batch_norm_backward(*arguments, **backward, mask=fwd.mask)
    out, result = written(
        grads.dx, lambda o: fn.batch_norm_backward(*arguments, **backward, mask=fwd.mask, out=o)
    )
    assert result.dx is out
    assert_same_bits(result.dresidual, grads.dresidual)


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_in_place(case: Case, dtype: str, layout: str) -> None:
    data = make(case, dtype)
    parameters = (data.weight, data.bias)
    options = forward_options(case, data)
    x = LAYOUTS[layout](data.x)

    y = fn.batch_norm(x, data.mean, data.var, *parameters, **options)
    inplace = LAYOUTS[layout](data.x)
    result = fn.batch_norm(inplace, data.mean, data.var, *parameters, **options, out=inplace)
    assert result is inplace
    assert_same_bits(inplace, y)

    fwd = fn.batch_norm_train(x, *parameters, **options)
    inplace = LAYOUTS[layout](data.x)
    again = fn.batch_norm_train(inplace, *parameters, **options, out=inplace)
    assert again.y is inplace
    for name in ("y", "mean", "rstd", "mask"):
        assert_same_bits(getattr(again, name), getattr(fwd, name), name)

    backward: dict[str, Any] = {"channel_axis": case.channel_axis, "activation": case.activation}
    rest = (x, fwd.mean, fwd.rstd, *parameters)
    dy = LAYOUTS[layout](data.dy)
    grads = fn.batch_norm_backward(dy, *rest, **backward, residual=data.residual)
    inplace = LAYOUTS[layout](data.dy)
    with_out = fn.batch_norm_backward(
        inplace, *rest, **backward, residual=data.residual, out=inplace
    )
    assert with_out.dx is inplace
    for name in ("dx", "dweight", "dbias", "dresidual"):
        assert_same_bits(getattr(with_out, name), getattr(grads, name), name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [ROWS, COLUMNS], ids=by_name)
def test_negative_channel_axis_is_the_same_axis(case: Case, dtype: str) -> None:
    data = make(case, dtype)
    axis = case.channel_axis % data.x.ndim
    positive = fn.batch_norm_train(data.x, channel_axis=axis)
    negative = fn.batch_norm_train(data.x, channel_axis=axis - data.x.ndim)
    assert_same_bits(positive.y, negative.y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_zero_elements(shape: tuple[int, ...], dtype: str, activation: str | None) -> None:
    channels = shape[1]
    x = np.zeros(shape, to_dtype(dtype))
    mean, var = np.full(channels, 2.0), np.full(channels, 3.0)
    weight = np.full(channels, 4.0, np.float32)
    y = fn.batch_norm(x, mean, var, weight, residual=x.copy(), activation=activation)
    assert_like(y, x)
    fwd = fn.batch_norm_train(x, weight, running_mean=mean, running_var=var, activation=activation)
    assert_like(fwd.y, x)
    assert fwd.mean.shape == fwd.rstd.shape == (channels,)
    assert fwd.mean.dtype == fwd.rstd.dtype == statistics_dtype(x)
    assert np.isnan(fwd.mean).all()
    assert np.isnan(fwd.rstd).all()
    assert (mean == 2.0).all()
    assert (var == 3.0).all()
    if fwd.mask is not None:
        assert fwd.mask.shape == (8,)  # its signature alone
    for training, mask in ((True, None), (False, None), (True, fwd.mask)):
        grads = fn.batch_norm_backward(
            x.copy(),
            x,
            fwd.mean,
            fwd.rstd,
            weight,
            training=training,
            activation=activation,
            mask=mask,
        )
        assert_like(grads.dx, x)
        assert_same_bits(grads.dweight, np.zeros(channels, np.float32))
        assert_same_bits(grads.dbias, np.zeros(channels, np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channel_axis", [0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=activation_name)
def test_slopes_at_the_kinks(
    activation: str | fn.Activation, channel_axis: int, dtype: str
) -> None:
    # Each channel is symmetric about zero and holds every kink, so with eps = 0 and weight
    # sqrt(var) z is x: the comparison is decided at the kink itself.
    values = np.array([0.0, 0.75, 1.0, 3.0, 6.0, 2.5, 0.5, 5.0, 0.0])
    x = np.stack([np.concatenate([values, -values])] * 2, axis=channel_axis)
    x = x.astype(to_dtype(dtype))
    dy = np.full_like(x, 2.0)
    z = x.astype(np.float64)
    slope = reference.activation_slope(z, activation)
    mean, rstd = np.zeros(2), np.ones(2)
    grads = fn.batch_norm_backward(
        dy, x, mean, rstd, training=False, channel_axis=channel_axis, activation=activation
    )
    n = tol.normalized(x, mean, rstd, channel_axis=channel_axis)
    expected = reference.batch_norm_backward(
        dy, x, mean, rstd, training=False, channel_axis=channel_axis, activation=activation
    )
    tolerance = tol.gradient_tolerances(
        dy, n, expected, activation, channel_axis=channel_axis, training=False
    )
    tol.assert_close(grads.dx, 2.0 * slope, tolerance.dx, "dx")
    y = fn.batch_norm(
        x, mean, np.ones(2), eps=0.0, channel_axis=channel_axis, activation=activation
    )
    limit = tol.output_tolerance(n, activation, x.dtype)
    tol.assert_close(y, reference.activate(z, activation), limit, "y")


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", fn.clip(0.0, 1.0)], ids=str)
def test_mask_at_zero(activation: str | fn.Activation, channel_axis: int) -> None:
    """x at the mean gives z = 0 exactly, on the flat side of the kink."""
    x = np.zeros((4, 3, 3), np.float32)
    x[0], x[1] = 0.5, -0.5
    dy = np.ones_like(x)
    fwd = fn.batch_norm_train(x, channel_axis=channel_axis, activation=activation)
    assert fwd.mask is not None
    slope = 0.01 if activation == "leaky_relu" else 0.0
    for mask in (fwd.mask, None):
        grads = fn.batch_norm_backward(
            dy,
            x,
            fwd.mean,
            fwd.rstd,
            training=False,
            channel_axis=channel_axis,
            activation=activation,
            mask=mask,
        )
        np.testing.assert_allclose(grads.dx[2:], slope * fwd.rstd[0], rtol=1e-6)


def test_named_tuples() -> None:
    assert fn.NormForward._fields == ("y", "mean", "rstd", "mask")
    assert fn.NormGradients._fields == ("dx", "dweight", "dbias", "dresidual")
