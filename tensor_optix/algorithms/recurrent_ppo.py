"""PPO with a memory, compiled: for environments whose observations do not tell the state.

Schulman et al. 2017, with the memory of Hausknecht & Stone 2015, "Deep recurrent Q-learning for partially observable
MDPs": what it carries is kept from step to step and from window to window, zero where an episode starts. A window is
learned from in sequences; each begins with the carry that was there while collecting (the "stored state" of
Kapturowski et al. 2019, "Recurrent experience replay"), through which no gradient flows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tensor_optix.algorithms.clipped_surrogate import Batch, clipped_loss, descend_over
from tensor_optix.algorithms.contract import Hyperparams, WindowStats
from tensor_optix.algorithms.ppo_base import BasePPO, PPOLearner, PPOPolicy, Rollout
from tensor_optix.algorithms.ppo_sequences import SequencePPOConfig, cut, minibatches
from tensor_optix.core import normalizers, returns
from tensor_optix.core.finite import all_finite
from tensor_optix.envs.vector import EpisodeSums
from tensor_optix.networks.distributions import Categorical, DiagonalGaussian
from tensor_optix.networks.functional import Network, Params
from tensor_optix.networks.recurrent import CELLS, RecurrentNetwork, carry_size, forget


@dataclass(frozen=True)
class RecurrentPPOConfig(SequencePPOConfig):
    """Everything static about a recurrent PPO. Changing a field recompiles."""

    hidden_sizes: tuple[int, ...] = (64,)  # of the encoder before the memory
    cell: str = "lstm"  # or "gru"
    hidden_size: int = 64  # units of each memory, the actor's and the critic's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {self.hidden_size}")
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes must name a layer or more of the encoder before the memory, got none")


class RecurrentLearner(PPOLearner):
    """A PPO learner, and what the memories of its N environments carry."""

    carry: dict[str, jax.Array]  # actor, critic: [N, C] float32, zeros where `obs` starts an episode


class Trace(NamedTuple):
    """One window as collected, and what the actor's memory carried."""

    rollout: Rollout
    carry: jax.Array  # [T, N, C] float32, before each observation


class Sequences(NamedTuple):
    """What the update draws minibatches from: S sequences of L steps, each of one environment."""

    rows: Batch  # [S, L, ...]
    starts: jax.Array  # [S, L] bool, the observation starts an episode
    carry: dict[str, jax.Array]  # actor, critic: [S, C] float32, before the first observation


@dataclass(frozen=True)
class RecurrentPPO(BasePPO):
    """Recurrent PPO on one environment: a hashable description whose methods are pure.

    Actor and critic have a memory each: with a shared one MemoryChain was learned as fast and masked CartPole hardly at
    all, the critic's gradient outweighing the actor's (5 seeds of the presets).
    """

    config: RecurrentPPOConfig = dataclasses.field(default_factory=RecurrentPPOConfig)

    name = "recurrent_ppo"
    config_type = RecurrentPPOConfig

    # -- what the driver asks ------------------------------------------------------------------------------

    def init(self, key: jax.Array, hyper: Hyperparams) -> RecurrentLearner:
        config = self.config
        key_actor, key_critic, key_env = jax.random.split(key, 3)
        params = self.init_params(key_actor, key_critic)
        key_env, key_novelty = jax.random.split(key_env) if config.rnd else (key_env, key_env)
        env_state, obs = self.env.reset(key_env, config.n_envs)
        return RecurrentLearner(
            params=params,
            opt=self.init_opt(params),
            obs_moments=normalizers.init_moments(self.env.obs_shape) if config.normalize_observations else (),
            reward_scale=normalizers.init_reward_scale(config.n_envs) if config.normalize_rewards else (),
            novelty=self.init_novelty(key_novelty),
            env_state=env_state,
            obs=obs,
            window=jnp.int32(0),
            carry=self._fresh_carries(),
        )

    def window(
        self, learner: RecurrentLearner, hyper: Hyperparams, key: jax.Array
    ) -> tuple[RecurrentLearner, WindowStats]:
        key_shuffle, key_collect = jax.random.split(key)
        after, trace, episodes = self._collect(learner, key_collect)
        reward_scale, known, rewards = self._rewards(learner, trace.rollout, hyper)
        sequences, carry_critic = self._sequences(learner, trace, rewards, after.obs, hyper)
        params, opt, losses = self._update(learner, sequences, hyper, key_shuffle)
        after = after.replace(
            params=params,
            opt=opt,
            obs_moments=self._observed(learner, trace.rollout),
            reward_scale=reward_scale,
            novelty=known,
            window=learner.window + jnp.int32(1),
            carry={"actor": after.carry["actor"], "critic": carry_critic},
        )
        carried = (ravel_pytree(params)[0], opt, after.obs_moments, reward_scale, known, after.carry)
        stats = WindowStats(
            return_sum=episodes.return_sum,
            episodes=episodes.episodes,
            finite=all_finite((*carried, trace.rollout.reward)),
            losses=losses,
        )
        return after, stats

    def initial_carry(self) -> jax.Array:
        """[C] float32, of one environment; C is twice `hidden_size` for an LSTM, `hidden_size` for a GRU."""
        return jnp.zeros(carry_size(self.config.cell, self.config.hidden_size), jnp.float32)

    def act(
        self, policy: PPOPolicy, obs: jax.Array, carry: jax.Array, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Action [*batch] int32 or [*batch, D] float32, and the carry [*batch, C] after it.

        For observations [*batch, *obs] and carries [*batch, C]; a carry [C] stands for that of every observation.
        """
        dist, carry = self.distribution(policy, obs, carry)
        if deterministic:
            return dist.mode(), carry
        return dist.sample(dist.noise(key, dist.noise_shape)), carry

    def distribution(
        self, policy: PPOPolicy, obs: jax.Array, carry: jax.Array
    ) -> tuple[Categorical | DiagonalGaussian, jax.Array]:
        """The policy's action distribution for observations [*batch, *obs], and the carry [*batch, C] after them."""
        batch = obs.shape[: obs.ndim - len(self.env.obs_shape)]
        carry = jnp.broadcast_to(carry, (*batch, carry.shape[-1]))
        normalized = self._normalize(policy.moments, obs)
        out, carry = self._actor.apply(policy.actor, normalized, carry)
        return self._as_distribution(out, policy.log_std, normalized), carry

    def reset_envs(self, learner: RecurrentLearner, key: jax.Array) -> RecurrentLearner:
        env_state, obs = self.env.reset(key, self.config.n_envs)
        return learner.replace(env_state=env_state, obs=obs, carry=self._fresh_carries())

    # -- networks ------------------------------------------------------------------------------------------

    def init_params(self, key_actor: jax.Array, key_critic: jax.Array) -> dict[str, Any]:
        """Fresh parameters: actor, critic, and log_std [D] with continuous actions."""
        params = {"actor": self._actor.init(key_actor), "critic": self._critic.init(key_critic)}
        if not self._discrete:
            params["log_std"] = jnp.full((self.env.action_dim,), self.config.initial_log_std, jnp.float32)
        return params

    @cached_property
    def _actor(self) -> Network:
        return self._network(self.env.n_actions if self._discrete else self.env.action_dim, head_gain=0.01)

    @cached_property
    def _critic(self) -> Network:
        return self._network(1, head_gain=1.0)

    def _network(self, n_out: int, head_gain: float) -> Network:
        shape, config = self.env.obs_shape, self.config
        sizes = (config.hidden_sizes, config.activation, config.cell, config.hidden_size)
        return Network(lambda rngs: RecurrentNetwork(shape, n_out, *sizes, head_gain, rngs))

    def _as_distribution(self, out: jax.Array, log_std: Any, obs: jax.Array) -> Categorical | DiagonalGaussian:
        if self._discrete:
            return self._categorical(out, obs)
        return DiagonalGaussian(out, jnp.broadcast_to(log_std, out.shape))

    def _values(self, critic: Params, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Values [...] and carries [..., C] for the inputs of `RecurrentNetwork`."""
        out, carry = self._critic.apply(critic, *inputs)
        return out[..., 0], carry

    def _fresh_carries(self) -> dict[str, jax.Array]:
        carry = self.initial_carry()
        return {name: jnp.zeros((self.config.n_envs, *carry.shape), carry.dtype) for name in ("actor", "critic")}

    # -- collecting ----------------------------------------------------------------------------------------

    def _collect(self, learner: RecurrentLearner, key: jax.Array) -> tuple[RecurrentLearner, Trace, EpisodeSums]:
        """`n_steps` steps of every environment: the learner with environments and actor's memory moved on, the trace.

        The critic's memory is left for later: it sees the whole window at once.
        """
        keys = jax.random.split(key, 1 + self.config.n_steps)
        policy = self.policy(learner)
        kind = Categorical if self._discrete else DiagonalGaussian
        tail = () if self._discrete else (self.env.action_dim,)
        noise = kind.noise(keys[0], (self.config.n_steps, self.config.n_envs, *tail))

        def step(state: tuple[Any, ...], xs: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, ...], Trace]:
            env_state, obs, carry = state
            noise_t, key_step = xs
            dist, after = self.distribution(policy, obs, carry)
            action = dist.sample(noise_t)
            env_state, out = self.env.step(key_step, env_state, action)
            row = Rollout(obs, action, dist.log_prob(action), out.reward, out.terminated, out.truncated, out.final_obs)
            return (env_state, out.obs, forget(after, out.done)), Trace(row, carry)

        start = (learner.env_state, learner.obs, learner.carry["actor"])
        (env_state, obs, carry), trace = jax.lax.scan(step, start, (noise, keys[1:]))
        env_state, episodes = self.env.drain(env_state)
        after = learner.replace(env_state=env_state, obs=obs, carry={**learner.carry, "actor": carry})
        return after, trace, episodes

    def _sequences(
        self, learner: RecurrentLearner, trace: Trace, rewards: jax.Array, last_obs: jax.Array, hyper: Hyperparams
    ) -> tuple[Sequences, jax.Array]:
        """The window in sequences, with values, advantages and targets; and the critic's carry [N, C] after it."""
        rollout = trace.rollout
        obs = self._normalize(learner.obs_moments, jnp.concatenate([rollout.obs, last_obs[None]]))
        done = rollout.terminated | rollout.truncated
        starts = jnp.concatenate([jnp.zeros_like(done[:1]), done])  # a carry that is kept is zero already
        values, after = self._values(learner.params["critic"], obs, learner.carry["critic"], starts)
        before = forget(jnp.concatenate([learner.carry["critic"][None], after[:-1]]), starts)
        next_values = returns.next_values(
            values[:-1], values[-1], done, self._final_values(learner, rollout, after[:-1])
        )
        advantages, targets = returns.gae(
            rewards, values[:-1], next_values, rollout.terminated, done, hyper["gamma"], hyper["gae_lambda"]
        )
        rows = Batch(obs[:-1], rollout.action, rollout.log_prob, values[:-1], advantages, targets)
        rows, starts = jax.tree.map(partial(cut, self.config), (rows, starts[:-1]))
        carry = {"actor": cut(self.config, trace.carry)[:, 0], "critic": cut(self.config, before[:-1])[:, 0]}
        return Sequences(rows, starts, carry), before[-1]

    def _final_values(self, learner: RecurrentLearner, rollout: Rollout, carry: jax.Array) -> jax.Array:
        """V(final observation) [T, N] where an episode was truncated, 0 elsewhere, with what the memory carried then.

        carry: [T, N, C], after the observation acted on.
        """
        flat = rollout.final_obs.reshape(-1, *self.env.obs_shape), carry.reshape(-1, carry.shape[-1])

        def value(index: jax.Array) -> jax.Array:
            obs, before = (jnp.take(x, index, axis=0, mode="fill", fill_value=0) for x in flat)
            return self._values(learner.params["critic"], self._normalize(learner.obs_moments, obs), before)[0]

        return self._at_truncations(rollout.truncated, value)

    # -- learning ------------------------------------------------------------------------------------------

    def _update(
        self, learner: RecurrentLearner, sequences: Sequences, hyper: Hyperparams, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """`n_epochs` passes over the window in shuffled minibatches of whole sequences."""
        hyper = self._annealed(learner, hyper)
        return descend_over(minibatches(self.config, key), sequences, learner.params, learner.opt, self._loss, hyper)

    def _loss(self, params: Any, drawn: Sequences, hyper: Hyperparams) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of a minibatch of M sequences."""
        rows, starts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (drawn.rows, drawn.starts))  # [L, M, ...]
        out, _ = self._actor.apply(params["actor"], rows.obs, drawn.carry["actor"], starts)
        value, _ = self._values(params["critic"], rows.obs, drawn.carry["critic"], starts)
        dist = self._as_distribution(out, params.get("log_std", ()), rows.obs)
        return clipped_loss(dist, value, rows, hyper, self.config.normalize_advantages, self.config.clip_value)
