"""What DQN, Rainbow, SAC and TD3 have in common: act and store, draw and learn, in rounds, inside one scan.

A window is `n_steps` steps of N environments. Every `train_every` steps a round of `updates` gradient steps follows,
once `warmup_steps` transitions are there; until then actions are uniform. All random numbers but the environments' own
are drawn in bulk before the scan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.algorithms import novelty_bonus
from tensor_optix.algorithms.contract import Hyperparams, WindowStats
from tensor_optix.algorithms.flat_adam import Trained, perturbed
from tensor_optix.algorithms.off_policy_config import OffPolicyConfig, optional_hyperparams, optional_limits
from tensor_optix.core import achieved_goals, novelty, prioritized, replay
from tensor_optix.core.action_mask import choose
from tensor_optix.core.finite import all_finite
from tensor_optix.core.prioritized import Priorities
from tensor_optix.core.replay import Replay, Transitions
from tensor_optix.core.search_space import SearchSpace, search_space
from tensor_optix.envs.parts import Goals
from tensor_optix.envs.vector import StepOut, VectorEnv, VectorState
from tensor_optix.networks.own import Places

Agent = Any  # what learns: networks, targets, moments; a pytree

MANY = 2**30


class OffPolicyLearner(struct.PyTreeNode):
    """One learner: what it knows, what it has seen, where it stands."""

    agent: Agent
    replay: Replay
    priorities: Any  # Priorities, or () where all transitions are drawn alike
    goals: Any  # AchievedGoals, or () without hindsight
    novelty: Any  # Novelty, or () without a bonus for it
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
    defaults: ClassVar[dict[str, float]]  # every hyperparameter but those that options bring
    limits: ClassVar[dict[str, tuple[float, float]]]
    bounds: ClassVar[dict[str, tuple[Any, ...]]]  # tuned online unless the caller says otherwise
    losses: ClassVar[tuple[str, ...]]  # what `update` reports
    networks: ClassVar[tuple[str, ...]]  # fields of the agent, each a `Trained`
    follows: ClassVar[dict[str, str]]  # field with a target's parameters -> the network that it follows

    def __post_init__(self) -> None:
        if self.config.hindsight not in ("auto", "off") and self.env.goals is None:
            raise ValueError(
                f"hindsight={self.config.hindsight!r} needs an environment with goals, and {self.env.name} has none: "
                "its observation must be a Dict with achieved_goal and desired_goal, Boxes of one shape, and it must "
                "have compute_reward"
            )

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
        return {**self.defaults, **optional_hyperparams(self.config, bool(self._hindsight))}

    def hyperparam_limits(self) -> dict[str, tuple[float, float]]:
        return {**self.limits, **optional_limits(self.config, bool(self._hindsight))}

    def places(self) -> Places:
        """None, unless a subclass has some."""
        return {}

    def search_space(self) -> SearchSpace:
        return search_space(self.bounds)

    def init(self, key: jax.Array, hyper: Hyperparams) -> OffPolicyLearner:
        key_agent, key_env, key_action = jax.random.split(key, 3)
        key_agent, key_novelty = jax.random.split(key_agent) if self.config.rnd else (key_agent, key_agent)
        env_state, obs = self.env.reset(key_env, self.config.n_envs)
        action = self.env.sample_action(key_action, self.config.n_envs)
        stored = replay.init(self.config.replay_size, obs, action, self.env.max_episode_steps)
        return OffPolicyLearner(
            agent=self.init_agent(key_agent, hyper),
            replay=stored,
            priorities=self._no_priorities(),
            goals=achieved_goals.init(stored.end.shape[0], self._goals.reached(obs)) if self._hindsight else (),
            novelty=novelty.init(key_novelty, self.env.obs_shape) if self.config.rnd else (),
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
        acting = (
            jax.random.split(key_steps, config.n_steps),
            self._draw_random(key_random),
            self.draw_exploration(key_explore, (config.n_steps, config.n_envs)),
        )
        n_updates = rounds * config.updates
        key_update, key_goals = jax.random.split(key_update) if self._hindsight else (key_update, key_update)
        learning = (
            self._draw_places(key_draw, n_updates),
            self.draw_updates(key_update, n_updates),
            jax.random.split(key_goals, n_updates) if self._hindsight else (),
        )

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
            finite=finite & all_finite((learner.agent, learner.novelty)),
            losses=jax.tree.map(lambda total: total / done, sums),
        )
        return learner.replace(env_state=env_state), stats

    def initial_carry(self) -> tuple[()]:
        return ()

    def snapshot(self, learner: OffPolicyLearner) -> Any:
        """What is learned. The replay is no part of it: what was seen stays seen."""
        return learner.agent, learner.novelty

    def restore(self, learner: OffPolicyLearner, snapshot: Any) -> OffPolicyLearner:
        agent, known = snapshot
        return learner.replace(agent=agent, novelty=known)

    def perturb(self, learner: OffPolicyLearner, key: jax.Array, noise: jax.Array) -> OffPolicyLearner:
        """What acts and what judges; a temperature is no weight."""
        trained = {name: getattr(learner.agent, name) for name in self.networks}
        noisy = perturbed({name: part.params for name, part in trained.items()}, key, noise)
        parts = {name: part.replace(params=noisy[name]) for name, part in trained.items()}
        targets = {target: noisy[name] for target, name in self.follows.items()}
        return learner.replace(agent=learner.agent.replace(**parts, **targets))

    def reset_envs(self, learner: OffPolicyLearner, key: jax.Array) -> OffPolicyLearner:
        """Fresh episodes and an empty replay: a fault may be in what was stored."""
        env_state, obs = self.env.reset(key, self.config.n_envs)
        return learner.replace(
            env_state=env_state,
            obs=obs,
            replay=replay.restart(learner.replay, obs),
            priorities=self._no_priorities(),
            goals=achieved_goals.restart(learner.goals) if self._hindsight else (),
        )

    def replay_bytes(self) -> int:
        """Memory of one member's replay, priorities and achieved goals included."""
        learner = jax.eval_shape(lambda key: self.init(key, self._example()), jax.random.key(0))
        return replay.n_bytes((learner.replay, learner.priorities, learner.goals))

    # -- collecting ----------------------------------------------------------------------------------------

    def _collect(self, learner: OffPolicyLearner, hyper: Hyperparams, xs: Any) -> tuple[OffPolicyLearner, jax.Array]:
        """`train_every` steps of every environment; and whether all rewards were finite."""

        def step(carry: tuple[Any, jax.Array], xs: tuple[jax.Array, jax.Array, Any]) -> tuple[Any, None]:
            learner, finite = carry
            key, random, noise = xs
            action = self.explore(learner.agent, learner.obs, noise, hyper, learner.steps)
            action = jnp.where(learner.steps < self.config.warmup_steps, self.allowed(random, learner.obs), action)
            env_state, out = self.env.step(key, learner.env_state, action)
            stored = replay.add(
                learner.replay, action, out.reward, out.terminated, out.truncated, out.obs, out.final_obs
            )
            learner = learner.replace(
                replay=stored,
                priorities=self._prioritize_new(learner.priorities, stored, hyper),
                goals=self._reached(learner, out),
                env_state=env_state,
                obs=out.obs,
                steps=jnp.minimum(learner.steps + self.config.n_envs, MANY),
            )
            return (learner, finite & jnp.isfinite(out.reward).all()), None

        carry = (learner, jnp.bool_(True))
        if self.config.train_every == 1:
            return step(carry, jax.tree.map(lambda x: x[0], xs))[0]
        return jax.lax.scan(step, carry, xs)[0]

    def _draw_random(self, key: jax.Array) -> jax.Array:
        """What the actions before the end of the warm-up are made of: [T, N], or [T, N, D]."""
        shape = self.config.n_steps, self.config.n_envs
        if self.env.mask is not None:
            return self.draw_choices(key, shape)
        actions = self.env.sample_action(key, shape[0] * shape[1])
        return actions.reshape(*shape, *actions.shape[1:])

    def draw_choices(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What `allowed` makes discrete actions of, each alike: actions, or random bits where masks decide."""
        if self.env.mask is not None:
            return jax.random.bits(key, shape, jnp.uint32)
        return jax.random.randint(key, shape, 0, self.env.n_actions, jnp.int32)

    def allowed(self, drawn: jax.Array, obs: jax.Array) -> jax.Array:
        """Actions [*batch] that observations [*batch, *obs] allow; what is drawn without masks is one already."""
        mask = self.env.action_mask(obs)
        return drawn if mask is None else choose(drawn, mask)

    def _reached(self, learner: OffPolicyLearner, out: StepOut) -> Any:
        if not self._hindsight:
            return ()
        return achieved_goals.add(learner.goals, learner.replay.cursor, self._goals.reached(out.final_obs), out.done)

    # -- learning ------------------------------------------------------------------------------------------

    def _learn(
        self, learner: OffPolicyLearner, hyper: Hyperparams, xs: Any
    ) -> tuple[OffPolicyLearner, dict[str, jax.Array]]:
        """A round of updates; summed losses. Nothing before the warm-up is over."""
        none = dict.fromkeys(self.losses, jnp.float32(0.0))
        moving = (learner.agent, learner.novelty, learner.priorities, learner.updates, none)

        def learn(moving: tuple[Any, ...]) -> tuple[Any, ...]:
            update = partial(self._update, learner, hyper)
            if self.config.updates == 1:
                return update(moving, jax.tree.map(lambda x: x[0], xs))[0]
            return jax.lax.scan(update, moving, xs)[0]

        ready = learner.replay.size * self.config.n_envs >= self.config.warmup_steps
        agent, known, priorities, updates, losses = jax.lax.cond(ready, learn, lambda moving: moving, moving)
        return learner.replace(agent=agent, novelty=known, priorities=priorities, updates=updates), losses

    def _update(
        self, seen: OffPolicyLearner, hyper: Hyperparams, moving: tuple[Any, ...], xs: tuple[Any, Any, Any]
    ) -> tuple[tuple[Any, ...], None]:
        """One update from what `seen` has stored; what it knows is older than what is moving."""
        agent, known, priorities, updates, sums = moving
        drawn, noise, key_goals = xs
        place, weight = self._places(priorities, seen.replay, drawn, hyper, seen.steps)
        batch = replay.read(seen.replay, place, self.config.n_step, hyper["gamma"])
        batch = batch.replace(weight=batch.weight * weight)
        if self._hindsight:
            ways = (self._hindsight, hyper["hindsight_share"], self._goals.wanting, self.env.goal_worth)
            batch = achieved_goals.relabel(seen.goals, seen.replay, batch, place, key_goals, *ways)
        if self.config.rnd:
            # By what is known now: a bonus that was stored would be that of long ago. A task's last observation is not
            # kept, so it brings none. It comes with the last of the n rewards.
            follows = (batch.discount > 0) & (batch.weight > 0)
            known, bonus = novelty_bonus.rewarded(known, batch.next_obs, follows.astype(jnp.float32), hyper)
            batch = batch.replace(reward=batch.reward + bonus * batch.discount / jnp.maximum(hyper["gamma"], 1e-6))
        agent, td_error, losses = self.update(agent, batch, noise, hyper, updates)
        if self.config.prioritized:
            priorities = prioritized.update(priorities, place, td_error, hyper["per_alpha"], hyper["per_eps"])
        return (agent, known, priorities, updates + 1, jax.tree.map(jnp.add, sums, losses)), None

    @cached_property
    def _hindsight(self) -> str:
        """The strategy; "" without hindsight."""
        strategy, goals = self.config.hindsight, self.env.goals
        if strategy == "auto":
            return "future" if goals is not None and self.config.n_step == 1 else ""
        return "" if strategy == "off" else strategy

    @property
    def _goals(self) -> Goals:
        assert self.env.goals is not None  # hindsight is refused without goals
        return self.env.goals

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
