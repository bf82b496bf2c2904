"""What the CUDA kernels promise beyond right results, seen where they run on the CPU.

Which of them is taken, that all give the same bits, and that they move no more bytes than the model
of each tier says.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastnorm as fn
from cases import DTYPES, TIERS_OF_SHAPES, Case, make, to_dtype
from checks import assert_same_bits, forward_options
from on_device import ORDERS, Foreign, Limits, host, ops

if not host.available:
    pytest.skip("the kernels do not run on the CPU", allow_module_level=True)


class Tier(NamedTuple):
    """A machine on which `CASES` take a kernel."""

    tasks: int  # that fit into a block's shared memory; 0: all that a large machine has
    multiprocessors: int
    kernels: tuple[str, ...] = ("on_chip",)
    cluster: int = 1
    resident: bool = False
    reads: int = 1

    def limits(self, columns: bool, dtype: str, arrays: int = 1) -> Limits:
        """Of a block that has so many arrays of its tasks' elements."""
        if self.tasks == 0:
            return Limits(self.multiprocessors, cluster=self.cluster)
        itemsize = to_dtype(dtype).itemsize
        stats = 64 // itemsize if columns else 1
        task = arrays * (256 * 64 if columns else 1024 * itemsize) + stats * 16
        block = self.tasks * task + task // 2
        return Limits(self.multiprocessors, block, block + 1024, cluster=self.cluster)


# 4 chunks a statistic.
CASE = Case("rows", (4, 8, 32, 32), residual=False)
COLUMNS = Case("columns", (1024, 64), residual=False)
TIERS = {
    "block": Tier(0, 4),
    "cluster_of_2": Tier(3, 2, cluster=2),
    "cluster_of_4": Tier(1, 2, cluster=4),
    "grid": Tier(2, 9, resident=True),
    "two_passes": Tier(1, 1, ("reduce", "map"), reads=2),
}


def _everything(case: Case, dtype: str) -> tuple[Any, Any]:
    data = make(case, dtype)
    options = forward_options(case, data)
    fwd = ops.batch_norm_train(data.x, data.weight, data.bias, **options)
    del options["eps"]
    grads = ops.batch_norm_backward(
        *(data.dy, data.x, fwd.mean, fwd.rstd, data.weight, data.bias),
        **{"mask": fwd.mask},
        **options,
    )
    return fwd, grads


def _assert_same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        for field, a, b in zip(one._fields, one, other, strict=True):
            assert_same_bits(a, b, field)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("case", [CASE, COLUMNS], ids=lambda case: case.name)
def test_tier_and_its_bytes(case: Case, name: str, dtype: str) -> None:
    """Training reads x and writes y, backward reads x and dy and writes dx: once each on chip."""
    tier, data = TIERS[name], make(case, dtype)
    columns, size = case is COLUMNS, data.x.nbytes
    # A reduction of columns looks at every lane's first pack of 32 for a pivot.
    of_pivots = size // 32 if columns and tier.reads == 2 else 0

    def check(reads: int, more: int = 0) -> None:
        assert host.traffic() == (reads * tier.reads * size + more, size, 0, 0)
        launches = host.launches()
        assert tuple(launch.kernel for launch in launches) == tier.kernels
        assert launches[0].resident == tier.resident
        assert launches[0].cluster == tier.cluster

    host.reset(tier.limits(columns, dtype))
    fwd = ops.batch_norm_train(data.x)
    check(1, of_pivots)
    host.reset(tier.limits(columns, dtype, arrays=2))
    ops.batch_norm_backward(data.dy, data.x, fwd.mean, fwd.rstd)
    check(2)
    host.reset(tier.limits(columns, dtype))
    ops.batch_norm(data.x, data.mean, data.var)
    assert host.traffic() == (size, size, 0, 0)
    assert [launch.kernel for launch in host.launches()] == ["map"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_bytes(dtype: str) -> None:
    """The residual is read once more, and a mask is a bit for each element."""
    case = Case("fused", CASE.shape, residual=True, activation="relu")
    data = make(case, dtype)
    size, bits = data.x.nbytes, data.x.size // 8
    host.reset()
    fwd = ops.batch_norm_train(data.x, residual=data.residual, activation="relu")
    assert host.traffic() == (2 * size, size, 0, bits + 8)
    assert fwd.mask is not None
    assert fwd.mask.nbytes == bits + 8
    for mask, residual, arrays in ((fwd.mask, True, 2), (None, data.residual, 3)):
        host.reset()
        ops.batch_norm_backward(
            *(data.dy, data.x, fwd.mean, fwd.rstd),
            **{"residual": residual, "activation": "relu", "mask": mask},
        )
        traffic = host.traffic()
        assert (traffic.loaded, traffic.stored) == (arrays * size, 2 * size)
        # Reduction and map read the mask, and every thread its signature.
        threads = sum(launch.blocks * launch.threads for launch in host.launches())
        assert traffic.loaded_elements == (0 if mask is None else 2 * bits + 8 * threads)
        assert traffic.stored_elements == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 16, 7, 7), (3, 24, 14, 14), (6, 8, 9)], ids=str)
def test_short_runs_are_staged(shape: tuple[int, ...], dtype: str) -> None:
    """Neighbouring statistics together are whole packs: 16 bytes at a time, each once."""
    case = Case("staged", shape, residual=True, activation="relu")
    data = make(case, dtype)
    size = data.x.nbytes
    if (data.x[0, 0].nbytes) % 16 == 0:
        pytest.skip("whole packs")
    host.reset()
    fwd = ops.batch_norm_train(data.x, residual=data.residual, activation="relu")
    assert [launch.kernel for launch in host.launches()] == ["staged"]
    traffic = host.traffic()
    assert (traffic.loaded, traffic.stored) == (2 * size, size)
    host.reset()
    ops.batch_norm_backward(
        *(data.dy, data.x, fwd.mean, fwd.rstd),
        **{"residual": True, "activation": "relu", "mask": fwd.mask},
    )
    assert [launch.kernel for launch in host.launches()] == ["staged"]
    traffic = host.traffic()
    assert (traffic.loaded, traffic.stored) == (2 * size, 2 * size)


# A unit is the statistics whose rows are whole packs together: what part of its bytes a block has
# room for, and the machine.
IMAGES = {"block": (1.0, 1, 1), "cluster": (0.4, 2, 4), "grid": (0.4, 9, 1)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(150, 8, 7, 7), (6, 8, 37, 37), (7000, 16, 3)], ids=str)
def test_short_runs_on_every_machine(shape: tuple[int, ...], dtype: str) -> None:
    """Images of whole runs in a block, a cluster and a grid: each byte once, and the same bits."""
    data = make(Case("images", shape), dtype)
    size, itemsize = data.x.nbytes, data.x.itemsize
    run = data.x[0, 0].nbytes
    unit = size // shape[1] * (16 // math.gcd(run, 16))

    def limits(of_unit: float, multiprocessors: int, cluster: int, arrays: int) -> Limits:
        block = int(arrays * of_unit * unit * 1.2) + 4096 * (16 // itemsize)
        return Limits(multiprocessors, block, block + 1024, cluster=cluster)

    host.reset(Limits(1, 16000, 17024, cluster=1))
    fwd = ops.batch_norm_train(data.x)
    expected = fwd, ops.batch_norm_backward(data.dy, data.x, fwd.mean, fwd.rstd)
    assert {launch.kernel for launch in host.launches()} == {"reduce", "map"}
    for name, machine in IMAGES.items():
        for order in ORDERS:
            found = []
            for arrays, (op, args) in enumerate(
                (
                    (ops.batch_norm_train, (data.x,)),
                    (ops.batch_norm_backward, (data.dy, data.x, fwd.mean, fwd.rstd)),
                ),
                start=1,
            ):
                host.reset(limits(*machine, arrays), order)
                found.append(op(*args))
                (launch,) = host.launches()
                assert launch.kernel == "staged"
                assert (launch.cluster > 1, launch.resident) == (name == "cluster", name == "grid")
                traffic = host.traffic()
                assert (traffic.loaded, traffic.stored) == (arrays * size, size)
                assert (traffic.loaded_elements, traffic.stored_elements) == (0, 0)
            _assert_same((found[0], found[1]), expected)


SAME = (
    Case("same_whole", (4, 8, 32, 32), residual=True, activation="relu"),
    Case("same_smooth", (3, 8, 20, 24), residual=True, activation="silu"),
    Case("same_ragged", (9, 16, 7, 7), residual=True, activation="relu"),
    Case("same_columns", (600, 64), activation="leaky_relu"),
    Case("same_smooth_columns", (260, 32), residual=True, activation="gelu"),
    Case("same_ragged_columns", (70, 5, 3, 3), layout="channels_last", activation="relu"),
)
# More chunks than there may be parts of a statistic.
MANY_CHUNKS = (Case("many_rows", (258, 8, 32, 32)), Case("many_columns", (258 * 256, 128)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_same_bits_on_every_machine_and_in_every_order(case: Case, dtype: str) -> None:
    host.reset()
    expected = _everything(case, dtype)
    columns = "columns" in case.name
    for tier in TIERS.values():
        for order in ORDERS:
            host.reset(tier.limits(columns, dtype), order)
            _assert_same(_everything(case, dtype), expected)


@pytest.mark.parametrize("case", MANY_CHUNKS, ids=lambda case: case.name)
def test_same_bits_of_many_chunks(case: Case) -> None:
    """Parts of several chunks: their partial results are put together in a block or in a warp."""
    kernels = set()
    results = []
    # A cluster for rows; blocks that wait for each other; two passes.
    for limits in (Limits(), Limits(132, 100_000, 101_024, cluster=1), Limits(1, cluster=1)):
        host.reset(limits)
        results.append(_everything(case, "float32"))
        kernels |= {(launch.kernel, launch.resident) for launch in host.launches()}
    assert kernels >= {("on_chip", True), ("reduce", False)}
    assert ("on_chip", False) in kernels or "columns" in case.name
    for found in results[1:]:
        _assert_same(found, results[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_column_does_not_depend_on_its_neighbours(dtype: str) -> None:
    """A statistic that has to be computed once more, in double, leaves the others' bits alone."""
    rng = np.random.default_rng(5)
    x, dy = (rng.standard_normal((300, 64)).astype(to_dtype(dtype)) for _ in range(2))
    ugly_x, ugly_dy = x.copy(), dy.copy()
    ugly_x[:40, 3] = 1000  # a poor guess of the mean
    ugly_x[7, 21], ugly_x[9, 22], ugly_dy[11, 40] = np.nan, np.inf, np.inf
    clean = [c for c in range(64) if c not in (3, 21, 22, 40)]
    host.reset()
    results = []
    for a, b in ((x, dy), (ugly_x, ugly_dy)):
        fwd = ops.batch_norm_train(a)
        results.append((fwd, ops.batch_norm_backward(b, a, fwd.mean, fwd.rstd)))
    for one, other in zip(*results, strict=True):
        for field, a, b in zip(one._fields, one, other, strict=True):
            if a is not None:
                assert_same_bits(a[..., clean], b[..., clean], field)
    fwd, grads = results[1]
    assert np.isnan(fwd.mean[21])
    assert fwd.mean[22] == np.inf
    assert not np.isfinite(grads.dbias[40])
    expected = x[:, 3].astype(np.float64)
    expected[:40] = 1000
    np.testing.assert_allclose(fwd.mean[3], expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(fwd.rstd[3], 1 / np.sqrt(expected.var() + 1e-5), rtol=1e-6)


def test_same_bits_of_arrays_that_are_not_aligned() -> None:
    """Element by element or 16 bytes at a time."""
    data = make(CASE, "float32")
    raw = np.zeros(data.x.size + 1, np.float32)
    shifted = raw[1:].reshape(data.x.shape)
    shifted[...] = data.x
    host.reset()
    expected = ops.batch_norm_train(data.x, activation="relu")
    assert host.traffic().loaded_elements == 0
    host.reset()
    found = ops.batch_norm_train(shifted, activation="relu")
    assert host.traffic().loaded == 0
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)


def test_a_launch_that_fails_is_an_error_and_leaves_all_as_it_was() -> None:
    """As on a device that cannot hold what the plan wants; the next call works."""
    data = make(CASE, "float32")
    out = np.full_like(data.x, 7)
    host.reset(Limits(shared_of_block=10))
    with pytest.raises(fn.CudaError, match="batch_norm: launch failed: shared memory"):
        ops.batch_norm(data.x, data.mean, data.var, out=out)
    assert np.all(out == 7)
    host.reset()
    ops.batch_norm(data.x, data.mean, data.var, out=out)
    assert_same_bits(out, ops.batch_norm(data.x, data.mean, data.var))


class _Nowhere:
    """An array that is too large to be there, for what is only explained."""

    def __init__(self, number: int, shape: tuple[int, ...], channels_last: bool) -> None:
        _, c, h, w = shape
        strides = (4 * h * w * c, 4, 4 * w * c, 4 * c) if channels_last else None
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (number << 40, False),
            "strides": strides,
            "version": 3,
        }


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_a_large_gpu_takes(channels_last: bool) -> None:
    """The shapes of test_cuda_gpu.py are of the tiers that they are there for."""
    host.reset(Limits(multiprocessors=132))
    found = {}
    for shape in TIERS_OF_SHAPES:
        x, out = (_Nowhere(i, shape, channels_last) for i in (1, 2))
        launch, *more = fn.explain(fn.batch_norm_train, x, out=out).launches
        words = {"teams of": "grid", "clusters of": "cluster"}
        tier = next((tier for word, tier in words.items() if word in launch), "block")
        found[shape] = f"{launch.split(':')[0]}: {'two passes' if more else tier}"
    assert found == {shape: tiers[channels_last] for shape, tiers in TIERS_OF_SHAPES.items()}


@pytest.mark.parametrize("refused", [0, 1])
def test_a_second_launch_that_fails_leaves_all_as_it_was(refused: int) -> None:
    """Of two passes: what the first one finds out is not stored before the second one."""
    data = make(CASE, "float32")
    fwd = ops.batch_norm_train(data.x)
    host.reset(TIERS["two_passes"].limits(False, "float32", arrays=2))
    channels = data.x.shape[1]
    x, dy, mean, rstd = (fn.cuda.asarray(a) for a in (data.x, data.dy, fwd.mean, fwd.rstd))
    out, running_mean, running_var = (
        fn.cuda.asarray(np.full(shape, 7.0, np.float32)) for shape in (x.shape, channels, channels)
    )
    host.refuse(refused)
    with pytest.raises(fn.CudaError, match="batch_norm_train: launch failed: refused"):
        fn.batch_norm_train(x, running_mean=running_mean, running_var=running_var, out=out)
    host.refuse(len(host.launches()) + refused)
    with pytest.raises(fn.CudaError, match="batch_norm_backward: launch failed: refused"):
        fn.batch_norm_backward(dy, x, mean, rstd, out=out)
    assert [launch.kernel for launch in host.launches()] == ["reduce"] * 2 * refused
    for written in (out, running_mean, running_var):
        assert np.all(written.numpy() == 7)
    host.refuse(-1)
    fn.batch_norm_train(x, running_mean=running_mean, running_var=running_var, out=out)
    assert not np.any(out.numpy() == 7)


def test_explained() -> None:
    """What would be launched, and nothing is."""
    host.reset()
    data = make(CASE, "float32")
    arrays = [fn.cuda.asarray(a) for a in (data.x, data.mean, data.var)]
    out = fn.cuda.asarray(np.zeros_like(data.x))
    inference = fn.explain(fn.batch_norm, *arrays, out=out)
    assert host.launches() == []
    assert inference.isa == "cuda"
    assert inference.view == (1, 4, 8, 1024)
    assert (inference.units, inference.chunks, inference.reads) == (8, 4, 1)
    assert not inference.reduces
    assert inference.least_bytes == 2 * data.x.nbytes
    assert [text.split(":")[0] for text in inference.launches] == ["map"]
    for name, tier in TIERS.items():
        host.reset(tier.limits(False, "float32"))
        found = fn.explain(fn.batch_norm_train, arrays[0], out=out)
        assert host.launches() == []
        assert tuple(text.split(":")[0] for text in found.launches) == tier.kernels
        assert found.reads == tier.reads
        assert found.reduces
        assert (found.scratch_bytes > 0) == (name in ("grid", "two_passes"))
        text = str(found)
        assert text.startswith("cuda, rows\nview:    batch 1, outer 4, stat 8, inner 1024\nlaunch:")
        assert ("teams of" in text) == (name == "grid")
        assert ("clusters of" in text) == name.startswith("cluster")
    assert not np.any(out.numpy())
    strided = Foreign(np.ones((4, 8, 32, 64), np.float32)[..., ::2])
    assert fn.explain(fn.batch_norm, strided, *arrays[1:], out=out).copied == ("x",)
