"""Proximal policy optimisation, compiled.

Schulman et al. 2017, "Proximal policy optimization algorithms", with generalised advantage estimation (Schulman et
al. 2016). Discrete and continuous actions, MLP and CNN torsos. Shapes and counts are in `PPOConfig`; every float
hyperparameter is a traced argument, so that members and tuners never recompile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tensor_optix.algorithms.clipped_surrogate import (
    LOSSES,
    Batch,
    clipped_loss,
    descend,
    descend_over,
    rows_at,
)
from tensor_optix.algorithms.contract import Hyperparams, WindowStats
from tensor_optix.algorithms.ppo_base import (
    BOUNDS,
    HYPERPARAMS,
    LIMITS,
    BasePPO,
    PPOConfig,
    PPOLearner,
    PPOPolicy,
    Rollout,
)
from tensor_optix.core import normalizers, returns
from tensor_optix.core.finite import all_finite
from tensor_optix.core.permutation import permutations
from tensor_optix.envs.vector import EpisodeSums, VectorState
from tensor_optix.networks.distributions import Categorical, DiagonalGaussian
from tensor_optix.networks.functional import Network, Params
from tensor_optix.networks.own import Places, place
from tensor_optix.networks.torsos import torso


@dataclass(frozen=True)
class PPO(BasePPO):
    """PPO on one environment: a hashable description whose methods are pure.

    Where nothing is collected (`init_params`, `init_opt`, `distribution`, `values`, `update`), anything with the shapes
    and the kind of actions may stand in the environment's place.
    """

    actor: Any = None  # with `init` and `apply` as a Network; instead of the torso that fits the observations
    critic: Any = None

    name = "ppo"
    config_type = PPOConfig

    # -- what the driver asks ------------------------------------------------------------------------------

    def places(self) -> Places:
        # Normalised observations are float32, and so are all that are no images.
        is_image = len(self.env.obs_shape) == 3 and not self.config.normalize_observations
        obs = (self.env.obs_shape, self.env.obs_dtype if is_image else jnp.float32)
        return {"actor": place(obs, outputs=self._n_out), "critic": place(obs, outputs=1)}

    def init(self, key: jax.Array, hyper: Hyperparams) -> PPOLearner:
        key_actor, key_critic, key_env = jax.random.split(key, 3)
        params = self.init_params(key_actor, key_critic)
        key_env, key_novelty = jax.random.split(key_env) if self.config.rnd else (key_env, key_env)
        env_state, obs = self.env.reset(key_env, self.config.n_envs)
        return PPOLearner(
            params=params,
            opt=self.init_opt(params),
            obs_moments=normalizers.init_moments(self.env.obs_shape) if self.config.normalize_observations else (),
            reward_scale=normalizers.init_reward_scale(self.config.n_envs) if self.config.normalize_rewards else (),
            novelty=self.init_novelty(key_novelty),
            env_state=env_state,
            obs=obs,
            window=jnp.int32(0),
        )

    def window(self, learner: PPOLearner, hyper: Hyperparams, key: jax.Array) -> tuple[PPOLearner, WindowStats]:
        keys = jax.random.split(key, 2 + self.config.n_steps)
        env_state, obs, rollout, episodes = self._collect(learner, keys[1:])
        reward_scale, known, rewards = self._rewards(learner, rollout, hyper)
        batch = self._batch(learner, rollout, rewards, obs, hyper)
        params, opt, losses = self._update(learner, batch, hyper, keys[0])
        obs_moments = self._observed(learner, rollout)
        learner = PPOLearner(params, opt, obs_moments, reward_scale, known, env_state, obs, learner.window + 1)
        stats = WindowStats(
            return_sum=episodes.return_sum,
            episodes=episodes.episodes,
            finite=all_finite((ravel_pytree(params)[0], opt, obs_moments, reward_scale, known, rollout.reward)),
            losses=losses,
        )
        return learner, stats

    def initial_carry(self) -> tuple[()]:
        return ()

    def act(
        self, policy: PPOPolicy, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Action [*batch] int32 or [*batch, D] float32 for observations [*batch, *obs]."""
        dist = self.distribution(policy, obs)
        if deterministic:
            return dist.mode(), carry
        return dist.sample(dist.noise(key, dist.noise_shape)), carry

    def distribution(self, policy: PPOPolicy, obs: jax.Array) -> Categorical | DiagonalGaussian:
        """The policy's action distribution for observations [*batch, *obs]."""
        return self._distribution(policy.actor, policy.log_std, self._normalize(policy.moments, obs))

    def reset_envs(self, learner: PPOLearner, key: jax.Array) -> PPOLearner:
        env_state, obs = self.env.reset(key, self.config.n_envs)
        return learner.replace(env_state=env_state, obs=obs)

    # -- networks ------------------------------------------------------------------------------------------

    def init_params(self, key_actor: jax.Array, key_critic: jax.Array) -> dict[str, Any]:
        """Fresh parameters: actor, critic, and log_std [D] with continuous actions."""
        params = {"actor": self._actor.init(key_actor), "critic": self._critic.init(key_critic)}
        if not self._discrete:
            params["log_std"] = jnp.full((self.env.action_dim,), self.config.initial_log_std, jnp.float32)
        return params

    def values(self, params: Any, obs: jax.Array) -> jax.Array:
        """[*batch] float32 for observations [*batch, *obs]."""
        return self._value(params["critic"], obs)

    @property
    def _n_out(self) -> int:
        return self.env.n_actions if self._discrete else self.env.action_dim

    @cached_property
    def _actor(self) -> Network:
        return self.actor or self._network(self._n_out, head_gain=0.01)

    @cached_property
    def _critic(self) -> Network:
        return self.critic or self._network(1, head_gain=1.0)

    def _network(self, n_out: int, head_gain: float) -> Network:
        shape, sizes, act = self.env.obs_shape, self.config.hidden_sizes, self.config.activation
        return Network(lambda rngs: torso(shape, n_out, sizes, act, head_gain, rngs))

    def _distribution(self, actor: Params, log_std: Any, obs: jax.Array) -> Categorical | DiagonalGaussian:
        out = self._actor.apply(actor, obs)
        if self._discrete:
            return self._categorical(out, obs)
        return DiagonalGaussian(out, jnp.broadcast_to(log_std, out.shape))

    def _value(self, critic: Params, obs: jax.Array) -> jax.Array:
        return self._critic.apply(critic, obs)[..., 0]

    # -- collecting ----------------------------------------------------------------------------------------

    def _collect(self, learner: PPOLearner, keys: jax.Array) -> tuple[VectorState, jax.Array, Rollout, EpisodeSums]:
        """`n_steps` steps of every environment; keys [1 + n_steps]: one for all actions, one for each step.

        Only the actor runs inside the scan, and no random bits but the environment's own are drawn there: batching both
        is cheaper.
        """
        n_envs, n_steps = self.config.n_envs, self.config.n_steps
        policy = self.policy(learner)
        kind = Categorical if self._discrete else DiagonalGaussian
        tail = () if self._discrete else (self.env.action_dim,)
        noise = kind.noise(keys[0], (n_steps, n_envs, *tail))

        def step(carry: tuple[Any, ...], xs: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, ...], Rollout]:
            env_state, obs = carry
            noise_t, key_step = xs
            dist = self.distribution(policy, obs)
            action = dist.sample(noise_t)
            env_state, out = self.env.step(key_step, env_state, action)
            row = Rollout(obs, action, dist.log_prob(action), out.reward, out.terminated, out.truncated, out.final_obs)
            return (env_state, out.obs), row

        (env_state, obs), rollout = jax.lax.scan(step, (learner.env_state, learner.obs), (noise, keys[1:]))
        env_state, episodes = self.env.drain(env_state)
        return env_state, obs, rollout, episodes

    def _batch(
        self, learner: PPOLearner, rollout: Rollout, rewards: jax.Array, last_obs: jax.Array, hyper: Hyperparams
    ) -> Batch:
        """Values, advantages and targets of a window, rows flattened to [T*N, ...]."""
        critic = learner.params["critic"]
        obs = self._normalize(learner.obs_moments, jnp.concatenate([rollout.obs, last_obs[None]]))
        values = self._value(critic, obs)
        done = rollout.terminated | rollout.truncated
        next_values = returns.next_values(values[:-1], values[-1], done, self._final_values(learner, rollout))
        advantages, targets = returns.gae(
            rewards, values[:-1], next_values, rollout.terminated, done, hyper["gamma"], hyper["gae_lambda"]
        )
        rows = Batch(obs[:-1], rollout.action, rollout.log_prob, values[:-1], advantages, targets)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def _final_values(self, learner: PPOLearner, rollout: Rollout) -> jax.Array:
        """V(final observation) [T, N] where an episode was truncated, 0 elsewhere."""
        flat = rollout.final_obs.reshape(-1, *self.env.obs_shape)

        def value(index: jax.Array) -> jax.Array:
            obs = jnp.take(flat, index, axis=0, mode="fill", fill_value=0)
            return self._value(learner.params["critic"], self._normalize(learner.obs_moments, obs))

        return self._at_truncations(rollout.truncated, value)

    # -- learning ------------------------------------------------------------------------------------------

    def update(
        self, params: Any, opt: Any, batch: Batch, order: jax.Array, n_updates: jax.Array, hyper: Hyperparams
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """`n_updates` steps on rows that came from elsewhere: parameters, optimiser state, mean losses.

        Args:
            batch: the rows; advantages not normalised.
            order: [U, M] int32, the rows of each minibatch; those from `n_updates` on are not used.
            n_updates: [] int32, at least 1, traced: windows of many lengths share one program.
            hyper: all but gamma and gae_lambda are read.
        """
        flat, unravel = ravel_pytree(params)

        def step(i: jax.Array, carry: tuple[Any, dict[str, jax.Array]]) -> tuple[Any, dict[str, jax.Array]]:
            loss = partial(self._loss, rows=rows_at(batch, order[i]), hyper=hyper)
            after, losses = descend(loss, unravel, hyper, carry[0])
            return after, jax.tree.map(jnp.add, carry[1], losses)

        zeros = dict.fromkeys(LOSSES, jnp.float32(0.0))
        (flat, opt), sums = jax.lax.fori_loop(0, n_updates, step, ((flat, opt), zeros))
        return unravel(flat), opt, jax.tree.map(lambda x: x / n_updates.astype(jnp.float32), sums)

    def _update(
        self, learner: PPOLearner, batch: Batch, hyper: Hyperparams, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """`n_epochs` passes over the window in shuffled minibatches."""
        config, hyper = self.config, self._annealed(learner, hyper)
        order = permutations(key, config.n_epochs, self.steps_per_window)
        order = order.reshape(config.n_epochs * config.n_minibatches, -1)
        return descend_over(order, batch, learner.params, learner.opt, self._loss, hyper)

    def _loss(self, params: Any, rows: Batch, hyper: Hyperparams) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of a minibatch of rows."""
        dist = self._distribution(params["actor"], params.get("log_std", ()), rows.obs)
        value = self._value(params["critic"], rows.obs)
        return clipped_loss(dist, value, rows, hyper, self.config.normalize_advantages, self.config.clip_value)


def parameter_count(params: Any) -> int:
    """Number of scalars in a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


__all__ = ["BOUNDS", "HYPERPARAMS", "LIMITS", "PPO", "Batch", "PPOConfig", "PPOLearner", "PPOPolicy", "Rollout"]
