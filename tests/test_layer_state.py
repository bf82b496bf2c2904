"""The BatchNorm layer: its state, saved and loaded, and its one warning."""

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
from layer_cases import NAMES, batch, trained

Array = npt.NDArray[Any]


class TestWarning:
    """Inference with running statistics that were never updated."""

    def calls(self, bn: fn.BatchNorm, count: int = 2) -> list[warnings.WarningMessage]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(count):
                bn(batch())
        return caught

    def test_warns_exactly_once_at_the_call(self) -> None:
        caught = self.calls(fn.BatchNorm(3).eval(), 3)
        assert len(caught) == 1
        assert caught[0].category is UserWarning
        assert "never updated" in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_a_failed_call_does_not_use_the_warning_up(self) -> None:
        bn = fn.BatchNorm(3).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match="expected 3 channels"):
                bn(np.ones((6, 4), np.float32))
        assert len(self.calls(bn)) == 1

    def test_silent_in_training_and_after_it(self) -> None:
        bn = fn.BatchNorm(3)
        assert not self.calls(bn)
        assert not self.calls(bn.eval())

    def test_silent_with_loaded_statistics(self) -> None:
        bn = fn.BatchNorm(3).eval()
        bn.load_state_dict(trained().state_dict())
        assert not self.calls(bn)
        # Old checkpoints have no count.
        state = trained().state_dict()
        del state["num_batches_tracked"]
        bn = fn.BatchNorm(3).eval()
        bn.load_state_dict(state)
        assert not self.calls(bn)
        # Nor do statistics of 0 and 1 say anything, without one.
        state = fn.BatchNorm(3).state_dict()
        fresh = fn.BatchNorm(3).eval()
        fresh.load_state_dict({k: v for k, v in state.items() if k != "num_batches_tracked"})
        assert not self.calls(fresh)

    def test_loaded_statistics_that_were_never_updated_warn(self) -> None:
        bn = fn.BatchNorm(3).eval()
        bn.load_state_dict(fn.BatchNorm(3).state_dict())
        assert len(self.calls(bn)) == 1

    def test_each_layer_warns(self) -> None:
        assert len(self.calls(fn.BatchNorm(3).eval())) == 1
        assert len(self.calls(fn.BatchNorm(3).eval())) == 1


class TestState:
    """state_dict and load_state_dict."""

    def test_round_trip(self) -> None:
        bn, other = trained(), fn.BatchNorm(3)
        weight = other.weight
        other.load_state_dict(bn.state_dict())
        assert other.weight is weight, "values are copied into the layer's arrays"
        for name, value in bn.state_dict().items():
            np.testing.assert_array_equal(other.state_dict()[name], value)
        x = batch(5)
        np.testing.assert_array_equal(other.eval()(x), bn.eval()(x))

    def test_is_a_copy(self) -> None:
        bn = trained()
        state = bn.state_dict()
        saved = copy.deepcopy(state)
        bn(batch(1))
        for name, value in saved.items():
            np.testing.assert_array_equal(state[name], value)
        state["weight"][...] = 7.0
        assert bn.weight is not None
        assert not (bn.weight == 7.0).any()

    def test_arrays_of_a_checkpoint_load_as_they_are(self) -> None:
        checkpoint = {
            "weight": np.array([1.0, 2.0, 3.0], np.float16),
            "bias": np.arange(6.0)[::2],
            "running_mean": np.array([0.5, 0.25, 0.125], to_dtype("bfloat16")),
            "running_var": np.array([1.5, 2.5, 3.5], ">f4"),
            "num_batches_tracked": np.array(42),
        }
        bn = fn.BatchNorm(3)
        bn.load_state_dict(checkpoint)
        state = bn.state_dict()
        for name in NAMES[:4]:
            assert state[name].dtype == np.float32
            np.testing.assert_array_equal(state[name], checkpoint[name].astype(np.float32))
        assert bn.num_batches_tracked == 42

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"weight": None}, ValueError, "missing.*weight"),
            ({"running_var": None}, ValueError, "missing.*running_var"),
            ({"gamma": np.ones(3)}, ValueError, "unexpected.*gamma"),
            ({7: np.ones(3)}, ValueError, "unexpected.*7"),
            ({"bias": np.ones(4)}, ValueError, r"bias has shape \(4,\), expected \(3,\)"),
            ({"running_mean": np.ones((3, 1))}, ValueError, r"running_mean has shape \(3, 1\)"),
            ({"running_var": np.ones(3, int)}, TypeError, "running_var has dtype int"),
            ({"running_var": ["a", "b", "c"]}, TypeError, "running_var has dtype"),
            ({"num_batches_tracked": np.array(-1)}, ValueError, "num_batches_tracked is -1"),
            ({"num_batches_tracked": 2**63}, ValueError, f"num_batches_tracked is {2**63}"),
            ({"num_batches_tracked": 1.5}, TypeError, "num_batches_tracked is of type float"),
            (
                {"num_batches_tracked": np.array(3.0)},
                TypeError,
                r"num_batches_tracked is an array of dtype float64 and shape \(\), expected an int",
            ),
            ({"num_batches_tracked": np.array([1, 2])}, TypeError, "num_batches_tracked"),
        ],
    )
    def test_wrong_states(self, change: dict[Any, Any], error: type[Exception], words: str) -> None:
        bn = fn.BatchNorm(3)
        before = bn.state_dict()
        state = {**trained().state_dict(), **change}
        state = {name: value for name, value in state.items() if value is not None}
        with pytest.raises(error, match=rf"^BatchNorm\.load_state_dict: .*{words}"):
            bn.load_state_dict(state)
        for name, value in before.items():
            np.testing.assert_array_equal(bn.state_dict()[name], value)

    @pytest.mark.parametrize(
        ("array", "error", "words"),
        [
            (np.frombuffer(bytes(12), np.float32), ValueError, "is read-only, expected"),
            (np.ones(4, np.float32), ValueError, r"has shape \(4,\), expected \(3,\)"),
            (np.ones(3, np.int32), TypeError, "has dtype int32, expected"),
            ([1.0, 1.0, 1.0], TypeError, "is of type list, expected"),
        ],
    )
    def test_a_replaced_array_of_the_layer_changes_nothing(
        self, array: Any, error: type[Exception], words: str
    ) -> None:
        bn = fn.BatchNorm(3)
        before = bn.state_dict()
        bn.running_var = array
        message = rf"^BatchNorm\.load_state_dict: the layer's running_var {words}"
        with pytest.raises(error, match=message):
            bn.load_state_dict(trained().state_dict())
        bn.running_var = before["running_var"]
        for name, value in before.items():
            np.testing.assert_array_equal(bn.state_dict()[name], value)

    def test_a_count_at_its_end(self) -> None:
        bn = fn.BatchNorm(3)
        bn.load_state_dict({**bn.state_dict(), "num_batches_tracked": 2**63 - 1})
        bn(batch(0))
        assert bn.state_dict()["num_batches_tracked"] == 2**63 - 1

    def test_a_conversion_that_fails_changes_nothing(self) -> None:
        bn = fn.BatchNorm(3, dtype="float16")
        before = bn.state_dict()
        state = {**trained(dtype="float64").state_dict(), "running_var": np.full(3, 1e300)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning, match="overflow"):
                bn.load_state_dict(state)
        for name, value in before.items():
            np.testing.assert_array_equal(bn.state_dict()[name], value)

    def test_copies_and_pickles(self) -> None:
        bn = trained(activation=fn.leaky_relu(0.2))
        x = batch(3)
        for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
            np.testing.assert_array_equal(other.eval()(x), bn.eval()(x))
