"""The record that every chart is drawn from, and the package's names."""

from __future__ import annotations

import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import tensor_optix.callbacks
from tensor_optix.callbacks._records import RecordCallback, changed, named, number, relative_change, require
from tensor_optix.core.types import EvalMetrics, HyperparamSet, LoopState, PolicySnapshot
from tests.callbacks.host_runs import assert_same_curves, expected_curves, host_run


class Kept(RecordCallback):
    """Keeps its records as tag -> [(step, value)]."""

    def open(self):
        self.curves, self.opened, self.closed = {}, getattr(self, "opened", 0) + 1, 0

    def write(self, step, values):
        for tag, value in values.items():
            self.curves.setdefault(tag, []).append((step, value))

    def close(self):
        self.closed += 1


def test_a_run_is_recorded_as_its_calls_tell_it(tmp_path):
    kept = Kept()
    _, calls = host_run(tmp_path, kept)
    expected = expected_curves(calls)
    assert {"score/at_degradation", "events/convergence", "events/plateau", "spsa/step_magnitude"} <= expected.keys()
    assert_same_curves(kept.curves, expected)
    assert len({step for step, _ in kept.curves["score/primary"]}) < max(s for s, _ in kept.curves["score/primary"])
    assert kept.opened == kept.closed == 1
    steps = [step for step, _ in kept.curves["loop/state"]]
    assert steps == sorted(steps)


def test_state_goes_with_the_hooks():
    kept = Kept()
    metrics = EvalMetrics(1.0, {}, 0)
    best = PolicySnapshot("a", metrics, HyperparamSet({}), "", 0)
    kept.on_loop_start()
    kept.on_episode_end(0, metrics)
    kept.on_state(1, LoopState.COOLING)
    kept.on_episode_end(1, metrics)
    kept.on_plateau(1, LoopState.COOLING)
    kept.on_improvement(best)  # too small for the scheduler to count
    kept.on_state(2, LoopState.DORMANT)
    kept.on_episode_end(2, metrics)
    kept.on_dormant(2)
    kept.on_state(3, LoopState.ACTIVE)  # somebody handled it
    kept.on_episode_end(3, metrics)
    kept.on_degradation(3, metrics)
    codes = [int(value) for _, value in kept.curves["loop/state"]]
    assert codes == [0, 1, 1, 1, 2, 2, 0, 0]


def test_a_second_run_begins_anew_and_a_state_goes_on():
    kept, metrics = Kept(), EvalMetrics(1.0, {}, 0)
    kept.on_loop_start()
    kept.on_state(7, LoopState.COOLING)
    kept.on_episode_end(7, metrics)
    state = kept.state_dict()
    kept.on_loop_start()
    kept.on_hyperparam_update({"a": 1.0}, {"a": 2.0})
    kept.on_episode_end(0, metrics)
    assert kept.curves == {
        "hyperparams/a": [(0, 2.0)], "spsa/step_magnitude": [(0, 1.0)], "score/primary": [(0, 1.0)],
        "loop/state": [(0, 0.0)],
    }  # fmt: skip
    kept.on_loop_start()
    kept.load_state_dict(state)
    kept.on_hyperparam_update({"a": 1.0}, {"a": 2.0})
    assert kept.curves["hyperparams/a"] == [(8, 2.0)]
    kept.on_episode_end(8, metrics)
    assert kept.curves["loop/state"] == [(8, float(LoopState.COOLING))]


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), jnp.float32(2)])
def test_numbers_are_numbers(value):
    assert number(value) == 2.0
    assert type(number(value)) is float


@pytest.mark.parametrize("value", [True, np.bool_(True), "2", None, [2.0], np.ones(2), {}, 1j])
def test_the_rest_are_not(value):
    assert number(value) is None


def test_named_keeps_numbers_also_those_that_are_not_finite():
    values = named("metrics", {"a": 1, "b": "x", "c": math.nan, "d": False})
    assert list(values) == ["metrics/a", "metrics/c"]
    assert values["metrics/a"] == 1.0
    assert math.isnan(values["metrics/c"])


def test_relative_change_is_the_norm_over_shared_numbers():
    old = {"a": 2.0, "b": -4.0, "c": "x", "gone": 1.0, "zero": 0.0}
    assert changed(old, {"a": 2.0, "b": -5, "c": "y"}) == {"b": (-4.0, -5.0)}
    assert relative_change(old, {"a": 2.6, "b": -4.0 * 1.4, "c": "y", "new": 9.0}) == pytest.approx(0.5)
    assert relative_change(old, {"zero": 1e-9}) == 1.0
    assert relative_change(old, dict(old)) == 0.0


def test_a_change_that_is_no_step_has_no_magnitude():
    kept = Kept()
    kept.on_loop_start()
    kept.on_hyperparam_update({"kind": "a", "lr": 1.0}, {"kind": "b", "lr": 1.0})
    assert kept.curves == {"hyperparams/lr": [(0, 1.0)]}


def test_names_resolve_and_load_nothing_before_that():
    assert tensor_optix.callbacks.__all__ == [
        "JSONLCallback", "LoopCallback", "RichDashboardCallback", "TensorBoardCallback", "WandbCallback",
    ]  # fmt: skip
    for name in tensor_optix.callbacks.__all__:
        assert getattr(tensor_optix.callbacks, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        tensor_optix.callbacks.no_such_name  # noqa: B018


def test_what_is_imported_only_on_use(tmp_path):
    code = (
        "import sys, tensor_optix.callbacks as c\n"
        "from tensor_optix.core.types import EvalMetrics\n"
        "c.TensorBoardCallback, c.WandbCallback\n"
        "print({'wandb', 'tensorboard'} & set(sys.modules))\n"
        f"board = c.TensorBoardCallback({str(tmp_path)!r})\n"
        "board.on_loop_start()\n"
        "board.on_episode_end(0, EvalMetrics(1.0, {}, 0))\n"
        "board.on_loop_stop()\n"
        "print({'wandb', 'torch', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["set()", "set()"]
    assert len(list(tmp_path.iterdir())) == 1  # it was written


def test_a_missing_library_comes_with_the_command(monkeypatch):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    for module in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=r'pip install "tensor-optix\[tensorboard\]"'):
        tensor_optix.callbacks.TensorBoardCallback()
    with pytest.raises(ImportError, match=r'pip install "tensor-optix\[wandb\]"'):
        tensor_optix.callbacks.WandbCallback()
    assert require("math", "any", "a test") is math
