"""Rainbow: updates against an independent re-implementation, every switch, acting, the probe ladder, CartPole."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms.off_policy_config import PRIORITY_HYPERPARAMS
from tensor_optix.algorithms.presets import preset
from tensor_optix.algorithms.rainbow import Rainbow, RainbowConfig, RainbowPolicy
from tensor_optix.core.replay import Transitions
from tensor_optix.envs import probes
from tensor_optix.training import train
from tests.core.test_categorical_projection import reference as reference_projection
from tests.learning.test_probe_ladder import KINDS, VALUES, AnyRung

SMALL = {"n_envs": 2, "n_steps": 8, "batch_size": 16, "replay_size": 64, "warmup_steps": 8, "hidden_sizes": (8, 6)}
ATOMS = 11
SWITCHES = {
    "double": False,
    "dueling": False,
    "distributional": False,
    "noisy": False,
    "prioritized": False,
    "n_step": 1,
}
HYPER = {"learning_rate": 0.01, "v_min": -3.0, "v_max": 4.0, "max_grad_norm": 0.5, "tau": 0.3}


@functools.cache
def rainbow(**settings):
    return Rainbow(envs.make("CartPole-v1"), RainbowConfig(**{**SMALL, "n_atoms": ATOMS, **settings}))


def hyper_of(algorithm, **changes):
    values = {**algorithm.hyperparams(), **changes}
    return {name: jnp.float32(value) for name, value in values.items() if name in algorithm.hyperparams()}


def batch_of(rng, rows=16):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Transitions(
        obs=normal(rows, 4),
        action=jnp.asarray(rng.integers(0, 2, rows), jnp.int32),
        reward=2 * normal(rows),
        discount=jnp.asarray(rng.choice([0.0, 0.9, 0.97], rows), jnp.float32),
        next_obs=normal(rows, 4),
        weight=jnp.asarray(rng.uniform(0.1, 1.0, rows), jnp.float32),
    )


@functools.cache
def update_of(algorithm):
    return jax.jit(algorithm.update)


def started(algorithm, seed=0):
    """An agent whose target differs from what is learned, and noise of three updates."""
    key_online, key_target, key_noise = jax.random.split(jax.random.key(seed), 3)
    agent = algorithm.init_agent(key_online, {})
    return agent.replace(target=algorithm.init_agent(key_target, {}).target), algorithm.draw_updates(key_noise, 3)


# --- an update, again -------------------------------------------------------------------------------------------------
class Reference:
    """Rainbow's update written down a second time: weights of noisy layers formed, actions picked row by row."""

    def __init__(self, config):
        self.config = config

    def outputs(self, params, obs, noise, xp):
        """[B, 2, atoms]."""
        position = 0

        def stream(layers, x):
            nonlocal position
            for i, layer in enumerate(layers):
                x = xp.maximum(x, 0) if i else x
                kernel, bias = layer["kernel"], layer["bias"]
                if self.config.noisy:
                    n_in, n_out = kernel.shape
                    e_in, e_out = noise[position : position + n_in], noise[position + n_in : position + n_in + n_out]
                    position += n_in + n_out
                    kernel = kernel + layer["sigma_kernel"] * e_in[:, None] * e_out[None, :]
                    bias = bias + layer["sigma_bias"] * e_out
                x = x @ kernel + bias[None]
            return x

        def layers(name):
            part = params[name]
            if self.config.noisy:
                return [part["layers"][i] for i in sorted(part["layers"])]
            return [*(part["hidden"][i] for i in sorted(part.get("hidden", {}))), part["head"]]

        if not self.config.dueling:
            return stream(layers("advantage"), obs).reshape(len(obs), 2, -1)
        x = xp.maximum(stream(layers("shared"), obs), 0)
        value, advantage = stream(layers("value"), x), stream(layers("advantage"), x).reshape(len(obs), 2, -1)
        return xp.stack([value + advantage[:, a] - (advantage[:, 0] + advantage[:, 1]) / 2 for a in (0, 1)], 1)

    def values(self, outputs, hyper):
        if not self.config.distributional:
            return outputs[..., 0]
        return softmax(outputs) @ np.linspace(hyper["v_min"], hyper["v_max"], ATOMS)

    def targets(self, online, target, batch, noise, hyper):
        target_noise, choice_noise = (None, None) if noise is None else (noise[1], noise[2])
        following = self.outputs(target, batch.next_obs, target_noise, np)
        chooser = self.outputs(online, batch.next_obs, choice_noise, np) if self.config.double else following
        best = self.values(chooser, hyper).argmax(-1)
        taken = np.stack([following[row, action] for row, action in enumerate(best)])
        if not self.config.distributional:
            return batch.reward + batch.discount * taken[:, 0]
        return reference_projection(softmax(taken), batch.reward, batch.discount, hyper["v_min"], hyper["v_max"])

    def loss(self, params, batch, target, noise):
        """(what is minimised, errors [B])."""
        outputs = self.outputs(params, batch.obs, None if noise is None else noise[0], jnp)
        taken = jnp.where(batch.action[:, None] == 0, outputs[:, 0], outputs[:, 1])
        if not self.config.distributional:
            error = jnp.abs(taken[:, 0] - target)
            rows = jnp.where(error <= 1, error**2 / 2, error - 0.5)
        else:
            rows = -(target * jax.nn.log_softmax(taken)).sum(-1)
            error = rows + jnp.where(target > 0, target * jnp.log(jnp.where(target > 0, target, 1)), 0).sum(-1)
        return (batch.weight * rows).sum() / len(rows), error


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


OFF = ({}, *({name: SWITCHES[name]} for name in ("double", "dueling", "distributional", "noisy")))


@pytest.mark.parametrize("off", OFF, ids=lambda off: f"no {next(iter(off))}" if off else "all parts")
def test_updates_are_those_of_a_second_implementation(off):
    """Three updates, each from its own batch and noise; the clip binds, the target follows by tau."""
    algorithm = rainbow(target_period=0, **off)
    hyper = hyper_of(algorithm, **HYPER)
    agent, noises = started(algorithm)
    reference, rng = Reference(algorithm.config), np.random.default_rng(0)
    second = jax.jit(jax.value_and_grad(reference.loss, has_aux=True))
    moment = variance = np.zeros(agent.target.size)
    for i in range(3):
        batch, noise = batch_of(rng), jax.tree.map(lambda x, i=i: x[i], noises)
        after, error, losses = update_of(algorithm)(agent, batch, noise, hyper, jnp.int32(i))
        noise = in_float64(noise) if algorithm.config.noisy else None
        online, lagging = algorithm._unravel(agent.online.params), algorithm._unravel(agent.target)
        targets = reference.targets(in_float64(online), in_float64(lagging), in_float64(batch), noise, HYPER)
        inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (targets, noise))
        with jax.numpy_dtype_promotion("standard"):
            (total, errors), gradient = second(online, batch, *inputs)
        np.testing.assert_allclose(losses["loss"], total, rtol=1e-4)
        np.testing.assert_allclose(error, errors, rtol=1e-3, atol=2e-5)
        assert (np.asarray(error) >= 0).all()
        gradient = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)]).astype(np.float64)
        norm = np.sqrt((gradient**2).sum())
        gradient *= min(1.0, HYPER["max_grad_norm"] / norm)
        moment, variance = 0.9 * moment + 0.1 * gradient, 0.999 * variance + 0.001 * gradient**2
        step = moment / (1 - 0.9 ** (i + 1)) / (np.sqrt(variance / (1 - 0.999 ** (i + 1))) + 1.5e-4)
        expected = np.asarray(agent.online.params, np.float64) - HYPER["learning_rate"] * step
        np.testing.assert_allclose(after.online.params, expected, rtol=1e-3, atol=1e-4)
        expected = (1 - HYPER["tau"]) * np.asarray(agent.target) + HYPER["tau"] * np.asarray(after.online.params)
        np.testing.assert_allclose(after.target, expected, rtol=1e-4, atol=1e-6)
        agent = after


def test_the_target_is_copied_every_period():
    algorithm = rainbow(target_period=3)
    agent, noises = started(algorithm)
    before = agent.target
    for i in range(6):
        noise = jax.tree.map(lambda x, i=i: x[i % 3], noises)
        batch = batch_of(np.random.default_rng(i))
        agent, _, _ = update_of(algorithm)(agent, batch, noise, hyper_of(algorithm), jnp.int32(i))
        np.testing.assert_array_equal(agent.target, agent.online.params if i in (2, 5) else before)
        before = agent.target


def test_each_sample_of_noise_counts_and_is_drawn_apart():
    algorithm = rainbow()
    agent, noises = started(algorithm)
    assert noises.shape == (3, 3, algorithm._noise_size)
    assert len(np.unique(noises.reshape(9, -1), axis=0)) == 9
    batch, hyper = batch_of(np.random.default_rng(1)), hyper_of(algorithm, learning_rate=0.01)
    run = lambda noise: update_of(algorithm)(agent, batch, noise, hyper, jnp.int32(0))  # noqa: E731
    base = run(noises[0])
    for which in range(3):
        other = run(noises[0].at[which].set(4 * noises[1, which]))
        assert not np.array_equal(base[0].online.params, other[0].online.params)


# --- switches ---------------------------------------------------------------------------------------------------------
def test_every_switch_changes_the_program():
    programs = []
    for off in ({}, *({name: value} for name, value in SWITCHES.items())):
        algorithm = rainbow(**off)
        hyper, key = hyper_of(algorithm), jax.random.key(0)
        learner = jax.eval_shape(algorithm.init, key, hyper)
        programs.append(str(jax.make_jaxpr(algorithm.window)(learner, hyper, key)))
    assert all(a != b for a, b in itertools.combinations(programs, 2))


@pytest.mark.parametrize(
    ("settings", "switched"),
    [
        ({}, {"v_min", "v_max", *PRIORITY_HYPERPARAMS}),
        ({"target_period": 0}, {"v_min", "v_max", "tau", *PRIORITY_HYPERPARAMS}),
        ({"distributional": False}, set(PRIORITY_HYPERPARAMS)),
        ({"prioritized": False}, {"v_min", "v_max"}),
        (
            {"noisy": False},
            {"v_min", "v_max", "epsilon_start", "epsilon_end", "epsilon_steps", *PRIORITY_HYPERPARAMS},
        ),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_hyperparameters_without_a_meaning_are_not_listed(settings, switched):
    algorithm = rainbow(**settings)
    always = {"learning_rate", "gamma", "max_grad_norm", "adam_eps"}
    assert set(algorithm.hyperparams()) == set(algorithm.hyperparam_limits()) == always | switched
    for name, value in algorithm.hyperparams().items():
        low, high = algorithm.hyperparam_limits()[name]
        assert low <= value <= high
    if "per_alpha" in switched:
        assert algorithm.hyperparams()["per_alpha"] == 0.5


@pytest.mark.parametrize("field", ["epsilon_start", "epsilon_end", "epsilon_steps"])
def test_without_noise_epsilon_decides(field):
    algorithm = rainbow(noisy=False)
    agent, obs = algorithm.init_agent(jax.random.key(0), {}), jnp.ones((5000, 4), jnp.float32)
    noise = algorithm.draw_exploration(jax.random.key(1), (5000,))
    greedy = int(algorithm.act(RainbowPolicy(agent.online.params), obs[0], (), jax.random.key(2), True)[0])
    start = {"epsilon_start": 0.8, "epsilon_end": 0.4, "epsilon_steps": 1000.0}
    for changes in ({}, {field: start[field] / 2}):
        values = {**start, **changes}
        actions = algorithm.explore(agent, obs, noise, hyper_of(algorithm, **values), jnp.int32(250))
        done = min(250 / values["epsilon_steps"], 1)
        chance = values["epsilon_start"] + done * (values["epsilon_end"] - values["epsilon_start"])
        share = np.mean(np.asarray(actions) != greedy)  # half of the random actions; 5 standard errors
        assert abs(share - chance / 2) < 5 * np.sqrt(0.25 / 5000)


# --- acting -----------------------------------------------------------------------------------------------------------
def test_every_environment_explores_with_its_own_noise_and_deterministic_acting_with_none():
    algorithm = rainbow()
    agent, obs = algorithm.init_agent(jax.random.key(0), {}), jnp.full((64, 4), 0.1, jnp.float32)
    noise = algorithm.draw_exploration(jax.random.key(1), (3, 64))
    assert noise.shape == (3, 64, algorithm._noise_size)
    assert len(np.unique(noise.reshape(3 * 64, -1), axis=0)) == 3 * 64
    explore = jax.jit(algorithm.explore)
    actions = np.asarray([explore(agent, obs, step, hyper_of(algorithm), jnp.int32(0)) for step in noise])
    assert set(actions[0]) == {0, 1}
    assert not np.array_equal(actions[0], actions[1])
    alone = explore(agent, obs[5:6], noise[0, 5:6], hyper_of(algorithm), jnp.int32(0))
    assert alone[0] == actions[0, 5]
    act = jax.jit(algorithm.act, static_argnums=4)
    policy = RainbowPolicy(agent.online.params)
    assert len(set(np.asarray(act(policy, obs, (), jax.random.key(1), True)[0]))) == 1
    assert set(np.asarray(act(policy, obs, (), jax.random.key(1), False)[0])) == {0, 1}
    single, _ = act(policy, obs[0], (), jax.random.key(1), False)
    assert single.shape == ()
    assert single.dtype == jnp.int32


def test_the_greedy_action_is_that_of_the_values_for_any_support():
    algorithm = rainbow()
    agent, obs = algorithm.init_agent(jax.random.key(3), {}), jax.random.normal(jax.random.key(4), (32, 4))
    greedy, _ = algorithm.act(RainbowPolicy(agent.online.params), obs, (), jax.random.key(0), True)
    for v_min, v_max in ((-1.0, 1.0), (5.0, 105.0)):
        values = algorithm.values(agent.online.params, obs, hyper_of(algorithm, v_min=v_min, v_max=v_max))
        np.testing.assert_array_equal(values.argmax(-1), greedy)
        assert np.all((values > v_min) & (values < v_max))


# --- settings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"target_period": -1}, "target_period must be 0"), ({"n_atoms": 1}, "n_atoms must be at least 2, got 1")],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        RainbowConfig(**settings)


def test_a_minatar_window_has_the_right_shapes():
    algorithm = Rainbow(envs.make("Breakout-MinAtar"), RainbowConfig(**SMALL))
    hyper, key = hyper_of(algorithm), jax.random.key(0)
    learner = jax.eval_shape(algorithm.init, key, hyper)
    after, stats = jax.eval_shape(algorithm.window, learner, hyper, key)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, learner)
    assert set(stats.losses) == set(Rainbow.losses)


# --- learning ---------------------------------------------------------------------------------------------------------
LADDER = RainbowConfig(
    n_envs=8, n_steps=16, train_every=1, batch_size=32, replay_size=4096, warmup_steps=64, hidden_sizes=(16,),
    target_period=0,
)  # fmt: skip
LADDER_HYPER = {"learning_rate": 5e-3, "v_min": -2.0, "v_max": 6.0, "tau": 0.05}
SEEDS, WINDOWS = 2, 80


def trained(algorithm, hyper, windows, key, max_steps):
    """The policy after so many windows, and its deterministic returns [32]."""
    key_init, key_train, key_eval = jax.random.split(key, 3)
    learner, _ = jax.lax.scan(
        lambda learner, key: (algorithm.window(learner, hyper, key)[0], ()),
        algorithm.init(key_init, hyper),
        jax.random.split(key_train, windows),
    )
    policy = algorithm.policy(learner)
    act = lambda obs, key: algorithm.act(policy, obs, (), key, True)[0]  # noqa: E731
    return policy, envs.evaluate(algorithm.env, act, key_eval, 32, max_steps).returns


@pytest.fixture(scope="module")
def learned():
    """rung -> (deterministic returns [seeds, episodes], values [seeds, observations])."""
    env = envs.make(AnyRung)
    inputs = np.zeros((len(KINDS), 3, 2), np.float32)
    for i, rung in enumerate(KINDS):
        obs = np.asarray(VALUES[rung][1])
        inputs[i, : obs.shape[0], : obs.shape[1]] = obs
    gammas = jnp.asarray([VALUES[rung][0] for rung in KINDS], jnp.float32)

    def one(rung, gamma, inputs, key):
        algorithm = Rainbow(dataclasses.replace(env, params=rung), LADDER)
        hyper = hyper_of(algorithm, **LADDER_HYPER) | {"gamma": gamma}
        policy, returns = trained(algorithm, hyper, WINDOWS, key, 10)
        return returns, algorithm.values(policy.params, inputs, hyper).max(-1)

    lanes = jax.jit(jax.vmap(jax.vmap(one, (None, None, None, 0)), (0, 0, 0, None)))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    returns, values = lanes(jnp.arange(len(KINDS), dtype=jnp.int32), gammas, jnp.asarray(inputs), keys)
    return {rung: (np.asarray(returns[i]), np.asarray(values[i])) for i, rung in enumerate(KINDS)}


@pytest.mark.slow  # DQN climbs it every day
@pytest.mark.parametrize("rung", KINDS, ids=lambda rung: rung.__name__)
def test_probe_ladder(learned, rung):
    returns, values = learned[rung]
    if rung is not probes.SignalValue:  # whose return is a coin flip
        np.testing.assert_array_equal(returns, rung.optimal_return)
    exact = VALUES[rung][2]
    values = values[:, : len(exact)]
    np.testing.assert_allclose(values, np.broadcast_to(exact, values.shape), rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", SWITCHES)
def test_cartpole_is_learned_without_any_one_part(part):
    """20k steps; mean returns of 2 seeds, where a random policy has 22."""
    chosen = preset("rainbow", "CartPole-v1")
    config = {**chosen.config, "hidden_sizes": (64, 64), part: SWITCHES[part]}
    algorithm = Rainbow(envs.make("CartPole-v1"), RainbowConfig(**config))
    hyper = hyper_of(algorithm, **chosen.hyperparams)
    windows = 20_000 // algorithm.steps_per_window
    run = jax.jit(lambda keys: jax.lax.map(lambda key: trained(algorithm, hyper, windows, key, 500)[1], keys))
    returns = run(jax.random.split(jax.random.key(0), 2))
    assert np.min(np.mean(returns, axis=1)) > 100, np.mean(returns, axis=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cartpole_within_50k_steps():
    result = train("CartPole-v1", algorithm="rainbow", seeds=3, total_steps=50_000, stop=False, progress=False)
    assert np.min(result.scores) >= 400, result.scores
