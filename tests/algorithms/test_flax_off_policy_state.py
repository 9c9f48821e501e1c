"""The off-policy agents in JAX: files, resume, networks of the user's own, bad input, and whole runs."""

import gymnasium
import jax
import numpy as np
import pytest
from flax import nnx

from tensor_optix.algorithms.flax_dqn import FlaxDQNAgent
from tensor_optix.algorithms.flax_rainbow import FlaxRainbowAgent
from tensor_optix.algorithms.flax_sac import FlaxSACAgent
from tensor_optix.algorithms.flax_td3 import FlaxTD3Agent
from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.types import HyperparamSet
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.host import LoopController
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.pipeline import BatchPipeline
from tests.algorithms.off_policy_parts import (
    AGENTS,
    CHOICES,
    CONTINUOUS,
    EACH,
    HYPER,
    OBS,
    Net,
    Noisy,
    agent_of,
    learned,
    own_networks,
    pipeline_of,
    present,
    started,
    window_of,
)
from tests.runs import assert_same_bits

# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "which"), [("dqn", "one"), *((kind, "several") for kind in AGENTS)])
def test_a_state_put_back_goes_on_to_the_bit(kind, which, tmp_path):
    params = {**HYPER, "per_alpha": 0.5, "n_step": 2, "updates_per_step": 0.45}
    agent = agent_of(kind, params=params)
    windows = pipeline_of(which, kind, agent).episodes()
    for _ in range(2):
        agent.learn(next(windows))
    agent.save_state(str(tmp_path / "state"))
    agent.save_state(str(tmp_path / "state"))  # again, over what is there
    data = [next(windows)]
    reports = [agent.learn(data[0])]
    data.append(next(windows))
    reports.append(agent.learn(data[1]))
    again = agent_of(kind, seed=5)
    again.load_state(str(tmp_path / "state"))
    assert again.get_hyperparams().params == {**agent.get_hyperparams().params}
    np.testing.assert_array_equal(acted_like(again, data[0]), np.asarray(data[0].actions))
    assert again.learn(data[0]) == reports[0]
    np.testing.assert_array_equal(acted_like(again, data[1]), np.asarray(data[1].actions))
    assert again.learn(data[1]) == reports[1]
    assert_same_bits(present(again), present(agent))


def acted_like(agent, data):
    """What the agent does on a window's observations, asked as the pipeline asked, in the window's order."""
    starts = data.metadata.get("segment_starts", [0])
    obs = np.asarray(data.observations).reshape(len(starts), -1, OBS)
    if len(starts) == 1:
        return np.stack([agent.act(row) for row in obs[0]])
    actions = np.stack([agent.act_batch(obs[:, t]) for t in range(obs.shape[1])], axis=1)
    return actions.reshape(-1, *actions.shape[2:])


@pytest.mark.parametrize("kind", EACH)
def test_weights_are_the_policy_without_the_replay(kind, tmp_path):
    agent = agent_of(kind)
    learned(agent, "several", kind, 2)
    agent.save_weights(str(tmp_path / "weights"))
    assert {p.name for p in (tmp_path / "weights").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "agent.json",
    }  # fmt: skip
    other, obs = agent_of(kind, seed=9), np.random.default_rng(0).normal(size=(64, OBS))
    other.load_weights(str(tmp_path / "weights"))
    assert_same_bits(present(other), present(agent))
    np.testing.assert_array_equal(other.act_batch_deterministic(obs), agent.act_batch_deterministic(obs))
    assert other.learn(window_of(kind, rows=1))["buffer_size"] == 1
    assert len(np.unique(other.act_batch(np.zeros((64, OBS))), axis=0)) < 64 or kind in CONTINUOUS
    wider = agent_of(kind, hidden_sizes=(4, 6))
    before = present(wider)
    with pytest.raises(ValueError, match="expected float32"):
        wider.load_weights(str(tmp_path / "weights"))
    assert_same_bits(present(wider), before)
    with pytest.raises(RunDirError, match="There is no state in"):
        wider.load_state(str(tmp_path / "weights"))


@pytest.mark.parametrize("kind", EACH)
def test_averaging_and_perturbing_take_the_targets_along(kind, tmp_path):
    agents = [started(kind, seed) for seed in (1, 2)]
    for i, agent in enumerate(agents):
        agent.save_weights(str(tmp_path / str(i)))
    middle = agent_of(kind)
    middle.average_weights([str(tmp_path / "0"), str(tmp_path / "1")])
    for mean, *own in zip(*(jax.tree.leaves(agent._params) for agent in (middle, *agents)), strict=True):
        np.testing.assert_allclose(mean, np.mean(own, axis=0), rtol=1e-6)
    layout = middle._layout(middle._algorithm_now)[1]
    for agent in (middle, agents[0]):
        if agent is not middle:
            agent.perturb_weights(0.1)
        for target, followed in layout.targets.items():
            assert_same_bits(agent._opt["targets"][target], agent._params[followed])
        assert np.isfinite(next(iter(agent.learn(window_of(kind, episode_id=1)).values())))


def test_after_teardown():
    agent = started("dqn")
    agent.teardown()
    agent.teardown()
    with pytest.raises(RuntimeError, match="torn down"):
        agent.act(np.zeros(OBS))


# -- networks of the user's own, and bad input -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dqn", "sac", "td3"])
def test_modules_of_the_users_own(kind):
    networks = own_networks(kind)
    agent = agent_of(kind, **networks)
    first = networks["q_network"] if kind == "dqn" else networks["actor"]
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(first, nnx.Param)))
    name = "online" if kind == "dqn" else "actor"
    assert_same_bits(jax.tree.map(np.array, agent._params[name]), before)
    if kind != "dqn":  # two critics, each with its own weights, in the targets too
        for i, critic in enumerate(networks["critics"]):
            own = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(critic, nnx.Param)))
            assert_same_bits(jax.tree.map(np.array, agent._params["critics"][i]), own)
            assert_same_bits(jax.tree.map(np.array, agent._opt["targets"][agent.critic_targets][i]), own)
    agent.learn(window_of(kind))
    agent.learn(window_of(kind, episode_id=1))
    assert_same_bits(nnx.to_pure_dict(nnx.state(first, nnx.Param)), before)
    assert not np.array_equal(agent._params[name]["out"]["bias"], before["out"]["bias"])


@pytest.mark.slow
def test_images_take_a_cnn():
    agent = FlaxDQNAgent((6, 6, 2), CHOICES, HyperparamSet({**HYPER, "learning_starts": 1}), hidden_sizes=(8, 8))
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 2)).astype(np.uint8)
    report = agent.learn(window_of("dqn", rows=4, observations=images, actions=[0, 1, 0, 1]))
    assert report["n_updates"] == 2
    assert agent._replay.state_dict()["columns"]["obs"].dtype == np.uint8
    assert len(agent.act_batch(images)) == 4


BAD = [
    (lambda: FlaxDQNAgent(0, 2, HyperparamSet({})), ValueError, "obs_dim must be at least 1, got 0"),
    (lambda: FlaxSACAgent(4, 2.0, HyperparamSet({})), TypeError, "action_dim must be a whole number, got 2.0"),
    (lambda: FlaxDQNAgent((4, 4), 2, HyperparamSet({})), ValueError, "no torso for observations of shape"),
    (lambda: FlaxTD3Agent(4, 2, HyperparamSet({}), activation="tan"), ValueError, "activation must be one of"),
    (lambda: FlaxDQNAgent(4, 2, HyperparamSet({}), hidden_sizes=(0,)), ValueError, "positive whole numbers"),
    (lambda: FlaxDQNAgent(4, 2, HyperparamSet({"batch_size": 0})), ValueError, "batch_size must be from 1 to"),
    (
        lambda: FlaxDQNAgent(4, 2, HyperparamSet({"learning_starts": 9, "replay_capacity": 8})),
        ValueError,
        "never starts",
    ),
    (lambda: FlaxRainbowAgent(4, 2, HyperparamSet({}), n_atoms=1), ValueError, "n_atoms must be at least 2"),
    (lambda: FlaxRainbowAgent(4, 2, HyperparamSet({}), v_min=2.0, v_max=1.0), ValueError, "v_min must be below v_max"),
    (lambda: agent_of("dqn", q_network=Net(5, nnx.Rngs(0))), ValueError, "give its last layer 4 outputs"),
    (lambda: agent_of("sac", actor=Net(2, nnx.Rngs(0))), ValueError, "give its last layer 4 outputs"),
    (lambda: agent_of("td3", actor=print), TypeError, "expected a flax.nnx.Module"),
    (lambda: agent_of("sac", critics=[Net(1, nnx.Rngs(0), 5)]), ValueError, "critics must be two nnx modules"),
    (lambda: agent_of("sac", critics=[Net(1, nnx.Rngs(0), 5), Net(2, nnx.Rngs(0), 5)]), ValueError, "same names and"),
    (lambda: agent_of("sac", critics=[Net(2, nnx.Rngs(0), 5)] * 2), ValueError, "give its last layer 1 output"),
    (lambda: agent_of("dqn").act(np.zeros(5)), ValueError, r"must have shape \[3\] each, got \[5\]"),
    (lambda: agent_of("dqn").learn(window_of("dqn", actions=[4] * 24)), ValueError, "from 0 to 3, got 4"),
    (lambda: agent_of("dqn").learn(window_of("dqn", observations=np.zeros((24, 2)))), ValueError, "must have shape"),
    (lambda: agent_of("sac").set_action_bounds([0, 1], [1, 1]), ValueError, "every low must be below"),
]


@pytest.mark.parametrize(("call", "error", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_bad_input_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


# -- the host loop -------------------------------------------------------------------------------------------------


class PoisonedReward(gymnasium.Wrapper):
    """One reward is not a number."""

    steps = 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.steps += 1
        return obs, float("nan") if self.steps == 60 else reward, *rest


def test_a_poisoned_window_is_seen_and_not_learned_from(tmp_path):
    agent, rolled_back = agent_of("dqn"), []

    class Watched(LoopController):
        def _roll_back(self, reset_envs):
            rolled_back.append(self.brain.window)
            super()._roll_back(reset_envs)

    pipeline = BatchPipeline(PoisonedReward(Noisy("dqn")), agent, 24)
    loop = Watched(agent, pipeline=pipeline, checkpoint_registry=CheckpointRegistry(tmp_path), max_episodes=6)
    assert loop.run().windows == 6
    assert rolled_back == [3]
    assert len(agent._replay) == 5 * 24
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(present(agent)))


@pytest.mark.parametrize(("kind", "which"), [("dqn", "several"), ("td3", "one")])
def test_a_run_and_the_same_run_in_two_parts(kind, which, tmp_path):
    """20 windows, and 10 that are resumed for 10 more, are the same to the bit; nothing is rolled back."""
    ends = []
    for name, budgets in (("whole", [20]), ("parts", [10, 20])):
        directory = None
        for budget in budgets:
            agent = agent_of(kind, params={**HYPER, "per_alpha": 0.5})
            run = RLOptimizer(
                agent,
                pipeline_of(which, kind, agent),
                checkpoint_dir=tmp_path / name,
                max_episodes=budget,
                rollback_on_degradation=True,
                resume_from=directory,
                min_episodes_before_dormant=1000,
            )
            result = run.run()
            directory = run.run_dir
        assert result.windows == 20
        assert not result.callback_failures
        rest = agent_of(kind)
        rest.load_state(str(newest_checkpoint(directory)))
        ends.append((present(rest), [m.primary_score for m in result.history], len(rest._replay)))
    assert_same_bits(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


def newest_checkpoint(directory):
    return max(directory.rglob("agent/replay"), key=lambda path: path.stat().st_mtime_ns).parent


def score_of(agent, env_id, episodes):
    env, total = gymnasium.make(env_id), 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=1000 + episode)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act_deterministic(obs))
            done, total = terminated or truncated, total + reward
    return total / episodes


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("agent", "env_id", "window", "steps", "wanted"),
    [
        (lambda: FlaxDQNAgent(4, 2, HyperparamSet({}), seed=0), "CartPole-v1", 256, 60_000, 475.0),
        (lambda: FlaxSACAgent(3, 1, HyperparamSet({}), seed=0), "Pendulum-v1", 200, 20_000, -200.0),
    ],
    ids=["cartpole", "pendulum"],
)
def test_tasks_are_solved_with_the_defaults(agent, env_id, window, steps, wanted, tmp_path):
    """One seed: the best policy by its training score, over 20 fresh episodes."""
    agent = agent()
    loop = LoopController(
        agent,
        pipeline=BatchPipeline(env_id=env_id, agent=agent, window_size=window, seed=0),
        checkpoint_registry=CheckpointRegistry(tmp_path),
        backoff_scheduler=BackoffScheduler(min_episodes_before_dormant=1000),
        max_episodes=steps // window,
    )
    assert loop.run().windows == steps // window
    assert score_of(agent, env_id, episodes=20) >= wanted
