"""The CUDA kernels over the table of cases, against the float64 reference.

They run on a GPU, or, in a build with FASTNORM_CUDA=HOST, on the CPU: then on machines that force
each tier, with threads in several orders.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastnorm as fn
from cases import CASES, DTYPES, FEW, LAYOUTS, Case
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


@on_host
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tier", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FEW, ids=by_name)
def test_tiers(case: Case, dtype: str, tier: str, order: str) -> None:
    host.reset(SMALL[tier], order)
    check_all(case, dtype, ops)
