"""Proximal policy optimisation, compiled.

Schulman et al. 2017, "Proximal policy optimization algorithms", with generalised advantage estimation (Schulman et
al. 2016). Discrete and continuous actions, MLP and CNN torsos. Shapes and counts are in `PPOConfig`; every float
hyperparameter is a traced argument, so that members and tuners never recompile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from tensor_optix.algorithms.contract import Hyperparams, WindowStats
from tensor_optix.core import normalizers, returns
from tensor_optix.core.permutation import permutations
from tensor_optix.core.search_space import SearchSpace, search_space
from tensor_optix.core.sparse_rows import update_rows
from tensor_optix.envs.vector import EpisodeSums, VectorEnv, VectorState
from tensor_optix.networks.distributions import Categorical, DiagonalGaussian
from tensor_optix.networks.functional import Network, Params
from tensor_optix.networks.torsos import ACTIVATIONS, torso

HYPERPARAMS: dict[str, float] = {
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "entropy_coef": 0.0,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "adam_eps": 1e-5,
}

# Where each hyperparameter makes sense, both ends included.
LIMITS: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 1.0),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "clip_range": (0.0, 10.0),
    "entropy_coef": (0.0, 10.0),
    "value_coef": (0.0, 100.0),
    "max_grad_norm": (1e-6, 1e6),
    "adam_eps": (1e-12, 1.0),
}

# What is tuned online unless the caller says otherwise; the bounds are CONTRACT-wide for every PPO.
BOUNDS: dict[str, tuple[Any, ...]] = {
    "learning_rate": ("log", 1e-4, 3e-3),
    "gamma": (0.95, 0.999),
    "clip_range": (0.1, 0.3),
    "entropy_coef": (0.0, 0.05),
}


# What `window` and `update` report, means over their minibatches.
LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl")


@dataclass(frozen=True)
class PPOConfig:
    """Everything static about a PPO. Changing a field recompiles."""

    n_envs: int = 8
    n_steps: int = 128
    n_epochs: int = 4
    n_minibatches: int = 4
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    normalize_observations: bool = False
    normalize_rewards: bool = False
    normalize_advantages: bool = True
    clip_value: bool = False  # clip the value update by clip_range, as in the 2017 reference code
    anneal_windows: int = 0  # learning rate and clip range fall linearly to 0 over so many windows; 0: constant
    initial_log_std: float = 0.0  # continuous actions, in units of half the action range

    def __post_init__(self) -> None:
        for name in ("n_envs", "n_steps", "n_epochs", "n_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.anneal_windows < 0:
            raise ValueError(f"anneal_windows must be 0 (constant) or more, got {self.anneal_windows}")
        if (self.n_envs * self.n_steps) % self.n_minibatches:
            raise ValueError(
                f"n_minibatches must divide n_envs * n_steps: {self.n_minibatches} does not divide "
                f"{self.n_envs} * {self.n_steps} = {self.n_envs * self.n_steps}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")


class PPOPolicy(struct.PyTreeNode):
    """What acting needs."""

    actor: Params
    log_std: Any  # [action_dim] float32, or () for discrete actions
    moments: Any  # observation moments, or () without normalisation


class PPOLearner(struct.PyTreeNode):
    """One PPO learner: N environments, parameters, Adam moments, normalisers."""

    params: dict[str, Any]  # actor, critic; log_std with continuous actions
    opt: Any  # optax.ScaleByAdamState of the parameters as one flat vector [P]
    obs_moments: Any  # normalizers.Moments [*obs] or ()
    reward_scale: Any  # normalizers.RewardScale or ()
    env_state: VectorState  # N environments
    obs: jax.Array  # [N, *obs]
    window: jax.Array  # [] int32, windows learned so far


class Rollout(NamedTuple):
    """One window as collected, time first."""

    obs: jax.Array  # [T, N, *obs]
    action: jax.Array  # [T, N] int32 or [T, N, D] float32
    log_prob: jax.Array  # [T, N] float32
    reward: jax.Array  # [T, N] float32, raw
    terminated: jax.Array  # [T, N] bool
    truncated: jax.Array  # [T, N] bool
    final_obs: jax.Array  # [T, N, *obs], differs from the next obs where an episode ended


class Batch(NamedTuple):
    """Rows that the update draws minibatches from; leading axis T*N."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


@dataclass(frozen=True)
class PPO:
    """PPO on one environment: a hashable description whose methods are pure.

    Where nothing is collected (`init_params`, `init_opt`, `distribution`, `values`, `update`), anything with the shapes
    and the kind of actions may stand in the environment's place.
    """

    env: VectorEnv
    config: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    actor: Any = None  # with `init` and `apply` as a Network; instead of the torso that fits the observations
    critic: Any = None

    name = "ppo"
    config_type = PPOConfig
    action_kinds = ("discrete", "continuous")

    # -- what the driver asks ------------------------------------------------------------------------------

    @property
    def steps_per_window(self) -> int:
        return self.config.n_envs * self.config.n_steps

    def hyperparams(self) -> dict[str, float]:
        return dict(HYPERPARAMS)

    def hyperparam_limits(self) -> dict[str, tuple[float, float]]:
        return dict(LIMITS)

    def search_space(self) -> SearchSpace:
        return search_space(BOUNDS)

    def init(self, key: jax.Array, hyper: Hyperparams) -> PPOLearner:
        key_actor, key_critic, key_env = jax.random.split(key, 3)
        params = self.init_params(key_actor, key_critic)
        env_state, obs = self.env.reset(key_env, self.config.n_envs)
        return PPOLearner(
            params=params,
            opt=self.init_opt(params),
            obs_moments=normalizers.init_moments(self.env.obs_shape) if self.config.normalize_observations else (),
            reward_scale=normalizers.init_reward_scale(self.config.n_envs) if self.config.normalize_rewards else (),
            env_state=env_state,
            obs=obs,
            window=jnp.int32(0),
        )

    def window(self, learner: PPOLearner, hyper: Hyperparams, key: jax.Array) -> tuple[PPOLearner, WindowStats]:
        keys = jax.random.split(key, 2 + self.config.n_steps)
        env_state, obs, rollout, episodes = self._collect(learner, keys[1:])
        reward_scale, rewards = self._scale_rewards(learner.reward_scale, rollout, hyper)
        batch = self._batch(learner, rollout, rewards, obs, hyper)
        params, opt, losses = self._update(learner, batch, hyper, keys[0])
        obs_moments = learner.obs_moments
        if self.config.normalize_observations:  # after learning: acting and learning saw the same moments
            flat = rollout.obs.reshape(-1, *self.env.obs_shape)
            obs_moments = normalizers.update_moments(obs_moments, flat)
        learner = PPOLearner(params, opt, obs_moments, reward_scale, env_state, obs, learner.window + 1)
        stats = WindowStats(
            return_sum=episodes.return_sum,
            episodes=episodes.episodes,
            finite=_all_finite((ravel_pytree(params)[0], opt, obs_moments, reward_scale, rollout.reward)),
            losses=losses,
        )
        return learner, stats

    def policy(self, learner: PPOLearner) -> PPOPolicy:
        return PPOPolicy(learner.params["actor"], learner.params.get("log_std", ()), learner.obs_moments)

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

    def snapshot(self, learner: PPOLearner) -> Any:
        return (learner.params, learner.opt, learner.obs_moments, learner.reward_scale, learner.window)

    def restore(self, learner: PPOLearner, snapshot: Any) -> PPOLearner:
        params, opt, obs_moments, reward_scale, window = snapshot
        return learner.replace(
            params=params, opt=opt, obs_moments=obs_moments, reward_scale=reward_scale, window=window
        )

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
    def _discrete(self) -> bool:
        return self.env.action_kind == "discrete"

    @cached_property
    def _actor(self) -> Network:
        n_out = self.env.n_actions if self._discrete else self.env.action_dim
        return self.actor or self._network(n_out, head_gain=0.01)

    @cached_property
    def _critic(self) -> Network:
        return self.critic or self._network(1, head_gain=1.0)

    def _network(self, n_out: int, head_gain: float) -> Network:
        shape, sizes, act = self.env.obs_shape, self.config.hidden_sizes, self.config.activation
        return Network(lambda rngs: torso(shape, n_out, sizes, act, head_gain, rngs))

    def _distribution(self, actor: Params, log_std: Any, obs: jax.Array) -> Categorical | DiagonalGaussian:
        out = self._actor.apply(actor, obs)
        return Categorical(out) if self._discrete else DiagonalGaussian(out, jnp.broadcast_to(log_std, out.shape))

    def _value(self, critic: Params, obs: jax.Array) -> jax.Array:
        return self._critic.apply(critic, obs)[..., 0]

    def _normalize(self, moments: Any, obs: jax.Array) -> jax.Array:
        if self.config.normalize_observations:
            return normalizers.normalize(moments, obs)
        return obs if obs.dtype == jnp.float32 or len(self.env.obs_shape) == 3 else obs.astype(jnp.float32)

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

    def _scale_rewards(self, scale: Any, rollout: Rollout, hyper: Hyperparams) -> tuple[Any, jax.Array]:
        if not self.config.normalize_rewards:
            return scale, rollout.reward
        done = rollout.terminated | rollout.truncated
        return normalizers.scale_rewards(scale, rollout.reward, done, hyper["gamma"])

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
        """V(final observation) [T, N] where an episode was truncated, 0 elsewhere.

        Truncations are rare, so the critic runs only on the rows that have one, a few at a time.
        """
        mask = rollout.truncated.reshape(-1)
        flat = rollout.final_obs.reshape(-1, *self.env.obs_shape)

        def value(index: jax.Array) -> jax.Array:
            obs = jnp.take(flat, index, axis=0, mode="fill", fill_value=0)
            return self._value(learner.params["critic"], self._normalize(learner.obs_moments, obs))

        per_round = min(max(8, self.config.n_envs), mask.shape[0])
        out = update_rows(mask, value, jnp.zeros(mask.shape, jnp.float32), per_round)
        return out.reshape(rollout.truncated.shape)

    # -- learning ------------------------------------------------------------------------------------------

    def init_opt(self, params: Any) -> Any:
        """The optimiser's state before the first update."""
        return optax.scale_by_adam().init(ravel_pytree(params)[0])

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
            after, losses = self._step(unravel, batch, hyper, carry[0], order[i])
            return after, jax.tree.map(jnp.add, carry[1], losses)

        zeros = dict.fromkeys(LOSSES, jnp.float32(0.0))
        (flat, opt), sums = jax.lax.fori_loop(0, n_updates, step, ((flat, opt), zeros))
        return unravel(flat), opt, jax.tree.map(lambda x: x / n_updates.astype(jnp.float32), sums)

    def _update(
        self, learner: PPOLearner, batch: Batch, hyper: Hyperparams, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """`n_epochs` passes over the window in shuffled minibatches."""
        config, total = self.config, self.steps_per_window
        order = permutations(key, config.n_epochs, total)
        order = order.reshape(config.n_epochs * config.n_minibatches, total // config.n_minibatches)
        hyper = self._annealed(learner, hyper)
        flat, unravel = ravel_pytree(learner.params)
        step = partial(self._step, unravel, batch, hyper)
        (flat, opt), losses = jax.lax.scan(step, (flat, learner.opt), order)
        return unravel(flat), opt, jax.tree.map(partial(jnp.mean, axis=0), losses)

    def _step(
        self,
        unravel: Callable[[jax.Array], Any],
        batch: Batch,
        hyper: Hyperparams,
        carry: tuple[jax.Array, Any],
        index: jax.Array,
    ) -> tuple[tuple[jax.Array, Any], dict[str, jax.Array]]:
        """One minibatch, the rows `index` [M] of `batch`; the carry is (parameters, optimiser state).

        The optimiser works on one flat vector: a kernel for each leaf would cost more than the gradient itself.
        """
        flat, opt = carry
        adam = optax.scale_by_adam(eps=hyper["adam_eps"])
        clip = optax.clip_by_global_norm(hyper["max_grad_norm"])
        rows = jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), batch)
        grads, losses = jax.grad(self._loss, has_aux=True)(unravel(flat), rows, hyper)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer count with floats
            grads, _ = clip.update(ravel_pytree(grads)[0], optax.EmptyState())
            updates, opt = adam.update(grads, opt)
        return (flat - hyper["learning_rate"] * updates, opt), losses

    def _annealed(self, learner: PPOLearner, hyper: Hyperparams) -> Hyperparams:
        if not self.config.anneal_windows:
            return hyper
        done = learner.window.astype(jnp.float32) / jnp.float32(self.config.anneal_windows)
        left = jnp.maximum(jnp.float32(0.0), jnp.float32(1.0) - done)
        return hyper | {name: hyper[name] * left for name in ("learning_rate", "clip_range")}

    def _loss(self, params: Any, rows: Batch, hyper: Hyperparams) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate + value + entropy (equation 9 of Schulman et al. 2017); a minibatch of rows."""
        half, clip = jnp.float32(0.5), hyper["clip_range"]
        dist = self._distribution(params["actor"], params.get("log_std", ()), rows.obs)
        value = self._value(params["critic"], rows.obs)
        advantage = rows.advantage
        if self.config.normalize_advantages and advantage.shape[0] > 1:  # of one row nothing would be left
            advantage = (advantage - advantage.mean()) / (advantage.std() + jnp.float32(1e-8))
        log_ratio = dist.log_prob(rows.action) - rows.log_prob
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        squared = jnp.square(value - rows.target)
        if self.config.clip_value:
            bounded = rows.value + jnp.clip(value - rows.value, -clip, clip)
            squared = jnp.maximum(squared, jnp.square(bounded - rows.target))
        value_loss = half * squared.mean()
        entropy = dist.entropy().mean()
        loss = policy_loss + hyper["value_coef"] * value_loss - hyper["entropy_coef"] * entropy
        approx_kl = (ratio - 1 - log_ratio).mean()  # Schulman's k3 estimator
        return loss, dict(zip(LOSSES, (policy_loss, value_loss, entropy, approx_kl), strict=True))


def _all_finite(tree: Any) -> jax.Array:
    """[] bool: every float leaf is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def parameter_count(params: Any) -> int:
    """Number of scalars in a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
