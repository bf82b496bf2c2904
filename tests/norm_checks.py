"""Runs one case of a norm and compares everything it returns with the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import fastnorm as fn
import tolerances as tol
from cases import to_dtype
from checks import assert_like, assert_same_bits, statistics_dtype
from fastnorm import reference
from fastnorm.activation import as_activation
from norm_cases import Case, Data

Array = npt.NDArray[Any]


def snapshot(data: Data) -> dict[str, bytes]:
    """The bytes of every input, to see that none was written."""
    return {name: a.tobytes() for name, a in vars(data).items() if isinstance(a, np.ndarray)}


def wide(case: Case, values: Array | None, default: float, of: Array) -> Array:
    """Values in float64 where they belong in x."""
    if values is None:
        return np.full((1,) * len(case.shape), default)
    flat: Array = np.asarray(values, np.float64).reshape(-1)
    return flat[of]


def normalized(
    case: Case, data: Data, mean: Array | None, rstd: Array, *, own: bool = False
) -> tol.Normalized:
    """What z is, and how far from it the op's may be."""
    statistic, parameter = case.statistic_of(), case.parameter_of()
    offset = case.options.get("weight_offset", 0.0)
    return tol.normalized_by(
        data.x,
        wide(case, mean, 0.0, statistic),
        wide(case, rstd, 1.0, statistic),
        wide(case, data.weight, 1.0, parameter) + (offset if data.weight is not None else 0.0),
        wide(case, data.bias, 0.0, parameter),
        residual=None if case.prenorm else data.residual,
        own_statistics=own,
    )


def leading(case: Case) -> tuple[Any, ...]:
    """What comes between x and weight."""
    return (case.groups,) if case.norm == "group_norm" else ()


def forward_options(case: Case, data: Data) -> dict[str, Any]:
    """The keyword arguments of the forward ops."""
    prenorm = {"prenorm": True} if case.prenorm else {}
    own = {"eps": case.eps, "residual": data.residual, "activation": case.activation}
    return case.where() | own | prenorm | case.options


def check_forward(case: Case, data: Data, ops: Any = fn) -> Any:
    """y, statistics, mask and sum; and that the op without them gives the same bits."""
    before = snapshot(data)
    arguments = (data.x, *leading(case), data.weight, data.bias)
    options = forward_options(case, data)
    fwd = case.op("_train", ops)(*arguments, **options)
    expected = case.op("_train", reference)(*arguments, **options)
    only = case.op("", ops)(*arguments, **options)
    assert snapshot(data) == before
    if case.prenorm:
        assert_like(fwd.sum, data.x)
        tolerance = 2.0 * tol.rounding(expected.sum.astype(np.float64), data.x.dtype)
        tol.assert_close(fwd.sum, expected.sum.astype(np.float64), tolerance, "sum")
        y, total = only
        assert_same_bits(total, fwd.sum)
        # What follows is of the sum as it was rounded.
        data.x = fwd.sum
        expected = case.op("_train", reference)(
            data.x,
            data.weight,
            data.bias,
            **case.where(),
            eps=case.eps,
            activation=case.activation,
            **case.options,
        )
    else:
        y = only
    assert_same_bits(y, fwd.y)
    assert_like(fwd.y, data.x)
    mean_tolerance, rstd_tolerance = tol.statistic_tolerances(
        data.x.dtype, expected.mean, expected.rstd
    )
    assert fwd.rstd.shape == case.statistics_shape
    assert fwd.rstd.dtype == statistics_dtype(data.x)
    tol.assert_close(fwd.rstd, expected.rstd, rstd_tolerance, "rstd")
    if case.norm != "rms_norm":
        assert fwd.mean.shape == case.statistics_shape
        assert fwd.mean.dtype == fwd.rstd.dtype
        tol.assert_close(fwd.mean, expected.mean, mean_tolerance, "mean")
    n = normalized(case, data, expected.mean, expected.rstd, own=True)
    tolerance = tol.output_tolerance(n, case.activation, data.x.dtype)
    tol.assert_close(fwd.y, expected.y, tolerance, "y")
    activation = as_activation(case.activation, "test")
    has_mask = activation is not None and activation.name in tol.KINKED
    assert (fwd.mask is not None) == has_mask
    return fwd


def parameter_gradients(case: Case, bias: Array | None, grads: Any) -> tuple[str, ...]:
    """The parameters' gradients that there have to be: of a bias that RMS norm has not, none."""
    has_dbias = bias is not None or case.norm != "rms_norm"
    assert (grads.dbias is not None) == has_dbias
    return ("dweight", "dbias") if has_dbias else ("dweight",)


def check_backward(case: Case, data: Data, ops: Any = fn) -> Any:
    """Gradients, with the mask and without."""
    arguments = (data.x, *leading(case), data.weight, data.bias)
    fwd = case.op("_train", ops)(*arguments, **forward_options(case, data))
    if case.prenorm:
        data.x = fwd.sum
    mean = None if case.norm == "rms_norm" else fwd.mean
    n = normalized(case, data, mean, fwd.rstd)
    near = tol.near_kink(n, case.activation)
    dy = data.dy
    if near.any():
        dy = dy.copy(order="K")
        dy[near] = 0
    statistics = (fwd.rstd,) if mean is None else (mean, fwd.rstd)
    arguments = (dy, data.x, *leading(case), *statistics, data.weight, data.bias)
    options: dict[str, Any] = case.where() | {"activation": case.activation}
    if "weight_offset" in case.options:
        options["weight_offset"] = case.options["weight_offset"]
    if data.dsum is not None:
        options["dsum"] = data.dsum
    residual = None if case.prenorm else data.residual
    before = snapshot(data)
    expected = case.op("_backward", reference)(*arguments, residual=residual, **options)
    grads = case.op("_backward", ops)(*arguments, residual=residual, **options)
    assert snapshot(data) == before

    given = data.weight if data.weight is not None else data.bias
    alone = to_dtype("float64" if data.x.dtype == np.float64 else "float32")
    parameter = given.dtype if given is not None else alone
    found = parameter_gradients(case, data.bias, grads)
    for name in found:
        assert getattr(grads, name).dtype == parameter
        assert getattr(grads, name).shape == case.parameters_shape
    assert_like(grads.dx, data.x)
    statistic_of, parameter_of = case.statistic_of().ravel(), case.parameter_of().ravel()
    count = data.x.size // max(int(np.prod(case.statistics_shape)), 1)

    def average(a: Array) -> Array:
        sums = np.bincount(statistic_of, np.broadcast_to(a, case.shape).ravel())
        return np.asarray(sums[case.statistic_of()] / count)

    def parameter_sum(a: Array) -> Array:
        sums = np.bincount(parameter_of, np.broadcast_to(a, case.shape).ravel())
        return sums.reshape(case.parameters_shape)

    tolerance = tol.gradient_tolerances_by(
        dy,
        n,
        expected,
        case.activation,
        average=average,
        parameter_sum=parameter_sum,
        parameter_dtype=parameter,
    )
    limit = tolerance.dx
    if data.dsum is not None:
        limit = limit + 4.0 * tol.rounding(data.dsum.astype(np.float64), data.x.dtype)
    tol.assert_close(grads.dx, expected.dx, limit, "dx")
    for name in found:
        tol.assert_close(
            getattr(grads, name), getattr(expected, name), getattr(tolerance, name), name
        )
    assert (grads.dresidual is None) == (residual is None)
    if residual is not None:
        assert_like(grads.dresidual, data.x)
        tol.assert_close(grads.dresidual, expected.dresidual, tolerance.dresidual, "dresidual")
    if fwd.mask is not None:
        had_residual = None if residual is None else True
        with_mask = case.op("_backward", ops)(
            *arguments, residual=had_residual, mask=fwd.mask, **options
        )
        for name in ("dx", "dweight", "dbias", "dresidual"):
            assert_same_bits(getattr(with_mask, name), getattr(grads, name), name)
    return grads
