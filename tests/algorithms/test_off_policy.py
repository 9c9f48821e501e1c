"""What DQN, SAC and TD3 share (collecting, storing, warm-up), and one update of each against PyTorch in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tensor_optix import envs
from tensor_optix.algorithms import flat_adam
from tensor_optix.algorithms.dqn import DQN, DQNConfig, epsilon
from tensor_optix.algorithms.sac import SAC, SACConfig
from tensor_optix.algorithms.td3 import TD3, TD3Config
from tensor_optix.core import replay
from tensor_optix.core.replay import Transitions
from tensor_optix.envs.spaces import Box, Discrete
from tests.algorithms import updates_in_torch

SMALL = {"n_envs": 3, "n_steps": 12, "train_every": 2, "batch_size": 16, "replay_size": 300, "warmup_steps": 18}
BATCH = 16


class Serial:
    """Observations are serial numbers of steps; an episode lasts 4 steps and is cut or ends, in turns."""

    default_params = None
    max_steps_in_episode = 4

    def observation_space(self, params):
        return Box(-1e6, 1e6, (2,))

    def action_space(self, params):
        return Discrete(3)

    def reset_env(self, key, params):
        state = jnp.stack([jax.random.randint(key, (), 0, 1000, jnp.int32), jnp.int32(0)])
        return self._show(state), state

    def _show(self, state):
        return state.astype(jnp.float32)

    def step_env(self, key, state, action, params):
        state = state + jnp.asarray([0, 1], jnp.int32)
        over = (state[1] >= 4) & (state[0] % 2 == 0)
        return self._show(state), state, state[1].astype(jnp.float32) + 10 * action.astype(jnp.float32), over, {}

    def is_truncated(self, state, params):
        return state[1] >= 4


def hyper_of(algorithm, **changes):
    return {name: jnp.float32(value) for name, value in {**algorithm.hyperparams(), **changes}.items()}


def windows(algorithm, count, **changes):
    hyper = hyper_of(algorithm, **changes)
    learner = jax.jit(algorithm.init)(jax.random.key(0), hyper)
    stats, window = [], jax.jit(algorithm.window)
    for i in range(count):
        learner, one = window(learner, hyper, jax.random.key(i + 1))
        stats.append(one)
    return learner, stats


class TestCollecting:
    def test_what_is_stored_is_what_happened(self):
        algorithm = DQN(envs.make(Serial), DQNConfig(**SMALL, n_step=2))
        learner, _ = windows(algorithm, 3)
        stored = learner.replay
        assert int(stored.size) == 36
        assert int(learner.steps) == 108
        places = jnp.arange(34 * 3, dtype=jnp.int32)
        got = replay.read(stored, places, 1, jnp.float32(0.5))
        episode, step = np.asarray(got.obs).T
        following = np.asarray(got.next_obs)
        np.testing.assert_array_equal(got.reward, step + 1 + 10 * np.asarray(got.action))
        ended = (step == 3) & (episode % 2 == 0)  # what follows those does not count
        np.testing.assert_array_equal(following[~ended, 0], episode[~ended])  # never the next episode's
        np.testing.assert_array_equal(following[~ended, 1], step[~ended] + 1)
        np.testing.assert_array_equal(got.discount, np.where(ended, 0.0, 0.5))
        assert got.weight.all()
        assert 0 < ended.sum() < (step == 3).sum()

    def test_nothing_is_learned_before_the_warm_up_and_once_a_round_after(self):
        algorithm = DQN(envs.make("CartPole-v1"), DQNConfig(**{**SMALL, "warmup_steps": 40, "updates": 3}))
        before = jax.jit(algorithm.init)(jax.random.key(0), hyper_of(algorithm))
        learner, _ = windows(algorithm, 1)
        np.testing.assert_array_equal(learner.agent.online.params, before.agent.online.params)
        assert int(learner.updates) == 0
        learner, _ = windows(algorithm, 2)  # 72 transitions; from the 14th step of 24 on there are 40
        assert int(learner.updates) == 3 * (24 - 14 + 2) // 2
        assert not np.array_equal(learner.agent.online.params, before.agent.online.params)

    def test_actions_of_the_warm_up_are_uniform(self):
        config = DQNConfig(**{**SMALL, "n_steps": 500, "replay_size": 3000, "warmup_steps": 3000})
        learner, _ = windows(DQN(envs.make(Serial), config), 1, epsilon_start=0.0, epsilon_end=0.0)
        share = np.bincount(np.asarray(learner.replay.action[:500]).ravel(), minlength=3) / 1500
        np.testing.assert_allclose(share, 1 / 3, atol=5 * np.sqrt(2 / 9 / 1500))

    def test_epsilon_falls_in_environment_steps(self):
        hyper = {"epsilon_start": jnp.float32(1.0), "epsilon_end": jnp.float32(0.1), "epsilon_steps": jnp.float32(100)}
        assert [round(float(epsilon(hyper, jnp.int32(t))), 4) for t in (0, 50, 100, 2**30)] == [1.0, 0.55, 0.1, 0.1]

    def test_returns_and_losses_are_reported(self):
        _, stats = windows(DQN(envs.make(Serial), DQNConfig(**SMALL)), 2)
        assert int(stats[1].episodes) == 9  # 3 environments, 12 steps, 4 in an episode
        assert bool(stats[1].finite)
        assert float(stats[1].losses["loss"]) > 0

    def test_a_reward_that_is_not_finite_is_noticed_and_forgotten(self):
        class Poisoned(Serial):
            def step_env(self, key, state, action, params):
                obs, after, _, over, info = super().step_env(key, state, action, params)
                return obs, after, jnp.where(state[1] == 2, jnp.float32(jnp.nan), jnp.float32(1.0)), over, info

        algorithm = DQN(envs.make(Poisoned), DQNConfig(**SMALL))
        learner, stats = windows(algorithm, 1)
        assert not bool(stats[0].finite)
        learner = algorithm.reset_envs(learner, jax.random.key(9))
        assert int(learner.replay.size) == 0

    def test_the_replay_is_no_part_of_what_is_rolled_back(self):
        algorithm = SAC(envs.make("Pendulum-v1"), SACConfig(**SMALL, hidden_sizes=(8,)))
        early, _ = windows(algorithm, 1)
        late, _ = windows(algorithm, 2)
        back = algorithm.restore(late, algorithm.snapshot(early))
        np.testing.assert_array_equal(back.agent.actor.params, early.agent.actor.params)
        assert int(back.replay.size) == int(late.replay.size) > int(early.replay.size)
        size = replay.n_bytes(jax.eval_shape(lambda: algorithm.snapshot(early)))
        assert size < replay.n_bytes(jax.eval_shape(lambda: early.replay)) * 2

    def test_the_memory_is_known_before_it_is_taken(self):
        config = DQNConfig(**{**SMALL, "replay_size": 10_000})
        algorithm = DQN(envs.make("CartPole-v1"), config)
        learner = jax.jit(algorithm.init)(jax.random.key(0), hyper_of(algorithm))
        assert algorithm.replay_bytes() == sum(x.nbytes for x in jax.tree.leaves((learner.replay, learner.priorities)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_every": 5}, "train_every must divide"),
        ({"warmup_steps": 2}, "warmup_steps must be from"),
        ({"warmup_steps": 400}, "warmup_steps must be from"),
        ({"replay_size": 8}, "replay_size must hold"),
        ({"n_step": 0}, "n_step must be at least 1"),
        ({"activation": "cosine"}, "activation must be one of"),
        ({"target_period": -1}, "target_period"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        DQNConfig(**{**SMALL, **settings})


# -- one update against another implementation ------------------------------------------------------------------------


def batch_of(algorithm, seed):
    rng = np.random.default_rng(seed)
    n_obs = algorithm.env.obs_shape[0]
    discrete = algorithm.env.action_kind == "discrete"
    width = None if discrete else algorithm.env.action_dim
    action = rng.integers(0, 2, BATCH) if discrete else rng.uniform(-0.9, 0.9, (BATCH, width)).astype(np.float32)
    numbers = {
        "obs": rng.normal(size=(BATCH, n_obs)).astype(np.float32),
        "action": action.astype(np.int32) if discrete else action,
        "reward": rng.normal(size=BATCH).astype(np.float32) * 3,
        "discount": np.where(rng.random(BATCH) < 0.3, 0.0, 0.97).astype(np.float32),
        "next_obs": rng.normal(size=(BATCH, n_obs)).astype(np.float32),
        "weight": rng.uniform(0.2, 1.0, BATCH).astype(np.float32),
    }
    theirs = {name: torch.tensor(np.asarray(x, np.float64)) for name, x in numbers.items()}
    return Transitions(**{name: jnp.asarray(x) for name, x in numbers.items()}), theirs


def perturbed(trained, seed):
    """Fresh parameters have biases of 0 and heads near 0, which hide mistakes."""
    noise = np.random.default_rng(seed).normal(size=trained.params.shape).astype(np.float32)
    return trained.replace(params=trained.params + jnp.float32(0.2) * noise)


def assert_close(flat, values):
    expected = np.concatenate([np.ravel(x) for x in values])
    np.testing.assert_allclose(flat, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("double", [False, True])
def test_dqn(double):
    config = DQNConfig(**SMALL, hidden_sizes=(8, 8), activation="relu", double=double)
    algorithm = DQN(envs.make("CartPole-v1"), config)
    # An epsilon of Adam's of that size keeps the step smooth where a gradient is nearly 0.
    hyper = hyper_of(algorithm, max_grad_norm=0.5, adam_eps=1e-2)
    agent = algorithm.init_agent(jax.random.key(0), hyper)
    agent = agent.replace(online=perturbed(agent.online, 1), target=perturbed(agent.online, 2).params)
    batch, theirs = batch_of(algorithm, 3)
    after, td_error, _ = jax.jit(algorithm.update)(agent, batch, (), hyper, jnp.int32(0))
    trees = [jax.device_get(algorithm._unravel(x)) for x in (agent.online.params, agent.target)]
    numbers = {name: float(value) for name, value in hyper.items()}
    expected, errors = updates_in_torch.dqn(*trees, theirs, numbers, double)
    assert_close(after.online.params, expected)
    np.testing.assert_allclose(td_error, errors, rtol=1e-4, atol=1e-5)
    moved = agent.target + jnp.float32(0.005) * (after.online.params - agent.target)
    np.testing.assert_allclose(after.target, moved, rtol=1e-6)


def test_a_target_that_is_copied_now_and_then():
    algorithm = DQN(envs.make("CartPole-v1"), DQNConfig(**SMALL, hidden_sizes=(8,), target_period=3))
    hyper = hyper_of(algorithm)
    agent = algorithm.init_agent(jax.random.key(0), hyper)
    batch, _ = batch_of(algorithm, 0)
    update, copied = jax.jit(algorithm.update), []
    for i in range(7):
        agent, _, _ = update(agent, batch, (), hyper, jnp.int32(i))
        copied.append(bool((agent.target == agent.online.params).all()))
    assert copied == [False, False, True, False, False, True, False]


def test_sac():
    algorithm = SAC(envs.make("Pendulum-v1"), SACConfig(**SMALL, hidden_sizes=(8, 8)))
    hyper = hyper_of(algorithm, adam_eps=1e-2, log_alpha_init=-1.0)
    agent = algorithm.init_agent(jax.random.key(0), hyper)
    agent = agent.replace(
        actor=perturbed(agent.actor, 1), critics=perturbed(agent.critics, 2), target=perturbed(agent.critics, 3).params
    )
    batch, theirs = batch_of(algorithm, 4)
    noise = jax.tree.map(lambda x: x[0], algorithm.draw_updates(jax.random.key(5), 1))
    after, _, losses = jax.jit(algorithm.update)(agent, batch, noise, hyper, jnp.int32(0))
    actor = jax.device_get(algorithm._unravel_actor(agent.actor.params))
    critics, target = (jax.device_get(algorithm._critics.unravel(x)) for x in (agent.critics.params, agent.target))
    numbers = {name: float(value) for name, value in hyper.items()}
    draws = torch.tensor(np.asarray(noise, np.float64))
    expected = updates_in_torch.sac(actor, critics, target, -1.0, theirs, draws, numbers, 1)
    assert_close(after.actor.params, expected[0])
    assert_close(after.critics.params, expected[1])
    assert_close(after.log_alpha.params, [expected[2]])
    np.testing.assert_allclose(losses["alpha"], np.exp(-1), rtol=1e-6)


def test_a_temperature_that_is_not_tuned_stays():
    config = SACConfig(**SMALL, hidden_sizes=(8,), tune_temperature=False)
    learner, stats = windows(SAC(envs.make("Pendulum-v1"), config), 2, log_alpha_init=-2.0)
    np.testing.assert_allclose(learner.agent.log_alpha.params, [-2.0])
    assert int(learner.updates) > 0
    np.testing.assert_allclose(stats[1].losses["alpha"], np.exp(-2), rtol=1e-5)


def test_td3():
    algorithm = TD3(envs.make("Pendulum-v1"), TD3Config(**SMALL, hidden_sizes=(8, 8)))
    hyper = hyper_of(algorithm, adam_eps=1e-2, target_noise=0.4)
    agent = algorithm.init_agent(jax.random.key(0), hyper)
    agent = agent.replace(
        actor=perturbed(agent.actor, 1),
        critics=perturbed(agent.critics, 2),
        target_actor=4 * perturbed(agent.actor, 3).params,  # actions near the border, where clipping shows
        target_critics=perturbed(agent.critics, 4).params,
    )
    batch, theirs = batch_of(algorithm, 5)
    noise = algorithm.draw_updates(jax.random.key(6), 1)[0]
    update = jax.jit(algorithm.update)
    only_critics, _, _ = update(agent, batch, noise, hyper, jnp.int32(0))
    after, _, _ = update(agent, batch, noise, hyper, jnp.int32(1))
    actors = [jax.device_get(algorithm._unravel_actor(x)) for x in (agent.actor.params, agent.target_actor)]
    critics = [jax.device_get(algorithm._critics.unravel(x)) for x in (agent.critics.params, agent.target_critics)]
    numbers = {name: float(value) for name, value in hyper.items()}
    draws = torch.tensor(np.asarray(noise, np.float64))
    expected = updates_in_torch.td3(actors[0], critics[0], actors[1], critics[1], theirs, draws, numbers)
    assert_close(after.actor.params, expected[0])
    assert_close(after.critics.params, expected[1])
    assert_close(only_critics.critics.params, expected[1])
    for name in ("target_actor", "target_critics"):  # and the actor wait for their turn
        np.testing.assert_array_equal(getattr(only_critics, name), getattr(agent, name))
        assert not np.array_equal(getattr(after, name), getattr(agent, name))
    np.testing.assert_array_equal(only_critics.actor.params, agent.actor.params)


def test_parameters_come_back_from_one_vector():
    algorithm = SAC(envs.make("Pendulum-v1"), SACConfig(**SMALL, hidden_sizes=(8, 4)))
    tree = algorithm._critics.init(jax.random.key(0))
    again = algorithm._critics.unravel(flat_adam.start(tree).params)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_replaced_configuration_is_another_algorithm():
    algorithm = DQN(envs.make("CartPole-v1"), DQNConfig(**SMALL))
    other = dataclasses.replace(algorithm, config=DQNConfig(**SMALL, double=False))
    assert algorithm != other
    assert hash(algorithm) == hash(dataclasses.replace(algorithm))
