"""What every PPO of the host driver shares, whatever its framework: hyperparameters, rows to learn from, minibatches.

The agents keep no memory of acting. A window is learned from before the next one is collected, so the log-probabilities
and values of its rows are those of the present networks: computed then, in one batch. Acting for an evaluation thus
leaves no trace, and a window that somebody else collected is learned from like any other; where it brings its own
`log_probs`, they are the behaviour policy's and are used.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensor_optix.core.normalizers import RewardNormalizer
from tensor_optix.core.types import EpisodeData
from tensor_optix.core.window_returns import Bootstraps, advantages, normalized_rewards

DEFAULTS: dict[str, float] = {
    "learning_rate": 3e-4,
    "clip_ratio": 0.2,
    "entropy_coef": 0.01,
    "vf_coef": 0.5,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "n_epochs": 10,
    "minibatch_size": 64,
    "max_grad_norm": 0.5,
}
# Where each makes sense, both ends included.
LIMITS: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 1.0),
    "clip_ratio": (0.0, 10.0),
    "entropy_coef": (0.0, 10.0),
    "vf_coef": (0.0, 100.0),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "n_epochs": (1, 1000),
    "minibatch_size": (1, 1_000_000_000),
    "max_grad_norm": (1e-6, 1e6),
}
PARAM_BOUNDS: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-4, 3e-3),
    "gamma": (0.95, 0.999),
    "clip_ratio": (0.1, 0.3),
    "entropy_coef": (0.001, 0.05),
}
LOG_PARAMS = frozenset({"learning_rate"})
_COUNTS = ("n_epochs", "minibatch_size")
_READ_BY_SOME = ("adam_eps",)  # by agents in JAX, who have a default of their own
_SHORT = {"lr": "learning_rate"}  # too short to be close to what it means

_log = logging.getLogger(__name__)
_told: set[tuple[str, str]] = set()  # (algorithm, unknown name): once in a process, not for every trial's agent


def complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` over the defaults; names that PPO does not know are kept for whoever reads them, and warned of once.

    TypeError for a value that is not a number, ValueError for one out of its limits.
    """
    tell_unknown(params, (*DEFAULTS, *_READ_BY_SOME), "PPO")
    return _complete(params)


def tell_unknown(params: Iterable[str], known: Iterable[str], algorithm: str) -> None:
    """Warn of names that `algorithm` does not read, each of them once."""
    names = list(known)
    for name in params:
        if name in names or (algorithm, name) in _told:
            continue
        _told.add((algorithm, name))
        close = [_SHORT[name]] if name in _SHORT else difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"it reads {', '.join(names)}"
        _log.warning("unknown hyperparameter %r is kept but %s does not read it; %s", name, algorithm, hint)


def _complete(params: Mapping[str, Any]) -> dict[str, Any]:
    result = {**DEFAULTS, **params}
    for name, (low, high) in LIMITS.items():
        value = result[name]
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
        result[name] = round(float(value)) if name in _COUNTS else float(value)
    return result


def complete_with_steps(params: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`complete` over other defaults, one of which, `name`, is a number of steps: 1 to 1 000 000, made whole."""
    tell_unknown(params, (*DEFAULTS, *defaults, name, *_READ_BY_SOME), "the agent")
    result = _complete({**defaults, **params})
    value, most = result[name], 1_000_000
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 1 <= value <= most:
        raise ValueError(f"{name} must be from 1 to {most}, got {value!r}")
    return {**result, name: round(float(value))}


@dataclass(frozen=True)
class Rows:
    """What an update draws its minibatches from; B is the number of usable rows of a window."""

    index: np.ndarray  # [B] int64, rows of the window
    advantages: np.ndarray  # [B] float32, not normalised
    targets: np.ndarray  # [B] float32, of the value
    explained_variance: float  # of the targets by the values, 1 is perfect; 0 where the targets do not vary


def learning_rows(
    data: EpisodeData,
    observations: np.ndarray,
    values_of: Callable[[np.ndarray], np.ndarray],
    normalize: Callable[[np.ndarray], np.ndarray],
    params: Mapping[str, Any],
    reward_normalizer: RewardNormalizer | None = None,
) -> Rows:
    """Advantages and targets of a window under the present critic.

    Args:
        data: the window.
        observations: [T, ...], its observations as the networks take them.
        values_of: critic, [M, ...] as the networks take them -> [M].
        normalize: raw observations -> as the networks take them; for what lies outside the rows.
        params: as from `complete`.
        reward_normalizer: sees the window's rewards, then scales them.
    """
    bootstraps = Bootstraps.of(data)
    count = len(observations)
    outside = normalize(bootstraps.observations)
    values = np.asarray(values_of(np.concatenate([observations, outside]) if len(outside) else observations))
    rewards = normalized_rewards(reward_normalizer, data)
    gains, targets = advantages(
        data, values[:count], bootstraps, values[count:], params["gamma"], params["gae_lambda"], rewards
    )
    index = np.flatnonzero(bootstraps.usable)
    return Rows(index, gains[index], targets[index], explained_variance(values[index], targets[index]))


def explained_variance(values: np.ndarray, targets: np.ndarray) -> float:
    """1 - Var(target - value) / Var(target); 0 where the targets do not vary."""
    spread = float(np.var(targets))
    return 0.0 if spread < 1e-12 else 1.0 - float(np.var(targets - values)) / spread


def minibatches(rng: np.random.Generator, n_rows: int, size: int, n_epochs: int) -> Iterator[np.ndarray]:
    """Index arrays, every row once an epoch, in shuffled parts of about `size` that differ by at most one row."""
    parts = max(1, round(n_rows / size))
    for _ in range(n_epochs):
        yield from np.array_split(rng.permutation(n_rows), parts)
