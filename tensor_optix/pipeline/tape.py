"""How an open episode came about: what its reset drew from, and the actions since. Played again, it is there again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Tape:
    """One environment's newest reset and the actions after it; more than `limit` of them are not kept."""

    def __init__(self, seed: int | None, generators: dict[str, Any], limit: int) -> None:
        self.seed = seed  # what the reset was given
        self.generators = generators  # as they were just before the reset
        self.actions: list[Any] | None = []  # as the environment got them; None: too many
        self._limit = limit

    def add(self, action: Any) -> None:
        """Append an action; it is kept as it is."""
        if self.actions is None:
            return
        if len(self.actions) >= self._limit:
            self.actions = None
            return
        self.actions.append(action)

    def state(self, action_space: Any) -> dict[str, Any]:
        """JSON-able values and arrays. Actions of composite spaces are "encoded" as the space does it."""
        state: dict[str, Any] = {"seed": self.seed, "generators": self.generators, "actions": None, "encoded": None}
        if self.actions is None:
            return state
        state["actions"] = _stacked(self.actions)
        if state["actions"] is None:
            try:
                state["encoded"] = action_space.to_jsonable(self.actions)
            except Exception:  # not of the space: there is no way to write them down
                state["encoded"] = None
        return state


def kept(action: Any) -> Any:
    """The action, out of reach of environments that write into it and of agents that use an array again."""
    return np.array(action) if isinstance(action, np.ndarray) else action


def actions_of(state: dict[str, Any], action_space: Any) -> list[Any] | None:
    """The actions in what `Tape.state` gave, arrays or lists, as an environment takes them; None if they are lost."""
    saved, encoded = state["actions"], state["encoded"]
    if saved is None:
        return None if encoded is None else list(action_space.from_jsonable(encoded))
    rows = saved if isinstance(saved, np.ndarray) else np.asarray(saved, getattr(action_space, "dtype", None))
    # Numbers where numbers were sent; a Box takes arrays, also without dimensions.
    return rows.tolist() if rows.ndim == 1 and not hasattr(action_space, "low") else [np.array(row) for row in rows]


def same_bits(one: Any, other: Any) -> bool:
    """True if two observations are equal bit for bit; what is NaN in both is equal."""
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _stacked(actions: Sequence[Any]) -> np.ndarray | None:
    """[T, ...], or None if the actions are not numbers or arrays of one shape."""
    if any(isinstance(action, dict | tuple | str) for action in actions):
        return None
    try:
        rows = np.stack([np.asarray(action) for action in actions]) if actions else np.zeros(0, np.int64)
    except ValueError:
        return None
    return rows if rows.dtype.kind in "biuf" else None
