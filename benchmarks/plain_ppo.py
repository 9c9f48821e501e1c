"""Plain single-file PPO in JAX: the reference that the library's speed is measured against.

One jitted function trains from initialisation to the last step: a scan over updates, and inside it a scan over rollout
steps, a reverse scan for the advantages, and scans over epochs and minibatches; seeds run under `vmap`. It follows the
customs of single-file JAX PPOs (and of Huang et al. 2022, "The 37 implementation details of PPO"): the environment's
own auto-reset, `jax.random.permutation` for shuffling, a clipped value loss, an annealed learning rate, the episode
statistics of every step returned by the scan. An end by time limit counts as terminal, as it does there.

    python -m benchmarks.plain_ppo --seeds 4 --steps 200000
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._report import Row, arguments, emit, parse

ENV = "CartPole-v1"
N_ENVS = 4
N_STEPS = 128  # per environment and update
N_EPOCHS = 4
N_MINIBATCHES = 4
HIDDEN = 64
LEARNING_RATE = 2.5e-4  # annealed linearly to zero
GAMMA = 0.99
GAE_LAMBDA = 0.95
CLIP = 0.2
ENTROPY_COEF = 0.01
VALUE_COEF = 0.5
MAX_GRAD_NORM = 0.5

Params = dict[str, list[tuple[jax.Array, jax.Array]]]


class Transition(NamedTuple):
    """One step of every environment; the rollout scan stacks T of them."""

    obs: jax.Array  # [E, obs_dim] float32
    action: jax.Array  # [E] int32
    log_prob: jax.Array  # [E] float32, under the policy that acted
    value: jax.Array  # [E] float32
    reward: jax.Array  # [E] float32
    done: jax.Array  # [E] bool, the episode ended with this step


class EpisodeLog(NamedTuple):
    """Running statistics of the episodes in play."""

    episode_return: jax.Array  # [E] float32, so far
    episode_length: jax.Array  # [E] int32, so far
    returned: jax.Array  # [E] float32, return of the newest finished episode
    finished: jax.Array  # [E] bool, an episode finished with this step


def init_mlp(key: jax.Array, sizes: list[int], last_scale: float) -> list[tuple[jax.Array, jax.Array]]:
    """Orthogonal weights (gain sqrt 2, `last_scale` for the last layer) and zero biases."""
    scales = [2**0.5] * (len(sizes) - 2) + [last_scale]
    keys = jax.random.split(key, len(scales))
    return [
        (
            jax.nn.initializers.orthogonal(scale)(layer_key, (fan_in, fan_out), jnp.float32),
            jnp.zeros(fan_out, jnp.float32),
        )
        for layer_key, fan_in, fan_out, scale in zip(keys, sizes[:-1], sizes[1:], scales, strict=True)
    ]


def mlp(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for weights, bias in layers[:-1]:
        x = jnp.tanh(x @ weights + bias[None])
    weights, bias = layers[-1]
    return x @ weights + bias[None]


def forward(params: Params, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [N, n_actions] and values [N] of observations [N, obs_dim]."""
    return mlp(params["actor"], obs), mlp(params["critic"], obs)[:, 0]


def log_prob_of(logits: jax.Array, action: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=1)[:, 0]


def advantages_of(transitions: Transition, last_value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates (Schulman et al. 2016) and value targets, both [T, E]."""

    def backward(carry: tuple[jax.Array, jax.Array], step: Transition) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        advantage, next_value = carry
        running = jnp.where(step.done, 0.0, 1.0)
        delta = step.reward + GAMMA * next_value * running - step.value
        advantage = delta + GAMMA * GAE_LAMBDA * running * advantage
        return (advantage, step.value), advantage

    start = (jnp.zeros_like(last_value), last_value)
    _, advantages = jax.lax.scan(backward, start, transitions, reverse=True)
    return advantages, advantages + transitions.value


def loss_fn(params: Params, batch: Transition, advantage: jax.Array, target: jax.Array) -> jax.Array:
    """Clipped surrogate, clipped value loss and entropy bonus (Schulman et al. 2017, eq. 9)."""
    logits, value = forward(params, batch.obs)
    clipped_value = batch.value + jnp.clip(value - batch.value, -CLIP, CLIP)
    value_loss = 0.5 * jnp.maximum((value - target) ** 2, (clipped_value - target) ** 2).mean()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = jnp.exp(log_prob_of(logits, batch.action) - batch.log_prob)
    policy_loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP) * advantage).mean()
    log_probs = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return policy_loss + VALUE_COEF * value_loss - ENTROPY_COEF * entropy


def make_train(total_steps: int) -> Any:
    """`train(key) -> metrics` for one seed; the metrics hold the episode statistics of every step."""
    env, env_params = gymnax.make(ENV)
    n_updates = total_steps // (N_ENVS * N_STEPS)
    if n_updates < 1:
        raise ValueError(f"total_steps must be at least {N_ENVS * N_STEPS} (one update), got {total_steps}")
    batch_size = N_ENVS * N_STEPS

    def learning_rate(count: jax.Array) -> jax.Array:
        return LEARNING_RATE * (1.0 - (count // (N_EPOCHS * N_MINIBATCHES)) / n_updates)

    optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adam(learning_rate, eps=1e-5))

    def rollout_step(carry: Any, unused: None) -> tuple[Any, tuple[Transition, EpisodeLog]]:
        params, env_state, obs, log, key = carry
        key, key_act, key_step = jax.random.split(key, 3)
        logits, value = forward(params, obs)
        action = jax.random.categorical(key_act, logits)
        next_obs, env_state, reward, terminated, truncated, _ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            jax.random.split(key_step, N_ENVS), env_state, action, env_params
        )
        done = terminated | truncated
        episode_return = log.episode_return + reward
        log = EpisodeLog(
            episode_return=jnp.where(done, 0.0, episode_return),
            episode_length=jnp.where(done, 0, log.episode_length + 1),
            returned=jnp.where(done, episode_return, log.returned),
            finished=done,
        )
        transition = Transition(obs, action, log_prob_of(logits, action), value, reward, done)
        return (params, env_state, next_obs, log, key), (transition, log)

    def minibatch_step(carry: Any, minibatch: Any) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, *minibatch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def epoch(carry: Any, unused: None) -> tuple[Any, jax.Array]:
        params, opt_state, batch, key = carry
        key, key_shuffle = jax.random.split(key)
        order = jax.random.permutation(key_shuffle, batch_size)
        minibatches = jax.tree.map(lambda x: x[order].reshape(N_MINIBATCHES, -1, *x.shape[1:]), batch)
        (params, opt_state), losses = jax.lax.scan(minibatch_step, (params, opt_state), minibatches)
        return (params, opt_state, batch, key), losses.mean()

    def update(carry: Any, unused: None) -> tuple[Any, EpisodeLog]:
        params, opt_state, env_state, obs, log, key = carry
        rollout = (params, env_state, obs, log, key)
        (params, env_state, obs, log, key), (transitions, logs) = jax.lax.scan(rollout_step, rollout, None, N_STEPS)
        _, last_value = forward(params, obs)
        batch = (transitions, *advantages_of(transitions, last_value))
        batch = jax.tree.map(lambda x: x.reshape(batch_size, *x.shape[2:]), batch)
        (params, opt_state, batch, key), _ = jax.lax.scan(epoch, (params, opt_state, batch, key), None, N_EPOCHS)
        return (params, opt_state, env_state, obs, log, key), logs

    def train(key: jax.Array) -> EpisodeLog:
        key_actor, key_critic, key_reset, key = jax.random.split(key, 4)
        obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key_reset, N_ENVS), env_params)
        obs_dim, n_actions = obs.shape[-1], env.num_actions
        params = {
            "actor": init_mlp(key_actor, [obs_dim, HIDDEN, HIDDEN, n_actions], 0.01),
            "critic": init_mlp(key_critic, [obs_dim, HIDDEN, HIDDEN, 1], 1.0),
        }
        zeros = jnp.zeros(N_ENVS, jnp.float32)
        log = EpisodeLog(zeros, zeros.astype(jnp.int32), zeros, zeros.astype(bool))
        _, logs = jax.lax.scan(update, (params, optimizer.init(params), env_state, obs, log, key), None, n_updates)
        return logs  # every leaf is [n_updates, N_STEPS, N_ENVS]

    return train


@partial(jax.jit, static_argnames="total_steps")
def train(keys: jax.Array, total_steps: int) -> EpisodeLog:
    """Train one seed per key. Leaves of the result are [S, n_updates, N_STEPS, N_ENVS]."""
    return jax.vmap(make_train(total_steps))(keys)


def last_returns(logs: EpisodeLog, fraction: float = 0.05) -> np.ndarray:
    """Mean return of the episodes that finished in the last `fraction` of training, per seed [S]."""
    n_updates = logs.returned.shape[1]
    first = n_updates - max(1, int(n_updates * fraction))
    returned, finished = np.asarray(logs.returned[:, first:]), np.asarray(logs.finished[:, first:])
    return (returned * finished).sum((1, 2, 3)) / np.maximum(finished.sum((1, 2, 3)), 1)


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=600.0)
    parser.add_argument("--seeds", type=int, default=4, help="seeds trained at once under vmap")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps per seed")
    args = parse(parser)
    os.environ.setdefault("NPROC", "8")  # a larger thread pool for XLA, which can hang with two threads

    keys = jax.random.split(jax.random.key(0), args.seeds)
    start = time.perf_counter()
    compiled = train.lower(keys, total_steps=args.steps).compile()
    compile_s = time.perf_counter() - start
    start = time.perf_counter()
    logs = jax.block_until_ready(compiled(keys))
    run_s = time.perf_counter() - start
    returns = last_returns(logs)
    rows = [
        Row(f"{args.seeds} seeds: speed", logs.returned.size / run_s, "steps/s"),
        Row(f"{args.seeds} seeds: compile", compile_s, "s"),
        Row(f"{args.seeds} seeds: return over the last 5 %, mean", float(returns.mean()), ""),
        Row(f"{args.seeds} seeds: return over the last 5 %, worst", float(returns.min()), ""),
    ]
    emit("plain_ppo", rows, args.json)


if __name__ == "__main__":
    main()
