"""make_agent: the agent that a name asks for, or that an environment takes, or one sentence why there is none."""

import sys

import gymnasium as gym
import numpy as np
import pytest

import tensor_optix
from tensor_optix.core.types import HyperparamSet
from tensor_optix.factory import make_agent

BOX = gym.spaces.Box(-1, 1, (3,))
MANY = gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 10]))
IMAGE = gym.spaces.Box(0, 255, (6, 6, 2), np.uint8)
SMALL = {"hidden_sizes": (4, 4)}


class Env(gym.Env):
    """As much of an environment as has to do with its shape."""

    def __init__(self, action=None, observation=BOX):
        self.observation_space, self.action_space = observation, action or gym.spaces.Discrete(2)


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        ((Env(),), {}, "FlaxPPOAgent"),
        ((Env(MANY),), {}, "FlaxSACAgent"),
        ((Env(MANY),), {"deterministic": True}, "FlaxTD3Agent"),
        (("DQN", Env()), {}, "FlaxDQNAgent"),
        (("ppo", Env(MANY)), {}, "FlaxGaussianPPOAgent"),
        (("Rainbow", Env()), {}, "FlaxRainbowAgent"),
        (("sAc", Env(MANY)), {}, "FlaxSACAgent"),
        (("TD3", Env(MANY)), {"deterministic": True}, "FlaxTD3Agent"),
        (("FlaxTD3Agent", Env(MANY)), {}, "FlaxTD3Agent"),
        (("RecurrentPPO", Env()), {}, "FlaxRecurrentPPOAgent"),
        (("recurrent_ppo", Env(MANY)), {}, "FlaxRecurrentGaussianPPOAgent"),
        (("FlaxRecurrentGaussianPPOAgent", Env(MANY)), {}, "FlaxRecurrentGaussianPPOAgent"),
        (("PPO", Env()), {"framework": "torch"}, "TorchPPOAgent"),
        (("TorchGaussianPPOAgent", Env(MANY)), {}, "TorchGaussianPPOAgent"),
        (("PPO", "CartPole-v1"), {}, "FlaxPPOAgent"),
        (("Pendulum-v1",), {}, "FlaxSACAgent"),
    ],
)
def test_the_agent_that_is_meant(arguments, options, name):
    agent = make_agent(*arguments, **options, **SMALL)
    assert type(agent).__name__ == name
    shape = (4,) if arguments[-1] == "CartPole-v1" else (3,)
    assert agent.act(np.zeros(shape, np.float32)) is not None


def test_it_is_a_public_name():
    assert tensor_optix.make_agent is make_agent
    assert {"FlaxDQNAgent", "FlaxRainbowAgent", "FlaxSACAgent", "FlaxTD3Agent"} <= set(tensor_optix.__all__)
    for name in ("FlaxRecurrentPPOAgent", "FlaxRecurrentGaussianPPOAgent"):
        assert getattr(tensor_optix, name).__name__ == name


def test_a_vector_of_environments():
    vector = gym.make_vec("Pendulum-v1", 2)
    agent = make_agent("SAC", vector, **SMALL)
    assert agent.act_batch(np.zeros((2, 3), np.float32)).shape == (2, 1)


def test_actions_have_the_range_of_the_environment():
    agent = make_agent("SAC", Env(MANY), **SMALL)
    actions = agent.act_batch(np.zeros((500, 3), np.float32))
    np.testing.assert_allclose(actions.min(0), [-2, 0], atol=0.1)
    np.testing.assert_allclose(actions.max(0), [2, 10], atol=0.1)


def test_seed_sizes_and_hyperparameters():
    obs = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    one, same, other = (make_agent("PPO", Env(MANY), seed=seed, **SMALL) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.act_batch(obs), same.act_batch(obs))
    assert not np.array_equal(one.act_batch_deterministic(obs), other.act_batch_deterministic(obs))
    assert one._params["actor"]["hidden"][1]["kernel"].shape == (4, 4)
    assert make_agent("SAC", Env(MANY))._params["actor"]["hidden"][1]["kernel"].shape == (256, 256)
    recurrent = make_agent("RecurrentPPO", Env())  # of its encoder
    assert recurrent._params["actor"]["encoder"]["head"]["kernel"].shape == (3, 64)
    for hyperparams in ({"learning_rate": 0.5}, HyperparamSet({"learning_rate": 0.5})):
        assert (
            make_agent("DQN", Env(), hyperparams=hyperparams, **SMALL).get_hyperparams().params["learning_rate"] == 0.5
        )


def test_tensorflow():
    pytest.importorskip("tensorflow")
    agent = make_agent("PPO", Env(MANY), framework="tf", **SMALL)
    assert type(agent).__name__ == "TFGaussianPPOAgent"


BAD = [
    (("DQN", Env(MANY)), {}, ValueError, "dqn needs discrete actions, and Env has continuous ones: take ppo, sac, td3"),
    (("DQN", "Pendulum-v1"), {}, ValueError, "dqn needs discrete actions, and Pendulum-v1 has continuous ones"),
    (("SAC", Env()), {}, ValueError, "sac needs continuous actions, and Env has discrete ones: take ppo, dqn, rainbow"),
    (("nonsense", Env()), {}, ValueError, "unknown algorithm 'nonsense'.*known: dqn, ppo, rainbow, recurrent_ppo, sac"),
    (("DQM", Env()), {}, ValueError, "unknown algorithm 'DQM'; did you mean 'dqn'"),
    (("Nothing-v0",), {}, ValueError, "'Nothing-v0' is neither an algorithm nor an environment"),
    ((Env(),), {"framework": "pytorch"}, ValueError, "unknown framework 'pytorch'; did you mean 'torch'"),
    (("TorchPPOAgent", Env()), {"framework": "tf"}, ValueError, "TorchPPOAgent is an agent of framework 'torch'"),
    (("PPO", Env()), {"deterministic": True}, ValueError, "the policy of ppo is random.*take dqn"),
    (("PPO", Env()), {"device": "tpu9"}, ValueError, "device must be 'auto' or what JAX found"),
    (("SAC",), {}, TypeError, r"has no environment to fit: make_agent\('SAC', env\)"),
    ((3, Env()), {}, TypeError, "the algorithm must be a name such as 'PPO', got 3"),
    ((3,), {}, TypeError, "env must be a Gymnasium environment or its id, got 3"),
    ((Env(MANY),), {"framework": "torch"}, NotImplementedError, "for sac in framework 'torch' yet, but in 'jax'.*ppo"),
    (("DQN", Env()), {"framework": "tf"}, NotImplementedError, "no agent for dqn in framework 'tf' yet, but in 'jax'"),
    (("RecurrentPPO", Env()), {"framework": "tf"}, NotImplementedError, "for recurrent_ppo in framework 'tf' yet, but"),
    (("TorchRecurrentPPO", Env()), {}, NotImplementedError, "for recurrent_ppo in framework 'torch' yet, but in 'jax'"),
    (("RecurrentPPO", Env()), {"deterministic": True}, ValueError, "the policy of recurrent_ppo is random.*take dqn"),
    (("SAC", Env(observation=IMAGE)), {"neuroevo": True}, NotImplementedError, "neuroevo=True"),
    ((Env(observation=gym.spaces.Box(-1, 1, (3, 3))),), {}, NotImplementedError, "1-D Box"),
    ((Env(observation=gym.spaces.Discrete(4)),), {}, NotImplementedError, r"Discrete\(4\).*1-D Box"),
    ((Env(observation=gym.spaces.Dict(a=BOX)),), {}, NotImplementedError, "Dict.*1-D Box"),
    ((Env(observation=gym.spaces.Tuple([BOX])),), {}, NotImplementedError, "Tuple.*1-D Box"),
    ((Env(gym.spaces.MultiDiscrete([2, 3])),), {}, NotImplementedError, "MultiDiscrete"),
    ((Env(gym.spaces.MultiBinary(3)),), {}, NotImplementedError, "MultiBinary"),
    ((Env(gym.spaces.Dict(a=BOX)),), {}, NotImplementedError, "Dict"),
    ((Env(gym.spaces.Tuple([BOX])),), {}, NotImplementedError, "Tuple"),
    ((Env(gym.spaces.Discrete(2, start=1)),), {}, NotImplementedError, "counted from 0"),
    ((Env(observation=IMAGE),), {"framework": "torch"}, NotImplementedError, "1-D Box"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "said"), BAD, ids=[row[3] for row in BAD])
def test_what_there_is_no_agent_for(arguments, options, error, said):
    with pytest.raises(error, match=said) as caught:
        make_agent(*arguments, **options)
    assert type(caught.value) is error or isinstance(caught.value, NotImplementedError)
    assert "\n" not in str(caught.value)


def test_images():
    agent = make_agent(Env(observation=IMAGE), **SMALL)
    assert agent.act(np.zeros((6, 6, 2), np.uint8)) in (0, 1)


@pytest.mark.parametrize(("framework", "module"), [("torch", "torch"), ("tf", "tensorflow")])
def test_a_missing_framework(framework, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "tensor-optix\[{module}\]"'):
        make_agent("PPO", Env(), framework=framework)
