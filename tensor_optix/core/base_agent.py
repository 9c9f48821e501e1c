"""The six methods that make anything a learner of the host driver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tensor_optix.core.types import EpisodeData, HyperparamSet


class BaseAgent(ABC):
    """A model that can act and learn. Six methods are required, the rest is optional."""

    @abstractmethod
    def act(self, observation: Any) -> Any:
        """The action for one observation."""

    @abstractmethod
    def learn(self, episode_data: EpisodeData) -> dict[str, Any] | None:
        """Learn from one window; numeric diagnostics may be returned."""

    @abstractmethod
    def get_hyperparams(self) -> HyperparamSet:
        """The hyperparameters in force."""

    @abstractmethod
    def set_hyperparams(self, hyperparams: HyperparamSet) -> None:
        """Put hyperparameters in force from the next window on."""

    @abstractmethod
    def save_weights(self, path: str) -> None:
        """Write the weights to `path` (a file or a directory of the agent's choice)."""

    @abstractmethod
    def load_weights(self, path: str) -> None:
        """Read what `save_weights` wrote."""

    def save_state(self, path: str) -> None:
        """Write all that going on with the training needs: `save_weights`, unless an agent has more (a generator)."""
        self.save_weights(path)

    def load_state(self, path: str) -> None:
        """Read what `save_state` wrote."""
        self.load_weights(path)

    @property
    def is_on_policy(self) -> bool:
        """False for agents with a replay: they are never rolled back."""
        return True

    def average_weights(self, paths: Sequence[str]) -> None:
        """Load the mean of several saved weights."""
        raise NotImplementedError(f"{type(self).__name__} has no average_weights: define it to load an ensemble")

    def perturb_weights(self, noise_scale: float) -> None:
        """Multiply every weight by 1 + noise_scale * N(0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} has no perturb_weights: define it to spawn variants")

    def export_onnx(self, path: str) -> None:
        """Write the policy as an ONNX file."""
        raise NotImplementedError(f"{type(self).__name__} has no export_onnx")

    def teardown(self) -> None:  # noqa: B027
        """Release what the agent holds; called once, at the end."""
