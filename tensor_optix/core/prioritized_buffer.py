"""Prioritised replay of n-step transitions on the host, in NumPy.

Priorities follow Schaul et al. 2016, "Prioritized experience replay"; n-step returns Sutton & Barto 2018, section 7.1.
`core.replay` and `core.prioritized` are the same for compiled code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensor_optix.core.host_sum_tree import HostSumTree

_MIN_WEIGHT, _MAX_WEIGHT = 1e-200, 1e200  # of p^alpha: no row is lost to underflow, no sum overflows

_NAMES = ("obs", "act", "rew", "next_obs", "done", "n_steps")
_NUMBERS = "biuf"  # kinds of dtypes: bool, integers, floats

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class PrioritizedReplayBuffer:
    """A ring of transitions; the oldest make room. Uniform with alpha 0, prioritised above.

    Row i is drawn with probability p_i^alpha / sum p^alpha, where p_i = |error| + eps for the error that
    `update_priorities` was last given, and the greatest p so far (1 at first) before that.

    Args:
        capacity: Rows kept. Memory is reserved at the first push.
        alpha: Exponent of the priorities, at least 0. Raw priorities are kept: a change counts for every row at once.
        beta: Exponent of the importance weights, from 0 (none) to 1 (full correction).
        n_step: Rewards summed into a row, at most; fewer at the end of an episode.
        gamma: Discount inside such a sum.
        eps: Added to |error|.
        seed: Of the draws; None for a fresh one.
    """

    def __init__(
        self,
        capacity: int,
        alpha: float = 0.0,
        beta: float = 0.4,
        n_step: int = 1,
        gamma: float = 0.99,
        eps: float = 1e-6,
        *,
        seed: int | None = None,
    ) -> None:
        self.capacity = _count("capacity", capacity)
        self.alpha, self.beta, self.gamma, self.eps, self.n_step = 0.0, 0.4, 0.99, 1e-6, 1
        self._rng = np.random.default_rng(seed)
        self._columns: dict[str, np.ndarray] = {}  # _NAMES -> [capacity, ...]; made at the first push
        self._raw = np.zeros(self.capacity)  # p
        self._tree = HostSumTree(self.capacity)  # p^alpha
        self._greatest = 1.0
        self._next = self._size = 0
        self._path: list[tuple[np.ndarray, np.ndarray, float]] = []  # steps not yet stored, at most n_step
        self._seen: np.ndarray | None = None  # what the last of them led to
        self.set_params(alpha=alpha, beta=beta, n_step=n_step, gamma=gamma, eps=eps)

    def __len__(self) -> int:
        """Rows that can be drawn; steps that wait for their n-step sum are not among them."""
        return self._size

    def set_params(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        n_step: int | None = None,
        gamma: float | None = None,
        eps: float | None = None,
    ) -> None:
        """Change what is given, for everything from now on; a new alpha re-weights all rows.

        Rows keep the n and gamma that they were summed with. ValueError for a value out of range.
        """
        highest = {"alpha": (alpha, np.inf), "beta": (beta, 1), "gamma": (gamma, 1), "eps": (eps, np.inf)}
        for name, (value, high) in highest.items():
            if value is not None and not (0 <= value <= high and np.isfinite(value)):
                raise ValueError(f"{name} must be a number from 0 to {high}, got {value}")
        self.n_step = self.n_step if n_step is None else _count("n_step", n_step)
        self.beta = self.beta if beta is None else float(beta)
        self.gamma = self.gamma if gamma is None else float(gamma)
        self.eps = self.eps if eps is None else float(eps)
        if alpha is not None and float(alpha) != self.alpha:
            self.alpha = float(alpha)
            rows = np.arange(self._size)
            self._tree.set(rows, self._weight(self._raw[rows]))

    def push(self, obs: Any, act: Any, rew: Any, next_obs: Any, done: Any, *, truncated: Any = False) -> None:
        """Remember one step.

        obs, next_obs: [*obs]; act: [] or [*act]; copied, in the dtype of the first push. rew: a number.
        done: the task has ended (Gymnasium's `terminated`): nothing is bootstrapped from `next_obs`.
        truncated: the episode was cut here: the path of rewards ends, but `next_obs` is bootstrapped from. It must be
            what the environment showed last, not what it was reset to.
        ValueError for a shape other than the first one, or values that its dtype cannot hold.
        """
        step = (np.array(obs), np.array(act), float(rew))
        seen = np.array(next_obs)
        if not self._columns:
            self._allocate(step[0], step[1])
        for name, given in (("obs", step[0]), ("act", step[1]), ("next_obs", seen)):
            _check(name, given, self._columns[name])
        self._path.append(step)
        self._seen = seen
        if done or truncated:
            self._end_path(bool(done))
        elif len(self._path) >= self.n_step:
            while len(self._path) >= self.n_step:
                self._store(0.0)

    def flush_episode(self) -> None:
        """End the path where an episode is abandoned: the steps that wait become shorter rows that bootstrap."""
        self._end_path(False)

    def sample(self, batch_size: int) -> Batch:
        """Draw rows, one from each of `batch_size` equal ranges of the total priority; a row may come twice.

        Returns (obs, act, rew, next_obs, done, weights, indices, n_steps), each [B, ...]. `rew` float32 is
        sum_{i<m} gamma^i r_i with m = `n_steps` int64; its target is rew + gamma**m * (1 - done) * V(next_obs).
        `done` is float32 0 or 1. `weights` float32 are (N P)^-beta over the greatest of the batch. `indices` int64 are
        for `update_priorities`. ValueError if there is no row.
        """
        count = _count("batch_size", batch_size)
        if self._size == 0:
            raise ValueError("the buffer has no rows to sample from: push transitions first")
        total = self._tree.total()
        place = (np.arange(count) + self._rng.random(count)) / count
        index = self._tree.find(place * total)
        leaf = self._tree.leaves[index]
        weights = (leaf.min() / leaf) ** self.beta  # N and the total cancel
        obs, act, rew, next_obs, done, n_steps = (column[index] for column in self._columns.values())
        return obs, act, rew, next_obs, done, weights.astype(np.float32), index, n_steps

    def update_priorities(self, indices: Any, errors: Any) -> None:
        """Set p = |error| + eps for rows from `sample`; both [B].

        An error that is NaN or infinite counts as the greatest p so far. A row that comes twice takes the greater p.
        ValueError for lengths that differ or rows that do not exist.
        """
        index, error = np.asarray(indices, np.int64).reshape(-1), np.asarray(errors, np.float64).reshape(-1)
        if index.shape != error.shape:
            raise ValueError(f"got {len(index)} indices and {len(error)} errors, expected one error for each index")
        if len(index) == 0:
            return
        if index.min() < 0 or index.max() >= self._size:
            raise ValueError(
                f"indices must be from 0 to {self._size - 1}, those of `sample`; got {index.min()} to {index.max()}"
            )
        raw = np.abs(error) + self.eps
        finite = np.isfinite(raw)
        self._greatest = max(self._greatest, raw[finite].max(initial=0.0))
        raw[~finite] = self._greatest
        rows = np.unique(index)
        self._raw[rows] = 0.0
        np.maximum.at(self._raw, index, raw)
        self._tree.set(rows, self._weight(self._raw[rows]))

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, to the bit: copies of arrays, and plain values."""
        path = zip(("obs", "act", "rew"), zip(*self._path, strict=True), strict=True) if self._path else ()
        return {
            "capacity": self.capacity,
            "params": {name: getattr(self, name) for name in ("alpha", "beta", "n_step", "gamma", "eps")},
            "columns": {name: column[: self._size].copy() for name, column in self._columns.items()},
            "raw": self._raw[: self._size].copy(),
            "weights": self._tree.leaves[: self._size].copy(),
            "greatest": self._greatest,
            "next": self._next,
            "path": {name: np.stack(waiting) for name, waiting in path},
            "seen": None if self._seen is None or not self._path else self._seen.copy(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`. ValueError if it was saved with another capacity."""
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"the saved buffer has a capacity of {state['capacity']}, this one {self.capacity}: build it as large"
            )
        size = len(state["raw"])
        self._columns = {}
        for name in _NAMES if state["columns"] else ():
            saved = np.asarray(state["columns"][name])
            self._columns[name] = np.zeros((self.capacity, *saved.shape[1:]), saved.dtype)
            self._columns[name][:size] = saved
        self._raw, self._tree = np.zeros(self.capacity), HostSumTree(self.capacity)
        self._raw[:size] = state["raw"]
        self._tree.set(np.arange(size), state["weights"])
        self._greatest, self._next, self._size = float(state["greatest"]), int(state["next"]), size
        for name, value in state["params"].items():
            setattr(self, name, value)
        path = state["path"]
        self._path = [
            (np.array(obs), np.array(act), float(rew))
            for obs, act, rew in (zip(path["obs"], path["act"], path["rew"], strict=True) if path else ())
        ]
        self._seen = None if state["seen"] is None else np.array(state["seen"])
        self._rng.bit_generator.state = state["rng"]

    def _end_path(self, done: bool) -> None:
        while self._path:
            self._store(float(done))

    def _store(self, done: float) -> None:
        """Store the oldest waiting step, with the rewards of all that wait."""
        obs, act, _ = self._path[0]
        reward = 0.0
        for _, _, step_reward in reversed(self._path):
            reward = step_reward + self.gamma * reward
        row = self._next
        values = (obs, act, reward, self._seen, done, len(self._path))
        for column, value in zip(self._columns.values(), values, strict=True):
            column[row] = value
        del self._path[0]
        self._raw[row] = self._greatest
        self._tree.set_one(row, float(self._weight(np.array([self._greatest]))[0]))
        self._next = (row + 1) % self.capacity
        self._size = min(self._size + 1, self.capacity)

    def _weight(self, raw: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            return np.clip(raw**self.alpha, _MIN_WEIGHT, _MAX_WEIGHT)

    def _allocate(self, obs: np.ndarray, act: np.ndarray) -> None:
        for name, given in (("obs", obs), ("act", act)):
            if given.dtype.kind not in _NUMBERS:
                raise ValueError(f"{name} must be a number or an array of numbers, got {given.dtype} from {given!r}")
        number, flag, count = np.zeros((), np.float32), np.zeros((), np.float32), np.zeros((), np.int64)
        rows: list[np.ndarray] = [obs, act, number, obs, flag, count]
        self._columns = {
            name: np.zeros((self.capacity, *row.shape), row.dtype) for name, row in zip(_NAMES, rows, strict=True)
        }


def _check(name: str, given: np.ndarray, column: np.ndarray) -> None:
    if given.shape != column.shape[1:]:
        raise ValueError(
            f"{name} must have shape {list(column.shape[1:])} as in the first push, got {list(given.shape)}"
        )
    if not np.can_cast(given.dtype, column.dtype, "same_kind"):
        raise ValueError(
            f"{name} is {given.dtype}, which {column.dtype}, the dtype of the first push, cannot hold: convert it first"
        )


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
