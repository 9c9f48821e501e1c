"""What off-policy agents of the host driver share, whatever the framework: names of hyperparameters, and progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensor_optix.algorithms.host_ppo import tell_unknown
from tensor_optix.algorithms.off_policy_config import PRIORITY_HYPERPARAMS, PRIORITY_LIMITS

# Of collecting, storing and drawing; an agent's own defaults may differ.
DEFAULTS: dict[str, float] = {
    "batch_size": 256,
    "replay_capacity": 100_000,  # transitions
    "learning_starts": 1000,  # transitions before the first update; until so many steps were seen, actions are random
    "updates_per_step": 1.0,  # gradient steps for each environment step
    "n_step": 1,  # rewards summed before bootstrapping
    **PRIORITY_HYPERPARAMS,
    "per_alpha": 0.0,  # above 0: prioritised replay
}
LIMITS: dict[str, tuple[float, float]] = {
    "batch_size": (1, 1_000_000),
    "replay_capacity": (1, 1_000_000_000),
    "learning_starts": (1, 1_000_000_000),
    "updates_per_step": (0.0, 1000.0),
    "n_step": (1, 1000),
    **PRIORITY_LIMITS,
    "target_update_freq": (0, 1_000_000_000),
    "policy_delay": (1, 1_000_000),
}
COUNTS = frozenset({"batch_size", "replay_capacity", "learning_starts", "n_step", "target_update_freq", "policy_delay"})
# Other names for the same thing; what is given under one of them is kept under ours.
ALIASES = {
    "buffer_size": "replay_capacity",
    "buffer_capacity": "replay_capacity",
    "replay_size": "replay_capacity",
    "warmup": "learning_starts",
    "warmup_steps": "learning_starts",
    "epsilon_start": "epsilon",
    "epsilon_end": "epsilon_min",
    "target_period": "target_update_freq",
    "noise_clip": "target_noise_clip",
    "expl_noise": "exploration_noise",
}


@dataclass(frozen=True)
class Table:
    """An agent's hyperparameters: what each is if nobody says, and where it makes sense."""

    defaults: Mapping[str, float]
    limits: Mapping[str, tuple[float, float]]
    optional: tuple[str, ...] = ()  # these change what an agent does where they are given

    @property
    def names(self) -> list[str]:
        """All that may be given, aliases too."""
        aliases = [name for name, ours in ALIASES.items() if ours in self.defaults]
        return [*self.defaults, *self.optional, *aliases]

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`params` over the defaults, aliases under our names; unknown names are kept for whoever reads them.

        They are warned of once. TypeError for a value that is not a number, ValueError for one out of its limits.
        """
        tell_unknown(params, self.names, "the agent")
        given = {name: value for name, value in params.items() if ALIASES.get(name) not in self.defaults}
        given |= {ALIASES[name]: value for name, value in params.items() if ALIASES.get(name) in self.defaults}
        result = {**self.defaults, **given}
        for name in (*self.defaults, *(name for name in self.optional if name in result)):
            value, (low, high) = result[name], self.limits[name]
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
            result[name] = round(float(value)) if name in COUNTS else float(value)
        if result["learning_starts"] > result["replay_capacity"]:
            raise ValueError(
                f"learning_starts must be at most replay_capacity ({result['replay_capacity']}), or learning never "
                f"starts; got {result['learning_starts']}"
            )
        return result


def beta(steps: int, params: Mapping[str, Any]) -> float:
    """Exponent of the importance weights: from per_beta in a straight line to 1 at per_beta_steps environment steps."""
    done = min(1.0, steps / params["per_beta_steps"])
    return float(params["per_beta"] * (1.0 - done) + done)


class Progress:
    """How far an agent has come, saved with its weights."""

    def __init__(self) -> None:
        self.steps = 0  # environment steps seen in windows
        self.owed = 0.0  # updates that the windows so far have asked for and that were not yet done; below 1
        self.epsilon: float | None = None  # at which the present fall of the chance of random actions began
        self.began = 0  # `steps` at that moment
        self.windows = 0  # seen since that moment
        self.episode_reward = 0.0  # mean return of the episodes that ended in the newest window where one did

    def chance(self, params: Mapping[str, Any]) -> float:
        """Of a random action: falls from epsilon to epsilon_min, in a straight line over epsilon_steps steps.

        Where a hyperparameter epsilon_decay is given it is multiplied by that for each window instead. Another epsilon
        than before begins a new fall.
        """
        if self.epsilon is not None and params["epsilon"] != self.epsilon:
            self.began, self.windows = self.steps, 0
        self.epsilon = params["epsilon"]
        high, low = params["epsilon"], params["epsilon_min"]
        if "epsilon_decay" in params:
            return float(max(low, high * params["epsilon_decay"] ** self.windows))
        done = min(1.0, (self.steps - self.began) / params["epsilon_steps"])
        return float(high + done * (low - high))

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`."""
        self.steps, self.began, self.windows = (int(state[name]) for name in ("steps", "began", "windows"))
        self.owed, self.episode_reward = float(state["owed"]), float(state["episode_reward"])
        self.epsilon = None if state["epsilon"] is None else float(state["epsilon"])
