"""What is measured: the norms of real networks, and shapes that are hard to make fast."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

# inference: y alone; training: y and what backward needs, of batch norm also running statistics.
OPS = ("inference", "training", "backward")
# Which of them differ: without running statistics the forward pass is one and the same.
OPS_OF_OTHERS = ("inference", "backward")
# prenorm: the residual is added before the norm, and the sum is a result.
EPILOGUES = ("plain", "relu", "residual_relu", "silu", "prenorm")
DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYOUTS = ("NCHW", "NHWC")
DATA = Path(__file__).parents[1] / "tests" / "data"
NETWORKS = ("resnet50", "inception_v2", "densenet121", "shufflenet")
TRANSFORMERS = ("bert", "gpt2", "llama", "decode")
DIFFUSION = ("sd_unet", "sd_vae")
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One operation on one tensor.

    Attributes
    ----------
    suite : str
        A network, or "edges" or "tiny".
    layout : str
        Of images; "rows" for what has rows.
    shape : tuple of int
        (N, C, H, W), whatever the layout; (rows, features).
    count : int
        How often the network has this batch norm.
    hot : bool
        Whether the arrays stay in the cache from call to call.
    norm : str
        The op of fastnorm without "_train" and "_backward".
    groups : int
        Of group norm.
    """

    suite: str
    op: str
    epilogue: str
    dtype: str
    layout: str
    shape: Shape
    count: int = 1
    hot: bool = False
    norm: str = "batch_norm"
    groups: int = 0

    @property
    def name(self) -> str:
        """What results are found by: all but the suite and the count."""
        size = "x".join(map(str, self.array_shape))
        temperature = "hot" if self.hot else "cold"
        norm = () if self.norm == "batch_norm" else (self.norm,)
        return "/".join((*norm, self.op, self.epilogue, self.dtype, self.layout, size, temperature))

    @property
    def array_shape(self) -> Shape:
        """The shape of x in memory."""
        if self.layout != "NHWC":
            return self.shape
        n, c, h, w = self.shape
        return (n, h, w, c)

    @property
    def of_rows(self) -> bool:
        """Whether each row has a statistic, and each of its elements a weight."""
        return self.layout == "rows"

    @property
    def parameters(self) -> int:
        """How many weights there are: of channels, or of features."""
        return self.shape[1]

    @property
    def channel_axis(self) -> int:
        """Of x in memory."""
        return 3 if self.layout == "NHWC" else 1

    @property
    def residual(self) -> bool:
        """Whether a residual is added before the activation."""
        return self.epilogue == "residual_relu"

    @property
    def prenorm(self) -> bool:
        """Whether one is added before the norm."""
        return self.epilogue == "prenorm"

    @property
    def activation(self) -> str | None:
        """What follows the affine map."""
        return {"relu": "relu", "residual_relu": "relu", "silu": "silu"}.get(self.epilogue)

    @property
    def tensor_bytes(self) -> int:
        """The size of x."""
        return prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def reads(self) -> int:
        """Tensors of x's size that have to be read (a saved mask is too small to count)."""
        # Forward reads x and a residual, backward x, dy, and with prenorm the sum's gradient.
        added = self.prenorm or (self.residual and self.op != "backward")
        return 1 + (self.op == "backward") + added

    @property
    def writes(self) -> int:
        """Tensors of x's size that have to be written."""
        return 1 + (self.prenorm if self.op != "backward" else self.residual)

    @property
    def least_bytes(self) -> int:
        """The fewest bytes that the operation can move: each input and output once."""
        mask = 0
        if self.activation == "relu" and self.op != "inference":
            mask = prod(self.shape) // 8
        return (self.reads + self.writes) * self.tensor_bytes + mask


def network(name: str, batch: int) -> list[tuple[Shape, int]]:
    """The shapes of a network's batch norms, and how often each occurs."""
    with (DATA / "bn_shapes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == name]
    counts: dict[Shape, int] = {}
    for row in rows:
        shape = (batch, int(row["c"]), int(row["h"]), int(row["w"]))
        counts[shape] = counts.get(shape, 0) + int(row["count"])
    return sorted(counts.items(), key=lambda item: (-item[0][2], item[0][1]))


def transformer(suite: str) -> list[tuple[str, Shape]]:
    """The norms of a suite's rows, and their shapes."""
    with (DATA / "row_shapes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["suite"] == suite]
    return [(row["norm"], (int(row["rows"]), int(row["features"]))) for row in rows]


def diffusion(suite: str) -> list[tuple[int, Shape]]:
    """The groups of a network's group norms, and their shapes."""
    with (DATA / "gn_shapes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == suite]
    return [
        (int(row["groups"]), (int(row["n"]), int(row["c"]), int(row["h"]), int(row["w"])))
        for row in rows
    ]


# The instance norms of a network that gives images a style.
STYLE: tuple[Shape, ...] = ((4, 32, 256, 256), (4, 64, 128, 128), (4, 128, 64, 64))
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
    """Every combination on the shapes of a suite; batch is for the networks of batch norms."""
    if suite in TRANSFORMERS:
        return [
            Case(suite, op, epilogue, dtype, "rows", shape, hot=suite == "decode", norm=norm)
            for op in ops
            if op in OPS_OF_OTHERS
            for epilogue in epilogues
            if epilogue in ("plain", "prenorm")
            for dtype in dtypes
            for norm, shape in transformer(suite)
        ]
    if suite in (*DIFFUSION, "style"):
        style = [(0, shape) for shape in STYLE]
        return [
            Case(suite, op, epilogue, dtype, layout, shape, norm=norm, groups=groups)
            for op in ops
            if op in OPS_OF_OTHERS
            for epilogue in epilogues
            if epilogue in ("plain", "relu", "silu")
            for dtype in dtypes
            for layout in layouts
            for groups, shape in (style if suite == "style" else diffusion(suite))
            for norm in ["group_norm" if groups else "instance_norm"]
        ]
    epilogues = [e for e in epilogues if e not in ("silu", "prenorm")]
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
