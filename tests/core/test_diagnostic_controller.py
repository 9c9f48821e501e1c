"""Diagnostic rules: each fires on its cause, says so, is bounded, and takes its change back."""

import itertools
import json

import pytest

from tensor_optix.core.diagnostic_controller import COOLDOWN, MOST_STEPS, QUIET, DiagnosticController
from tests.host_parts import Plain


def play(controller, agent, diagnostics, start=0):
    """Steps through a list of diagnostics; texts of all firings."""
    told = []
    for i, numbers in enumerate(diagnostics):
        told += controller.step(start + i, agent, numbers)
    return told


def test_high_kl_halves_the_learning_rate_and_gives_it_back():
    controller, agent = DiagnosticController(), Plain(learning_rate=1e-3)
    told = play(controller, agent, [{"approx_kl": 0.01}] * 6 + [{"approx_kl": 0.05}])
    assert agent.params["learning_rate"] == 5e-4
    assert told == [("high-kl", "high-kl: learning_rate 0.001 -> 0.0005 (it fired)")]
    play(controller, agent, [{"approx_kl": 0.01}] * (QUIET - 1), start=7)
    assert agent.params["learning_rate"] == 5e-4
    play(controller, agent, [{"approx_kl": 0.01}], start=7 + QUIET - 1)
    assert agent.params["learning_rate"] == 1e-3
    assert [(f.rule, f.undone) for f in controller.firings] == [("high-kl", False), ("high-kl", True)]


def test_a_cause_that_stays_moves_it_by_a_bounded_factor():
    controller, agent = DiagnosticController(), Plain(learning_rate=1e-3)
    play(controller, agent, [{"approx_kl": 1.0}] * 300)
    assert agent.params["learning_rate"] == pytest.approx(1e-3 / 2**MOST_STEPS)
    fired = [f.window for f in controller.firings]
    assert len(fired) == MOST_STEPS
    assert all(b - a >= COOLDOWN for a, b in itertools.pairwise(fired))
    play(controller, agent, [{"approx_kl": 0.0}] * (QUIET * 2 * MOST_STEPS), start=300)
    assert agent.params["learning_rate"] == pytest.approx(1e-3)


def test_what_the_tuner_changed_meanwhile_is_kept():
    controller, agent = DiagnosticController(), Plain(learning_rate=1e-3)
    play(controller, agent, [{"approx_kl": 0.0}] * 5 + [{"approx_kl": 1.0}])
    agent.params["learning_rate"] = 6e-4  # was 5e-4
    play(controller, agent, [{"approx_kl": 0.0}] * (QUIET + 1), start=6)
    assert agent.params["learning_rate"] == pytest.approx(1.2e-3)


@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_change_that_is_gone_is_not_taken_back(rolled_back):
    controller, agent = DiagnosticController(), Plain(learning_rate=1e-3)
    play(controller, agent, [{"approx_kl": 0.0}] * 5 + [{"approx_kl": 1.0}])
    agent.params["learning_rate"] = 6e-4 if rolled_back else 1e-3
    if rolled_back:
        controller.forget()
    play(controller, agent, [{"approx_kl": 0.0}] * 40, start=6)
    assert agent.params["learning_rate"] == (6e-4 if rolled_back else 1e-3)


class TestEntropy:
    def test_a_discrete_policy_gets_more(self):
        controller, agent = DiagnosticController(), Plain(entropy_coef=0.01)
        play(controller, agent, [{"entropy": 0.01}] * 6)
        assert agent.params["entropy_coef"] == 0.02

    def test_from_zero_too(self):
        controller, agent = DiagnosticController(), Plain(entropy_coef=0.0)
        play(controller, agent, [{"entropy": 0.01}] * 6)
        assert agent.params["entropy_coef"] == 1e-3
        play(controller, agent, [{"entropy": 0.6}] * 20, start=6)
        assert agent.params["entropy_coef"] == 0.0

    def test_a_continuous_one_is_left_alone(self):
        controller, agent = DiagnosticController(), Plain(entropy_coef=0.001)
        play(controller, agent, [{"entropy": -1.5}] * 40)
        assert agent.params["entropy_coef"] == 0.001
        named = Plain(entropy_coef=0.001)
        named.continuous = True
        play(DiagnosticController(), named, [{"entropy": 0.01}] * 40)
        assert named.params["entropy_coef"] == 0.001

    def test_never_beyond_a_half(self):
        controller, agent = DiagnosticController(), Plain(entropy_coef=0.3)
        play(controller, agent, [{"entropy": 0.0}] * 100)
        assert agent.params["entropy_coef"] == 0.5


class TestLoss:
    @pytest.mark.parametrize("name", ["loss", "policy_loss", "value_loss", "critic_loss"])
    def test_a_spike(self, name):
        controller, agent = DiagnosticController(), Plain(learning_rate=1e-3)
        play(controller, agent, [{name: 1.0 if i % 2 else -1.0} for i in range(8)])
        assert agent.params["learning_rate"] == 1e-3
        play(controller, agent, [{name: -6.0}], start=8)
        assert agent.params["learning_rate"] == 5e-4
        assert controller.firings[0].rule == "loss-spike"

    def test_a_slow_rise_is_none(self):
        controller, agent = DiagnosticController(), Plain(learning_rate=1e-3)
        play(controller, agent, [{"loss": 1.1**i} for i in range(60)])
        assert controller.firings == []


def test_stuck_epsilon():
    controller, agent = DiagnosticController(), Plain(epsilon=0.05, epsilon_min=0.05)
    play(controller, agent, [{"epsilon": 0.05, "episode_reward": 9.0}] * 20)
    assert agent.params["epsilon"] == 0.3
    good = Plain(epsilon=0.05, epsilon_min=0.05)
    play(DiagnosticController(), good, [{"epsilon": 0.05, "episode_reward": 200.0}] * 40)
    assert good.params["epsilon"] == 0.05


def test_nothing_before_the_fifth_window_and_nothing_of_what_the_agent_lacks():
    agent = Plain(learning_rate=1e-3)
    assert play(DiagnosticController(), agent, [{"approx_kl": 1.0}] * 4) == []
    bare = Plain()
    assert play(DiagnosticController(), bare, [{"approx_kl": 1.0, "entropy": 0.0, "epsilon": 0.0}] * 30) == []
    odd = {"approx_kl": float("nan"), "entropy": "high", "loss": None}
    assert play(DiagnosticController(), agent, [odd] * 30) == []


def test_its_state_goes_on():
    def numbers(i):
        return {"approx_kl": 1.0 if 10 < i < 14 else 0.0, "loss": 50.0 if i == 20 else 1.0 + i % 3}

    whole, agent = DiagnosticController(), Plain(learning_rate=1e-3)
    play(whole, agent, [numbers(i) for i in range(60)])
    first, other = DiagnosticController(), Plain(learning_rate=1e-3)
    play(first, other, [numbers(i) for i in range(17)])
    second = DiagnosticController()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    play(second, other, [numbers(i) for i in range(17, 60)], start=17)
    assert second.firings == whole.firings
    assert len(whole.firings) == 4
    assert other.params == agent.params


def test_bad_settings():
    with pytest.raises(ValueError, match="target_kl must be above 0, got 0"):
        DiagnosticController(target_kl=0)
