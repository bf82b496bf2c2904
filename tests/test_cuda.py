"""The CUDA kernels over the table of cases, against the float64 reference.

They run on a GPU, or, in a build with FASTNORM_CUDA=HOST, on the CPU: then on machines that force
each tier, with threads in several orders.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastnorm as fn
from cases import ACTIVATIONS, CASES, DTYPES, FEW, LAYOUTS, Case, activation_id, to_dtype
from checks import check_all
from on_device import ORDERS, Limits, host, ops

if not fn.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

on_host = pytest.mark.skipif(not host.available, reason="the kernels run on a GPU")


def by_name(case: Case) -> str:
    return case.name


# A device reads aligned elements alone.
ALIGNED = [c for c in CASES if not {c.layout, c.other_layout} & {"misaligned", "field"}]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ALIGNED, ids=by_name)
def test_case(case: Case, dtype: str) -> None:
    if host.available:
        host.reset()
    check_all(case, dtype, ops)


@pytest.mark.parametrize("layout", ["misaligned", "field"])
def test_elements_that_are_not_aligned(layout: str) -> None:
    x = LAYOUTS[layout](np.ones((2, 3, 5), np.float32))
    mean = var = np.ones(3)
    with pytest.raises(ValueError, match="batch_norm: x is not aligned to its elements"):
        ops.batch_norm(x, mean, var)


# Machines on which a chunk, or a few, fill a block, so that small cases are large.
SMALL = {
    "block": Limits(),
    "cluster": Limits(shared_of_block=14 << 10, shared_of_multiprocessor=15 << 10),
    "grid": Limits(200, 14 << 10, 15 << 10, cluster=1),
    "two_passes": Limits(1, 4 << 10, 5 << 10, cluster=1),
}


# What is kept on chip: whole packs, images of runs that are none, columns.
STORES = {"slots": (6, 3, 40, 48), "images": (150, 8, 7, 7), "columns": (2500, 32)}
# A machine that has room in a block for so many arrays of what statistics it has to take together,
# and whether it then takes clusters, and blocks that wait for each other.
MACHINES = {
    "block": (3.5, Limits(1, cluster=1), (False, False)),
    "cluster": (0.7, Limits(4), (True, False)),
    "grid": (0.7, Limits(16, cluster=1), (False, True)),
}


def _bytes_of_unit(store: str, itemsize: int) -> int:
    if store == "columns":
        return -(-2500 // 256) * 256 * 64  # chunks of 256 runs, 64 bytes side by side
    if store == "slots":
        return -(-6 * 40 * 48 // 1024) * 1024 * itemsize
    run = 49 * itemsize
    return 150 * run * (16 // math.gcd(run, 16))


@on_host
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS], ids=activation_id)
@pytest.mark.parametrize("store", STORES)
def test_on_chip(
    store: str, activation: str | fn.Activation | None, dtype: str, machine: str
) -> None:
    """Every activation in every store, tier and dtype, and that tier it is."""
    room, limits, tier = MACHINES[machine]
    itemsize = to_dtype(dtype).itemsize
    block = int(room * _bytes_of_unit(store, itemsize)) + (8192 if store == "columns" else 3072)
    host.reset(limits._replace(shared_of_block=block, shared_of_multiprocessor=block + 1024))
    residual = activation not in (None, "gelu")
    check_all(Case(store, STORES[store], residual=residual, activation=activation), dtype, ops)
    reductions = [launch for launch in host.launches() if launch.kernel != "map"]
    assert reductions
    for launch in reductions:
        assert launch.kernel == ("staged" if store == "images" else "on_chip")
        assert (launch.cluster > 1, launch.resident) == tier


@on_host
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tier", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FEW, ids=by_name)
def test_tiers(case: Case, dtype: str, tier: str, order: str) -> None:
    host.reset(SMALL[tier], order)
    check_all(case, dtype, ops)
