"""PPO's loss, gradient and update against a reference written in NumPy and float64.

The reference knows networks, distributions, loss and Adam by their equations; its gradients are central differences.
Only the order of the minibatches is taken from the library.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tensor_optix import envs
from tensor_optix.algorithms.ppo import PPO, Batch, PPOConfig
from tensor_optix.core.permutation import permutations
from tensor_optix.envs.spaces import Box, Discrete

ROWS, OBS, CHOICES, DIMS = 12, 3, 3, 2
HYPER = {
    "learning_rate": 0.05,
    "gamma": 0.97,
    "gae_lambda": 0.9,
    "clip_range": 0.15,
    "entropy_coef": 0.03,
    "value_coef": 0.7,
    "max_grad_norm": 1e3,
    "adam_eps": 1e-3,  # large, so that rounding in tiny gradients is not magnified
}
KINDS = ("discrete", "continuous")


class Shapes:
    """An environment of which only the spaces matter here."""

    default_params = None

    def __init__(self, kind):
        self.kind = kind

    def observation_space(self, params):
        return Box(-1.0, 1.0, (OBS,))

    def action_space(self, params):
        return Discrete(CHOICES) if self.kind == "discrete" else Box(-2.0, 2.0, (DIMS,))

    def reset_env(self, key, params):
        return jnp.zeros(OBS), jnp.int32(0)

    def step_env(self, key, state, action, params):
        return jnp.zeros(OBS), state, jnp.float32(0.0), jnp.zeros((), bool), {}

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)


@functools.cache
def algorithm_of(kind, **settings):
    sizes = {"n_envs": 4, "n_steps": 3, "n_epochs": 2, "n_minibatches": 3, "hidden_sizes": (4,)}
    return PPO(envs.make(Shapes, kind=kind), PPOConfig(**sizes, **settings))


def hyper_of(**changes):
    return {name: jnp.float32(value) for name, value in {**HYPER, **changes}.items()}


@functools.cache
def learner_and_batch(kind, **settings):
    """A learner with a policy far from uniform, and rows whose ratios and values lie on both sides of every clip."""
    algorithm, rng = algorithm_of(kind, **settings), np.random.default_rng(7)
    learner = jax.jit(algorithm.init)(jax.random.key(3), hyper_of())
    noise = lambda x: x + jnp.asarray(rng.normal(0.0, 0.4, x.shape), jnp.float32)  # noqa: E731
    learner = learner.replace(params=jax.tree.map(noise, learner.params))
    obs = rng.normal(size=(ROWS, OBS))
    action = rng.integers(0, CHOICES, ROWS) if kind == "discrete" else rng.normal(size=(ROWS, DIMS))
    dist, value = forward(as_float64(learner.params), obs)
    log_ratio = np.tile([-0.5, -0.08, 0.06, 0.4], 3) + rng.normal(0.0, 0.02, ROWS)
    sign = np.repeat([1.0, -1.0, 1.0], 4)
    batch = Batch(
        obs=jnp.asarray(obs, jnp.float32),
        action=jnp.asarray(action, jnp.int32 if kind == "discrete" else jnp.float32),
        log_prob=jnp.asarray(dist.log_prob(action) - log_ratio, jnp.float32),
        value=jnp.asarray(value + rng.normal(0.0, 0.3, ROWS), jnp.float32),
        advantage=jnp.asarray(sign * rng.uniform(1.0, 4.0, ROWS), jnp.float32),
        target=jnp.asarray(value + rng.normal(0.0, 1.0, ROWS), jnp.float32),
    )
    return learner, batch


# -- the reference -------------------------------------------------------------------------------------------------


class Softmax:
    def __init__(self, logits):
        self.log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def log_prob(self, action):
        return np.array([row[a] for row, a in zip(self.log_p, action, strict=True)])

    def entropy(self):
        return -(np.exp(self.log_p) * self.log_p).sum(-1)


class Normal:
    def __init__(self, mean, log_std):
        self.mean, self.std = mean, np.exp(log_std)

    def log_prob(self, action):
        density = np.exp(-((action - self.mean) ** 2) / (2 * self.std**2)) / (self.std * np.sqrt(2 * np.pi))
        return np.log(density).sum(-1)

    def entropy(self):
        return np.full(len(self.mean), 0.5 * np.log(2 * np.pi * np.e * self.std**2).sum())


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else np.asarray(x), tree)


def mlp(params, x):
    for layer in params["hidden"].values():
        x = np.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def forward(params, obs):
    out = mlp(params["actor"], obs)
    dist = Normal(out, params["log_std"]) if "log_std" in params else Softmax(out)
    return dist, mlp(params["critic"], obs)[:, 0]


def reference_loss(params, rows, hyper, config):
    dist, value = forward(params, rows.obs)
    eps, advantage = hyper["clip_range"], rows.advantage
    if config.normalize_advantages:
        advantage = (advantage - advantage.mean()) / (np.sqrt(((advantage - advantage.mean()) ** 2).mean()) + 1e-8)
    ratio = np.exp(dist.log_prob(rows.action) - rows.log_prob)
    # The pessimistic bound by cases: a good action gains nothing above 1 + eps, a bad one nothing below 1 - eps.
    policy = -np.where(advantage >= 0, np.minimum(ratio, 1 + eps), np.maximum(ratio, 1 - eps)) * advantage
    error = (value - rows.target) ** 2
    if config.clip_value:
        near = np.minimum(np.maximum(value, rows.value - eps), rows.value + eps)
        error = np.maximum(error, (near - rows.target) ** 2)
    parts = {"policy_loss": policy.mean(), "value_loss": 0.5 * error.mean(), "entropy": dist.entropy().mean()}
    parts["approx_kl"] = (ratio - 1 - np.log(ratio)).mean()
    loss = parts["policy_loss"] + hyper["value_coef"] * parts["value_loss"] - hyper["entropy_coef"] * parts["entropy"]
    return loss, parts


def flatten(tree):
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def unflatten(flat, like):
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return jax.tree.unflatten(structure, [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])


def reference_gradient(params, rows, hyper, config, step=1e-6):
    flat = flatten(params)
    grad = np.zeros_like(flat)
    for i in range(flat.size):
        up, down = flat.copy(), flat.copy()
        up[i] += step
        down[i] -= step
        losses = [reference_loss(unflatten(x, params), rows, hyper, config)[0] for x in (up, down)]
        grad[i] = (losses[0] - losses[1]) / (2 * step)
    return grad


def reference_update(params, batch, hyper, config, order):
    """Adam (Kingma & Ba 2015, algorithm 1) on gradients scaled down to `max_grad_norm`."""
    flat = flatten(params)
    m, v = np.zeros_like(flat), np.zeros_like(flat)
    norms, parts = [], []
    for t, index in enumerate(order, start=1):
        rows = Batch(*(x[index] for x in batch))
        now = unflatten(flat, params)
        parts.append(reference_loss(now, rows, hyper, config)[1])
        grad = reference_gradient(now, rows, hyper, config)
        norms.append(np.sqrt((grad**2).sum()))
        if norms[-1] > hyper["max_grad_norm"]:
            grad = grad * (hyper["max_grad_norm"] / norms[-1])
        m = 0.9 * m + 0.1 * grad
        v = 0.999 * v + 0.001 * grad**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        flat = flat - hyper["learning_rate"] * m_hat / (np.sqrt(v_hat) + hyper["adam_eps"])
    means = {name: np.mean([p[name] for p in parts]) for name in parts[0]}
    return flat, m, v, norms, means


# -- the comparisons -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip_value", [False, True])
@pytest.mark.parametrize("normalize_advantages", [False, True])
def test_loss_and_gradient(kind, clip_value, normalize_advantages):
    settings = {"clip_value": clip_value, "normalize_advantages": normalize_advantages}
    algorithm = algorithm_of(kind, **settings)
    learner, batch = learner_and_batch(kind, **settings)
    run = jax.jit(jax.value_and_grad(algorithm._loss, has_aux=True))
    (loss, parts), grads = run(learner.params, batch, hyper_of())
    params, rows = as_float64(learner.params), Batch(*as_float64(tuple(batch)))
    expected, expected_parts = reference_loss(params, rows, HYPER, algorithm.config)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    assert parts.keys() == expected_parts.keys()
    for name, value in expected_parts.items():
        np.testing.assert_allclose(parts[name], value, rtol=5e-5, atol=1e-6, err_msg=name)
    gradient = reference_gradient(params, rows, HYPER, algorithm.config)
    np.testing.assert_allclose(ravel_pytree(grads)[0], gradient, rtol=1e-4, atol=2e-6)


def test_the_rows_lie_on_both_sides_of_every_clip():
    """Otherwise the comparison above would not see a clip at all."""
    for kind in KINDS:
        learner, batch = learner_and_batch(kind)
        rows, eps = as_float64(tuple(batch)), HYPER["clip_range"]
        rows = Batch(*rows)
        dist, value = forward(as_float64(learner.params), rows.obs)
        ratio = np.exp(dist.log_prob(rows.action) - rows.log_prob)
        for sign in (1, -1):
            chosen = ratio[np.sign(rows.advantage) == sign]
            assert (chosen > 1 + eps).any()
            assert (chosen < 1 - eps).any()
        inside = np.abs(value - rows.value) < eps
        assert inside.any()
        assert not inside.all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_grad_norm", [1e3, 0.05])
def test_update(kind, max_grad_norm):
    settings = {"clip_value": kind == "continuous"}
    algorithm, config = algorithm_of(kind, **settings), algorithm_of(kind, **settings).config
    learner, batch = learner_and_batch(kind, **settings)
    key = jax.random.key(11)
    params, opt, losses = jax.jit(algorithm._update)(learner, batch, hyper_of(max_grad_norm=max_grad_norm), key)
    order = np.asarray(permutations(jax.random.key(11), config.n_epochs, ROWS)).reshape(-1, ROWS // 3)
    for epoch in order.reshape(config.n_epochs, ROWS):
        assert sorted(epoch) == list(range(ROWS))
    start = as_float64(learner.params)
    hyper = {**HYPER, "max_grad_norm": max_grad_norm}
    flat, m, v, norms, parts = reference_update(start, Batch(*as_float64(tuple(batch))), hyper, config, order)
    assert all((norm > max_grad_norm) == (max_grad_norm < 1) for norm in norms), norms
    assert np.abs(flat - flatten(start)).max() > 0.05
    np.testing.assert_allclose(ravel_pytree(params)[0], flat, atol=5e-5)
    assert opt.count == len(order)
    np.testing.assert_allclose(opt.mu, m, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(opt.nu, v, rtol=1e-3, atol=2e-6)
    for name, value in parts.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_norm_is_clipped_and_not_the_elements():
    """With Adam's eps so large that a step is the gradient, its direction is kept and its length is the limit."""
    algorithm = PPO(algorithm_of("discrete").env, PPOConfig(4, 3, 1, 1, hidden_sizes=(4,)))
    learner, batch = learner_and_batch("discrete")
    update, steps = jax.jit(algorithm._update), {}
    for limit in (1e3, 0.1):
        hyper = hyper_of(max_grad_norm=limit, adam_eps=1e4, learning_rate=1e4)
        params, _, _ = update(learner, batch, hyper, jax.random.key(0))
        steps[limit] = flatten(as_float64(params)) - flatten(as_float64(learner.params))
    free, clipped = steps[1e3], steps[0.1]
    assert np.linalg.norm(free) > 0.3
    np.testing.assert_allclose(np.linalg.norm(clipped), 0.1, rtol=1e-3)
    cosine = free @ clipped / (np.linalg.norm(free) * np.linalg.norm(clipped))
    assert cosine > 1 - 1e-6
