"""The other norms: random shapes, axes, strides, dtypes, options and memory of outputs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnorm as fn
from cases import ACTIVATIONS, DTYPES, LAYOUTS
from norm_cases import Case, make
from norm_checks import check_backward, check_forward
from test_overlap import _bytes_of

NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A case of up to some thousand elements."""
    norm = draw(st.sampled_from(NORMS))
    of_rows = norm in ("layer_norm", "rms_norm")
    extents = st.one_of(st.integers(1, 9), st.sampled_from([12, 15, 16, 17, 31, 33, 49]))
    least = {"group_norm": 2, "instance_norm": 3}.get(norm, 1)
    shape = tuple(draw(st.lists(extents, min_size=least, max_size=5)))
    while len(shape) > least and int(np.prod(shape)) > 20_000:
        shape = shape[:-1]
    axis = draw(st.integers(0 if of_rows else 1, len(shape) - 1))
    # A vector has no axes to swap.
    layouts = sorted(LAYOUTS) if len(shape) > 1 else ["C", "negative_inner", "strided_inner"]
    divisors = [d for d in range(1, shape[axis] + 1) if shape[axis] % d == 0]
    return Case(
        f"random_{draw(st.integers(0, 2**32))}",
        norm,
        shape,
        axis - draw(st.sampled_from([0, len(shape)])),
        draw(st.sampled_from(divisors)) if norm == "group_norm" else 1,
        draw(st.sampled_from(layouts)),
        draw(st.sampled_from(layouts)),
        weight=draw(st.booleans()),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        prenorm=of_rows and draw(st.booleans()),
        activation=draw(st.sampled_from([None, *ACTIVATIONS])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 1.0])),
        options={"weight_offset": 1.0} if of_rows and draw(st.booleans()) else {},
    )


@settings(max_examples=100, deadline=None, derandomize="CI" in os.environ, print_blob=True)
@given(case=cases(), dtype=st.sampled_from(DTYPES), parameter_dtype=st.sampled_from(DTYPES))
def test_random_calls(case: Case, dtype: str, parameter_dtype: str) -> None:
    check_forward(case, make(case, dtype, parameter_dtype))
    check_backward(case, make(case, dtype, parameter_dtype))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_random_slices_of_one_buffer(norm: str) -> None:
    """x, the residual, out and sum_out anywhere in it: refused, or the result of copies."""
    rng = np.random.default_rng(1)
    op = getattr(fn, norm)
    buffer = np.zeros((60, 90), np.float32)
    fine = 0
    for _ in range(300):
        shape = [int(rng.integers(2, 8)), int(rng.integers(2, 12))]
        views = []
        for _ in range(4):
            index = []
            for extent, n in zip(buffer.shape, shape, strict=True):
                step = int(rng.integers(1, 5))
                start = int(rng.integers(0, extent - (n - 1) * step))
                index.append(slice(start, start + (n - 1) * step + 1, step))
            views.append(buffer[tuple(index)])
        buffer[...] = rng.standard_normal(buffer.shape)
        x, residual, out, total = views
        reads = [_bytes_of(a) for a in (x, residual)]
        writes = [_bytes_of(a) for a in (out, total)]
        others = [(w, r) for w in writes for r in reads] + [(writes[0], writes[1])]
        options: dict[str, Any] = {"residual": residual, "prenorm": True}
        before = buffer.copy()
        if all(np.intersect1d(a, b).size == 0 for a, b in others):
            fine += 1
            y, s = op(x.copy(), **options | {"residual": residual.copy()})
            op(x, out=out, sum_out=total, **options)
            # Rows of other strides are read in another way, but to the same bits.
            assert np.array_equal(out, y)
            assert np.array_equal(total, s)
        else:
            with pytest.raises(ValueError, match="overlaps"):
                op(x, out=out, sum_out=total, **options)
            assert np.array_equal(buffer, before)
    assert 30 < fine < 290
