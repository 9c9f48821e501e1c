"""From a window of experience to advantages, on the host: what an on-policy agent computes before its framework learns.

A window is one or several segments (one for each environment), each a trace of rows in time. What a row led to is
the next row of its segment, but not where an episode ended and not in a segment's last row: those rows bootstrap from
an observation that the window carries apart. `Bootstraps` finds them, the agent values them, `advantages` does the
rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tensor_optix.core.normalizers import RewardNormalizer
from tensor_optix.core.types import EpisodeData


@dataclass(frozen=True)
class Segments:
    """The traces of a window: `starts` [N] first rows, `lengths` [N]; together they are all T rows."""

    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, data: EpisodeData) -> Segments:
        """Those in the window's metadata, or the whole window as one. ValueError if they are not all of its rows."""
        total = len(data.rewards)
        starts = np.asarray(data.metadata.get("segment_starts", [0]), np.int64)
        lengths = np.diff(np.append(starts, total))
        if starts[0] != 0 or (lengths < 0).any():
            raise ValueError(
                f"segment_starts must begin with 0 and rise to at most {total} rows, got {starts.tolist()}"
            )
        return cls(starts, lengths)

    def to_grid(self, rows: np.ndarray, fill: Any = 0) -> np.ndarray:
        """[T, ...] -> [longest, N, ...], each segment a column filled up at its end."""
        grid = np.full((int(self.lengths.max(initial=0)), len(self.starts), *rows.shape[1:]), fill, rows.dtype)
        for column, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            grid[:length, column] = rows[start : start + length]
        return grid

    def to_rows(self, grid: np.ndarray) -> np.ndarray:
        """The inverse of `to_grid`."""
        return np.concatenate([grid[:length, column] for column, length in enumerate(self.lengths)])


@dataclass(frozen=True)
class Bootstraps:
    """Rows whose next value is that of an observation outside the rows.

    rows: [K] int64, ascending. observations: [K, *obs]. usable: [T] bool; False where what a row led to is not known
    (the data holds no final observation): such a row only lends its own value to the row before it.
    """

    rows: np.ndarray
    observations: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, data: EpisodeData) -> Bootstraps:
        """What a window says in `final_obs` and `metadata["final_observations"]`, both optional."""
        segments = Segments.of(data)
        terminated, done = _flags(data)
        finals = {int(row): obs for row, obs in (data.metadata.get("final_observations") or {}).items()}
        last = segments.starts + segments.lengths - 1
        if data.final_obs is not None:
            given = np.asarray(data.final_obs)
            by_segment = given if len(segments.starts) > 1 or "segment_starts" in data.metadata else given[None]
            for row, obs, length in zip(last, by_segment, segments.lengths, strict=True):
                if length:
                    finals.setdefault(int(row), obs)
        ends = done.copy()
        ends[last[segments.lengths > 0]] = True
        wanted = np.flatnonzero(ends & ~terminated)
        usable = np.ones(len(done), bool)
        usable[[row for row in wanted if row not in finals]] = False
        rows = np.array([row for row in wanted if row in finals], np.int64)
        observations = np.asarray(data.observations)
        found = [np.asarray(finals[int(row)], observations.dtype) for row in rows]
        return cls(rows, np.stack(found) if found else observations[:0], usable)


def advantages(
    data: EpisodeData,
    values: np.ndarray,
    bootstraps: Bootstraps,
    bootstrap_values: np.ndarray,
    gamma: float,
    gae_lambda: float,
    rewards: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimates and value targets of a window, float32 [T] each; only usable rows mean anything.

    Args:
        data: the window; its rewards unless `rewards` [T] says otherwise.
        values: [T], values of its observations.
        bootstraps, bootstrap_values: `Bootstraps.of(data)`, and [K] the values of its observations.
        gamma, gae_lambda: discount and trace.

    Termination cuts the bootstrap, every end of an episode the trace, and so does a segment's end. Computed in
    float64. Schulman et al. 2016, eq. 16.
    """
    segments, (terminated, done) = Segments.of(data), _flags(data)
    rewards = np.asarray(data.rewards if rewards is None else rewards, np.float64)
    values = np.asarray(values, np.float64).reshape(len(rewards))
    following = np.append(values[1:], 0.0)
    following[bootstraps.rows] = np.asarray(bootstrap_values, np.float64).reshape(len(bootstraps.rows))
    delta = rewards + gamma * np.where(terminated, 0.0, following) - values
    # An unusable row is the end of its trace; the row before it bootstraps from its value.
    delta = np.where(bootstraps.usable, delta, 0.0)
    trace = gamma * gae_lambda * (bootstraps.usable & ~done)
    result = segments.to_rows(_discounted_sums(segments.to_grid(delta), segments.to_grid(trace)))
    return result.astype(np.float32), (result + values).astype(np.float32)


def discounted_returns(data: EpisodeData, gamma: float, rewards: Any = None) -> np.ndarray:
    """Returns to go, float64 [T], each within its own episode and segment; nothing is bootstrapped."""
    segments, (_, done) = Segments.of(data), _flags(data)
    rewards = np.asarray(data.rewards if rewards is None else rewards, np.float64)
    return segments.to_rows(_discounted_sums(segments.to_grid(rewards), segments.to_grid(gamma * ~done)))


def normalized_rewards(normalizer: RewardNormalizer | None, data: EpisodeData) -> np.ndarray:
    """The window's rewards [T] as an agent learns from them: scaled after the normaliser has seen them all."""
    rewards = np.asarray(data.rewards, np.float64)
    if normalizer is None:
        return rewards
    segments, (_, done) = Segments.of(data), _flags(data)
    present = segments.to_grid(np.ones(len(rewards), bool), fill=False)
    normalizer.observe_window(segments.to_grid(rewards), segments.to_grid(done), present)
    return normalizer.normalize(rewards).astype(np.float64)


def _flags(data: EpisodeData) -> tuple[np.ndarray, np.ndarray]:
    terminated = np.asarray(data.terminated, bool)
    return terminated, terminated | np.asarray(data.truncated, bool)


def _discounted_sums(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """y_t = x_t + factor_t y_{t+1} down the leading axis."""
    sums = np.zeros((len(x) + 1, *x.shape[1:]))
    for t in range(len(x) - 1, -1, -1):
        sums[t] = x[t] + factor[t] * sums[t + 1]
    return sums[:-1]
