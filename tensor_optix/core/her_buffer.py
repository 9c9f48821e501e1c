"""Hindsight experience replay on the host: Andrychowicz et al. 2017, "Hindsight experience replay", Algorithm 1.

`core.hindsight` is the choice of goals for compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.hindsight import check_strategy
from tensor_optix.core.prioritized_buffer import Batch, PrioritizedReplayBuffer

_CAPACITY = 1_000_000  # of a buffer that is built here; section 4.2 of the paper has 10**6

RewardFunction = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Any]


class HERReplayBuffer:
    """Stores each episode as it was, and again as if goals that it did achieve had been its goals.

    Two forms, over a buffer of one's own or over one that is built:

        HERReplayBuffer(PrioritizedReplayBuffer(100_000), k=4, strategy="future")
        HERBuffer(obs_dim=10, act_dim=4, goal_dim=3, strategy="future", k=4, capacity=100_000, n_step=1)

    An observation is [environment's observation || desired goal], the goal last, as one vector.

    Args:
        inner: The buffer that rows go to.
        obs_dim: Width of an observation, with its goal or without.
        act_dim: Width of an action that is a vector; not looked at where actions are single numbers.
        goal_dim: Width of a goal.
        k: Relabelled rows for each step.
        strategy: Where the goals of step t come from. "future": achieved at t or later, drawn evenly. "final": the
            last one. "episode": any one, drawn evenly. ValueError for others.
        seed: Of the goals, and of a buffer that is built; None for a fresh one.
        capacity: Rows of a buffer that is built (a million); further arguments go to it as well.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        over_inner = "inner" in kwargs or (bool(args) and hasattr(args[0], "push"))
        settings = _over(*args, **kwargs) if over_inner else _built(*args, **kwargs)
        self.inner, self.k, self.strategy, self._widths, seed = settings
        check_strategy(self.strategy)
        if isinstance(self.k, bool) or int(self.k) != self.k or self.k < 0:
            raise ValueError(f"k must be a whole number of at least 0, got {self.k!r}")
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])  # not the stream of a built buffer

    def __len__(self) -> int:
        """Rows that can be drawn."""
        return len(self.inner)

    def store_episode(
        self,
        obs: Sequence[Any] | np.ndarray,
        act: Sequence[Any] | np.ndarray,
        rew: Sequence[Any] | np.ndarray,
        next_obs: Sequence[Any] | np.ndarray,
        done: Sequence[Any] | np.ndarray,
        achieved_goals: Sequence[Any] | np.ndarray,
        compute_reward: RewardFunction | None = None,
        *,
        compute_reward_fn: RewardFunction | None = None,
    ) -> None:
        """Remember a whole episode of T steps and k * T relabelled rows.

        The steps themselves go into n-step paths of the inner buffer. A relabelled row is of one step: its goal takes
        the place of the desired one in `obs` and `next_obs`, its reward is made anew, its `done` is that of the step.

        Args:
            obs, next_obs: [T, W], W the width of an observation and its goal.
            act: [T] or [T, A].
            rew: [T].
            done: [T], the task has ended; may be true in the last row only. Where it is not, the episode was cut, and
                the last rows bootstrap from `next_obs`.
            achieved_goals: [T, G]; row t is what was achieved after step t.
            compute_reward: (achieved [G], goal [G], {}) -> reward of one step, as environments with goals have it.
                `compute_reward_fn` is the same.

        ValueError for lengths or widths that do not fit.
        """
        reward_of = compute_reward if compute_reward_fn is None else compute_reward_fn
        if reward_of is None or (compute_reward is not None and compute_reward_fn is not None):
            raise ValueError("give one of compute_reward and compute_reward_fn: relabelled rewards are made with it")
        obs_rows, act_rows, next_rows, achieved = map(np.asarray, (obs, act, next_obs, achieved_goals))
        ended = np.asarray(done, bool).reshape(-1)
        self._check(obs_rows, act_rows, np.asarray(rew).reshape(-1), next_rows, ended, achieved)
        rewards = np.asarray(rew, np.float64).reshape(-1)
        steps, goal_dim = len(rewards), achieved.shape[1]
        self.inner.flush_episode()
        for t in range(steps):
            self.inner.push(obs_rows[t], act_rows[t], rewards[t], next_rows[t], bool(ended[t]))
        self.inner.flush_episode()
        for t in range(steps):
            for goal in achieved[self._goals(t, steps)]:
                reward = np.asarray(reward_of(achieved[t].copy(), goal.copy(), {})).item()
                before, after = _with_goal(obs_rows[t], goal, goal_dim), _with_goal(next_rows[t], goal, goal_dim)
                # Cut at once: so the row is a path of its own, of one step.
                self.inner.push(before, act_rows[t], reward, after, bool(ended[t]), truncated=True)

    def sample(self, batch_size: int) -> Batch:
        """As `PrioritizedReplayBuffer.sample`."""
        return self.inner.sample(batch_size)

    def update_priorities(self, indices: Any, errors: Any) -> None:
        """As `PrioritizedReplayBuffer.update_priorities`."""
        self.inner.update_priorities(indices, errors)

    def set_params(self, **params: Any) -> None:
        """As `PrioritizedReplayBuffer.set_params`."""
        self.inner.set_params(**params)

    def flush_episode(self) -> None:
        """As `PrioritizedReplayBuffer.flush_episode`; `store_episode` leaves nothing to flush."""
        self.inner.flush_episode()

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, to the bit: copies of arrays, and plain values."""
        return {"inner": self.inner.state_dict(), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        self._rng.bit_generator.state = state["rng"]

    def _goals(self, t: int, steps: int) -> np.ndarray:
        """Steps [k] whose achieved goals become those of step t."""
        if self.strategy == "final":
            return np.full(self.k, steps - 1)
        return self._rng.integers(t if self.strategy == "future" else 0, steps, self.k)

    def _check(
        self,
        obs: np.ndarray,
        act: np.ndarray,
        rew: np.ndarray,
        next_obs: np.ndarray,
        done: np.ndarray,
        achieved: np.ndarray,
    ) -> None:
        parts = {"obs": obs, "act": act, "rew": rew, "next_obs": next_obs, "done": done, "achieved_goals": achieved}
        lengths = {name: part.shape[0] if part.ndim else 0 for name, part in parts.items()}
        if len(set(lengths.values())) > 1 or not len(rew):
            raise ValueError(f"an episode needs the same number of rows, at least 1, of everything; got {lengths}")
        if done[:-1].any():
            raise ValueError(
                f"done is true in row {int(np.argmax(done))} of {len(done)}: an episode ends once, store each by itself"
            )
        obs_dim, act_dim, goal_dim = self._widths or (None, None, achieved.shape[-1])
        if achieved.ndim != 2 or achieved.shape[1] != goal_dim:
            raise ValueError(f"achieved_goals must be [{len(done)}, {goal_dim}], got {list(achieved.shape)}")
        if obs.ndim != 2 or obs.shape != next_obs.shape or obs.shape[1] < goal_dim:
            raise ValueError(
                f"obs and next_obs must both be [{len(done)}, width], the goal of {goal_dim} numbers included; "
                f"got {list(obs.shape)} and {list(next_obs.shape)}"
            )
        if not np.can_cast(achieved.dtype, obs.dtype, "same_kind"):
            raise ValueError(
                f"goals are {achieved.dtype}, which observations of {obs.dtype} cannot hold: convert these"
            )
        if obs_dim is not None and obs.shape[1] not in (obs_dim, obs_dim + goal_dim):
            raise ValueError(
                f"an observation with its goal must be {obs_dim} or {obs_dim + goal_dim} wide, got {obs.shape[1]}"
            )
        if act_dim is not None and act.ndim > 1 and act.shape[1:] != (act_dim,):
            raise ValueError(f"act must be [{len(done)}, {act_dim}], got {list(act.shape)}")


HERBuffer = HERReplayBuffer

_Settings = tuple[Any, int, str, tuple[int, int, int] | None, int | None]


def _over(inner: Any, k: int = 4, strategy: str = "future", *, seed: int | None = None) -> _Settings:
    return inner, k, strategy, None, seed


def _built(
    obs_dim: int,
    act_dim: int,
    goal_dim: int,
    strategy: str = "future",
    k: int = 4,
    *,
    capacity: int = _CAPACITY,
    seed: int | None = None,
    **settings: Any,
) -> _Settings:
    for name, width in (("obs_dim", obs_dim), ("act_dim", act_dim), ("goal_dim", goal_dim)):
        if isinstance(width, bool) or int(width) != width or width < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {width!r}")
    inner = PrioritizedReplayBuffer(capacity, seed=seed, **settings)
    return inner, k, strategy, (int(obs_dim), int(act_dim), int(goal_dim)), seed


def _with_goal(obs: np.ndarray, goal: np.ndarray, goal_dim: int) -> np.ndarray:
    changed = obs.copy()
    changed[len(obs) - goal_dim :] = goal
    return changed
