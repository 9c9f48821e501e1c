"""How agents of the host driver choose actions from what a network says, in NumPy: cheap at every step, no framework.

A distribution here samples, and turns recorded actions into the targets whose log-probability a framework computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

LOG_STD_RANGE = (-5.0, 2.0)
_EDGE = 1.0 - 1e-6  # of a squashed action, beyond which tanh cannot be inverted in float32


class Categorical:
    """Actions 0..A-1 with probabilities softmax(outputs)."""

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[N, A] -> int64 [N], by inversion; 0 where a logit is NaN."""
        with np.errstate(invalid="ignore"):
            sums = np.cumsum(np.exp(outputs - outputs.max(axis=-1, keepdims=True)), axis=-1)
        return (sums <= rng.random((len(sums), 1)) * sums[:, -1:]).sum(axis=-1)

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """[N, A] -> int64 [N]; 0 where a logit is NaN."""
        return np.where(np.isnan(outputs).any(axis=-1), 0, outputs.argmax(axis=-1))

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """[N, A] -> float32 [N, A]."""
        weights = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)

    def targets(self, actions: Any, n_outputs: int) -> np.ndarray:
        """N recorded actions -> int32 [N]. ValueError for one that is not among 0..n_outputs-1."""
        numbers = np.asarray(actions)
        numbers = numbers.reshape(len(numbers), -1)
        whole = numbers.astype(np.int32)
        if numbers.shape[1] != 1 or (whole != numbers).any() or whole.min() < 0 or whole.max() >= n_outputs:
            raise ValueError(f"recorded actions must be whole numbers from 0 to {n_outputs - 1}, got {actions!r}")
        return whole[:, 0]


class ActionBounds:
    """Between unit range, -1..1, and the environment's: action = low + (u + 1) / 2 * (high - low).

    A dimension with an infinite bound stays as it is.
    """

    def __init__(self, action_dim: int) -> None:
        self.low, self.high = np.full(action_dim, -1.0), np.full(action_dim, 1.0)

    def set(self, low: Any, high: Any) -> None:
        """Two arrays [D]. ValueError for another D, or unless each low is below its high."""
        low, high = np.asarray(low, np.float64).reshape(-1), np.asarray(high, np.float64).reshape(-1)
        if low.shape != self.low.shape or high.shape != self.low.shape:
            raise ValueError(f"bounds must have {len(self.low)} numbers each, got {len(low)} and {len(high)}")
        if not (low < high).all():
            raise ValueError(f"every low must be below its high, got {low.tolist()} and {high.tolist()}")
        finite = np.isfinite(low) & np.isfinite(high)
        self.low, self.high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)

    def to_action(self, unit: np.ndarray) -> np.ndarray:
        """[N, D] -> float32, not clipped."""
        return (self.low + (unit + 1.0) / 2.0 * (self.high - self.low)).astype(np.float32)

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        """The inverse, float64."""
        return 2.0 * (action - self.low) / (self.high - self.low) - 1.0

    def state_dict(self) -> dict[str, Any]:
        """Both bounds."""
        return {"low": self.low.copy(), "high": self.high.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`. ValueError for another D."""
        self.set(state["low"], state["high"])


class Gaussian:
    """Independent normal actions in unit range; outputs are [mean || log_std], log_std clipped to -5..2.

    With `squash` an action is the tanh of a normal one.
    """

    def __init__(self, action_dim: int, squash: bool) -> None:
        self.squash, self.bounds = squash, ActionBounds(action_dim)
        self.action_dim = action_dim

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[N, 2D] -> float32 [N, D] in the environment's range; its middle where an output is NaN."""
        mean, log_std = np.split(outputs, [self.width(outputs)], axis=-1)
        std = np.exp(np.clip(log_std, *LOG_STD_RANGE))
        return self._to_action(mean + std * rng.standard_normal(mean.shape))

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """[N, 2D] -> the means, float32 [N, D] in the environment's range."""
        return self._to_action(outputs[:, : self.width(outputs)])

    def width(self, outputs: Any) -> int:
        """D; ValueError if a network's outputs [N, ...] are not 2D numbers each."""
        if outputs.shape[-1] != 2 * self.action_dim:
            raise ValueError(
                f"the actor must give {2 * self.action_dim} numbers, [mean || log_std] of {self.action_dim} each, "
                f"got {outputs.shape[-1]}: change its last layer"
            )
        return self.action_dim

    def targets(self, actions: Any, n_outputs: int) -> np.ndarray:
        """N recorded actions -> float32 [N, D], before tanh with `squash`. ValueError for another D."""
        actions = np.asarray(actions, np.float64)
        if actions.size != len(actions) * self.action_dim:
            raise ValueError(f"recorded actions must have {self.action_dim} numbers each, got {actions.shape[1:]}")
        unit = self.bounds.to_unit(actions.reshape(len(actions), self.action_dim))
        return (np.arctanh(np.clip(unit, -_EDGE, _EDGE)) if self.squash else unit).astype(np.float32)

    def _to_action(self, unit: np.ndarray) -> np.ndarray:
        unit = np.where(np.isnan(unit), 0.0, unit)
        return self.bounds.to_action(np.tanh(unit) if self.squash else unit)
