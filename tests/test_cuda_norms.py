"""The norms beside batch norm on a device, over their table of cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import DTYPES
from checks import assert_same_bits
from norm_cases import CASES, Case, Data, make
from norm_checks import check_backward, check_forward, forward_options, leading
from on_device import ORDERS, Limits, host, ops

if not fn.cuda.is_available():
    pytest.skip("there is no device", allow_module_level=True)

Array = npt.NDArray[Any]

# On a device arrays are aligned.
HERE = [case for case in CASES if not {case.layout, case.other_layout} & {"misaligned", "field"}]
OF_DTYPES = pytest.mark.parametrize("dtype", DTYPES)
EVERY = pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)


@OF_DTYPES
@EVERY
def test_forward(case: Case, dtype: str) -> None:
    check_forward(case, make(case, dtype), ops)


@OF_DTYPES
@EVERY
def test_backward(case: Case, dtype: str) -> None:
    check_backward(case, make(case, dtype), ops)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5, 40, 72])
@OF_DTYPES
def test_instances_do_not_depend_on_each_other(
    dtype: str, channels: int, channels_last: bool
) -> None:
    """All samples give what each of them gives alone: groups end with their sample."""
    shape = (3, channels, 6, 5)
    case = Case("instances", "instance_norm", shape, axis=1)
    data = make(case, dtype)
    if channels_last:
        data.x = np.moveaxis(np.ascontiguousarray(np.moveaxis(data.x, 1, -1)), -1, 1)
    together = ops.instance_norm_train(data.x, data.weight, data.bias)
    for n in range(shape[0]):
        alone = ops.instance_norm_train(data.x[n : n + 1], data.weight, data.bias)
        assert_same_bits(together.y[n : n + 1], alone.y)
        assert_same_bits(together.mean[n : n + 1], alone.mean)
        assert_same_bits(together.rstd[n : n + 1], alone.rstd)


@pytest.mark.parametrize("channels_last", [False, True])
@OF_DTYPES
def test_running_statistics(dtype: str, channels_last: bool) -> None:
    case = Case("running", "instance_norm", (4, 24, 8, 9), axis=1)
    x = make(case, dtype).x
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    found = np.linspace(-1, 1, 24), np.linspace(1, 2, 24)
    expected = found[0].copy(), found[1].copy()
    options = {"momentum": 0.25, "unbiased": True}
    ops.instance_norm_train(x, running_mean=found[0], running_var=found[1], **options)
    fn.instance_norm_train(x, running_mean=expected[0], running_var=expected[1], **options)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


LAYERS: tuple[tuple[type[Any], tuple[int, ...], tuple[int, ...]], ...] = (
    (fn.LayerNorm, (40,), (6, 40)),
    (fn.RMSNorm, (40,), (6, 40)),
    (fn.GroupNorm, (4, 8), (3, 8, 5, 5)),
    (fn.InstanceNorm, (8,), (3, 8, 5, 5)),
)


@pytest.mark.parametrize(("layer", "arguments", "shape"), LAYERS)
def test_layers(layer: type[Any], arguments: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """A layer there gives what one here does, step by step."""
    rng = np.random.default_rng(3)
    x, dy, residual = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    here, there = layer(*arguments), layer(*arguments, device="cuda")
    prenorm = layer in (fn.LayerNorm, fn.RMSNorm)

    def both(method: str, *arrays: Array, **named: Any) -> None:
        moved = {
            k: fn.cuda.asarray(a) if isinstance(a, np.ndarray) else a for k, a in named.items()
        }
        expected = getattr(here, method)(*arrays, **named)
        found = getattr(there, method)(*map(fn.cuda.asarray, arrays), **moved)
        pairs = (
            zip(expected, found, strict=True) if isinstance(found, tuple) else [(expected, found)]
        )
        for one, other in pairs:
            np.testing.assert_allclose(other.numpy(), one, rtol=2e-6, atol=4e-6)

    both("__call__", x)
    both("backward", dy)
    if here.dweight is not None:
        np.testing.assert_allclose(there.dweight.numpy(), here.dweight, rtol=1e-5, atol=1e-5)
    both("__call__", x, residual=residual)
    both("backward", dy)
    np.testing.assert_array_equal(there.dresidual.numpy(), here.dresidual)
    if prenorm:
        both("__call__", x, residual=residual, prenorm=True)
        both("backward", dy, dsum=residual)
    here.eval(backward=False)
    there.eval(backward=False)
    both("__call__", x)
    state = {name: value + 1 for name, value in here.state_dict().items()}
    here.load_state_dict(state)
    there.load_state_dict(state)
    both("__call__", x)


def test_arrays_of_numpy_travel() -> None:
    rng = np.random.default_rng(4)
    x, residual = (rng.standard_normal((6, 40), dtype=np.float32) for _ in range(2))
    y, total = fn.rms_norm(x, residual=residual, prenorm=True, device="cuda")
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_allclose(y, fn.rms_norm(total), rtol=2e-6, atol=2e-6)
    out = np.empty_like(x)
    y, again = fn.rms_norm(
        x, residual=residual, prenorm=True, out=out, sum_out=residual, device="cuda"
    )
    assert y is out
    assert again is residual
    np.testing.assert_array_equal(residual, total)
    fwd = fn.layer_norm_train(x, device="cuda")
    grads = fn.layer_norm_backward(y, x, fwd.mean, fwd.rstd, device="cuda")
    expected = fn.layer_norm_backward(y, x, fwd.mean, fwd.rstd)
    for one, other in zip(grads, expected, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_explanations_name_every_step() -> None:
    x, image = fn.cuda.asarray(np.ones((6, 40))), fn.cuda.asarray(np.ones((2, 8, 5, 5)))
    weight = fn.cuda.asarray(np.ones(40))
    fwd = fn.layer_norm_train(x, weight)

    def steps(*call: Any, **options: Any) -> list[str]:
        lines = str(fn.explain(*call, **options)).splitlines()
        return [line.split()[1].rstrip(":") for line in lines if line.startswith("launch:")]

    assert steps(fn.layer_norm, x, weight) == ["on_chip"]
    assert steps(fn.rms_norm, x, residual=x, prenorm=True) == ["on_chip"]
    of_rows = ["widen_and_scale", "parameter_sums", "on_chip", "parts"]
    assert steps(fn.layer_norm_backward, x, x, fwd.mean, fwd.rstd, weight, weight) == of_rows
    rows = fn.cuda.asarray(np.ones((64, 40), np.float32))
    fwd = fn.rms_norm_train(rows)
    assert steps(fn.rms_norm_backward, rows, rows, fwd.rstd) == ["on_chip_with_parameters", "parts"]
    assert steps(fn.group_norm, image, 4) == ["staged"]


on_host = pytest.mark.skipif(not host.available, reason="the kernels run on a GPU")

# Machines on which a case is kept on chip by a block, a cluster and a grid, and on which it is not.
MACHINES = (
    Limits(),
    Limits(4, 24_000, 25_000, cluster=16),
    Limits(200, 24_000, 25_000, cluster=1),
    Limits(1, 24_000, 25_000, cluster=1),
)
LARGE = (
    Case("instances", "instance_norm", (2, 3, 200, 200), 1),
    Case("instances_last", "instance_norm", (2, 60, 80, 16), -1),
    Case("groups", "group_norm", (3, 8, 64, 64), 1, 4),
    Case("groups_last", "group_norm", (2, 32, 32, 32), -1, 8),
    # Warps' columns that make whole groups together, and such as only a sample's all do.
    Case("wide_groups_last", "group_norm", (2, 20, 20, 192), -1, 32),
    Case("wide_samples_last", "group_norm", (3, 24, 24, 40), -1, 4),
    Case("staged_groups", "group_norm", (3, 24, 25, 27), 1, 4),
    Case("staged_instances", "instance_norm", (3, 8, 75, 75), 1),
    Case("rows", "layer_norm", (3, 40_000), residual=True),
    Case("odd_rows", "layer_norm", (3, 5001), residual=True),
    Case("rms", "rms_norm", (3, 40_000), prenorm=True),
    Case("odd_rms", "rms_norm", (300, 67), prenorm=True),
)


def forward(case: Case, data: Data) -> Any:
    arguments = (data.x, *leading(case), data.weight, data.bias)
    return case.op("_train", ops)(*arguments, **forward_options(case, data))


def backward(case: Case, data: Data, fwd: Any) -> Any:
    x = fwd.sum if case.prenorm else data.x
    mean = () if case.norm == "rms_norm" else (fwd.mean,)
    arguments = (data.dy, x, *leading(case), *mean, fwd.rstd, data.weight, data.bias)
    options = case.where() | {"activation": case.activation, "mask": fwd.mask}
    if case.prenorm:
        options["dsum"] = data.dsum
    else:
        options["residual"] = data.residual
    return case.op("_backward", ops)(*arguments, **options)


@on_host
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
@OF_DTYPES
def test_same_bits_on_every_machine(case: Case, dtype: str, activation: str | None) -> None:
    """In a block, a cluster, a grid and in two passes, whatever the order of the threads."""
    case = replace(case, activation=activation)
    data = make(case, dtype)
    results, kernels, teams = [], set(), set()
    for machine in MACHINES:
        for order in ORDERS:
            host.reset(machine, order)
            fwd = forward(case, data)
            grads = backward(case, data, fwd)
            results.append([a for a in (*fwd, *grads) if a is not None])
            launches = host.launches()
            kernels |= {launch.kernel for launch in launches}
            teams |= {(launch.cluster > 1, launch.resident) for launch in launches}
    host.reset()
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert_same_bits(one, other)
    assert kernels >= {"reduce", "map"}
    assert ("means" in kernels) == (case.norm == "group_norm")
    staged = case.name.startswith("staged")  # an instance's odd plane is one block's
    assert ("staged" in kernels) == staged
    on_chip = not staged and not case.name.startswith("odd")
    assert ("on_chip" in kernels) == on_chip
    if on_chip and not case.name.startswith("wide"):  # which the smaller machines have no room for
        assert teams == {(False, False), (True, False), (False, True)}
    assert ("parameter_sums" in kernels) == case.of_rows
    beside_map = on_chip and case.of_rows and activation is None and dtype != "float64"
    assert ("on_chip_with_parameters" in kernels) == beside_map
    assert ("add" in kernels) == case.prenorm  # where rows are no whole packs, or in two passes


@on_host
@pytest.mark.parametrize(
    ("case", "dtype", "multiprocessors", "grids"),
    [  # grids: of which passes there are some
        (Case("groups", "group_norm", (3, 8, 64, 64), 1, 4), "float32", 12, "both"),
        (Case("groups", "group_norm", (3, 8, 64, 64), 1, 4), "float16", 12, "backward"),
        (Case("groups_last", "group_norm", (4, 32, 32, 32), -1, 8), "float32", 12, "forward"),
        (Case("groups_last", "group_norm", (4, 32, 32, 32), -1, 8), "float64", 12, "forward"),
        (Case("prenorm", "rms_norm", (2, 20_000), prenorm=True), "float64", 20, "both"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_grids_of_several_rounds(case: Case, dtype: str, multiprocessors: int, grids: str) -> None:
    """What a grid keeps of its units makes room for the next ones; the bits are those of blocks."""
    data = make(case, dtype)
    results = []
    small = Limits(multiprocessors, 24_000, 25_000, cluster=1)
    for machine in (Limits(), small):
        for order in ORDERS:
            room = {}
            host.reset(machine, order)
            fwd = forward(case, data)
            room["forward"] = [a.blocks * a.shared_bytes for a in host.launches() if a.resident]
            host.reset(machine, order)
            grads = backward(case, data, fwd)
            room["backward"] = [a.blocks * a.shared_bytes for a in host.launches() if a.resident]
            results.append([a for a in (*fwd, *grads) if a is not None])
            if machine is small:
                assert [name for name in room if room[name]] == (
                    list(room) if grids == "both" else [grids]
                )
                # x, and with it the residual or dy
                assert all(bytes < data.x.nbytes * (1 + case.prenorm) for bytes in room["forward"])
                assert all(bytes < data.x.nbytes * 2 for bytes in room["backward"])
    host.reset()
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert_same_bits(one, other)


# Parts of one lap and of several, of a set alone and of eight; the last ones of fewer rows.
PARAMETERS = (
    Case("narrow", "layer_norm", (66_000, 8)),
    Case("wide", "layer_norm", (130, 3000)),
    Case("clusters", "rms_norm", (37, 9 * 1024), bias=False),
    Case("one_set", "layer_norm", (70, 5 * 1024)),
)


@on_host
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, d) for case in PARAMETERS for d in ("bfloat16", "float32")][1:],
    ids=lambda value: getattr(value, "name", value),
)
def test_gradients_of_parameters_beside_the_map(case: Case, dtype: str) -> None:
    """The bits of a kernel of their own, which takes over where dx is written over dy."""
    data = make(case, dtype)
    fwd = ops.layer_norm_train(data.x) if case.norm == "layer_norm" else ops.rms_norm_train(data.x)
    data.dy[::3, ::5] = np.array(3e38, data.dy.dtype)  # sums of a few columns leave float's range
    data.dy[1::3, ::5] = np.array(-3e38, data.dy.dtype)
    data.dy[5, 7] = np.inf
    statistics = (fwd.rstd,) if case.norm == "rms_norm" else (fwd.mean, fwd.rstd)
    parameters = (data.weight,) if case.norm == "rms_norm" else (data.weight, data.bias)
    results = []
    for in_place in (False, True):
        host.reset(Limits(), ORDERS[0])
        dy = fn.cuda.asarray(data.dy)
        op = getattr(fn, f"{case.norm}_backward")
        arrays = [fn.cuda.asarray(a) for a in (data.x, *statistics, *parameters)]
        grads = op(dy, *arrays, **({"out": dy} if in_place else {}))
        kernels = [launch.kernel for launch in host.launches()]
        assert ("parameter_sums" in kernels) == in_place
        assert ("on_chip_with_parameters" in kernels) != in_place
        results.append([a.numpy() for a in grads if a is not None])
    host.reset()
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)
    sums = results[0][1].astype(np.float64)
    columns = np.ones(case.shape[-1], bool)
    columns[::5], columns[7] = False, False
    assert np.isfinite(sums[columns]).all()
    assert not np.isfinite(sums[7])


@on_host
@pytest.mark.parametrize(
    ("case", "parameter_dtype", "expected"),
    [
        (Case("token", "rms_norm", (1, 4096), bias=False), "bfloat16", ["on_chip"]),
        (Case("token", "rms_norm", (1, 4096), bias=False), "float32", ["on_chip"]),
        (Case("token", "layer_norm", (1, 4096)), "bfloat16", ["on_chip"]),
        (Case("token", "layer_norm", (1, 4096), prenorm=True), "bfloat16", ["on_chip"]),
        (Case("odd", "rms_norm", (7, 4097), prenorm=True), "float32", ["add", "reduce", "map"]),
        (Case("token", "layer_norm", (1, 4096)), "float16", ["widen", "widen", "on_chip"]),
        (Case("odd", "rms_norm", (7, 4097), bias=False), "bfloat16", ["reduce", "map"]),
        (Case("group", "group_norm", (2, 8, 4, 6), 1, 2), "float32", ["on_chip"]),
        (Case("group", "group_norm", (2, 5, 5, 60), -1, 2), "float32", ["reduce", "means", "map"]),
        (Case("group", "group_norm", (2, 8, 5, 5), 1, 2), "float32", ["staged"]),
        (Case("group", "group_norm", (1, 6, 5, 5), 1, 2), "float32", ["reduce", "means", "map"]),
    ],
)
def test_launches(case: Case, parameter_dtype: str, expected: list[str]) -> None:
    """Weights of x's type, or of the one that is computed in, are used as they are."""
    data = make(case, "bfloat16", parameter_dtype)
    host.reset()
    forward(case, data)
    assert [launch.kernel for launch in host.launches()] == expected


@on_host
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_rows_move_each_tensor_once(norm: str) -> None:
    """Forward on chip: x and what is read in its turn of the weights, and y."""
    case = Case("traffic", norm, (64, 4096), bias=False)
    data = make(case, "bfloat16", "bfloat16")
    host.reset()
    forward(case, data)
    traffic = host.traffic()
    assert traffic.stored == data.x.nbytes
    assert traffic.loaded == 2 * data.x.nbytes  # the weights, once for each row, from a cache
    assert traffic.loaded_elements < 100
    case = replace(case, prenorm=True)
    data = make(case, "bfloat16", "bfloat16")
    host.reset()
    forward(case, data)
    traffic = host.traffic()
    assert traffic.stored == 2 * data.x.nbytes
    assert traffic.loaded == 3 * data.x.nbytes


@on_host
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("shape", [(2, 32, 32, 16), (2, 16, 96, 96)], ids=str)
def test_groups_move_each_tensor_once(shape: tuple[int, ...], channel_axis: int) -> None:
    """In a block and in a cluster: groups' channels meet on chip."""
    case = Case("traffic", "group_norm", shape, channel_axis, groups=4)
    data = make(case, "bfloat16", "float32")
    host.reset(Limits(multiprocessors=16))
    fwd = forward(case, data)
    size = data.x.nbytes
    assert host.traffic()[:2] == (size, size)
    host.reset(Limits(multiprocessors=16))
    backward(case, data, fwd)
    assert host.traffic()[:2] == (2 * size, size)
    host.reset()


@on_host
@pytest.mark.parametrize("shape", [(2048, 1024), (1100, 4096), (560, 9216)], ids=str)
def test_rows_move_each_tensor_once_backward(shape: tuple[int, int]) -> None:
    """With the gradients of weight and bias: x and dy are read, dx is written."""
    case = Case("traffic", "layer_norm", shape)
    data = make(case, "bfloat16", "float32")
    x, dy = fn.cuda.asarray(data.x), fn.cuda.asarray(data.dy)
    fwd = fn.layer_norm_train(x)
    host.reset(Limits(multiprocessors=132))
    grads = fn.layer_norm_backward(dy, x, fwd.mean, fwd.rstd)
    traffic = host.traffic()
    host.reset()
    tensors = 3 * data.x.nbytes
    assert grads.dweight is not None
    assert traffic.loaded + traffic.stored == tensors


@on_host
def test_a_launch_that_fails_leaves_nothing_behind() -> None:
    case = Case("refused", "layer_norm", (64, 4096), prenorm=True)
    data = make(case, "float32")
    fwd = forward(case, data)
    host.reset()
    backward(case, data, fwd)
    launches = len(host.launches())
    in_use = host.memory_in_use()
    for launch in range(launches):
        host.reset()
        host.refuse(launch)
        with pytest.raises(fn.CudaError, match="layer_norm_backward: launch failed: refused"):
            backward(case, data, fwd)
        assert host.memory_in_use() == in_use
    host.refuse(-1)
    host.reset()


@on_host
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 4096), "clusters of"),  # a token: no block alone
        ((65536, 64), "on_chip: 4096 blocks"),  # sixteen rows a block
        ((32768, 256), "on_chip: 2048 blocks"),
        ((8192, 4096), "on_chip: 2048 blocks"),
        ((512, 65536), "clusters of 2"),  # long rows: clusters
        ((128, 131072), "clusters of 4"),
        ((64, 262144), "clusters of 8"),
    ],
)
def test_rows_on_a_large_machine(shape: tuple[int, ...], expected: str) -> None:
    """One launch forward, by the policy for an H200's multiprocessors."""
    host.reset(Limits(multiprocessors=132))
    x, weight = (fn.cuda.asarray(np.ones(s, np.float16)) for s in (shape, shape[1:]))
    explanation = fn.explain(fn.rms_norm, x, weight)
    host.reset()
    (launch,) = explanation.launches
    assert expected in launch
    assert explanation.reads == 1


@on_host
@pytest.mark.parametrize(
    ("shape", "axis", "forward", "backward"),
    [  # a diffusion model's, two images at a time, and an autoencoder's
        ((2, 640, 24, 24), 1, "on_chip: 64 blocks", "on_chip: 64 blocks"),
        ((2, 320, 96, 96), 1, "clusters of 2", "clusters of 2"),
        ((2, 640, 96, 96), 1, "clusters of 2", "teams of 5"),
        ((2, 1920, 48, 48), 1, "teams of 3", None),
        ((1, 512, 192, 192), 1, "clusters of 16", "teams of 12"),
        ((2, 12, 12, 1280), 3, "on_chip: 16 blocks", "on_chip: 16 blocks"),
        ((2, 48, 48, 640), 3, "clusters of 8", "teams of 16"),
        ((2, 96, 96, 320), 3, None, None),  # merges of 160 statistics would take longer
        ((2, 48, 48, 960), 3, None, None),  # columns of whole groups of 30 channels are too wide
    ],
)
def test_groups_on_a_large_machine(
    shape: tuple[int, ...], axis: int, forward: str | None, backward: str | None
) -> None:
    """On chip by the policy for an H200's multiprocessors; None: in two passes."""
    host.reset(Limits(multiprocessors=132))
    x, weight = (fn.cuda.asarray(np.ones(s, np.float16)) for s in (shape, shape[axis]))
    mean = fn.cuda.asarray(np.ones((shape[0], 32), np.float32))
    options: dict[str, Any] = {"channel_axis": axis, "activation": "silu"}
    explanations = (
        fn.explain(fn.group_norm, x, 32, weight, weight, **options),
        fn.explain(fn.group_norm_backward, x, x, 32, mean, mean, weight, weight, **options),
    )
    host.reset()
    for explanation, expected in zip(explanations, (forward, backward), strict=True):
        assert explanation.reads == (2 if expected is None else 1)
        assert (expected or "reduce") in explanation.launches[0]


@on_host
def test_a_wide_group_of_small_planes_has_the_whole_machine() -> None:
    """It would fit in one block: 768 channels of 49 elements, a warp to each after the other."""
    host.reset(Limits(multiprocessors=132))
    x = fn.cuda.asarray(np.ones((1, 768, 7, 7), np.float16))
    explanation = fn.explain(fn.group_norm, x, 1)
    host.reset()
    assert explanation.reads == 2
    assert not any(": 1 blocks" in launch for launch in explanation.launches)
