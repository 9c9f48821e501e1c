"""Variants' agents, by whatever function the user gives."""

import functools
import itertools

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix.core.types import StopReason
from tensor_optix.evolution.making import another, environment_of
from tensor_optix.evolution.policy_manager import PolicyManager
from tensor_optix.factory import make_agent
from tensor_optix.pipeline.batch import BatchPipeline
from tensor_optix.pipeline.rnd import RNDPipeline
from tensor_optix.pipeline.vector import VectorBatchPipeline
from tests.evolution_parts import Chooser, loop_of

OBS = np.array([0.1, -0.2, 0.3, 0.1], np.float32)


def cartpole():
    return gym.make("CartPole-v1")


class Has:
    """A pipeline as far as making goes."""

    def __init__(self, env=None, pipeline=None):
        self.env, self.pipeline = env, pipeline


class TestWhatIsGiven:
    @pytest.mark.parametrize(
        ("factory", "given"),
        [
            (lambda: "nothing", "nothing"),
            (lambda a=1, b=2: (a, b), (1, 2)),
            (lambda params: params, {"gamma": 0.97}),
            (lambda scale=1, *, kept=3: (scale, kept), (1, 3)),
            (lambda env: env, "the env"),
            (lambda algorithm_or_env: algorithm_or_env, "the env"),
            (lambda env=None: env, "the env"),
            (lambda env="mine": env, "mine"),
            (functools.partial(lambda env, size: (env, size), size=8), ("the env", 8)),
            (dict, {}),  # a builtin that does not tell what it takes
        ],
    )
    def test_follows_from_the_first_argument(self, factory, given):
        agent = Chooser()
        agent.params = {"gamma": 0.97}
        assert another(agent, factory, Has("the env")) == given

    def test_hyperparameters_are_a_copy(self):
        agent = Chooser()
        another(agent, lambda params: params.clear(), None)
        assert agent.params["gamma"] == 0.99


class TestEnvironments:
    def test_are_found_behind_wrappers(self):
        env = cartpole()
        pipeline = BatchPipeline(env, window_size=8)
        assert environment_of(pipeline) is env
        assert environment_of(RNDPipeline(pipeline, 4)) is env
        assert environment_of(Has(pipeline=Has(pipeline=Has("deep")))) == "deep"
        several = VectorBatchPipeline([cartpole] * 2, window_size=8)
        assert environment_of(several).single_action_space.n == 2
        several.teardown()

    @pytest.mark.parametrize(("pipeline", "said"), [(None, "there is no pipeline"), (Has(), "Has has none")])
    def test_that_are_missing_are_said_to_be(self, pipeline, said):
        with pytest.raises(TypeError, match=f"asks for an environment, and {said}: give a function that takes none"):
            another(Chooser(), lambda env: env, pipeline)


class TestTheLibrarysOwn:
    @pytest.mark.parametrize(
        ("algorithm", "env", "options"),
        [
            ("PPO", "CartPole-v1", {"hidden_sizes": (8,)}),
            ("DQN", "CartPole-v1", {"hidden_sizes": (8,)}),
            pytest.param("SAC", "Pendulum-v1", {"hidden_sizes": (8, 8)}, marks=pytest.mark.slow),
            ("PPO", "CartPole-v1", {"hidden_sizes": (8,), "framework": "torch"}),
        ],
    )
    def test_gives_a_copy_of_what_is_trained_whatever_it_was_made_with(self, algorithm, env, options):
        if "framework" in options:
            pytest.importorskip(options["framework"])
        agent, obs = make_agent(algorithm, env, **options), gym.make(env).reset(seed=0)[0]
        agent.act(obs)  # what is in its cache is not the copy's
        twin = another(agent, make_agent, None)
        assert type(twin) is type(agent)
        np.testing.assert_array_equal(twin.act_deterministic(obs), agent.act_deterministic(obs))
        before = np.asarray(agent.act_deterministic(obs)).copy()
        for _ in range(3):
            twin.perturb_weights(0.5)
        twin.set_hyperparams(type(agent.get_hyperparams())({"gamma": 0.5}))
        np.testing.assert_array_equal(agent.act_deterministic(obs), before)
        assert agent.get_hyperparams().params["gamma"] != 0.5

    def test_what_cannot_be_copied_is_made_anew_of_the_same_class(self):
        class Stuck:
            def __deepcopy__(self, memo):
                raise RuntimeError("not me")

        agent = make_agent("PPO", cartpole(), hidden_sizes=(64, 64))
        agent.stuck, agent.seen = Stuck(), "the trained one"
        twin = another(agent, make_agent, Has(cartpole()))
        assert type(twin) is type(agent)
        assert not hasattr(twin, "seen")

    @pytest.mark.slow
    def test_tensorflows_are_made_anew(self, tmp_path):
        pytest.importorskip("tensorflow")
        agent = make_agent("PPO", cartpole(), framework="tf")
        twin = another(agent, make_agent, Has(cartpole()))
        assert type(twin) is type(agent)
        agent.save_weights(str(tmp_path / "weights"))
        twin.load_weights(str(tmp_path / "weights"))
        np.testing.assert_allclose(twin.action_probs(OBS), agent.action_probs(OBS), atol=1e-6)

    @pytest.mark.parametrize("options", [{}, {"hidden_sizes": (8,)}], ids=["default", "own sizes"])
    def test_spawns_in_a_run(self, tmp_path, options):
        """The documented form: `as_callback(agent, agent_factory=make_agent)`."""
        env = cartpole()
        agent, pm = make_agent(env, **options), PolicyManager(None, max_spawns=2)
        loop = loop_of(
            tmp_path, agent, [0.0, 1.0, 0.5], [pm.as_callback(agent, agent_factory=make_agent)],
            pipeline=BatchPipeline(env, agent, 32),
        )  # fmt: skip
        result = loop.run()
        assert not result.callback_failures
        assert (result.stop_reason, pm.spawn_count, pm.ensemble_size) == (StopReason.SPAWN_BUDGET, 2, 3)
        rates = {member.get_hyperparams().params["learning_rate"] for member in pm.agents}
        assert len(rates) == 3
        weights = [np.asarray(member.action_probs(OBS)) for member in pm.agents]
        assert all((a != b).any() for a, b in itertools.combinations(weights, 2))
        assert pm.ensemble_action(OBS) in (0, 1)
