"""Settings of evolution and of populations that mean nothing: one sentence, before anything runs."""

import pytest

from tensor_optix.config import ConfigError, RunConfig
from tensor_optix.core.regime_detector import RegimeDetector
from tensor_optix.evolution.meta_controller import MetaController
from tensor_optix.evolution.policy_manager import PolicyManager
from tensor_optix.plan import make_plan
from tests.evolution_parts import Chooser


def one_member(**settings):
    pm = PolicyManager(None, **settings)
    pm.add_agent(Chooser())
    return pm


@pytest.mark.parametrize(
    ("made", "kind", "said"),
    [
        (lambda: PolicyManager(None, max_spawns="3"), TypeError, "max_spawns must be a whole number, got '3'"),
        (lambda: PolicyManager(None, max_spawns=True), TypeError, "max_spawns must be a whole number, got True"),
        (lambda: PolicyManager(None, score_window=2.5), TypeError, "score_window must be a whole number, got 2.5"),
        (lambda: PolicyManager(None, score_window=None), TypeError, "score_window must be a whole number, got None"),
        (lambda: PolicyManager(None, max_ensemble_size=0), ValueError, "max_ensemble_size must be at least 1, got 0"),
        (lambda: one_member().prune("1"), TypeError, "bottom_k must be a whole number, got '1'"),
        (lambda: one_member().add_agent(Chooser(), weight="a"), ValueError, "a weight must be at least 0 and finite"),
        (lambda: one_member().record_agent_score("0", 1.0), ValueError, "the ensemble has no member '0'"),
        (lambda: one_member().update_weights([1.0]), TypeError, "scores must be a mapping"),
        (lambda: RegimeDetector(window=10.5), ValueError, "window is 10.5: give a whole number of at least 4"),
        (lambda: RegimeDetector(window="a"), ValueError, "window is 'a': give a whole number of at least 4"),
        (lambda: RegimeDetector(window=True), ValueError, "window is True: give a whole number"),
        (lambda: RegimeDetector("x"), ValueError, "volatility_threshold is 'x': give a share of at least 0"),
        (lambda: RegimeDetector(trend_threshold=-1), ValueError, "trend_threshold is -1: give a share"),
        (lambda: MetaController(gap_threshold="x"), ValueError, "gap_threshold is 'x': give a share of at least 0"),
        (lambda: MetaController(window=10.5), ValueError, "window is 10.5: give a whole number of at least 3"),
    ],
)
def test_an_object_is_not_made_of_what_means_nothing(made, kind, said):
    with pytest.raises(kind, match=said) as caught:
        made()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"population": 2, "exchange": "pbt"}, "exchange must be a mapping of names to values, got 'pbt'"),
        ({"population": 2, "exchange": {"rule": ["pbt"]}}, "unknown exchange rule .*known: pbt, spsa"),
        ({"population": 2, "exchange": {"rule": None}}, "unknown exchange rule 'None'.* known: pbt, spsa"),
        ({"population": 2, "exchange": {"rule": "spsa", "c": 0.1}}, "there is no setting of the exchange rule spsa"),
        ({"population": 2, "exchange": {3: 1}}, "unknown setting of the exchange rule pbt '3'"),
        ({"population": 2, "tuner": "momentum"}, "tuner='momentum' is for one learner, and a population of 2 tunes by"),
        ({"tuner": None}, 'tuner must be a name such as "spsa", got None: to tune nothing set tune to false'),
        ({"tuner": ["spsa"]}, "tuner must be a name"),
        ({"algorithm": None}, 'algorithm must be a name such as "ppo", got None'),
        ({"max_spawns": 1, "evolution": {"max_spawns": 3}}, "evolution has max_spawns=3, .*: set max_spawns, and take"),
        ({"evolution": {"max_spawns": 3}}, "evolution has max_spawns=3"),
    ],
)
def test_a_run_is_not_planned_of_what_means_nothing(settings, said):
    with pytest.raises(ConfigError, match=said) as caught:
        make_plan(RunConfig("CartPole-v1", total_steps=4096, **settings))
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith("known: ")
