"""A run with spawns that is interrupted goes on as if it had not been."""

import json

import numpy as np
import pytest

from tensor_optix.core.types import StopReason
from tensor_optix.evolution.ensemble_agent import EnsembleAgent
from tensor_optix.evolution.policy_manager import PolicyManager
from tensor_optix.optimizer import RLOptimizer
from tests.evolution_parts import Chooser, window
from tests.host_parts import Source


def score(window):
    return 2.0 - 0.5 * (window % 7 == 3)


def run(directory, windows, with_ensemble, resume_from=None, max_spawns=4):
    """A run to `windows`, of fresh objects; its scores depend on the number of the window only."""
    agent, pm = Chooser((0.2, 0.1)), PolicyManager(None, max_spawns=max_spawns, max_ensemble_size=3)
    trained = EnsembleAgent(pm, agent) if with_ensemble else agent
    source = Source(lambda i: window(episode_id=i))
    source.state_dict = lambda: {"collected": source.collected}
    source.load_state_dict = lambda state: setattr(source, "collected", state["collected"])
    opt = RLOptimizer(
        trained, source, checkpoint_dir=directory, max_episodes=windows, plateau_threshold=2, dormant_threshold=4,
        max_interval_episodes=1, checkpoint_score_fn=lambda agent: score(source.collected),
        callbacks=[pm.as_callback(agent, lambda: Chooser((0.2, 0.1)))], resume_from=resume_from,
    )  # fmt: skip
    result = opt.run()
    assert not result.callback_failures
    return opt, pm


@pytest.mark.parametrize("with_ensemble", [False, True])
def test_n_and_n_more_are_2n(tmp_path, with_ensemble):
    whole, pm = run(tmp_path / "whole", 24, with_ensemble)
    first, half = run(tmp_path / "parts", 12, with_ensemble)
    assert half.spawn_count == 3 < pm.spawn_count  # the third at the last window of the half
    assert first.result.stop_reason == StopReason.BUDGET
    second, both = run(tmp_path / "parts", 24, with_ensemble, resume_from=first.run_dir)
    assert second.result.notes == whole.result.notes
    assert both.status() == pm.status()
    assert [m.uid for m in both.members] == [m.uid for m in pm.members]
    for one, other in zip(pm.agents, both.agents, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        assert one.params == other.params
    assert second.result.stop_reason == whole.result.stop_reason


@pytest.mark.parametrize("with_ensemble", [False, True])
@pytest.mark.parametrize("windows", [200, 300])
def test_more_spawns_go_on_as_if_they_had_been_there(tmp_path, with_ensemble, windows):
    whole, pm = run(tmp_path / "whole", 200, with_ensemble, max_spawns=3)
    first, _ = run(tmp_path / "parts", 200, with_ensemble, max_spawns=1)
    assert first.result.stop_reason == StopReason.SPAWN_BUDGET
    second, both = run(tmp_path / "parts", windows, with_ensemble, resume_from=first.run_dir, max_spawns=3)
    assert (second.result.stop_reason, both.spawn_count) == (StopReason.SPAWN_BUDGET, 3)
    assert second.result.windows == whole.result.windows > first.result.windows
    assert both.status() == pm.status()
    for one, other in zip(pm.agents, both.agents, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


def test_a_run_that_spent_its_spawns_says_so_when_it_is_opened_again(tmp_path):
    opt, _ = run(tmp_path, 200, with_ensemble=False, max_spawns=1)
    assert opt.result.stop_reason == StopReason.SPAWN_BUDGET
    for again in (opt, run(tmp_path, 200, with_ensemble=False, max_spawns=1, resume_from=opt.run_dir)[0]):
        assert again.result.stop_reason == StopReason.SPAWN_BUDGET
        assert again.result.windows == opt.result.windows
        manifest = json.loads((opt.run_dir / "manifest.json").read_text())
        assert manifest["stop_reasons"] == {"0": "spawn-budget"}
        assert manifest["status"] == "finished"
