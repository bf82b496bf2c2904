"""Every wrong argument of the norms beside batch norm: as `test_errors` has it for that one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from norm_cases import Case, make
from norm_checks import leading

Array = npt.NDArray[Any]
Arguments = dict[str, Any]

SHAPE = (3, 4, 5)
NORMS = {
    "layer_norm": Case("layer_norm", "layer_norm", SHAPE, 1, prenorm=True),
    "rms_norm": Case("rms_norm", "rms_norm", SHAPE, 1, prenorm=True),
    "group_norm": Case("group_norm", "group_norm", SHAPE, 1, 2, residual=True),
    "instance_norm": Case("instance_norm", "instance_norm", SHAPE, 1, residual=True),
}
SUFFIXES = ("", "_train", "_backward")
OPS = tuple(norm + suffix for norm in NORMS for suffix in SUFFIXES)
ROWS = tuple(op for op in OPS if op.startswith(("layer", "rms")))
CHANNELS = tuple(op for op in OPS if op not in ROWS)
BACKWARD = tuple(op for op in OPS if op.endswith("_backward"))
FORWARD = tuple(op for op in OPS if op not in BACKWARD)
GROUPS = tuple(op for op in OPS if op.startswith("group"))
PRENORM = tuple(op for op in ROWS if op in FORWARD)
DSUM = ("rms_norm_backward",)
RUNNING = ("instance_norm_train",)


def case_of(op: str) -> Case:
    return NORMS[op.removesuffix("_train").removesuffix("_backward")]


def arguments(op: str) -> Arguments:
    """Valid arguments, every optional array included."""
    case = case_of(op)
    data = make(case, "float32")
    given: Arguments = {"x": data.x, "weight": data.weight, "bias": data.bias, "activation": "relu"}
    given |= case.where() | {"out": np.zeros_like(data.x), "residual": data.residual}
    if case.norm == "group_norm":
        given["groups"] = 2
    if op in BACKWARD:
        fwd = case.op("_train")(data.x, *leading(case), activation="relu", **case.where())
        given |= {"dy": data.dy, "rstd": fwd.rstd, "mask": fwd.mask}
        if case.norm != "rms_norm":
            given["mean"] = fwd.mean
        # Either a residual behind the norm or prenorm, whose residual is part of x.
        return given | ({"dsum": data.dsum, "residual": None} if op in DSUM else {})
    given["eps"] = 1e-5
    if op in RUNNING:
        given |= {"running_mean": np.zeros(4), "running_var": np.ones(4), "momentum": 0.1}
    return given | ({"prenorm": True, "sum_out": np.zeros_like(data.x)} if case.prenorm else {})


ARRAYS = {op: tuple(n for n, v in arguments(op).items() if isinstance(v, np.ndarray)) for op in OPS}
LIKE_X = ("dy", "residual", "out", "sum_out", "dsum")
WRITTEN = ("out", "sum_out", "running_mean", "running_var")
SMALL = ("weight", "bias", "mean", "rstd", "running_mean", "running_var")


def check(op: str, given: Arguments, error: Any, *words: str) -> str:
    """The call fails as said, with the op's name and those words, and no array has changed."""
    arrays = {name: v for name, v in given.items() if isinstance(v, np.ndarray)}
    before = {name: v.tobytes() for name, v in arrays.items() if v.dtype != object}
    with pytest.raises(error) as caught:
        getattr(fn, op)(**given)
    message = str(caught.value)
    assert message.startswith(f"{op}: "), message
    for word in words:
        assert word in message, message
    for name, old in before.items():
        assert arrays[name].tobytes() == old, name
    return message


@pytest.mark.parametrize("op", OPS)
def test_the_valid_arguments_are_valid(op: str) -> None:
    getattr(fn, op)(**arguments(op))


def _wrong(name: str, v: Array) -> dict[str, tuple[Any, type[Exception]]]:
    """What is wrong with an array in its place: the value, and the error."""
    found: dict[str, tuple[Any, type[Exception]]] = {
        "a list": (v.tolist(), TypeError),
        "a number": (1.0, TypeError),
        "a string": ("x", TypeError),
        "integers": (v.astype(np.int32), TypeError),
        "complex": (v.astype(np.complex64), TypeError),
        "objects": (v.astype(object), TypeError),
        "booleans": (v.astype(bool), TypeError),
    }
    if name != "mask":
        found["byte-swapped"] = (v.astype(v.dtype.newbyteorder()), TypeError)
        if name != "x":  # against which the others are looked at
            found["more dimensions"] = (v[..., None], ValueError)
        found["zero-dimensional"] = (np.array(1.0, v.dtype), ValueError)
    if name in SMALL:
        found["too short"] = (v[:-1], ValueError)
        found["too long"] = (np.concatenate([v, v[:1]]), ValueError)
        found["one value"] = (v[:1], ValueError)
        if v.ndim > 1:
            found["flat"] = (v.reshape(-1), ValueError)
            found["transposed"] = (v.T, ValueError)
    if name in LIKE_X:
        found["another shape"] = (v[:, :, :-1], ValueError)
        found["transposed"] = (v.transpose(2, 1, 0), ValueError)
        found["broadcastable"] = (v[:1], ValueError)
        found["fewer dimensions"] = (v[0], ValueError)
        found["double"] = (v.astype(np.float64), TypeError)
        found["half"] = (v.astype(np.float16), TypeError)
    if name in WRITTEN:
        frozen = v.copy()
        frozen.flags.writeable = False
        found["read-only"] = (frozen, ValueError)
        found["broadcast"] = (np.lib.stride_tricks.as_strided(v, v.shape, [0] * v.ndim), ValueError)
        if v.ndim > 1:
            found["overlapping"] = (
                np.lib.stride_tricks.as_strided(v, v.shape, [4] * v.ndim),
                ValueError,
            )
    if name == "mask":
        found["too short"] = (v[:-1], ValueError)
        found["too long"] = (np.append(v, v[:1]), ValueError)
        found["two-dimensional"] = (v[None], ValueError)
        found["strided"] = (np.repeat(v, 2)[::2], ValueError)
        found["of other contents"] = (np.zeros_like(v), ValueError)
    return found


@pytest.mark.parametrize("op", OPS)
def test_wrong_arrays(op: str) -> None:
    for name in ARRAYS[op]:
        for what in _wrong(name, arguments(op)[name]):
            given = arguments(op)
            given[name], error = _wrong(name, given[name])[what]
            message = check(op, given, error)
            named = name in message.removeprefix(f"{op}: ").replace(",", " ").split()
            assert named, f"{name}, {what}: {message}"


@pytest.mark.parametrize("op", OPS)
def test_absent_arrays(op: str) -> None:
    needed = {"x", "dy", "mean", "rstd"} & set(ARRAYS[op])
    for name in sorted(needed | ({"residual"} if op in PRENORM else set())):
        check(op, arguments(op) | {name: None}, (TypeError, ValueError), name)


NUMBERS: tuple[tuple[tuple[str, ...], str, Any, Any], ...] = (
    (FORWARD, "eps", -1e-9, ValueError),
    (FORWARD, "eps", float("nan"), ValueError),
    (FORWARD, "eps", "small", TypeError),
    (FORWARD, "eps", None, TypeError),
    (FORWARD, "eps", 10**400, ValueError),
    (ROWS, "axis", 3, ValueError),
    (ROWS, "axis", -4, ValueError),
    (ROWS, "axis", 2**70, ValueError),
    (ROWS, "axis", 1.5, TypeError),
    (ROWS, "axis", None, TypeError),
    (ROWS, "axis", (1, 2), TypeError),
    (CHANNELS, "channel_axis", 0, ValueError),
    (CHANNELS, "channel_axis", 3, ValueError),
    (CHANNELS, "channel_axis", -3, ValueError),
    (CHANNELS, "channel_axis", -4, ValueError),
    (CHANNELS, "channel_axis", "C", TypeError),
    (GROUPS, "groups", 0, ValueError),
    (GROUPS, "groups", -2, ValueError),
    (GROUPS, "groups", 3, ValueError),
    (GROUPS, "groups", 8, ValueError),
    (GROUPS, "groups", 2**62, ValueError),
    (GROUPS, "groups", 2**70, ValueError),
    (GROUPS, "groups", 2.0, TypeError),
    (GROUPS, "groups", None, TypeError),
    (ROWS, "weight_offset", float("inf"), ValueError),
    (ROWS, "weight_offset", float("nan"), ValueError),
    (ROWS, "weight_offset", "1", TypeError),
    (ROWS, "weight_offset", None, TypeError),
    (PRENORM, "prenorm", 1, TypeError),
    (PRENORM, "prenorm", None, TypeError),
    (("rms_norm", "rms_norm_train"), "cast_before_weight", 1, TypeError),
    (RUNNING, "momentum", -0.1, ValueError),
    (RUNNING, "momentum", 1.01, ValueError),
    (RUNNING, "momentum", float("nan"), ValueError),
    (RUNNING, "momentum", None, (ValueError, TypeError)),
    (RUNNING, "unbiased", 1, TypeError),
    (OPS, "activation", "foo", ValueError),
    (OPS, "activation", "ReLU", ValueError),
    (OPS, "activation", 3, TypeError),
    (OPS, "activation", np.tanh, TypeError),
    (FORWARD, "residual", True, TypeError),
    (DSUM, "dsum", True, TypeError),
)


@pytest.mark.parametrize(
    ("op", "name", "value", "error"),
    [
        pytest.param(op, *rest, id=f"{op}-{rest[0]}-{rest[1]}"[:40])
        for ops, *rest in NUMBERS
        for op in ops
    ],
)
def test_wrong_numbers_and_names(op: str, name: str, value: Any, error: Any) -> None:
    given = arguments(op) | {name: value}
    if name == "activation" and op in BACKWARD:
        given["mask"] = None
    check(op, given, error, f"{name} ", "expected")


@pytest.mark.parametrize("op", OPS)
def test_what_may_not_share_memory(op: str) -> None:
    """out may be x (dy in backward) itself, sum_out the residual; nothing else that is read."""
    own = {"out": "dy" if op in BACKWARD else "x", "sum_out": "residual"}
    for written in (n for n in WRITTEN if n in ARRAYS[op]):
        for name in ARRAYS[op]:
            if name in (written, own.get(written)):
                continue
            given = arguments(op)
            target = given[written]
            source = given[name]
            if name == "mask":  # which its own bytes tell from any other
                continue
            small, large = sorted((source, target), key=lambda a: int(a.nbytes))
            part = large.reshape(-1).view(np.uint8)[: small.nbytes].view(small.dtype)
            part = part.reshape(small.shape)
            part[...] = np.ones_like(small)
            given[name if small is source else written] = part
            message = check(op, given, ValueError, name, written, "overlap")
            assert "memory of its own" in message


@pytest.mark.parametrize("op", OPS)
def test_partial_overlap(op: str) -> None:
    pairs = [("out", "dy" if op in BACKWARD else "x")]
    pairs += [("sum_out", "residual")] if op in PRENORM else []
    for written, name in pairs:
        for start in (0, 2):
            given = arguments(op)
            whole = np.zeros(62, np.float32)
            given[written] = whole[start : start + 60].reshape(SHAPE)
            source = whole[1:61].reshape(SHAPE)
            source[...] = given[name]
            given[name] = source
            check(op, given, ValueError, written, name)
        given = arguments(op)
        given[written] = given[name][::-1]
        check(op, given, ValueError, written, name)


def _swapped(op: str, **changed: Any) -> tuple[str, Arguments]:
    return op, arguments(op) | changed


ARRAY_3 = np.ones((3, 4), np.float32)
# Every rule that only these ops have: the call, the error, and all of what it says.
MESSAGES: list[tuple[tuple[str, Arguments], type[Exception], str]] = [
    (_swapped("layer_norm", x=np.ones((), "f4")), ValueError,
     "x has 0 dimensions, expected 1 to 5"),
    (_swapped("group_norm", x=np.ones(4, "f4")), ValueError, "x has 1 dimension, expected 2 to 5"),
    (_swapped("instance_norm", x=ARRAY_3), ValueError, "x has 2 dimensions, expected 3 to 5"),
    (_swapped("layer_norm", axis=3), ValueError,
     "axis is 3, expected -3 to 2 for an x with shape (3, 4, 5)"),
    (_swapped("group_norm", channel_axis=0), ValueError,
     "channel_axis is 0, expected -2 to -1 or 1 to 2 for an x with shape (3, 4, 5)"),
    # The only axis left is no range of them.
    (_swapped("group_norm", x=ARRAY_3, channel_axis=0), ValueError,
     "channel_axis is 0, expected -1 or 1 for an x with shape (3, 4)"),
    (_swapped("group_norm", groups=3), ValueError,
     "groups is 3, expected a divisor of the 4 channels that an x with shape (3, 4, 5) has on "
     "axis 1"),
    (_swapped("rms_norm", weight=np.ones((4, 6))), ValueError,
     "weight has shape (4, 6), expected (4, 5): axis is 1, x has shape (3, 4, 5)"),
    (_swapped("layer_norm_backward", rstd=np.ones(4)), ValueError,
     "rstd has shape (4,), expected (3,): axis is 1, x has shape (3, 4, 5)"),
    (_swapped("group_norm_backward", mean=np.ones((3, 4))), ValueError,
     "mean has shape (3, 4), expected (3, 2): channel_axis is 1, x has shape (3, 4, 5)"),
    (_swapped("layer_norm", weight_offset=np.inf), ValueError,
     "weight_offset is inf, expected a finite number of float32"),
    (_swapped("rms_norm_backward", weight_offset=-1e39), ValueError,
     "weight_offset is -1e+39, expected a finite number of float32"),
    (_swapped("layer_norm", axis=True), TypeError, "axis is of type bool, expected an integer"),
    (_swapped("group_norm", groups=True), TypeError,
     "groups is of type bool, expected an integer"),
    (_swapped("layer_norm", prenorm=1), TypeError, "prenorm is of type int, expected a bool"),
    (_swapped("layer_norm_train", prenorm=False), ValueError,
     "sum_out is given, expected None without prenorm"),
    (_swapped("rms_norm", residual=None), ValueError,
     "residual is missing, expected an array: prenorm adds it to x"),
    (_swapped("rms_norm_train", sum_out=np.ones(SHAPE)), TypeError,
     "sum_out has dtype float64, expected float32 as x has it"),
    (_swapped("layer_norm", sum_out=ARRAY_3), ValueError,
     "sum_out has shape (3, 4), expected (3, 4, 5)"),
    (_swapped("rms_norm_backward", dsum=ARRAY_3), ValueError,
     "dsum has shape (3, 4), expected (3, 4, 5)"),
    (_swapped("layer_norm_backward", dsum=np.ones(SHAPE, "f4")), ValueError,
     "dsum is given, expected none beside a residual that is added behind the norm: prenorm's "
     "is part of x, and dx its gradient too"),
    (_swapped("rms_norm_backward", residual=True), ValueError,
     "dsum is given, expected none beside a residual that is added behind the norm: prenorm's "
     "is part of x, and dx its gradient too"),
    (_swapped("rms_norm_backward", mask=np.zeros(17, "u1")), ValueError,
     "mask was made for another shape, memory layout, axis or activation, expected the one that "
     "the forward pass returned for this x"),
    (_swapped("instance_norm_train", x=ARRAY_3[..., None], residual=None, out=None), ValueError,
     "x has shape (3, 4, 1), 1 value per channel, expected more than 1 for an unbiased "
     "running_var"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), [pytest.param(*m, id=f"{m[0][0]}: {m[2]}"[:70]) for m in MESSAGES]
)
def test_messages(call: tuple[str, Arguments], error: type[Exception], message: str) -> None:
    op, given = call
    assert check(op, given, error) == f"{op}: {message}"
    with pytest.raises(error) as caught:
        getattr(fn, op)(**given)
    assert caught.type is error


@pytest.mark.parametrize("op", BACKWARD)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_backward_needs_the_residual_or_the_mask(op: str, activation: str) -> None:
    given = arguments(op) | {"residual": True, "mask": None, "activation": activation}
    check(op, given, ValueError, "residual is True, expected the array")
    given["residual"] = False
    assert getattr(fn, op)(**given).dresidual is None


@pytest.mark.parametrize("norm", NORMS)
def test_mask_of_another_call(norm: str) -> None:
    """Masks whose bits stand for other elements, or for another activation."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 4, 40, 40)).astype(np.float32)
    case = Case("mask", norm, x.shape, 1 if norm[0] in "gi" else 2, 4)
    swapped = np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)
    activation = fn.clip(-1.0, 1.0)
    options: dict[str, Any] = case.where() | {"activation": activation}
    fwd = case.op("_train")(swapped, *leading(case), **options)
    statistics = (fwd.rstd,) if norm == "rms_norm" else (fwd.mean, fwd.rstd)

    def gradients(x: Array, **changed: Any) -> Any:
        given = (*leading(case), *statistics)
        return case.op("_backward")(x, x, *given, **options | {"mask": fwd.mask} | changed)

    negative = {name: axis - 4 for name, axis in case.where().items()}
    assert np.array_equal(gradients(swapped, **negative).dx, gradients(swapped, mask=None).dx)
    others: list[tuple[Array, Arguments]] = [
        (swapped, {"activation": "relu"}),
        (swapped, {"activation": fn.clip(-1.0, 0.5)}),
    ]
    if case.of_rows:
        # Rows are numbered in one way, whatever strides they have: the mask is that of x, too.
        assert np.array_equal(gradients(x).dx, gradients(x, mask=None).dx)
        longer = case.op("_train")(x, axis=1, activation=activation).mask
        others.append((x, {"mask": longer}))
    else:
        others.append((x, {}))
    for other, changed in others:
        with pytest.raises(ValueError, match="mask was made for another"):
            gradients(other, **changed)
