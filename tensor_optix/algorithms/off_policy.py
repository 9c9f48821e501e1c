"""What DQN, Rainbow, SAC and TD3 have in common: act and store, draw and learn, in rounds, inside one scan.

A window is `n_steps` steps of N environments. Every `train_every` steps a round of `updates` gradient steps follows,
once `warmup_steps` transitions are there; until then actions are uniform. All random numbers but the environments' own
are drawn in bulk before the scan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.algorithms.contract import Hyperparams, WindowStats
from tensor_optix.algorithms.flat_adam import Trained
from tensor_optix.core import prioritized, replay
from tensor_optix.core.finite import all_finite
from tensor_optix.core.prioritized import Priorities
from tensor_optix.core.replay import Replay, Transitions
from tensor_optix.core.search_space import SearchSpace, search_space
from tensor_optix.envs.vector import VectorEnv, VectorState
from tensor_optix.networks.torsos import ACTIVATIONS

Agent = Any  # what learns: networks, targets, moments; a pytree

MANY = 2**30

PRIORITY_HYPERPARAMS = {"per_alpha": 0.6, "per_beta": 0.4, "per_beta_steps": 1e6, "per_eps": 1e-6}
PRIORITY_LIMITS = {
    "per_alpha": (0.0, 2.0),
    "per_beta": (0.0, 1.0),
    "per_beta_steps": (1.0, 1e12),
    "per_eps": (0.0, 1.0),
}


@dataclass(frozen=True)
class OffPolicyConfig:
    """Everything static about collecting, storing and drawing. Changing a field recompiles."""

    n_envs: int = 1
    n_steps: int = 256  # of every environment in a window
    train_every: int = 1  # steps of every environment between rounds of updates
    updates: int = 1  # gradient steps in a round
    batch_size: int = 256
    replay_size: int = 100_000  # transitions
    warmup_steps: int = 1000  # transitions before the first update
    n_step: int = 1  # rewards summed before bootstrapping
    prioritized: bool = False
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "relu"

    def __post_init__(self) -> None:
        for name in ("n_envs", "n_steps", "train_every", "updates", "batch_size", "replay_size", "n_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_steps % self.train_every:
            raise ValueError(f"train_every must divide n_steps={self.n_steps}, got {self.train_every}")
        needed = max(self.batch_size, self.n_envs * self.n_step)
        if self.replay_size < needed:
            raise ValueError(f"replay_size must hold a batch and n_step rows ({needed}), got {self.replay_size}")
        if not self.n_envs * self.n_step <= self.warmup_steps <= self.replay_size:
            raise ValueError(
                f"warmup_steps must be from n_envs * n_step ({self.n_envs * self.n_step}) to replay_size "
                f"({self.replay_size}), got {self.warmup_steps}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")


class OffPolicyLearner(struct.PyTreeNode):
    """One learner: what it knows, what it has seen, where it stands."""

    agent: Agent
    replay: Replay
    priorities: Any  # Priorities, or () where all transitions are drawn alike
    env_state: VectorState  # N environments
    obs: jax.Array  # [N, *obs]
    steps: jax.Array  # [] int32, environment steps so far; stays at MANY, where every schedule has long ended
    updates: jax.Array  # [] int32, gradient steps so far

    @property
    def params(self) -> Any:
        """The agent's parameters without the optimisers' moments."""
        return jax.tree.map(lambda x: getattr(x, "params", x), self.agent, is_leaf=lambda x: isinstance(x, Trained))


@dataclass(frozen=True)
class OffPolicy(ABC):
    """The algorithm contract but for acting and updating, which a subclass gives. Hashable; all methods are pure."""

    env: VectorEnv
    config: Any

    config_type: ClassVar[type[OffPolicyConfig]]
    name: ClassVar[str]
    action_kinds: ClassVar[tuple[str, ...]]
    is_on_policy: ClassVar[bool] = False
    defaults: ClassVar[dict[str, float]]  # every hyperparameter but those of priorities
    limits: ClassVar[dict[str, tuple[float, float]]]
    bounds: ClassVar[dict[str, tuple[Any, ...]]]  # tuned online unless the caller says otherwise
    losses: ClassVar[tuple[str, ...]]  # what `update` reports

    # -- what a subclass gives -----------------------------------------------------------------------------

    @abstractmethod
    def init_agent(self, key: jax.Array, hyper: Hyperparams) -> Agent: ...

    @abstractmethod
    def draw_exploration(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """Random numbers for `explore`; a pytree with leading axes `shape` ([T, N])."""

    @abstractmethod
    def explore(self, agent: Agent, obs: jax.Array, noise: Any, hyper: Hyperparams, steps: jax.Array) -> jax.Array:
        """Actions [N] or [N, D] to learn from, after `steps` [] int32 environment steps."""

    @abstractmethod
    def draw_updates(self, key: jax.Array, count: int) -> Any:
        """Random numbers for `count` calls of `update`; a pytree with leading axis [count]."""

    @abstractmethod
    def update(
        self, agent: Agent, batch: Transitions, noise: Any, hyper: Hyperparams, updates: jax.Array
    ) -> tuple[Agent, jax.Array, dict[str, jax.Array]]:
        """One gradient step: the agent, temporal-difference errors [B], losses. `updates` [] int32 went before."""

    # -- what the driver asks ------------------------------------------------------------------------------

    @property
    def steps_per_window(self) -> int:
        return self.config.n_envs * self.config.n_steps

    def hyperparams(self) -> dict[str, float]:
        return {**self.defaults, **(PRIORITY_HYPERPARAMS if self.config.prioritized else {})}

    def hyperparam_limits(self) -> dict[str, tuple[float, float]]:
        return {**self.limits, **(PRIORITY_LIMITS if self.config.prioritized else {})}

    def search_space(self) -> SearchSpace:
        return search_space(self.bounds)

    def init(self, key: jax.Array, hyper: Hyperparams) -> OffPolicyLearner:
        key_agent, key_env, key_action = jax.random.split(key, 3)
        env_state, obs = self.env.reset(key_env, self.config.n_envs)
        action = self.env.sample_action(key_action, self.config.n_envs)
        stored = replay.init(self.config.replay_size, obs, action, self.env.max_episode_steps)
        return OffPolicyLearner(
            agent=self.init_agent(key_agent, hyper),
            replay=stored,
            priorities=self._no_priorities(),
            env_state=env_state,
            obs=obs,
            steps=jnp.int32(0),
            updates=jnp.int32(0),
        )

    def window(
        self, learner: OffPolicyLearner, hyper: Hyperparams, key: jax.Array
    ) -> tuple[OffPolicyLearner, WindowStats]:
        config = self.config
        rounds = config.n_steps // config.train_every
        key_steps, key_random, key_explore, key_draw, key_update = jax.random.split(key, 5)
        count = config.n_steps * config.n_envs
        random = self.env.sample_action(key_random, count)
        random = random.reshape(config.n_steps, config.n_envs, *random.shape[1:])
        acting = (jax.random.split(key_steps, config.n_steps), random, self._explorations(key_explore))
        n_updates = rounds * config.updates
        bits = self._draw_places(key_draw, n_updates)
        learning = (bits, self.draw_updates(key_update, n_updates))

        def in_rounds(tree: Any, each: int) -> Any:
            return jax.tree.map(lambda x: x.reshape(rounds, each, *x.shape[1:]), tree)

        def one_round(carry: tuple[Any, ...], xs: tuple[Any, Any]) -> tuple[tuple[Any, ...], None]:
            learner, finite, sums = carry
            learner, rewards_finite = self._collect(learner, hyper, xs[0])
            learner, losses = self._learn(learner, hyper, xs[1])
            return (learner, finite & rewards_finite, jax.tree.map(jnp.add, sums, losses)), None

        updates_before = learner.updates
        start = (learner, jnp.bool_(True), dict.fromkeys(self.losses, jnp.float32(0.0)))
        xs = (in_rounds(acting, config.train_every), in_rounds(learning, config.updates))
        (learner, finite, sums), _ = jax.lax.scan(one_round, start, xs)
        env_state, episodes = self.env.drain(learner.env_state)
        done = jnp.maximum(learner.updates - updates_before, 1).astype(jnp.float32)
        stats = WindowStats(
            return_sum=episodes.return_sum,
            episodes=episodes.episodes,
            finite=finite & all_finite(learner.agent),
            losses=jax.tree.map(lambda total: total / done, sums),
        )
        return learner.replace(env_state=env_state), stats

    def initial_carry(self) -> tuple[()]:
        return ()

    def snapshot(self, learner: OffPolicyLearner) -> Any:
        """What is learned. The replay is no part of it: what was seen stays seen."""
        return learner.agent

    def restore(self, learner: OffPolicyLearner, snapshot: Any) -> OffPolicyLearner:
        return learner.replace(agent=snapshot)

    def reset_envs(self, learner: OffPolicyLearner, key: jax.Array) -> OffPolicyLearner:
        """Fresh episodes and an empty replay: a fault may be in what was stored."""
        env_state, obs = self.env.reset(key, self.config.n_envs)
        return learner.replace(
            env_state=env_state,
            obs=obs,
            replay=replay.restart(learner.replay, obs),
            priorities=self._no_priorities(),
        )

    def replay_bytes(self) -> int:
        """Memory of one member's replay, priorities included."""
        learner = jax.eval_shape(lambda key: self.init(key, self._example()), jax.random.key(0))
        return replay.n_bytes((learner.replay, learner.priorities))

    # -- collecting ----------------------------------------------------------------------------------------

    def _collect(self, learner: OffPolicyLearner, hyper: Hyperparams, xs: Any) -> tuple[OffPolicyLearner, jax.Array]:
        """`train_every` steps of every environment; and whether all rewards were finite."""

        def step(carry: tuple[Any, jax.Array], xs: tuple[jax.Array, jax.Array, Any]) -> tuple[Any, None]:
            learner, finite = carry
            key, random, noise = xs
            action = self.explore(learner.agent, learner.obs, noise, hyper, learner.steps)
            action = jnp.where(learner.steps < self.config.warmup_steps, random, action)
            env_state, out = self.env.step(key, learner.env_state, action)
            stored = replay.add(
                learner.replay, action, out.reward, out.terminated, out.truncated, out.obs, out.final_obs
            )
            learner = learner.replace(
                replay=stored,
                priorities=self._prioritize_new(learner.priorities, stored, hyper),
                env_state=env_state,
                obs=out.obs,
                steps=jnp.minimum(learner.steps + self.config.n_envs, MANY),
            )
            return (learner, finite & jnp.isfinite(out.reward).all()), None

        carry = (learner, jnp.bool_(True))
        if self.config.train_every == 1:
            return step(carry, jax.tree.map(lambda x: x[0], xs))[0]
        return jax.lax.scan(step, carry, xs)[0]

    def _explorations(self, key: jax.Array) -> Any:
        return self.draw_exploration(key, (self.config.n_steps, self.config.n_envs))

    # -- learning ------------------------------------------------------------------------------------------

    def _learn(
        self, learner: OffPolicyLearner, hyper: Hyperparams, xs: Any
    ) -> tuple[OffPolicyLearner, dict[str, jax.Array]]:
        """A round of updates; summed losses. Nothing before the warm-up is over."""
        none = dict.fromkeys(self.losses, jnp.float32(0.0))
        moving = (learner.agent, learner.priorities, learner.updates, none)

        def learn(moving: tuple[Any, ...]) -> tuple[Any, ...]:
            update = partial(self._update, learner.replay, hyper, learner.steps)
            if self.config.updates == 1:
                return update(moving, jax.tree.map(lambda x: x[0], xs))[0]
            return jax.lax.scan(update, moving, xs)[0]

        ready = learner.replay.size * self.config.n_envs >= self.config.warmup_steps
        agent, priorities, updates, losses = jax.lax.cond(ready, learn, lambda moving: moving, moving)
        return learner.replace(agent=agent, priorities=priorities, updates=updates), losses

    def _update(
        self, stored: Replay, hyper: Hyperparams, steps: jax.Array, moving: tuple[Any, ...], xs: tuple[Any, Any]
    ) -> tuple[tuple[Any, ...], None]:
        agent, priorities, updates, sums = moving
        drawn, noise = xs
        place, weight = self._places(priorities, stored, drawn, hyper, steps)
        batch = replay.read(stored, place, self.config.n_step, hyper["gamma"])
        batch = batch.replace(weight=batch.weight * weight)
        agent, td_error, losses = self.update(agent, batch, noise, hyper, updates)
        if self.config.prioritized:
            priorities = prioritized.update(priorities, place, td_error, hyper["per_alpha"], hyper["per_eps"])
        return (agent, priorities, updates + 1, jax.tree.map(jnp.add, sums, losses)), None

    # -- which transitions ---------------------------------------------------------------------------------

    def _draw_places(self, key: jax.Array, count: int) -> jax.Array:
        if self.config.prioritized:
            return prioritized.draws(key, (count,), self.config.batch_size)
        return jax.random.bits(key, (count, self.config.batch_size), jnp.uint32)

    def _places(
        self, priorities: Any, stored: Replay, drawn: jax.Array, hyper: Hyperparams, steps: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Places int32 [B] and importance weights float32 [B]."""
        if not self.config.prioritized:
            return replay.draw(stored, drawn, self.config.n_step), jnp.ones(drawn.shape, jnp.float32)
        beta = prioritized.beta(steps, hyper["per_beta_steps"], hyper["per_beta"])
        n_rows = (stored.size - (self.config.n_step - 1)) * self.config.n_envs
        return prioritized.sample_at(priorities, drawn, n_rows, beta)

    def _no_priorities(self) -> Priorities | tuple[()]:
        if not self.config.prioritized:
            return ()
        n_envs = self.config.n_envs
        return prioritized.init(replay.rows_for(self.config.replay_size, n_envs) * n_envs)

    def _prioritize_new(self, priorities: Any, stored: Replay, hyper: Hyperparams) -> Any:
        """The row that is complete now may be drawn; the one that is written next may not."""
        if not self.config.prioritized:
            return priorities
        priorities = prioritized.remove(priorities, replay.current(stored))
        return prioritized.insert(priorities, replay.newest_ready(stored, self.config.n_step), hyper["per_alpha"])

    def _example(self) -> Hyperparams:
        return {name: jnp.float32(value) for name, value in self.hyperparams().items()}
