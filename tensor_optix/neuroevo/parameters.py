"""Handles of what a graph of neurons learns: one number each, or the gates of one neuron."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

import numpy as np

from tensor_optix.neuroevo.array_kinds import unwrapped


class Owner(Protocol):
    """What keeps parameters and memories, by field and id."""

    @property
    def handed(self) -> Any:
        """Gradients of all weights that a learner has handed over, in one tree; None: none since the last edit."""

    def read(self, field: str, key: Hashable) -> Any:
        """The present value; ValueError where there is nothing (any more)."""

    def write(self, field: str, key: Hashable, value: Any) -> None:
        """A new value."""

    def weight_in(self, weights: Any, field: str, key: Hashable) -> Any:
        """One entry of such a tree."""

    def parameter(self, field: str, key: Hashable) -> Parameter:
        """The one handle."""


class Parameter:
    """A handle that stays valid whatever else of the graph changes; of something pruned it raises ValueError.

    An edge's is the raw parameter: under softplus and from a neuron with a sign not the weight as it acts.

    Attributes:
        name: "bias:ID", "edge:ID" or "gates:ID".
        data: float32, [] of a bias or an edge, [9] or [12] of a GRU's or an LSTM's gates; can be set.
        grad: what a learner has put there, a float32 of the same shape; None until then.
    """

    def __init__(self, owner: Owner, field: str, key: Hashable) -> None:
        self._owner, self._field, self._key = owner, field, key
        self._grad: Any = None
        self._since: Any = None  # what had been handed over when `_grad` was set
        self.name = f"{field}:{key}"

    @property
    def data(self) -> Any:
        return self._owner.read(self._field, self._key)

    @data.setter
    def data(self, value: Any) -> None:
        self._owner.write(self._field, self._key, self._checked("data", value))

    @property
    def grad(self) -> Any:
        self._owner.read(self._field, self._key)  # still there
        handed = self._owner.handed
        if handed is None or handed is self._since:
            return self._grad
        return self._owner.weight_in(handed, self._field, self._key)

    @grad.setter
    def grad(self, value: Any) -> None:
        self._grad = None if value is None else self._checked("grad", value)
        self._since = self._owner.handed

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.data)

    @property
    def field(self) -> str:
        """ "bias", "edge" or "gates"."""
        return self._field

    @property
    def key(self) -> Hashable:
        """The id of the neuron or edge."""
        return self._key

    def __float__(self) -> float:
        return float(self.data)

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, {self.data})"

    def _checked(self, what: str, value: Any) -> Any:
        array = np.asarray(unwrapped(value)[0])
        if array.size != np.size(self.data):
            raise ValueError(
                f"{what} of {self.name} must have the shape {list(self.shape)}, got one of shape {list(array.shape)}"
            )
        return array.reshape(self.shape)[()].copy()
