"""Every wrong argument: the right exception, a message that says what is wrong, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn

Array = npt.NDArray[Any]
Arguments = dict[str, Any]

SHAPE = (3, 4, 5)
C = 4
OPS: dict[str, Callable[..., Any]] = {
    "batch_norm": fn.batch_norm,
    "batch_norm_train": fn.batch_norm_train,
    "batch_norm_backward": fn.batch_norm_backward,
}
INFERENCE, TRAIN, BACKWARD = OPS
ALL = (INFERENCE, TRAIN, BACKWARD)
FORWARD = (INFERENCE, TRAIN)


def arguments(op: str) -> Arguments:
    """Valid arguments, every optional array included."""
    rng = np.random.default_rng(0)

    def element() -> Array:
        return rng.standard_normal(SHAPE).astype(np.float32)

    def channel() -> Array:
        return rng.uniform(0.5, 1.5, C).astype(np.float32)

    shared: Arguments = {
        "x": element(),
        "weight": channel(),
        "bias": channel(),
        "residual": element(),
        "activation": "relu",
        "channel_axis": 1,
        "out": element(),
    }
    if op == INFERENCE:
        return shared | {"mean": channel(), "var": channel(), "eps": 1e-5}
    if op == TRAIN:
        running = {"running_mean": channel(), "running_var": channel()}
        return shared | running | {"momentum": 0.1, "eps": 1e-5}
    mask = fn.batch_norm_train(shared["x"], activation="relu").mask
    return shared | {"dy": element(), "mean": channel(), "rstd": channel(), "mask": mask}


@dataclass(frozen=True)
class Bad:
    """An argument's wrong value, made from the valid arguments."""

    what: str
    ops: tuple[str, ...]
    argument: str
    value: Callable[[Arguments], Any]
    error: type[Exception] | tuple[type[Exception], ...] = ValueError


def constant(value: Any) -> Callable[[Arguments], Any]:
    return lambda arguments: value


def read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


ARRAYS = {
    INFERENCE: ("x", "mean", "var", "weight", "bias", "residual", "out"),
    TRAIN: ("x", "weight", "bias", "running_mean", "running_var", "residual", "out"),
    BACKWARD: ("dy", "x", "mean", "rstd", "weight", "bias", "residual", "out", "mask"),
}
PER_CHANNEL = ("mean", "var", "rstd", "weight", "bias", "running_mean", "running_var")
LIKE_X = ("dy", "residual", "out")


def changed(name: str, change: Callable[[Array], Any]) -> Callable[[Arguments], Any]:
    return lambda arguments: change(arguments[name])


def _bad_arrays(op: str, name: str) -> list[Bad]:
    found = []

    def bad(what: str, change: Callable[[Array], Any], error: type[Exception]) -> None:
        found.append(Bad(what, (op,), name, changed(name, change), error))

    bad("a list", lambda v: v.tolist(), TypeError)
    bad("a number", lambda v: 1.0, TypeError)
    bad("a string", lambda v: "x", TypeError)
    bad("integers", lambda v: v.astype(np.int32), TypeError)
    bad("complex", lambda v: v.astype(np.complex64), TypeError)
    bad("objects", lambda v: v.astype(object), TypeError)
    bad("booleans", lambda v: v.astype(bool), TypeError)
    if name != "mask":
        bad("byte-swapped", lambda v: v.astype(v.dtype.newbyteorder()), TypeError)
    if name in PER_CHANNEL:
        bad("too short", lambda v: v[:-1], ValueError)
        bad("too long", lambda v: np.append(v, v[:1]), ValueError)
        bad("one value", lambda v: v[:1], ValueError)
        bad("two-dimensional", lambda v: v[:, None], ValueError)
        bad("zero-dimensional", lambda v: np.array(1.0, v.dtype), ValueError)
    if name in LIKE_X:
        bad("another shape", lambda v: v[:, :, :-1], ValueError)
        bad("transposed", lambda v: v.transpose(2, 1, 0), ValueError)
        bad("broadcastable", lambda v: v[:1], ValueError)
        bad("fewer dimensions", lambda v: v[0], ValueError)
        bad("double", lambda v: v.astype(np.float64), TypeError)
        bad("half", lambda v: v.astype(np.float16), TypeError)
    if name in ("out", "running_mean", "running_var"):
        bad("read-only", read_only, ValueError)
    if name == "mask":
        bad("too few rows", lambda v: v[:-1], ValueError)
        bad("too many columns", lambda v: np.concatenate([v, v], axis=1), ValueError)
        bad("flat", lambda v: v.reshape(-1), ValueError)
    return found


BADS = (
    *(bad for op in OPS for name in ARRAYS[op] for bad in _bad_arrays(op, name)),
    Bad("absent", ALL, "x", constant(None), TypeError),
    Bad("absent", (INFERENCE, BACKWARD), "mean", constant(None), TypeError),
    Bad("absent", (INFERENCE,), "var", constant(None), TypeError),
    Bad("absent", (BACKWARD,), "rstd", constant(None), TypeError),
    Bad("absent", (BACKWARD,), "dy", constant(None), TypeError),
    Bad("0-d", ALL, "x", constant(np.ones((), np.float32))),
    Bad("1-d", ALL, "x", constant(np.ones(4, np.float32))),
    Bad("6-d", ALL, "x", constant(np.ones((1, 4, 1, 1, 1, 2), np.float32))),
    Bad("negative", FORWARD, "eps", constant(-1e-9)),
    Bad("nan", FORWARD, "eps", constant(float("nan"))),
    Bad("string", FORWARD, "eps", constant("small"), TypeError),
    Bad("none", FORWARD, "eps", constant(None), TypeError),
    Bad("negative", (TRAIN,), "momentum", constant(-0.1)),
    Bad("above 1", (TRAIN,), "momentum", constant(1.01)),
    Bad("nan", (TRAIN,), "momentum", constant(float("nan"))),
    Bad("none", (TRAIN,), "momentum", constant(None), (ValueError, TypeError)),
    Bad("string", (TRAIN,), "momentum", constant("high"), TypeError),
    Bad("too large", ALL, "channel_axis", constant(3)),
    Bad("too small", ALL, "channel_axis", constant(-4)),
    Bad("huge", ALL, "channel_axis", constant(2**70), (ValueError, OverflowError)),
    Bad("float", ALL, "channel_axis", constant(1.5), TypeError),
    Bad("string", ALL, "channel_axis", constant("C"), TypeError),
    Bad("none", ALL, "channel_axis", constant(None), TypeError),
    Bad("unknown", ALL, "activation", constant("foo")),
    Bad("upper case", ALL, "activation", constant("ReLU")),
    Bad("number", ALL, "activation", constant(3), TypeError),
    Bad("function", ALL, "activation", constant(np.tanh), TypeError),
    Bad("true", FORWARD, "residual", constant(True), TypeError),
    # out may be x (dy in backward) itself, and nothing else that shares memory with an input.
    *(
        Bad(f"out is {name}", (op,), "out", lambda a, name=name: a[name])
        for op, name in [(INFERENCE, "residual"), (TRAIN, "residual"), (BACKWARD, "x")]
    ),
    Bad("out is the residual", (BACKWARD,), "out", lambda a: a["residual"]),
    Bad("out is x reversed", FORWARD, "out", lambda a: a["x"][::-1]),
    Bad("out is dy reversed", (BACKWARD,), "out", lambda a: a["dy"][:, :, ::-1]),
    Bad(
        "elements of out overlap",
        ALL,
        "out",
        lambda a: np.lib.stride_tricks.as_strided(a["out"], SHAPE, (80, 20, 0)),
    ),
)


def check(op: str, given: Arguments, error: Any, words: tuple[str, ...]) -> None:
    """The call fails as said, and no array has changed."""
    arrays = {name: v for name, v in given.items() if isinstance(v, np.ndarray)}
    before = {name: v.tobytes() for name, v in arrays.items() if v.dtype != object}
    with pytest.raises(error) as caught:
        OPS[op](**given)
    message = str(caught.value)
    assert message.startswith(f"{op}: "), message
    for word in words:
        assert word in message, message
    for name, old in before.items():
        assert arrays[name].tobytes() == old, name


@pytest.mark.parametrize(
    ("op", "bad"),
    [
        pytest.param(op, bad, id=f"{op}-{bad.argument}-{bad.what}".replace(" ", "_"))
        for bad in BADS
        for op in bad.ops
    ],
)
def test_wrong_argument(op: str, bad: Bad) -> None:
    given = arguments(op)
    given[bad.argument] = bad.value(given)
    if op == BACKWARD and bad.argument == "activation":
        given["mask"] = None
    check(op, given, bad.error, (bad.argument,))


@pytest.mark.parametrize("op", OPS)
def test_the_valid_arguments_are_valid(op: str) -> None:
    OPS[op](**arguments(op))


@pytest.mark.parametrize("op", OPS)
def test_partial_overlap(op: str) -> None:
    name = "dy" if op == BACKWARD else "x"
    for start in (0, 2):
        given = arguments(op)
        whole = np.zeros(62, np.float32)
        given["out"] = whole[start : start + 60].reshape(SHAPE)
        source = whole[1:61].reshape(SHAPE)
        source[...] = given[name]
        given[name] = source
        check(op, given, ValueError, ("out", name))


@pytest.mark.parametrize("op", OPS)
def test_out_on_a_parameter(op: str) -> None:
    for name in ARRAYS[op]:
        if name in PER_CHANNEL:
            given = arguments(op)
            part = given["out"].reshape(-1)[7 : 7 + C]
            part[...] = given[name]
            given[name] = part
            check(op, given, ValueError, ("out",))


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 4), 1), ((1, 4, 1, 1), 1), ((1, 1, 4), -1), ((4, 1), 0)]
)
def test_one_value_per_channel(shape: tuple[int, ...], axis: int) -> None:
    given = arguments(TRAIN) | {"channel_axis": axis, "residual": None}
    given["x"] = np.ones(shape, np.float32)
    given["out"] = np.zeros(shape, np.float32)
    check(TRAIN, given, ValueError, ("x", "1 value per channel"))
    # Inference asks for no statistics of x.
    y = fn.batch_norm(given["x"], np.zeros(4), np.ones(4), channel_axis=axis)
    assert y.shape == shape


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_backward_needs_the_residual_or_the_mask(activation: str) -> None:
    given = arguments(BACKWARD) | {"residual": True, "mask": None, "activation": activation}
    check(BACKWARD, given, (ValueError, TypeError), ("residual",))


def test_messages_say_what_was_got_and_expected() -> None:
    x = np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match=r"^batch_norm: weight has shape \(3,\), expected \(4,\)"):
        fn.batch_norm(x, np.zeros(4), np.ones(4), np.ones(3))
    with pytest.raises(ValueError, match="'foo', expected one of relu, leaky_relu"):
        fn.batch_norm(x, np.zeros(4), np.ones(4), activation="foo")
    with pytest.raises(ValueError, match="2 to 5"):
        fn.batch_norm_train(np.ones(3, np.float32))
    with pytest.raises(TypeError, match=r"int64.*float32"):
        fn.batch_norm_train(np.ones(SHAPE, np.int64))
    with pytest.raises(TypeError, match="list"):
        fn.batch_norm_train([[1.0, 2.0]])  # type: ignore[arg-type]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_interleaved_views_of_one_buffer_do_not_overlap(op: str, axis: int) -> None:
    """Address ranges cross, elements do not: x and out as the two halves of each row."""
    name = "dy" if op == BACKWARD else "x"
    expected = OPS[op](**arguments(op))[0] if op != INFERENCE else OPS[op](**arguments(op))
    for stepped in (False, True):
        given = arguments(op)
        shape = list(SHAPE)
        shape[axis] *= 2
        buffer = np.zeros(shape, np.float32)
        n = SHAPE[axis]
        halves = (slice(0, None, 2), slice(1, None, 2)) if stepped else (slice(n), slice(n, None))
        source, target = (buffer[(slice(None),) * axis + (half,)] for half in halves)
        source[...] = given[name]
        given[name], given["out"] = source, target
        result = OPS[op](**given)
        assert (result if op == INFERENCE else result[0]) is target
        assert np.array_equal(target, expected)
        assert np.array_equal(source, arguments(op)[name])


def test_out_that_is_x_through_another_view() -> None:
    given = arguments(INFERENCE)
    expected = fn.batch_norm(**arguments(INFERENCE))
    given["out"] = given["x"][:]
    assert fn.batch_norm(**given) is given["out"]
    assert np.array_equal(given["x"], expected)


@pytest.mark.parametrize("value", [0, -1])
def test_number_of_threads_out_of_range(value: int) -> None:
    before = fn.get_num_threads()
    with pytest.raises(ValueError, match="set_num_threads"):
        fn.set_num_threads(value)
    assert fn.get_num_threads() == before


EXTENDED = ["longdouble"] if np.dtype("longdouble") != np.dtype("float64") else []


@pytest.mark.parametrize("dtype", ["datetime64[s]", "S4", "U4", "int8", "uint16", *EXTENDED])
def test_dtypes_that_are_no_data(dtype: str) -> None:
    x = np.zeros(SHAPE, dtype)
    given = arguments(TRAIN) | {"x": x}
    check(TRAIN, given, TypeError, ("x",))


def test_float8_is_not_accepted_as_data() -> None:
    x = np.zeros(SHAPE, ml_dtypes.float8_e4m3fn)
    check(TRAIN, arguments(TRAIN) | {"x": x}, TypeError, ("x",))
