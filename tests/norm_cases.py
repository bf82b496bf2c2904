"""The table of cases of the norms beside batch norm, and their data.

As `cases` has it for batch norm. What belongs to which element is said by numbers: of its statistic
and of its parameter, from which tests take averages and sums without knowing the norm.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import fastnorm as fn
from cases import ACTIVATIONS, LAYOUTS, activation_id, to_dtype

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One call; `layout` is that of x, `other_layout` that of dy, the residual and dsum."""

    name: str
    norm: str  # "layer_norm", "rms_norm", "group_norm" or "instance_norm"
    shape: tuple[int, ...]
    axis: int = -1  # of rows the first one, else the channels'
    groups: int = 1
    layout: str = "C"
    other_layout: str = "C"
    weight: bool = True
    bias: bool = True
    residual: bool = False
    prenorm: bool = False
    activation: str | fn.Activation | None = None
    eps: float = 1e-5
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def of_rows(self) -> bool:
        """Whether statistics are those of rows, and parameters those of a row's elements."""
        return self.norm in ("layer_norm", "rms_norm")

    @property
    def first(self) -> int:
        """The axis from 0 on."""
        return self.axis % len(self.shape)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """The shape of mean and rstd."""
        if self.of_rows:
            return self.shape[: self.first]
        channels = self.shape[self.first]
        return (self.shape[0], self.groups if self.norm == "group_norm" else channels)

    @property
    def parameters_shape(self) -> tuple[int, ...]:
        """The shape of weight and bias."""
        return self.shape[self.first :] if self.of_rows else (self.shape[self.first],)

    def statistic_of(self) -> Array:
        """For each element the number of its statistic."""
        index = np.indices(self.shape, sparse=True)
        if self.of_rows:
            rows = np.arange(int(np.prod(self.shape[: self.first])))
            shape = self.shape[: self.first] + (1,) * (len(self.shape) - self.first)
            return np.broadcast_to(rows.reshape(shape), self.shape)
        per_sample = self.statistics_shape[1]
        group = self.shape[self.first] // per_sample
        return np.broadcast_to(index[0] * per_sample + index[self.first] // group, self.shape)

    def parameter_of(self) -> Array:
        """For each element the number of its weight."""
        if self.of_rows:
            count = int(np.prod(self.parameters_shape))
            return np.broadcast_to(np.arange(count).reshape(self.parameters_shape), self.shape)
        return np.broadcast_to(np.indices(self.shape, sparse=True)[self.first], self.shape)

    def op(self, suffix: str = "", ops: Any = fn) -> Any:
        """The function of this norm that its name and a suffix give."""
        return getattr(ops, self.norm + suffix)

    def where(self) -> dict[str, Any]:
        """The axes, as every op of the norm takes them."""
        return {"axis": self.axis} if self.of_rows else {"channel_axis": self.axis}


@dataclass
class Data:
    """The arguments of a case; what the case does not have is None."""

    x: Array
    dy: Array
    residual: Array | None
    dsum: Array | None
    weight: Array | None
    bias: Array | None


def make(case: Case, dtype: str, parameter_dtype: str | None = None) -> Data:
    """Data of the case, the same in every run: statistics differ in location and in spread."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    element = to_dtype(dtype)
    parameter = to_dtype(parameter_dtype or ("float64" if dtype == "float64" else "float32"))
    count = int(np.prod(case.statistics_shape))
    of = case.statistic_of()
    location = rng.uniform(-3.0, 3.0, count)[of]
    spread = rng.uniform(0.5, 2.0, count)[of]
    x = (rng.standard_normal(case.shape) * spread + location).astype(element)
    dy, residual, dsum = (rng.standard_normal(case.shape).astype(element) for _ in range(3))
    shape = case.parameters_shape
    weight = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
    bias = rng.standard_normal(shape)
    layout, other = LAYOUTS[case.layout], LAYOUTS[case.other_layout]
    return Data(
        x=layout(x),
        dy=other(dy),
        residual=other(residual) if case.residual or case.prenorm else None,
        dsum=other(dsum) if case.prenorm else None,
        weight=weight.astype(parameter) if case.weight else None,
        bias=bias.astype(parameter) if case.bias else None,
    )


ROW_NORMS = ("layer_norm", "rms_norm")


def _rows() -> Iterator[Case]:
    """Rows of every length around the vectors' widths, few and many of them."""
    activations = ("relu", None, "silu", None)
    lengths = sorted({lanes + d for lanes in (4, 8, 16, 32, 64, 128) for d in (-1, 0, 1)})
    for i, length in enumerate((1, 2, *lengths)):
        yield Case(
            f"row_{length}",
            ROW_NORMS[i % 2],
            (3, 5, length),
            activation=activations[i % 4],
            residual=i % 3 == 0,
            bias=i % 4 != 1,
        )
    for i, length in enumerate((1, 2, 5, 16, 24, 31)):  # nothing but the row to be read
        yield Case(
            f"plain_row_{length}",
            ROW_NORMS[i % 2],
            (7, 11, length),
            activation="silu" if i % 3 == 0 else None,
            bias=i % 4 < 2,
        )
    for norm in ROW_NORMS:
        yield Case(f"{norm}_token", norm, (1, 4096), residual=True, prenorm=True)
        yield Case(f"{norm}_vector", norm, (1000,), 0, activation="relu")
        for length in (256, 257, 2048, 2049, 4096, 4097):  # where rows are summed in other ways
            yield Case(f"{norm}_of_{length}", norm, (7, length))
        yield Case(f"{norm}_long", norm, (3, 40_000))
        yield Case(f"{norm}_longest", norm, (1, 262_144))
        yield Case(f"{norm}_many", norm, (5000, 24), activation="gelu_tanh")
        yield Case(f"{norm}_of_threads", norm, (129, 770), residual=True, activation="relu")
        yield Case(f"{norm}_two_axes", norm, (3, 4, 5, 6), 2, residual=True)
        yield Case(f"{norm}_all_axes", norm, (3, 4, 5), 0, activation="clip")
        yield Case(f"{norm}_five_axes", norm, (2, 3, 2, 3, 10), -2, prenorm=True)
        yield Case(f"{norm}_prenorm", norm, (33, 160), prenorm=True, activation="silu")
        yield Case(f"{norm}_no_weight", norm, (7, 45), weight=False)
        yield Case(f"{norm}_no_bias", norm, (7, 45), bias=False, prenorm=True)
        yield Case(f"{norm}_neither", norm, (7, 45), weight=False, bias=False, residual=True)
        yield Case(f"{norm}_offset", norm, (9, 64), options={"weight_offset": 1.0})
        yield Case(f"{norm}_large_eps", norm, (5, 50), eps=10.0)
        yield Case(f"{norm}_no_eps", norm, (5, 50), eps=0.0)


def _channels() -> Iterator[Case]:
    for last in (False, True):
        name = "last" if last else "first"

        def shape(n: int, c: int, *plane: int, last: bool = last) -> tuple[int, ...]:
            return (n, *plane, c) if last else (n, c, *plane)

        axis = -1 if last else 1
        for groups in (1, 2, 4, 12):
            yield Case(
                f"group_{groups}_{name}",
                "group_norm",
                shape(3, 12, 5, 7),
                axis,
                groups,
                activation=("silu", "relu", None, "clip")[groups % 4],
                residual=groups % 4 == 0,
            )
        options: dict[str, Any] = {"axis": axis, "activation": "silu"}
        yield Case(
            f"group_diffusion_{name}", "group_norm", shape(2, 320, 12, 12), groups=32, **options
        )
        # Groups of more channels than a tile has: of rows, and of columns.
        yield Case(f"group_wide_{name}", "group_norm", shape(2, 80, 6, 6), groups=2, **options)
        yield Case(f"group_widest_{name}", "group_norm", shape(2, 2624, 3, 3), groups=2, **options)
        yield Case(f"group_threads_{name}", "group_norm", shape(3, 24, 40, 41), groups=3, **options)
        yield Case(f"group_one_image_{name}", "group_norm", shape(1, 8, 9, 9), groups=2, **options)
        yield Case(
            f"group_small_planes_{name}", "group_norm", shape(4, 24, 2, 2), groups=6, **options
        )
        yield Case(
            f"group_no_weight_{name}",
            "group_norm",
            shape(2, 6, 30),
            groups=3,
            axis=axis,
            weight=False,
        )
        yield Case(
            f"group_no_bias_{name}", "group_norm", shape(2, 6, 30), groups=2, axis=axis, bias=False
        )
        yield Case(f"instance_{name}", "instance_norm", shape(3, 5, 6, 7), axis, activation="relu")
        yield Case(
            f"instance_residual_{name}", "instance_norm", shape(2, 7, 40), axis, residual=True
        )
        yield Case(
            f"instance_wide_{name}", "instance_norm", shape(2, 70, 33), axis, activation="gelu"
        )
        yield Case(
            f"instance_3d_{name}", "instance_norm", shape(2, 3, 4, 5, 6), axis, residual=True
        )
        yield Case(
            f"instance_threads_{name}",
            "instance_norm",
            shape(4, 16, 30, 31),
            axis,
            activation="relu",
        )
        yield Case(
            f"instance_neither_{name}",
            "instance_norm",
            shape(2, 3, 50),
            axis,
            weight=False,
            bias=False,
        )
    yield Case("group_of_values", "group_norm", (5, 24), 1, 4, activation="relu")
    yield Case("group_of_many_values", "group_norm", (70, 48), 1, 8, activation="silu")
    yield Case("group_tiny_planes", "group_norm", (9, 12, 3, 5), 1, 3)
    yield Case("group_tiny_planes_residual", "group_norm", (9, 12, 3, 5), 1, 3, residual=True)
    # 16-bit rows that are summed about a guess
    yield Case("instance_odd_planes", "instance_norm", (2, 9, 19, 19), 1)
    yield Case("instance_tiny_planes", "instance_norm", (9, 12, 2, 2), 1)
    yield Case("group_middle", "group_norm", (2, 3, 8, 5), 2, 4)
    yield Case("instance_one_channel", "instance_norm", (4, 1, 33), 1, activation="relu")


def _fused() -> Iterator[Case]:
    for i, activation in enumerate(ACTIVATIONS):
        name, residual = activation_id(activation), i % 2 == 0
        yield Case(
            f"features_{name}", ROW_NORMS[i % 2], (6, 67), activation=activation, residual=residual
        )
        yield Case(
            f"groups_{name}",
            "group_norm",
            (2, 6, 37),
            1,
            3,
            activation=activation,
            residual=residual,
        )


def _layouts() -> Iterator[Case]:
    for i, layout in enumerate(LAYOUTS):
        prenorm = i % 3 == 0
        yield Case(
            f"rows_{layout}", ROW_NORMS[i % 2], (4, 6, 5, 9), 3, layout=layout, prenorm=prenorm
        )
        yield Case(
            f"rows_all_{layout}",
            ROW_NORMS[i % 2],
            (4, 6, 5, 9),
            2,
            layout=layout,
            other_layout=layout,
            residual=not prenorm,
            prenorm=prenorm,
            activation="clip",
        )
        yield Case(
            f"groups_{layout}",
            "group_norm" if i % 2 else "instance_norm",
            (4, 6, 5, 9),
            1,
            2,
            layout=layout,
            other_layout=layout if i % 3 else "C",
            residual=True,
            activation="relu",
        )


CASES: tuple[Case, ...] = (*_rows(), *_channels(), *_fused(), *_layouts())
