"""Runs one case through one op and compares everything it returns with the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

import fastnorm as fn
import tolerances as tol
from cases import Case, Data, make, to_dtype
from fastnorm import reference
from fastnorm.activation import as_activation

Array = npt.NDArray[Any]


@contextmanager
def on_isa(name: str) -> Iterator[str]:
    """Kernels of one instruction set, and after that those of before."""
    before = fn._core.isa()
    fn._core.set_isa(name)
    try:
        yield name
    finally:
        fn._core.set_isa(before)


def snapshot(data: Data) -> dict[str, bytes]:
    """The bytes of every input, to see that none was written."""
    return {name: a.tobytes() for name, a in vars(data).items() if isinstance(a, np.ndarray)}


def assert_unmodified(data: Data, before: dict[str, bytes], *written: str) -> None:
    """Every input but those named has its bytes still."""
    after = snapshot(data)
    changed = [name for name in before if name not in written and before[name] != after[name]]
    assert not changed


def assert_same_bits(actual: Array | None, expected: Array | None, what: str = "") -> None:
    """Equal dtype, shape and bits, NaN included; or both None."""
    if actual is None or expected is None:
        assert actual is expected, what
        return
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    assert actual.tobytes() == expected.tobytes(), what


def assert_same_numbers(actual: Array | None, expected: Array | None, what: str = "") -> None:
    """The same bits, but of the many NaN there are any is as good."""
    if actual is not None and expected is not None and actual.dtype.kind != "u":
        both = np.isnan(actual) & np.isnan(expected)
        zero = np.zeros((), actual.dtype)
        actual, expected = np.where(both, zero, actual), np.where(both, zero, expected)
    assert_same_bits(actual, expected, what)


def assert_like(actual: Array, x: Array) -> None:
    """A new array of x's dtype, shape and order of dimensions in memory; C order for broadcasts."""
    expected = np.empty(x.shape, x.dtype) if 0 in x.strides else np.empty_like(x)
    assert actual.dtype == x.dtype
    assert actual.shape == x.shape
    if x.size > 0:
        axes = [axis for axis in range(x.ndim) if x.shape[axis] > 1]
        assert [actual.strides[a] for a in axes] == [expected.strides[a] for a in axes]
    assert not np.may_share_memory(actual, x)


def statistics_dtype(x: Array) -> np.dtype[Any]:
    """The dtype of mean and rstd: one step wider than the data."""
    return np.dtype(np.float32 if x.dtype.itemsize == 2 else np.float64)


def _tolerance_of_output(
    case: Case, data: Data, mean: Array, rstd: Array, batch_statistics: bool
) -> Array:
    n = tol.normalized(
        data.x,
        mean,
        rstd,
        data.weight,
        data.bias,
        residual=data.residual,
        channel_axis=case.channel_axis,
        batch_statistics=batch_statistics,
    )
    return tol.output_tolerance(n, case.activation, data.x.dtype)


def forward_options(case: Case, data: Data) -> dict[str, Any]:
    """The keyword arguments that both forward ops share."""
    return {
        "eps": case.eps,
        "channel_axis": case.channel_axis,
        "residual": data.residual,
        "activation": case.activation,
    }


def check_inference(case: Case, data: Data, ops: Any = fn) -> None:
    """batch_norm against the reference."""
    before = snapshot(data)
    arguments = (data.x, data.mean, data.var, data.weight, data.bias)
    options = forward_options(case, data)
    y = ops.batch_norm(*arguments, **options)
    expected = reference.batch_norm(*arguments, **options)
    assert_like(y, data.x)
    assert_unmodified(data, before)
    rstd = 1.0 / np.sqrt(data.var.astype(np.float64) + case.eps)
    tolerance = _tolerance_of_output(case, data, data.mean, rstd, False)
    tol.assert_close(y, expected, tolerance, "y")


def check_train(
    case: Case, data: Data, *, momentum: float = 0.1, unbiased: bool = True, ops: Any = fn
) -> fn.NormForward:
    """batch_norm_train against the reference: y, statistics, running statistics and mask."""
    before = snapshot(data)
    options = forward_options(case, data) | {"momentum": momentum, "unbiased": unbiased}
    running_mean = data.running_mean.astype(np.float64)
    running_var = data.running_var.astype(np.float64)
    old_mean, old_var = running_mean.copy(), running_var.copy()
    expected = reference.batch_norm_train(
        data.x,
        data.weight,
        data.bias,
        running_mean=running_mean,
        running_var=running_var,
        **options,
    )
    fwd = ops.batch_norm_train(
        data.x,
        data.weight,
        data.bias,
        running_mean=data.running_mean,
        running_var=data.running_var,
        **options,
    )
    assert_like(fwd.y, data.x)
    assert_unmodified(data, before, "running_mean", "running_var")
    assert fwd.mean.dtype == fwd.rstd.dtype == statistics_dtype(data.x)
    mean_tolerance, rstd_tolerance = tol.statistic_tolerances(
        data.x.dtype, expected.mean, expected.rstd
    )
    tol.assert_close(fwd.mean, expected.mean, mean_tolerance, "mean")
    tol.assert_close(fwd.rstd, expected.rstd, rstd_tolerance, "rstd")
    tolerance = _tolerance_of_output(case, data, expected.mean, expected.rstd, True)
    tol.assert_close(fwd.y, expected.y, tolerance, "y")

    u = tol.accumulation_roundoff(data.x.dtype)
    storage = data.running_mean.dtype
    parts = np.abs(running_mean) + np.abs(old_mean)
    tolerance = momentum * mean_tolerance + 4.0 * u * parts + tol.rounding(parts, storage)
    tol.assert_close(data.running_mean, running_mean, tolerance, "running_mean")
    parts = running_var + old_var
    tolerance = 4.0 * tol.STATISTIC * u * parts + tol.rounding(parts, data.running_var.dtype)
    tol.assert_close(data.running_var, running_var, tolerance, "running_var")

    activation = as_activation(case.activation, "test")
    if activation is not None and activation.name in tol.KINKED:
        assert fwd.mask is not None
        assert fwd.mask.dtype == np.uint8
        assert fwd.mask.ndim == 1
        assert (fwd.mask.size - 8) * 8 >= data.x.size  # behind a signature
    else:
        assert fwd.mask is None
    return fwd


def check_backward(case: Case, data: Data, *, training: bool, ops: Any = fn) -> fn.NormGradients:
    """batch_norm_backward against the reference, with the mask and without; the gradients."""
    mask = None
    if training:
        fwd = ops.batch_norm_train(data.x, data.weight, data.bias, **forward_options(case, data))
        mean, rstd, mask = fwd.mean, fwd.rstd, fwd.mask
    else:
        mean = data.mean
        rstd = 1.0 / np.sqrt(data.var.astype(np.float64) + case.eps)
    options: dict[str, Any] = {
        "training": training,
        "channel_axis": case.channel_axis,
        "activation": case.activation,
    }
    n = tol.normalized(
        data.x,
        mean,
        rstd,
        data.weight,
        data.bias,
        residual=data.residual,
        channel_axis=case.channel_axis,
    )
    dy = data.dy
    near = tol.near_kink(n, case.activation)
    if near.any():
        dy = dy.copy(order="K")
        dy[near] = 0
    before = snapshot(data)
    arguments = (dy, data.x, mean, rstd, data.weight, data.bias)
    expected = reference.batch_norm_backward(*arguments, residual=data.residual, **options)
    grads = ops.batch_norm_backward(*arguments, residual=data.residual, **options)
    assert_unmodified(data, before)

    given = data.weight if data.weight is not None else data.bias
    if given is not None:
        parameter = given.dtype
    else:
        parameter = to_dtype("float64" if data.x.dtype == np.float64 else "float32")
    assert grads.dweight.dtype == grads.dbias.dtype == parameter
    assert_like(grads.dx, data.x)
    tolerance = tol.gradient_tolerances(
        dy,
        n,
        expected,
        case.activation,
        channel_axis=case.channel_axis,
        training=training,
        parameter_dtype=parameter,
    )
    tol.assert_close(grads.dx, expected.dx, tolerance.dx, "dx")
    tol.assert_close(grads.dweight, expected.dweight, tolerance.dweight, "dweight")
    tol.assert_close(grads.dbias, expected.dbias, tolerance.dbias, "dbias")
    if data.residual is None:
        assert grads.dresidual is None
    else:
        assert grads.dresidual is not None
        assert_like(grads.dresidual, data.x)
        assert expected.dresidual is not None
        tol.assert_close(grads.dresidual, expected.dresidual, tolerance.dresidual, "dresidual")

    if mask is not None:
        # The mask holds the very comparison that backward repeats: not a bit may differ. With it,
        # the residual's values are not needed, nor is the bias.
        had_residual = None if data.residual is None else True
        with_mask = ops.batch_norm_backward(*arguments, residual=had_residual, mask=mask, **options)
        for name in ("dx", "dweight", "dbias", "dresidual"):
            assert_same_bits(getattr(with_mask, name), getattr(grads, name), name)
    elif data.residual is not None and case.activation is None:
        without_values = ops.batch_norm_backward(*arguments, residual=True, **options)
        for name in ("dx", "dweight", "dbias", "dresidual"):
            assert_same_bits(getattr(without_values, name), getattr(grads, name), name)
    return grads


def check_all(case: Case, dtype: str, ops: Any = fn) -> None:
    """Every op on one case; ops: what has them."""
    check_inference(case, make(case, dtype), ops)
    if case.values_per_channel > 1:
        check_train(case, make(case, dtype), ops=ops)
        check_backward(case, make(case, dtype), training=True, ops=ops)
    check_backward(case, make(case, dtype), training=False, ops=ops)
