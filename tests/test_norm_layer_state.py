"""The layers beside BatchNorm: state, saved and loaded, and InstanceNorm's running statistics."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
from cases import to_dtype
from checks import assert_same_bits
from layer_cases import NAMES
from norm_layer_cases import LAYERS, OF_FEATURES, make, op, x_of

Array = npt.NDArray[Any]

EACH = pytest.mark.parametrize("name", LAYERS)
# The names in the state dict of PyTorch's module of the same name and options.
STATES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("GroupNorm", {}, NAMES[:2]),
    ("InstanceNorm", {}, NAMES[:2]),
    ("InstanceNorm", {"track_running_stats": True}, NAMES),
    ("InstanceNorm", {"track_running_stats": True, "affine": False}, NAMES[2:]),
    ("LayerNorm", {}, NAMES[:2]),
    ("LayerNorm", {"bias": False}, NAMES[:1]),
    ("RMSNorm", {}, NAMES[:1]),
]


def state_of(name: str, names: list[str], dtype: str = "float32") -> dict[str, Array]:
    """A state dict, other than the initial one."""
    rng = np.random.default_rng(3)
    shape = LAYERS[name][1]
    state = {key: rng.uniform(1.0, 2.0, shape).astype(to_dtype(dtype)) for key in names}
    if "num_batches_tracked" in state:
        state["num_batches_tracked"] = np.array(42)
    return state


def assert_state(layer: Any, expected: dict[str, Array]) -> None:
    state = layer.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert_same_bits(state[key], value, key)


class TestState:
    """state_dict and load_state_dict."""

    @pytest.mark.parametrize(("name", "options", "names"), STATES)
    def test_names_and_round_trip(
        self, name: str, options: dict[str, Any], names: list[str]
    ) -> None:
        layer, other = (LAYERS[name][0](**options) for _ in range(2))
        assert list(layer.state_dict()) == names
        state = state_of(name, names)
        weight = layer.weight
        layer.load_state_dict(state)
        assert layer.weight is weight, "values are copied into the layer's arrays"
        assert_state(layer, state)
        other.load_state_dict(layer.state_dict())
        assert_state(other, state)
        x = x_of()
        assert_same_bits(other.eval()(x), layer.eval()(x))
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert_state(copied, state)
            assert_same_bits(copied(x), layer(x))
            assert_same_bits(copied.backward(x), layer.backward(x))

    @EACH
    def test_is_a_copy(self, name: str) -> None:
        layer = make(name)
        state = layer.state_dict()
        before = layer.weight.copy()
        state["weight"][...] = 7.0
        assert_same_bits(layer.weight, before)
        loaded = layer.state_dict()
        layer.load_state_dict(loaded)
        loaded["weight"][...] = 7.0
        assert_same_bits(layer.weight, before)

    @pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", ">f4"])
    @EACH
    def test_values_are_converted(self, name: str, dtype: str) -> None:
        layer = make(name)
        names = list(layer.state_dict())
        state = {
            key: value.astype(dtype if dtype == ">f4" else to_dtype(dtype))
            for key, value in state_of(name, names).items()
        }
        layer.load_state_dict(state)
        assert_state(layer, {key: value.astype(np.float32) for key, value in state.items()})

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"weight": None}, ValueError, r"state has .*expected weight.*: missing \['weight'\]"),
            ({"gamma": np.ones(4)}, ValueError, r"state has .*gamma.*: unexpected \['gamma'\]"),
            ({"num_batches_tracked": 3}, ValueError, "unexpected.*num_batches_tracked"),
            ({"running_mean": np.ones(4)}, ValueError, "unexpected.*running_mean"),
            ({"weight": np.ones((2, 2))}, ValueError, r"weight has shape \(2, 2\), expected "),
            ({"weight": [1, 2, 3, 4]}, TypeError, "weight has dtype int"),
        ],
    )
    @EACH
    def test_wrong_states(
        self, name: str, change: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        layer = make(name)
        before = layer.state_dict()
        state = {**state_of(name, list(before)), **change}
        state = {key: value for key, value in state.items() if value is not None}
        with pytest.raises(error, match=rf"^{name}\.load_state_dict: .*{words}"):
            layer.load_state_dict(state)
        assert_state(layer, before)

    @EACH
    def test_a_state_that_is_no_mapping(self, name: str) -> None:
        words = rf"^{name}\.load_state_dict: state is of type list, expected a mapping of names"
        with pytest.raises(TypeError, match=words):
            make(name).load_state_dict([])

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("LayerNorm", r"bias has shape \(5,\), expected \(4, 5\)"),
            ("GroupNorm", r"bias has shape \(5,\), expected \(4,\)"),
        ],
    )
    def test_all_or_none(self, name: str, words: str) -> None:
        layer = make(name)
        before = layer.state_dict()
        state = state_of(name, NAMES[:2]) | {"bias": np.ones(5)}
        with pytest.raises(ValueError, match=rf"^{name}\.load_state_dict: {words}$"):
            layer.load_state_dict(state)
        assert_state(layer, before)

    @pytest.mark.parametrize(
        ("replaced", "error", "words"),
        [
            ("read-only", ValueError, "is read-only, expected writable memory"),
            (np.ones(7, np.float32), ValueError, r"has shape \(7,\), expected"),
            ("int32", TypeError, "has dtype int32, expected one of"),
            ([1.0], TypeError, "is of type list, expected a NumPy array"),
        ],
    )
    @EACH
    def test_a_replaced_array_of_the_layer_changes_nothing(
        self, name: str, replaced: Any, error: type[Exception], words: str
    ) -> None:
        layer = make(name, **({"track_running_stats": True} if name == "InstanceNorm" else {}))
        before = layer.state_dict()
        # The last array of the dict: those before it are not copied into either.
        key = [key for key in before if key != "num_batches_tracked"][-1]
        array = before[key].copy()
        array.flags.writeable = replaced != "read-only" if isinstance(replaced, str) else True
        if isinstance(replaced, str):
            replaced = array.astype(np.int32) if replaced == "int32" else array
        setattr(layer, key, replaced)
        with pytest.raises(error, match=rf"^{name}\.load_state_dict: the layer's {key} {words}"):
            layer.load_state_dict(state_of(name, list(before)))
        setattr(layer, key, before[key])
        assert_state(layer, before)

    @EACH
    def test_a_conversion_that_fails_changes_nothing(self, name: str) -> None:
        layer = make(name, dtype="float16")
        before = layer.state_dict()
        last = list(before)[-1]
        state = state_of(name, list(before), "float64")
        state[last][...] = 1e300
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning, match="overflow"):
                layer.load_state_dict(state)
        assert_state(layer, before)

    @pytest.mark.parametrize("name", OF_FEATURES)
    def test_the_offset_is_no_part_of_the_weight(self, name: str) -> None:
        layer = LAYERS[name][0](weight_offset=1.0)
        layer.load_state_dict({key: np.zeros(LAYERS[name][1]) for key in layer.state_dict()})
        assert_same_bits(layer(x_of()), LAYERS[name][0]()(x_of()))


def tracking(**options: Any) -> Any:
    return make("InstanceNorm", track_running_stats=True, **options)


class TestRunningStatistics:
    """Those of InstanceNorm."""

    @pytest.mark.parametrize("momentum", [0.1, 0.7, None])
    def test_training_updates_them(self, momentum: float | None) -> None:
        layer = tracking(momentum=momentum, dtype="float64")
        mean, var = np.zeros(4), np.ones(4)
        for step in range(3):
            x = x_of(step, "float64")
            new = 1.0 / (step + 1) if momentum is None else momentum
            mean = (1 - new) * mean + new * x.mean(axis=2).mean(axis=0)
            var = (1 - new) * var + new * x.var(axis=2, ddof=1).mean(axis=0)
            assert_same_bits(layer(x), op(layer, "_train")(x).y)
            np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-13)
            np.testing.assert_allclose(layer.running_var, var, rtol=1e-13)
            assert layer.num_batches_tracked == step + 1

    @pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
    @pytest.mark.parametrize("activation", [None, "relu", "silu"])
    def test_inference_is_batch_norm_with_them(
        self, activation: str | None, residual: bool
    ) -> None:
        layer = tracking(activation=activation, dtype="float64")
        layer(x_of(5))
        before = layer.state_dict()
        x, dy = x_of(), x_of(1)
        added = x_of(2) if residual else None
        mean, var = before["running_mean"], before["running_var"]
        options: dict[str, Any] = {"residual": added, "activation": activation}
        expected = fn.batch_norm(x, mean, var, layer.weight, layer.bias, **options)
        assert_same_bits(layer.eval()(x, residual=added), expected)
        rstd = 1.0 / np.sqrt(var + layer.eps)
        grads = fn.batch_norm_backward(
            dy, x, mean, rstd, layer.weight, layer.bias, training=False, **options
        )
        # The statistics and eps of the call, whatever became of them.
        layer.running_mean += 1.0
        layer.eps = 1.0
        assert_same_bits(layer.backward(dy), grads.dx)
        assert_same_bits(layer.dweight, grads.dweight)
        assert_same_bits(layer.dbias, grads.dbias)
        assert_same_bits(layer.dresidual, grads.dresidual)
        layer.running_mean -= 1.0
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-14)
        assert layer.num_batches_tracked == 1

    @pytest.mark.parametrize(
        ("shape", "channel_axis", "words"),
        [
            ((4, 4), 1, "x has 2 dimensions, expected 3 to 5"),
            (
                (4, 4, 5),
                -3,
                r"channel_axis is -3, expected -2 to -1 or 1 to 2 for an x with shape \(4, 4, 5\)",
            ),
        ],
    )
    def test_inference_takes_what_training_takes(
        self, shape: tuple[int, ...], channel_axis: int, words: str
    ) -> None:
        """Batch norm takes more."""
        layer = tracking(channel_axis=channel_axis)
        for mode in (layer, layer.eval(), layer.eval(backward=False)):
            with pytest.raises(ValueError, match=f"{words}$"):
                mode(np.ones(shape, np.float32))

    def test_without_them_inference_is_by_each_samples_own(self) -> None:
        layer = make("InstanceNorm")
        y = layer(x_of())
        assert layer.running_mean is None
        assert layer.running_var is None
        assert layer.num_batches_tracked is None
        assert_same_bits(layer.eval()(x_of()), y)
        # One value has no variance, but statistics that nothing takes in.
        assert layer(np.ones((2, 4, 1), np.float32)).shape == (2, 4, 1)

    def test_what_does_not_count(self) -> None:
        layer = tracking()
        before = layer.state_dict()
        assert layer(x_of()[:0]).shape == (0, 4, 5)
        with pytest.raises(ValueError, match="1 value per channel, expected more than 1"):
            layer(np.ones((2, 4, 1), np.float32))
        assert_state(layer, before)

    def test_warns_once_where_they_were_never_updated(self) -> None:
        layer = tracking().eval()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                layer(x_of())
        assert len(caught) == 1
        words = "InstanceNorm: inference with running statistics that were never updated"
        assert str(caught[0].message).startswith(words)
        assert caught[0].filename == __file__

    def test_a_module_that_does_not_count_warns_of_nothing(self) -> None:
        """PyTorch's instance norm leaves the number of batches at 0."""
        layer = tracking().eval()
        layer.load_state_dict(state_of("InstanceNorm", NAMES) | {"num_batches_tracked": 0})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(x_of())
        fresh = tracking().eval()
        fresh.load_state_dict(
            {
                key: value
                for key, value in fresh.state_dict().items()
                if key != "num_batches_tracked"
            }
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fresh(x_of())

    @pytest.mark.parametrize(
        ("count", "error", "words"),
        [
            (-1, ValueError, "num_batches_tracked is -1, expected a number from 0 to"),
            (2**63, ValueError, "num_batches_tracked is 9223372036854775808, expected"),
            (1.5, TypeError, "num_batches_tracked is of type float, expected an int"),
        ],
    )
    def test_wrong_counts(self, count: Any, error: type[Exception], words: str) -> None:
        layer = tracking()
        before = layer.state_dict()
        state = state_of("InstanceNorm", NAMES) | {"num_batches_tracked": count}
        with pytest.raises(error, match=rf"^InstanceNorm\.load_state_dict: {words}"):
            layer.load_state_dict(state)
        assert_state(layer, before)
