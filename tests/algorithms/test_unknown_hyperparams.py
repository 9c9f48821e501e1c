"""A hyperparameter that nobody reads is kept, and warned of once."""

import logging

import pytest

from tensor_optix import HyperparamSet
from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms.flax_dqn import FlaxDQNAgent
from tensor_optix.algorithms.flax_ppo import FlaxPPOAgent
from tensor_optix.algorithms.flax_rainbow import FlaxRainbowAgent
from tensor_optix.algorithms.flax_recurrent_ppo import FlaxRecurrentPPOAgent


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(host_ppo, "_told", set())
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if "unknown hyperparameter" in record.getMessage()]


def test_ppo(warned):
    params = host_ppo.complete({"learning_rat": 0.5, "gama": 0.5, "zzz": 1, "lr": 0.1, "adam_eps": 1e-5})
    assert (params["learning_rat"], params["learning_rate"]) == (0.5, 3e-4)
    said = warned()
    assert said[:2] == [
        "unknown hyperparameter 'learning_rat' is kept but PPO does not read it; did you mean 'learning_rate'?",
        "unknown hyperparameter 'gama' is kept but PPO does not read it; did you mean 'gamma'?",
    ]
    assert said[2].startswith("unknown hyperparameter 'zzz' is kept but PPO does not read it; it reads learning_rate, ")
    assert said[3].endswith("did you mean 'learning_rate'?")
    host_ppo.complete(params)
    assert len(warned()) == 4


def test_an_agent_says_it_when_it_is_made_and_when_they_are_set(warned):
    agent = FlaxDQNAgent(4, 2, HyperparamSet({"epsilon_stepss": 3}), hidden_size=8)
    assert warned() == [
        "unknown hyperparameter 'epsilon_stepss' is kept but the agent does not read it; did you mean 'epsilon_steps'?"
    ]
    agent.set_hyperparams(HyperparamSet({"gama": 0.5}))
    agent.set_hyperparams(HyperparamSet({"gamma": 0.5}))
    assert [text.split("'")[1] for text in warned()] == ["epsilon_stepss", "gama"]
    assert agent.get_hyperparams().params["epsilon_stepss"] == 3


def test_what_is_read_is_not_warned_of(warned):
    FlaxPPOAgent(4, 2, HyperparamSet({"adam_eps": 1e-6, "gamma": 0.9}), hidden_size=8)
    FlaxRecurrentPPOAgent(4, 2, HyperparamSet({"bptt_len": 4}), hidden_size=8)
    FlaxDQNAgent(4, 2, HyperparamSet({"epsilon_decay": 0.9, "buffer_size": 500, "learning_starts": 10}), hidden_size=8)
    FlaxRainbowAgent(4, 2, HyperparamSet({"v_min": -1.0, "v_max": 1.0}), hidden_size=8)
    assert warned() == []
    FlaxRecurrentPPOAgent(4, 2, HyperparamSet({"bptt_lenn": 4}), hidden_size=8)
    assert warned()[0].endswith("did you mean 'bptt_len'?")
