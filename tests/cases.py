"""The one table of cases: shapes, memory layouts, parameters and fusions, and their data.

Tests run `CASES` times `DTYPES`. A case lists only what it varies; the data follow from its name.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import fastnorm as fn

Array = npt.NDArray[Any]

DTYPES = ("float32", "float64", "float16", "bfloat16")
SHAPES_CSV = Path(__file__).parent / "data" / "bn_shapes.csv"


def to_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


# --- layouts: each gives an array of the same shape, and but for broadcasts the same values ------


def _channels_last(a: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def _axes_swapped(a: Array) -> Array:
    return np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1)


def _inner_swapped(a: Array) -> Array:
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)


def _window(a: Array, axis: int, step: int) -> Array:
    """Every step-th slice of a larger buffer along axis, with a margin before and after."""
    shape = list(a.shape)
    shape[axis] = shape[axis] * step + 2
    view = np.full(shape, 77, a.dtype).swapaxes(0, axis)
    view = view[1 : 1 + a.shape[axis] * step : step].swapaxes(0, axis)
    view[...] = a
    return view


def _reversed(a: Array, axes: tuple[int, ...]) -> Array:
    return np.flip(np.flip(a, axes).copy(), axes)


def _misaligned(a: Array) -> Array:
    """A buffer that starts at an odd address."""
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _field(a: Array) -> Array:
    """A field of packed records: no stride is a multiple of the itemsize."""
    view: Array = np.zeros(a.shape, dtype=[("tag", "u1"), ("value", a.dtype)])["value"]
    view[...] = a
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "channels_last": _channels_last,
    "axes_swapped": _axes_swapped,
    "inner_swapped": _inner_swapped,
    "strided_outer": lambda a: _window(a, 0, 2),
    "strided_channel": lambda a: _window(a, 1, 1),
    "strided_inner": lambda a: _window(a, -1, 2),
    "padded_inner": lambda a: _window(a, -1, 1),
    "negative_outer": lambda a: _reversed(a, (0,)),
    "negative_inner": lambda a: _reversed(a, (a.ndim - 1,)),
    "negative": lambda a: _reversed(a, tuple(range(a.ndim))),
    "broadcast_outer": lambda a: np.broadcast_to(a[:1], a.shape),
    "broadcast_inner": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "misaligned": _misaligned,
    "field": _field,
}


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One call; `layout` is that of x, `other_layout` that of dy and the residual."""

    name: str
    shape: tuple[int, ...]
    channel_axis: int = 1
    layout: str = "C"
    other_layout: str = "C"
    weight: bool = True
    bias: bool = True
    residual: bool = False
    activation: str | fn.Activation | None = None
    eps: float = 1e-5

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[self.channel_axis]

    @property
    def values_per_channel(self) -> int:
        """How many values a channel's statistics are taken over."""
        size = int(np.prod(self.shape))
        return size // self.channels if size else 0


def _real() -> Iterator[Case]:
    """Of each plane and each following op in real networks, the narrowest and the widest."""
    with SHAPES_CSV.open(newline="") as file:
        rows = [(int(r["h"]), r["followed_by"], int(r["c"])) for r in csv.DictReader(file)]
    for plane, follower in sorted({(h, follower) for h, follower, _ in rows}):
        channels = sorted({c for h, f, c in rows if (h, f) == (plane, follower)})
        for c in sorted({channels[0], channels[-1] if plane <= 14 else channels[0]}):
            yield Case(
                f"{follower.lower()}_{c}x{plane}x{plane}",
                (1 if c * plane * plane > 40_000 else 2, c, plane, plane),
                residual=follower == "Sum",
                activation="relu" if follower in ("Relu", "Sum") else None,
            )


def _lanes() -> Iterator[Case]:
    """Lengths around the vector widths, along a plane and along the channels."""
    activations = ("relu", None, "silu", "leaky_relu")
    lengths = sorted({lanes + d for lanes in (4, 8, 16, 32, 64) for d in (-1, 0, 1)})
    for i, length in enumerate(lengths):
        activation, residual = activations[i % 4], i % 3 == 0
        yield Case(f"plane_{length}", (2, 3, length), activation=activation, residual=residual)
        yield Case(f"channels_{length}", (5, length), activation=activation, residual=residual)


ACTIVATIONS: tuple[str | fn.Activation, ...] = (
    "relu",
    "leaky_relu",
    "clip",
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "gelu_tanh",
    "hardswish",
    fn.leaky_relu(0.2),
    fn.leaky_relu(-0.5),
    fn.clip(-1.0, 0.75),
)


def activation_id(activation: str | fn.Activation | None) -> str:
    """A short name for test ids."""
    if isinstance(activation, fn.Activation):
        return f"{activation.name}_{activation.alpha:g}_{activation.beta:g}"
    return activation or "none"


def _fused() -> Iterator[Case]:
    """Every activation in both traversals, with and without the residual."""
    for i, activation in enumerate(ACTIVATIONS):
        name = activation_id(activation)
        yield Case(f"rows_{name}", (3, 5, 7, 6), activation=activation, residual=i % 2 == 0)
        yield Case(f"columns_{name}", (4, 3, 3, 19), -1, activation=activation, residual=i % 2 == 1)


def _layouts() -> Iterator[Case]:
    for i, layout in enumerate(LAYOUTS):
        residual, activation = i % 2 == 0, ("relu", None, "tanh")[i % 3]
        yield Case(f"x_{layout}", (4, 6, 5, 9), 1, layout, residual=residual, activation=activation)
        yield Case(
            f"all_{layout}", (4, 6, 5, 9), 1, layout, layout, residual=residual, activation="clip"
        )
        yield Case(f"last_{layout}", (5, 6, 21), -1, layout, residual=True, activation=activation)


CASES: tuple[Case, ...] = (
    *_real(),
    *_lanes(),
    *_fused(),
    *_layouts(),
    # Planes of networks' last stages, and the shortest ones.
    Case("plane_of_1", (9, 5, 1, 1), activation="relu"),
    Case("plane_of_2", (6, 5, 2), residual=True),
    Case("plane_of_49", (3, 11, 7, 7), activation="hardswish", residual=True),
    Case("plane_of_196", (2, 7, 14, 14), activation="relu", residual=True),
    # One channel, one image, two values.
    Case("one_channel_2d", (33, 1), activation="relu"),
    Case("one_channel_4d", (3, 1, 9, 5)),
    Case("one_channel_last", (3, 9, 5, 1), -1, activation="clip"),
    Case("one_image", (1, 6, 5, 5), residual=True),
    Case("one_image_last", (1, 5, 5, 6), -1, residual=True, activation="relu"),
    Case("one_element", (1, 1), activation="relu"),
    Case("two_values", (2, 5)),
    Case("two_values_in_a_plane", (1, 3, 2)),
    # 2 to 5 dimensions, channels anywhere.
    Case("ncl", (4, 3, 50), activation="relu"),
    Case("ncdhw", (2, 3, 4, 5, 6), activation="relu", residual=True),
    Case("ndhwc", (2, 3, 4, 5, 6), 4, activation="relu", residual=True),
    Case("ndhwc_memory", (2, 6, 3, 4, 5), 1, "channels_last", "channels_last", residual=True),
    Case("channel_first_2d", (7, 40), 0, activation="silu"),
    Case("channel_first_4d", (5, 2, 3, 17), -4, residual=True),
    Case("channel_in_the_middle", (3, 4, 5, 6), 2, activation="gelu"),
    Case("channel_in_the_middle_5d", (2, 3, 4, 5, 6), -3, activation="relu"),
    Case("wide_rows", (300, 70), activation="sigmoid"),
    Case("narrow_rows", (1000, 3), activation="leaky_relu"),
    Case("long_inner", (2, 2, 5000), activation="relu", residual=True),
    # Parameters.
    Case("no_weight", (3, 5, 7), weight=False, activation="relu"),
    Case("no_bias", (3, 5, 7), bias=False, activation="gelu_tanh"),
    Case("no_parameters", (3, 5, 7), weight=False, bias=False, residual=True),
    Case("no_weight_last", (8, 21), weight=False, activation="relu"),
    Case("no_bias_last", (8, 21), bias=False),
    Case("no_parameters_last", (8, 21), weight=False, bias=False, activation="relu"),
    Case("large_eps", (3, 5, 7), eps=10.0),
    Case("no_eps", (6, 5, 7), eps=0.0, activation="relu"),
)

TRAINABLE = tuple(case for case in CASES if case.values_per_channel > 1)

# A cross-section for the tests that multiply by instruction sets.
_FEW_NAMES = (
    *("all_channels_last", "x_strided_inner", "plane_of_49", "ncdhw", "no_parameters"),
    *("plane_31", "plane_33", "channels_31", "channels_33", "wide_rows", "long_inner"),
    *(case.name for case in _fused()),
)
FEW = tuple(case for case in TRAINABLE if case.name in _FEW_NAMES)

EMPTY_SHAPES = ((0, 3), (0, 3, 4, 5), (2, 0), (2, 0, 3, 3), (2, 3, 0), (2, 3, 4, 0), (0, 0))


# --- the data of a case --------------------------------------------------------------------------


@dataclass
class Data:
    """The arguments of a case; what the case does not have is None."""

    x: Array
    dy: Array
    residual: Array | None
    weight: Array | None
    bias: Array | None
    mean: Array
    var: Array
    running_mean: Array
    running_var: Array


def make(case: Case, dtype: str, parameter_dtype: str | None = None) -> Data:
    """Data of the case, the same in every run.

    Channels differ in location (within a few deviations of zero) and in spread. Parameters are
    float32, or float64 for float64, unless given.
    """
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    element = to_dtype(dtype)
    parameter = to_dtype(parameter_dtype or ("float64" if dtype == "float64" else "float32"))
    per_channel = [1] * len(case.shape)
    per_channel[case.channel_axis] = case.channels

    location = rng.uniform(-3.0, 3.0, case.channels)
    spread = rng.uniform(0.5, 2.0, case.channels)
    values = rng.standard_normal(case.shape)
    x = (values * spread.reshape(per_channel) + location.reshape(per_channel)).astype(element)
    dy = rng.standard_normal(case.shape).astype(element)
    residual = rng.standard_normal(case.shape).astype(element)
    weight = rng.uniform(0.5, 1.5, case.channels) * rng.choice([-1, 1], case.channels)
    bias = rng.standard_normal(case.channels)
    layout, other_layout = LAYOUTS[case.layout], LAYOUTS[case.other_layout]
    return Data(
        x=layout(x),
        dy=other_layout(dy),
        residual=other_layout(residual) if case.residual else None,
        weight=weight.astype(parameter) if case.weight else None,
        bias=bias.astype(parameter) if case.bias else None,
        mean=(location + 0.1 * rng.standard_normal(case.channels)).astype(parameter),
        var=(spread**2).astype(parameter),
        running_mean=rng.standard_normal(case.channels).astype(parameter),
        running_var=rng.uniform(0.5, 2.0, case.channels).astype(parameter),
    )


# Shapes of each tier on a large GPU (132 multiprocessors), whole packs and ragged ones: how float32
# trains, in NCHW and in NHWC.
TIERS_OF_SHAPES = {
    (8, 512, 4, 8): ("on_chip: block", "on_chip: block"),
    (32, 256, 28, 28): ("on_chip: block", "on_chip: cluster"),
    (32, 64, 56, 56): ("on_chip: cluster", "on_chip: grid"),
    (32, 24, 112, 112): ("on_chip: cluster", "on_chip: grid"),
    (256, 64, 112, 112): ("on_chip: grid", "reduce: two passes"),
    (7, 5, 333, 77): ("reduce: two passes", "reduce: two passes"),
    (64, 2048, 7, 7): ("staged: block", "on_chip: block"),
    (256, 512, 7, 7): ("staged: cluster", "on_chip: cluster"),
    (64, 8, 75, 75): ("staged: grid", "on_chip: grid"),
    (64, 8, 333, 77): ("reduce: two passes", "reduce: two passes"),
}
