"""What is measured: the batch norms of real networks, and shapes that are hard to make fast."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

OPS = ("inference", "training", "backward")
EPILOGUES = ("plain", "relu", "residual_relu")
DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("NCHW", "NHWC")
SHAPES = Path(__file__).parents[1] / "tests" / "data" / "bn_shapes.csv"
NETWORKS = ("resnet50", "inception_v2", "densenet121", "shufflenet")
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """One operation on one tensor.

    Attributes
    ----------
    suite : str
        A network, or "edges" or "tiny".
    shape : tuple of int
        (N, C, H, W), whatever the layout.
    count : int
        How often the network has this batch norm.
    hot : bool
        Whether the arrays stay in the cache from call to call.
    """

    suite: str
    op: str
    epilogue: str
    dtype: str
    layout: str
    shape: Shape
    count: int = 1
    hot: bool = False

    @property
    def name(self) -> str:
        """What results are found by: all but the suite and the count."""
        size = "x".join(map(str, self.array_shape))
        temperature = "hot" if self.hot else "cold"
        return "/".join((self.op, self.epilogue, self.dtype, self.layout, size, temperature))

    @property
    def array_shape(self) -> Shape:
        """The shape of x in memory."""
        n, c, h, w = self.shape
        return (n, h, w, c) if self.layout == "NHWC" else self.shape

    @property
    def channel_axis(self) -> int:
        """Of x in memory."""
        return 3 if self.layout == "NHWC" else 1

    @property
    def residual(self) -> bool:
        """Whether a residual is added before the activation."""
        return self.epilogue == "residual_relu"

    @property
    def activation(self) -> str | None:
        """What follows the affine map."""
        return None if self.epilogue == "plain" else "relu"

    @property
    def tensor_bytes(self) -> int:
        """The size of x."""
        return prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def reads(self) -> int:
        """Tensors of x's size that have to be read (a saved mask is too small to count)."""
        return 1 + (self.op == "backward") + (self.residual and self.op != "backward")

    @property
    def writes(self) -> int:
        """Tensors of x's size that have to be written."""
        return 1 + (self.op == "backward" and self.residual)

    @property
    def least_bytes(self) -> int:
        """The fewest bytes that the operation can move: each input and output once."""
        mask = 0
        if self.activation is not None and self.op != "inference":
            mask = prod(self.shape) // 8
        return (self.reads + self.writes) * self.tensor_bytes + mask


def network(name: str, batch: int) -> list[tuple[Shape, int]]:
    """The shapes of a network's batch norms, and how often each occurs."""
    with SHAPES.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == name]
    counts: dict[Shape, int] = {}
    for row in rows:
        shape = (batch, int(row["c"]), int(row["h"]), int(row["w"]))
        counts[shape] = counts.get(shape, 0) + int(row["count"])
    return sorted(counts.items(), key=lambda item: (-item[0][2], item[0][1]))


# Narrow channels, few channels of many pixels, one image, planes of 14 and 7.
EDGES: tuple[Shape, ...] = (
    (32, 3, 224, 224),
    (32, 16, 112, 112),
    (32, 24, 112, 112),
    (4, 1, 1024, 1024),
    (1, 8, 1024, 1024),
    (1, 64, 112, 112),
    (1, 256, 56, 56),
    (1, 2048, 7, 7),
    (256, 1024, 1, 1),
    (8192, 512, 1, 1),
)
# A call's overhead: in cache, one thread.
TINY: tuple[Shape, ...] = ((8, 16, 1, 1), (32, 64, 1, 1), (1, 64, 8, 8), (1, 256, 14, 14))
QUICK: tuple[Shape, ...] = (
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
    (32, 24, 56, 56),
)


def cases_of(
    suite: str,
    batch: int,
    ops: Iterable[str],
    epilogues: Iterable[str],
    dtypes: Iterable[str],
    layouts: Iterable[str],
) -> list[Case]:
    """Every combination on the shapes of a suite; batch is for the networks."""
    if suite in NETWORKS:
        shapes = network(suite, batch)
    else:
        shapes = [(shape, 1) for shape in (EDGES if suite == "edges" else TINY)]
    return [
        Case(suite, op, epilogue, dtype, layout, shape, count, hot=suite == "tiny")
        for op in ops
        for epilogue in epilogues
        for dtype in dtypes
        for layout in layouts
        for shape, count in shapes
    ]


def quick_cases() -> list[Case]:
    """A representative choice that is measured in a few minutes."""
    chosen = [
        Case("resnet50", op, "plain", "float32", layout, shape)
        for op in OPS
        for layout in LAYOUTS
        for shape in QUICK
    ]
    one = (32, 256, 56, 56)
    chosen += [Case("resnet50", op, "residual_relu", "float32", "NCHW", one) for op in OPS]
    chosen += [Case("resnet50", op, "plain", "bfloat16", "NCHW", one) for op in OPS]
    chosen += [Case("edges", op, "plain", "float32", "NCHW", (1, 256, 56, 56)) for op in OPS]
    chosen += [Case("tiny", op, "plain", "float32", "NCHW", TINY[1], hot=True) for op in OPS]
    return chosen
