"""Random shapes, axes, strides, dtypes and options, against the reference."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from cases import ACTIVATIONS, DTYPES, LAYOUTS, Case, make
from checks import check_backward, check_inference, check_train


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A case of up to some thousand elements."""
    extents = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 49]))
    shape = tuple(draw(st.lists(extents, min_size=2, max_size=5)))
    while len(shape) > 2 and _size(shape) > 20_000:
        shape = shape[:-1]
    return Case(
        f"random_{draw(st.integers(0, 2**32))}",
        shape,
        draw(st.integers(-len(shape), len(shape) - 1)),
        draw(st.sampled_from(sorted(LAYOUTS))),
        draw(st.sampled_from(sorted(LAYOUTS))),
        weight=draw(st.booleans()),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from([None, *ACTIVATIONS])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 1.0])),
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


@settings(max_examples=60, deadline=None, derandomize="CI" in os.environ, print_blob=True)
@given(
    case=cases(),
    dtype=st.sampled_from(DTYPES),
    parameter_dtype=st.sampled_from(DTYPES),
    momentum=st.floats(0.0, 1.0),
    unbiased=st.booleans(),
)
def test_random_calls(
    case: Case, dtype: str, parameter_dtype: str, momentum: float, unbiased: bool
) -> None:
    check_inference(case, make(case, dtype, parameter_dtype))
    check_backward(case, make(case, dtype, parameter_dtype), training=False)
    if case.values_per_channel > 1:
        data = make(case, dtype, parameter_dtype)
        check_train(case, data, momentum=momentum, unbiased=unbiased)
        check_backward(case, make(case, dtype, parameter_dtype), training=True)
