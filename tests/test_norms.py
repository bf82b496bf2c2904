"""Layer, RMS, group and instance norm against the float64 reference, over their table of cases."""

from __future__ import annotations

import pytest

import fastnorm as fn
from cases import DTYPES
from norm_cases import CASES, Case, make
from norm_checks import check_backward, check_forward


def by_name(case: Case) -> str:
    return case.name


EVERY = pytest.mark.parametrize("case", CASES, ids=by_name)
OF_DTYPES = pytest.mark.parametrize("dtype", DTYPES)


@OF_DTYPES
@EVERY
def test_forward(case: Case, dtype: str) -> None:
    check_forward(case, make(case, dtype))


@OF_DTYPES
@EVERY
def test_backward(case: Case, dtype: str) -> None:
    check_backward(case, make(case, dtype))


def test_named_tuples() -> None:
    assert fn.NormForward._fields == ("y", "mean", "rstd", "mask")
    assert fn.FeatureNormForward._fields == ("y", "mean", "rstd", "mask", "sum")
    assert fn.RMSNormForward._fields == ("y", "rstd", "mask", "sum")
