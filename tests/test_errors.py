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


def restrided(name: str, strides: tuple[int, ...]) -> Callable[[Arguments], Array]:
    """The argument's memory, from its end on if strides go back, under other strides."""

    def view(arguments: Arguments) -> Array:
        a = arguments[name]
        start = a[-1:] if strides[0] < 0 else a
        return np.lib.stride_tricks.as_strided(start, a.shape, strides)

    return view


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
        bad("too short", lambda v: v[:-1], ValueError)
        bad("too long", lambda v: np.append(v, v[:1]), ValueError)
        bad("two-dimensional", lambda v: v[None], ValueError)
        bad("zero-dimensional", lambda v: v[0, ...], ValueError)
        bad("strided", lambda v: np.repeat(v, 2)[::2], ValueError)
        bad("of other contents", lambda v: np.zeros_like(v), ValueError)
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
    *(
        Bad(f"elements of {name} overlap", ops, name, restrided(name, strides))
        for ops, name, strides in [
            (ALL, "out", (80, 20, 0)),
            (ALL, "out", (4, 4, 4)),
            (ALL, "out", (80, 18, 4)),
            (ALL, "out", (20, 20, 4)),
            ((TRAIN,), "running_mean", (2,)),
            ((TRAIN,), "running_var", (-3,)),
        ]
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
    message = f"x has shape {shape}, 1 value per channel, expected more than 1 in training"
    check(TRAIN, given, ValueError, (message,))
    # Inference asks for no statistics of x.
    y = fn.batch_norm(given["x"], np.zeros(4), np.ones(4), channel_axis=axis)
    assert y.shape == shape


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_backward_needs_the_residual_or_the_mask(activation: str) -> None:
    given = arguments(BACKWARD) | {"residual": True, "mask": None, "activation": activation}
    check(BACKWARD, given, (ValueError, TypeError), ("residual",))


FLOATS = "float32, float64, float16 or bfloat16"
OWN_ELEMENTS = "an array whose elements have memory of their own"
# Every rule once: the op, an argument, its wrong value, the error, and all of what it says.
EXPECTED_ARRAY = "expected a NumPy array, or one on a CUDA device"


class OnCPU:
    """An array of another library's on the CPU."""

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nobody is to import it")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


MESSAGES: list[tuple[str, str, Any, type[Exception], str]] = [
    # what an array is
    (TRAIN, "x", [[1.0]], TypeError, f"x is of type list, {EXPECTED_ARRAY}"),
    (
        TRAIN,
        "x",
        np.ma.ones(SHAPE, np.float32),
        TypeError,
        f"x is of type MaskedArray, {EXPECTED_ARRAY}",
    ),
    (
        TRAIN,
        "x",
        OnCPU(),
        TypeError,
        "x is of type OnCPU, expected a NumPy array (numpy.from_dlpack makes one of it), or one on "
        "a CUDA device",
    ),
    (INFERENCE, "mean", None, TypeError, f"mean is of type NoneType, {EXPECTED_ARRAY}"),
    *(
        (op, name, np.ones(4, dtype), TypeError, f"{name} has dtype {dtype}, expected {expected}")
        for op, name, dtype, expected in [
            (TRAIN, "x", "int64", FLOATS), (INFERENCE, "weight", "bool", FLOATS),
            (BACKWARD, "mask", "int8", "uint8"),
        ]
    ),
    (TRAIN, "bias", np.ones(4, ">f4"), TypeError, "bias has dtype >f4, expected native byte order"),
    # dtypes
    (TRAIN, "x", np.ones(SHAPE, "u1"), TypeError, f"x has dtype uint8, expected {FLOATS}"),
    (INFERENCE, "var", np.ones(4, "u1"), TypeError, f"var has dtype uint8, expected {FLOATS}"),
    (BACKWARD, "dy", np.ones(SHAPE), TypeError,
     "dy has dtype float64, expected float32 as x has it"),
    (BACKWARD, "mask", np.ones(20, "f4"), TypeError, "mask has dtype float32, expected uint8"),
    # shapes
    (TRAIN, "x", np.ones((), "f4"), ValueError, "x has 0 dimensions, expected 2 to 5"),
    (TRAIN, "x", np.ones(4, "f4"), ValueError, "x has 1 dimension, expected 2 to 5"),
    (BACKWARD, "x", np.ones([1] * 6, "f4"), ValueError, "x has 6 dimensions, expected 2 to 5"),
    (INFERENCE, "weight", np.ones(3), ValueError,
     "weight has shape (3,), expected (4,): channel_axis is 1, x has shape (3, 4, 5)"),
    (INFERENCE, "weight", np.ones(()), ValueError, "weight has shape (), expected (4,)"),
    (TRAIN, "running_mean", np.ones([1] * 6), ValueError,
     "running_mean has 6 dimensions, expected shape (4,)"),
    (TRAIN, "residual", np.ones((3, 4), "f4"), ValueError,
     "residual has shape (3, 4), expected (3, 4, 5)"),
    (BACKWARD, "out", np.ones([1] * 6, "f4"), ValueError,
     "out has 6 dimensions, expected shape (3, 4, 5)"),
    # numbers
    (INFERENCE, "channel_axis", 3, ValueError,
     "channel_axis is 3, expected -3 to 2 for an x with shape (3, 4, 5)"),
    (INFERENCE, "channel_axis", 1.5, TypeError,
     "channel_axis is of type float, expected an integer"),
    (INFERENCE, "channel_axis", 2**40, ValueError,
     "channel_axis is out of range, expected one of 32 bits"),
    (TRAIN, "eps", "small", TypeError, "eps is of type str, expected a number"),
    (TRAIN, "eps", 10**5000, ValueError,
     "eps is out of range, expected a number that a float holds"),
    (TRAIN, "eps", -0.5, ValueError, "eps is -0.5, expected a number >= 0"),
    (TRAIN, "eps", np.nan, ValueError, "eps is nan, expected a number >= 0"),
    (TRAIN, "momentum", 1.5, ValueError, "momentum is 1.5, expected a number from 0 to 1"),
    (TRAIN, "unbiased", 1, TypeError, "unbiased is of type int, expected a bool"),
    # activations and their masks
    (INFERENCE, "activation", 3, TypeError,
     "activation is of type int, expected None, a name or fastnorm.Activation"),
    (INFERENCE, "activation", "foo", ValueError, "activation is 'foo', expected None or one of "
     "relu, leaky_relu, clip, sigmoid, tanh, silu, gelu, gelu_tanh, hardswish"),
    (BACKWARD, "activation", "silu", ValueError,
     "mask is given, expected none: activation silu does not have one"),
    (BACKWARD, "activation", None, ValueError,
     "mask is given, expected none without an activation"),
    (BACKWARD, "mask", np.zeros(3, "u1"), ValueError, "mask has shape (3,), expected (17,)"),
    (BACKWARD, "mask", np.zeros(34, "u1")[::2], ValueError,
     "mask has strides, expected a contiguous array as the forward pass made it"),
    (BACKWARD, "mask", np.zeros(17, "u1"), ValueError,
     "mask was made for another shape, memory layout, axis or activation, expected the "
     "one that the forward pass returned for this x"),
    # outputs
    (INFERENCE, "out", read_only(np.ones(SHAPE, "f4")), ValueError,
     "out is read-only, expected a writable array"),
    (INFERENCE, "out", restrided("out", (80, 20, 0)), ValueError,
     f"out is broadcast along axis 2, expected {OWN_ELEMENTS}"),
    (TRAIN, "running_var", restrided("running_var", (2,)), ValueError,
     f"running_var overlaps itself, expected {OWN_ELEMENTS}"),
    (INFERENCE, "out", lambda a: a["x"][::-1], ValueError,
     "out overlaps x, expected either the very same array or memory of its own"),
    (BACKWARD, "out", lambda a: a["x"], ValueError, "out overlaps x, expected memory of its own"),
    (TRAIN, "running_var", lambda a: a["running_mean"], ValueError,
     "running_mean overlaps running_var, expected memory of its own"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "argument", "value", "error", "message"),
    [pytest.param(*row, id=f"{row[0]}: {row[4]}"[:80]) for row in MESSAGES],
)
def test_messages(op: str, argument: str, value: Any, error: type[Exception], message: str) -> None:
    given = arguments(op)
    given[argument] = value(given) if callable(value) else value
    with pytest.raises(error) as caught:
        OPS[op](**given)
    assert caught.type is error
    assert str(caught.value) == f"{op}: {message}"


def test_message_of_a_residual_without_values() -> None:
    given = arguments(BACKWARD) | {"residual": True, "mask": None}
    with pytest.raises(ValueError, match="residual is True") as caught:
        fn.batch_norm_backward(**given)
    assert str(caught.value) == (
        "batch_norm_backward: residual is True, expected the array: without a mask, the "
        "activation's input is recomputed from it"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ZeroDivisionError])
def test_what_a_number_raises_passes(error: type[BaseException]) -> None:
    class Raises:
        def __float__(self) -> float:
            raise error

        def __index__(self) -> int:
            raise error

    for name in ("eps", "channel_axis"):
        with pytest.raises(error):
            fn.batch_norm(**arguments(INFERENCE) | {name: Raises()})


def test_mask_of_another_call() -> None:
    """Masks of the right size whose bits stand for other elements, or for another activation."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 40, 40)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    swapped = np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)
    activation = fn.clip(-1.0, 1.0)
    fwd = fn.batch_norm_train(swapped, activation=activation)
    assert fwd.mask is not None
    statistics = (fwd.mean, fwd.rstd)
    valid: Arguments = {"activation": activation, "mask": fwd.mask}

    recomputed = fn.batch_norm_backward(dy, swapped, *statistics, activation=activation).dx
    padded = np.zeros((2, 3, 43, 41), np.float32).swapaxes(2, 3)[:, :, :40, :40]
    padded[...] = x  # other strides, the same order
    for same in (swapped, padded):
        dx = fn.batch_norm_backward(dy, same, *statistics, **valid, channel_axis=-3).dx
        assert np.array_equal(dx, recomputed)

    others: list[tuple[Array, Arguments]] = [
        (np.ascontiguousarray(x), valid),
        (swapped.reshape(2, 3, 20, 80), valid),
        (swapped, valid | {"activation": "relu"}),
        (swapped, valid | {"activation": "leaky_relu"}),
        (swapped, valid | {"activation": fn.clip(-1.0, 0.5)}),
    ]
    for other, options in others:
        with pytest.raises(ValueError, match="mask was made for another"):
            fn.batch_norm_backward(dy.reshape(other.shape), other, *statistics, **options)

    square = x[:, :2, :2]
    fwd = fn.batch_norm_train(square, channel_axis=1, activation=activation)
    with pytest.raises(ValueError, match="mask was made for another"):
        fn.batch_norm_backward(
            square, square, fwd.mean, fwd.rstd, channel_axis=0, **valid | {"mask": fwd.mask}
        )


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
