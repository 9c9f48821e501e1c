"""An agent that does not fit its environment is refused in one sentence, before anything is written."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from tensor_optix import BatchPipeline, HyperparamSet, LoopController, RLOptimizer, VectorBatchPipeline
from tensor_optix.adapters.pytorch.torch_agent import TorchAgent
from tensor_optix.algorithms.flax_dqn import FlaxDQNAgent
from tensor_optix.algorithms.flax_sac import FlaxSACAgent
from tensor_optix.algorithms.torch_ppo import TorchPPOAgent
from tensor_optix.algorithms.torch_ppo_continuous import TorchGaussianPPOAgent
from tensor_optix.loop.host_fit import acts_on, check_fit
from tests.host_parts import Plain, Source

torch = pytest.importorskip("torch")

VECTOR, NONE = Box(-1, 1, (4,), np.float32), HyperparamSet({})


def networks(*sizes):
    nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(*size)) for size in sizes]
    return *nets, torch.optim.Adam([p for net in nets for p in net.parameters()], lr=1e-3)


def torch_ppo(n_in=4, n_out=2, kind=TorchPPOAgent):
    return kind(*networks((n_in, n_out), (n_in, 1)), NONE)


def gaussian(n_in=4, dim=1, outputs=None):
    return TorchGaussianPPOAgent(*networks((n_in, outputs or 2 * dim), (n_in, 1)), dim, NONE)


def dqn(n_in=4, n=2):
    return FlaxDQNAgent(n_in, n, NONE, hidden_size=8)


def sac(n_in=4, dim=1):
    return FlaxSACAgent(n_in, dim, NONE, hidden_sizes=(8, 8))


class Shown:
    """As much of a pipeline as is looked at."""

    def __init__(self, action, observation=VECTOR):
        self.spaces = observation, action


def box(*shape, dtype=np.float32):
    return Box(0, 3, shape, dtype)


@pytest.mark.parametrize(
    ("make", "shown", "said"),
    [
        (
            torch_ppo,
            Shown(box(1)),
            "TorchPPOAgent needs discrete actions, and the environment has continuous ones, Box",
        ),
        (
            dqn,
            Shown(MultiDiscrete([2, 2])),
            "FlaxDQNAgent needs discrete actions, and the environment has others, Multi",
        ),
        (sac, Shown(Discrete(2)), "FlaxSACAgent needs continuous actions, and the environment has discrete ones"),
        (gaussian, Shown(Discrete(2)), "TorchGaussianPPOAgent needs continuous actions"),
        (
            lambda: torch_ppo(4, 5),
            Shown(Discrete(2)),
            r"among 5 actions, .* has 2, Discrete\(2\): give its network 2 out",
        ),
        (lambda: dqn(4, 5), Shown(Discrete(2)), r"FlaxDQNAgent chooses among 5 .* has 2, .*: make it with n_actions=2"),
        (lambda: sac(4, 2), Shown(box(3)), r"of FlaxSACAgent have 2 dimensions, .* takes 3, .* with action_dim=3"),
        (lambda: gaussian(4, 2), Shown(box(3)), "TorchGaussianPPOAgent have 2 dimensions, .* takes 3"),
        (lambda: dqn(3), Shown(Discrete(2)), r"takes observations of shape \[3\], .* shows \[4\], .* with obs_dim=4"),
        (lambda: dqn((8, 8, 1)), Shown(Discrete(2)), r"takes observations of shape \[8, 8, 1\]"),
        (lambda: torch_ppo(3), Shown(Discrete(2)), r"observations of shape \[4\] \(RuntimeError: mat1 and mat2"),
        (lambda: gaussian(4, 1, 5), Shown(box(1)), r"^the actor must give 2 numbers, .* got 5: change its last layer$"),
        (torch_ppo, Shown(Discrete(2, start=1)), "counts its actions from 0, and the environment from 1"),
    ],
)
def test_a_misfit_is_said(make, shown, said):
    with pytest.raises(ValueError, match=said):
        check_fit(make(), None, shown)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (torch_ppo, Shown(Discrete(2))),
        (dqn, Shown(Discrete(2))),
        (gaussian, Shown(box(1))),
        (lambda: sac(4, 6), Shown(box(2, 3))),  # actions are reshaped
        (lambda: dqn(4, 4), Shown(Box(0, 3, (1,), np.int64))),  # which takes a whole number
        (lambda: torch_ppo(6, 2), Shown(Discrete(2), Box(5, 6, (2, 3), np.uint8))),  # the network flattens
        (torch_ppo, Shown(None, None)),  # a feed that tells nothing
        (torch_ppo, Source()),
    ],
)
def test_a_fit_is_let_be(make, shown):
    check_fit(make(), shown)


def test_an_agent_of_the_users_own_is_let_be():
    class Grid(TorchPPOAgent):
        """Chooses among points of a continuous action."""

        def act(self, observation):
            return np.array([super().act(observation) - 0.5], np.float32)

        def act_batch(self, observations):
            return super().act_batch(observations)[:, None] - 0.5

    assert acts_on(Plain()) is None
    assert acts_on(torch_ppo(kind=Grid)) is None
    check_fit(torch_ppo(kind=Grid), Shown(box(1)))
    agent = torch_ppo()
    agent.act = lambda observation: np.zeros(1, np.float32)
    assert acts_on(agent) is None


def test_looking_draws_no_random_number_and_changes_nothing():
    looked_at, left_alone = torch_ppo(), torch_ppo()
    looked_at._networks.modules["actor"].load_state_dict(left_alone._networks.modules["actor"].state_dict())
    check_fit(looked_at, Shown(Discrete(2)))
    obs = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    assert np.array_equal(looked_at.act_batch(obs), left_alone.act_batch(obs))


def test_reinforce_says_what_it_acts_on():
    net, optimizer = networks((4, 5))
    with pytest.raises(ValueError, match="TorchAgent chooses among 5 actions"):
        check_fit(TorchAgent(net, optimizer, NONE), Shown(Discrete(2)))


def test_nothing_is_written_and_the_environments_are_closed(tmp_path):
    made = []

    def make():
        made.append(gym.make("CartPole-v1"))
        made[-1].was_closed = False
        close = made[-1].close
        made[-1].close = lambda: (setattr(made[-1], "was_closed", True), close())
        return made[-1]

    run = RLOptimizer(torch_ppo(4, 5), BatchPipeline(env_fn=make), checkpoint_dir=tmp_path / "runs")
    with pytest.raises(ValueError, match="chooses among 5 actions"):
        run.run()
    assert not (tmp_path / "runs").exists()
    assert [env.was_closed for env in made] == [True]


def test_a_controller_alone_and_a_validation_pipeline_are_checked_too(tmp_path):
    agent = torch_ppo()
    good = VectorBatchPipeline([lambda: gym.make("CartPole-v1")] * 2, agent, 8)
    with pytest.raises(ValueError, match="needs discrete actions"):
        LoopController(agent, pipeline=BatchPipeline(env_id="Pendulum-v1", agent=agent)).run()
    bad = BatchPipeline(env_id="Pendulum-v1", agent=agent)
    with pytest.raises(ValueError, match="needs discrete actions"):
        RLOptimizer(agent, good, val_pipeline=bad, checkpoint_dir=tmp_path).run()
    assert RLOptimizer(agent, good, max_episodes=1, checkpoint_dir=tmp_path).run().windows == 1


class Says(Plain):
    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def act(self, observation):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize("n", [1, 2])
def test_the_first_action_of_an_agent_of_the_users_own_is_looked_at(tmp_path, n):
    def pipeline(env, agent):
        return VectorBatchPipeline([lambda: gym.make(env)] * n, agent, 4)

    agent = Says(7)
    with pytest.raises(ValueError, match=r"the agent's first action is 7, and the environment takes Discrete\(2\)"):
        next(pipeline("CartPole-v1", agent).episodes())
    for env, actions in (
        ("CartPole-v1", (np.int64(1),)),
        ("CartPole-v1", (1.0,)),
        ("CartPole-v1", (np.array([1]),)),
        ("Pendulum-v1", (np.array([99.0]),)),  # is clipped
    ):
        assert next(pipeline(env, Says(*actions)).episodes()).length == 4 * n


def test_only_the_first_action_is_looked_at():
    class Tolerant(gym.Env):
        observation_space, action_space = VECTOR, Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(4, np.float32), {}

        def step(self, action):
            return np.zeros(4, np.float32), float(action), False, False, {}

    window = next(BatchPipeline(Tolerant(), Says(1, 7), 3).episodes())
    assert window.rewards == [1.0, 7.0, 7.0]


def test_a_class_built_on_an_agent_may_see_in_a_way_of_its_own():
    class Padded(FlaxDQNAgent):
        """Shows its network more than the environment does."""

        def _observations(self, obs):
            return super()._observations(np.pad(obs, ((0, 0), (0, 2))))

    check_fit(Padded(6, 2, NONE, hidden_size=8), Shown(Discrete(2)))
    with pytest.raises(ValueError, match=r"takes observations of shape \[6\]"):
        check_fit(dqn(6), Shown(Discrete(2)))
