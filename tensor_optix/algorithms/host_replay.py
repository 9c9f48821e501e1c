"""What an off-policy agent of the host driver remembers: the transitions of its windows, in NumPy.

A transition is stored once what it led to is known: the next row of its environment, or the observation that the window
carries for it. Rows of one episode are linked, across windows too, so that returns over n steps are summed when they
are drawn, with the discount of that moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tensor_optix.core.types import EpisodeData
from tensor_optix.core.window_returns import Bootstraps, Segments

_KEPT_DTYPES = ("uint8", "bool")  # of observations; others become float32, which is what networks take
_NOTHING = -1


class Drawn(NamedTuple):
    """Minibatches; P is any leading shape, such as [U, B]."""

    obs: np.ndarray  # [*P, *obs]
    action: np.ndarray  # [*P] int32 or [*P, D] float32
    reward: np.ndarray  # [*P] float32, discounted sum over up to n steps
    discount: np.ndarray  # [*P] float32, gamma^k of the k steps summed; 0 where the task ended
    next_obs: np.ndarray  # [*P, *obs], what the last of them led to


class _End(NamedTuple):
    """Where one environment's rows ended in the newest window, in the midst of an episode."""

    serial: int  # of its newest stored row; _NOTHING where that does not belong to the same episode
    next_obs: np.ndarray | None  # what the window's last row led to; None if only the next window can tell
    held: tuple[Any, Any, Any] | None  # that row then: observation, action, reward


class HostReplay:
    """A ring of transitions of any number of environments.

    Args:
        capacity: transitions that it holds; the oldest make room. An observation is kept twice, with its row and with
            the row before it.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._columns: dict[str, np.ndarray] = {}  # name -> [capacity, ...]; made with the first rows
        self._count = 0  # rows ever stored; row number s lies at s % capacity
        self._ends: dict[int, _End] = {}  # environment -> how it goes on
        self._window: int | None = None  # number of the newest window
        self._greatest, self._alpha = 1.0, 0.0  # raw priority, and the exponent that "power" was made with

    def __len__(self) -> int:
        """Transitions that may be drawn."""
        return min(self._count, self.capacity)

    # -- storing -------------------------------------------------------------------------------------------

    def store(self, data: EpisodeData, actions: np.ndarray) -> bool:
        """Take in a window whose actions, as they are learned from, are `actions` [T] or [T, D].

        False if anything in it is NaN or infinite: then none of its rows is stored. Rows of which nobody knows what
        they led to wait for the next window, where that is known to go on from this one, and are dropped otherwise.
        """
        obs, rewards = self._observations(data.observations), np.asarray(data.rewards, np.float32)
        terminated = np.asarray(data.terminated, bool)
        done = terminated | np.asarray(data.truncated, bool)
        bootstraps = Bootstraps.of(data)
        following = np.concatenate([obs[1:], obs[-1:]])
        following[bootstraps.rows] = bootstraps.observations
        finals = {int(row): seen for row, seen in (data.metadata.get("final_observations") or {}).items()}
        for row in np.flatnonzero(terminated):  # not bootstrapped from, but what happened
            following[row] = finals.get(int(row), obs[row])
        window, self._window = self._window, data.episode_id
        if not all(_finite(x) for x in (obs, rewards, actions, following[bootstraps.usable])):
            self._ends = {}
            return False

        begins = np.zeros(len(obs), bool)  # an episode starts, or goes on after rows that were lost
        for rows in (data.episode_starts, data.metadata.get("tails")):
            begins[[int(row) for row in (rows if rows is not None else ())]] = True
        in_order = data.episode_starts is not None and window is not None and data.episode_id == window + 1
        segments = Segments.of(data)
        firsts = {i: int(start) for i, start in enumerate(segments.starts) if segments.lengths[i]}
        onwards = {
            i: end
            for i, end in self._ends.items()
            if i in firsts and not begins[firsts[i]] and _goes_on(end, obs[firsts[i]], in_order)
        }
        waiting = {i: end for i, end in onwards.items() if end.held is not None}
        old = {i: self._count + place for place, i in enumerate(waiting)}  # serials of the rows that waited
        serials = np.full(len(obs), _NOTHING, np.int64)
        usable = np.flatnonzero(bootstraps.usable)
        serials[usable] = self._count + len(waiting) + np.arange(len(usable))
        before = {i: old.get(i, end.serial) for i, end in onwards.items()}  # the row before each first one

        links = np.full(len(obs), _NOTHING, np.int64)
        begins[segments.starts[segments.lengths > 0]] = True
        inside = ~done[:-1] & ~begins[1:]
        links[:-1][inside] = serials[1:][inside]
        for i, end in onwards.items():
            if i in old:
                self._link(end.serial, old[i])
            else:
                self._link(end.serial, int(serials[firsts[i]]))
        held = [(end.held, obs[firsts[i]], serials[firsts[i]]) for i, end in waiting.items() if end.held is not None]
        self._append(
            obs=_joined([row[0] for row, _, _ in held], obs[usable]),
            action=_joined([row[1] for row, _, _ in held], actions[usable]),
            reward=_joined([row[2] for row, _, _ in held], rewards[usable]),
            next_obs=_joined([seen for _, seen, _ in held], following[usable]),
            terminated=_joined([False] * len(held), terminated[usable]),
            link=_joined([link for _, _, link in held], links[usable]),
        )
        self._ends = {}
        for i, first in firsts.items():
            last = first + int(segments.lengths[i]) - 1
            if done[last]:
                continue
            if bootstraps.usable[last]:
                self._ends[i] = _End(int(serials[last]), following[last].copy(), None)
                continue
            waits = (obs[last].copy(), np.copy(actions[last]), rewards[last])
            previous = before.get(i, _NOTHING)
            if last > first:
                previous = int(serials[last - 1]) if inside[last - 1] else _NOTHING
            self._ends[i] = _End(previous, None, waits)
        return True

    def _observations(self, observations: Any) -> np.ndarray:
        obs = np.asarray(observations)
        obs = obs if obs.dtype.name in _KEPT_DTYPES else obs.astype(np.float32)
        own = self._columns.get("obs")
        if own is not None and (own.shape[1:] != obs.shape[1:] or own.dtype != obs.dtype):
            raise ValueError(
                f"the replay holds observations {own.dtype}{list(own.shape[1:])}, and the window brings "
                f"{obs.dtype}{list(obs.shape[1:])}: give each environment an agent of its own"
            )
        return obs

    def _link(self, serial: int, to: int) -> None:
        """The row `serial`, if it is still there, is followed by the row `to`."""
        if serial != _NOTHING and serial >= self._count - len(self):
            self._columns["link"][serial % self.capacity] = to

    def _append(self, **rows: np.ndarray) -> None:
        count = len(rows["reward"])
        places = (self._count + np.arange(count)) % self.capacity
        rows |= {"priority": np.full(count, self._greatest), "power": np.full(count, self._greatest**self._alpha)}
        for name, column in rows.items():
            if name not in self._columns:
                self._columns[name] = np.zeros((self.capacity, *column.shape[1:]), column.dtype)
            self._columns[name][places[-self.capacity :]] = column[-self.capacity :]
        self._count += count

    # -- drawing -------------------------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Places [U, B] int64 of transitions, each equally likely. Not to be called while it is empty."""
        return rng.integers(0, len(self), shape)

    def draw_by_priority(
        self, rng: np.random.Generator, shape: tuple[int, int], alpha: float, beta: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places [U, B] drawn in proportion to priority^alpha, and importance weights [U, B] float32.

        Each minibatch takes one row from each of B equal parts of the total, and its weights (N P)^-beta are divided by
        the greatest of them (Schaul et al. 2016, sections 3.3 and 3.4). A row that was never drawn has the greatest
        priority so far.
        """
        power = self._columns["power"]
        if alpha != self._alpha:
            power[:], self._alpha = self._columns["priority"] ** alpha, alpha
        sums = np.cumsum(power[: len(self)])
        at = (np.arange(shape[1]) + rng.random(shape)) / shape[1] * sums[-1]
        places = np.minimum(np.searchsorted(sums, at, side="right"), len(self) - 1)
        found = power[places]
        # Over the rarest row before the power, so that no power can overflow.
        return places, ((found.min(axis=-1, keepdims=True) / found) ** beta).astype(np.float32)

    def set_priorities(self, places: np.ndarray, errors: np.ndarray, eps: float) -> None:
        """Priorities |error| + eps of the rows at `places`; one that is not finite counts as the greatest so far.

        A row that comes more than once takes the greatest of its priorities.
        """
        priority = np.abs(errors.astype(np.float64)) + eps
        finite = np.isfinite(priority)
        self._greatest = max(self._greatest, float(priority[finite].max(initial=0.0)))
        priority = np.where(finite, priority, self._greatest)
        column = self._columns["priority"]
        column[places] = 0.0
        np.maximum.at(column, places, priority)
        self._columns["power"][places] = column[places] ** self._alpha

    def read(self, places: np.ndarray, n_step: int, gamma: float) -> Drawn:
        """The transitions at `places`, summed over up to `n_step` steps (Sutton & Barto 2018, section 7.1).

        A sum ends with its episode, and earlier where it comes to the newest row of an environment or where rows were
        lost: it then bootstraps from what that row led to.
        """
        own, at = self._columns, places
        factor = np.float32(gamma)
        reward, discount = own["reward"][at], np.full(places.shape, factor)
        for _ in range(n_step - 1):
            link = own["link"][at]
            going = link != _NOTHING  # a sum that has ended stays at its last row
            if not going.any():
                break
            at = np.where(going, link % self.capacity, at)
            reward = np.where(going, reward + discount * own["reward"][at], reward)
            discount = np.where(going, discount * factor, discount)
        discount = np.where(own["terminated"][at], np.float32(0.0), discount)
        return Drawn(own["obs"][places], own["action"][places], reward, discount, own["next_obs"][at])

    # -- size and state ------------------------------------------------------------------------------------

    def resized(self, capacity: int) -> HostReplay:
        """A replay of another capacity with the newest rows of this one."""
        other = HostReplay(capacity)
        count = min(len(self), capacity)
        places = (self._count - count + np.arange(count)) % self.capacity
        for name, column in self._columns.items():
            other._columns[name] = np.zeros((capacity, *column.shape[1:]), column.dtype)
            other._columns[name][:count] = column[places]
        gone = self._count - count  # rows are numbered anew
        if count:
            link = other._columns["link"][:count]
            link[link != _NOTHING] -= gone
        other._count, other._window = count, self._window
        other._ends = {i: end._replace(serial=max(end.serial - gone, _NOTHING)) for i, end in self._ends.items()}
        other._greatest, other._alpha = self._greatest, self._alpha
        return other

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values and arrays."""
        return {
            "capacity": self.capacity,
            "count": self._count,
            "window": self._window,
            "greatest": self._greatest,
            "alpha": self._alpha,
            "columns": {name: column[: len(self)].copy() for name, column in self._columns.items()},
            "ends": {
                str(i): [end.serial, end.next_obs, None if end.held is None else [np.asarray(x) for x in end.held]]
                for i, end in self._ends.items()
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> HostReplay:
        """The replay that a `state_dict` describes."""
        replay = cls(int(state["capacity"]))
        for name, rows in state["columns"].items():
            replay._columns[name] = np.zeros((replay.capacity, *rows.shape[1:]), rows.dtype)
            replay._columns[name][: len(rows)] = rows
        replay._count, replay._window = int(state["count"]), state["window"]
        replay._greatest, replay._alpha = float(state["greatest"]), float(state["alpha"])
        for i, (serial, next_obs, held) in state["ends"].items():
            replay._ends[int(i)] = _End(int(serial), next_obs, None if held is None else tuple(held))
        return replay


def _goes_on(end: _End, first: np.ndarray, in_order: bool) -> bool:
    """Whether rows that begin with the observation `first` go on from `end`."""
    if end.next_obs is None:
        return in_order
    return bool(np.array_equal(end.next_obs, first))


def _finite(x: np.ndarray) -> bool:
    return x.dtype.kind != "f" or bool(np.isfinite(x).all())


def _joined(first: list[Any], rest: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(first, rest.dtype).reshape(len(first), *rest.shape[1:]), rest])
