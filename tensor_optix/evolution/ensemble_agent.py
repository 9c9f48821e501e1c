"""Several agents that act as one and learn from the same windows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.evolution import combining
from tensor_optix.evolution.ensemble_files import member_path, read_index, write_index
from tensor_optix.evolution.members import Member, is_on_policy, tear_down
from tensor_optix.evolution.policy_manager import PolicyManager

_log = logging.getLogger(__name__)


def _of_primary(name: str) -> property:
    """An attribute that the ensemble has if its primary agent has it."""
    return property(lambda self: getattr(self.primary_agent, name))


class EnsembleAgent(BaseAgent):
    """The members of a `PolicyManager` as one agent. Actions are combined as `combining.act` says.

    Every member learns from every window: it recomputes what its own policy would have thought of the actions. Members
    that the manager gains or loses join or leave at once.

    Args:
        policy_manager: whose members act, by their weights.
        primary_agent: its hyperparameters are the ensemble's, and it is never pruned; added if it is no member.
        seed: of drawing members.

    Raises:
        TypeError: an agent remembers what it saw (a recurrent one): its memory would not be that of its own actions.
    """

    default_param_bounds = _of_primary("default_param_bounds")
    default_log_params = _of_primary("default_log_params")
    default_tuned = _of_primary("default_tuned")
    default_min_episodes_before_dormant = _of_primary("default_min_episodes_before_dormant")

    def __init__(self, policy_manager: PolicyManager, primary_agent: BaseAgent, *, seed: int = 0) -> None:
        self.policy_manager, self.primary_agent = policy_manager, primary_agent
        self._rng = np.random.default_rng(seed)
        self._bounds: tuple[Any, Any] | None = None
        self._welcomed: set[int] = set()  # uids that were looked at
        policy_manager.keep(primary_agent)
        self._members()

    @property
    def is_on_policy(self) -> bool:
        """False if any member is off-policy."""
        return all(is_on_policy(member.agent) for member in self._members())

    # -- acting --------------------------------------------------------------------------------------------

    def act(self, observation: Any) -> Any:
        """An action to learn from."""
        return self._one(observation, deterministic=False)

    def act_deterministic(self, observation: Any) -> Any:
        """The action for an evaluation; the ensemble draws no random number."""
        return self._one(observation, deterministic=True)

    def act_batch(self, observations: Any) -> np.ndarray:
        """Actions to learn from, [N] or [N, D], for observations [N, ...]."""
        return self._many(observations, deterministic=False)

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """Actions for an evaluation, [N] or [N, D], for observations [N, ...]."""
        return self._many(observations, deterministic=True)

    def _one(self, observation: Any, deterministic: bool) -> Any:
        agents, weights = self._voices()
        return combining.act(agents, weights, observation, deterministic, self._rng)

    def _many(self, observations: Any, deterministic: bool) -> np.ndarray:
        agents, weights = self._voices()
        return combining.act_batch(agents, weights, observations, deterministic, self._rng)

    def _voices(self) -> tuple[list[BaseAgent], list[float]]:
        members = self._members()
        return [member.agent for member in members], [member.weight for member in members]

    def set_action_bounds(self, low: Any, high: Any) -> None:
        """The bounds of the environment's actions, for the members that ask."""
        self._bounds = low, high
        for member in self._members():
            self._tell_bounds(member)

    def reset_cache(self) -> None:
        """Acting since the last window was no experience."""
        for member in self._members():
            reset = getattr(member.agent, "reset_cache", None)
            if reset is not None:
                reset()

    # -- learning ------------------------------------------------------------------------------------------

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        """Every member learns from the window.

        Returns what the primary reports, and what the others do under "member<uid>/<name>".
        """
        report: dict[str, Any] = {}
        for member in self._members():
            prefix = "" if member.agent is self.primary_agent else f"member{member.uid}/"
            learned = member.agent.learn(episode_data) or {}
            report.update({f"{prefix}{name}": value for name, value in learned.items()})
        return report

    def get_hyperparams(self) -> HyperparamSet:
        """The primary's."""
        return self.primary_agent.get_hyperparams()

    def set_hyperparams(self, hyperparams: HyperparamSet) -> None:
        """The primary's; the others keep their own."""
        self.primary_agent.set_hyperparams(hyperparams)

    # -- weights -------------------------------------------------------------------------------------------

    def save_weights(self, path: str) -> None:
        """Write the weights of all members, and what they weigh, into the directory `path`."""
        self._save(Path(path), "save_weights", self._members())

    def load_weights(self, path: str) -> None:
        """Put back the policy that `save_weights` wrote: its members' weights, and what they weigh.

        Members that joined since weigh nothing from then on, until they are weighed anew. Those that have left are
        missing, which is logged. FileNotFoundError or ValueError if it cannot be read.
        """
        record = read_index(path)
        known = self._load(path, "load_weights", record)
        missing = sorted(set(record["members"]) - known)
        if missing:
            _log.warning("%d of the %d members saved in '%s' have left the ensemble since",
                         len(missing), len(record["members"]), path)  # fmt: skip
        for member in self._members():
            member.weight = record["members"].get(member.uid, 0.0)

    def save_state(self, path: str) -> None:
        """As `save_weights`, with all that going on with the training needs.

        Members that a callback spawned are in the callback's own state.
        """
        members = [member for member in self._members() if not member.variant]
        self._save(Path(path), "save_state", members, generator=self._rng.bit_generator.state)

    def load_state(self, path: str) -> None:
        """Read what `save_state` wrote."""
        record = read_index(path)
        if "generator" not in record:
            raise ValueError(f"'{path}' holds no generator: load_state reads what save_state wrote")
        self._load(path, "load_state", record)
        self._rng.bit_generator.state = record["generator"]
        for member in self._members():
            member.weight = record["members"].get(member.uid, member.weight)

    def average_weights(self, paths: Sequence[str]) -> None:
        """Every member loads the mean of its own weights in several saved ensembles; one that is missing in any stays.

        Members weigh what they do in the first.
        """
        if not paths:
            raise ValueError("average_weights got no paths: give at least one that save_weights wrote")
        records = [read_index(path) for path in paths]
        for member in self._members():
            if all(member.uid in record["members"] for record in records):
                member.agent.average_weights([member_path(path, member.uid) for path in paths])
                member.weight = records[0]["members"][member.uid]

    def perturb_weights(self, noise_scale: float) -> None:
        """Multiply every weight of every member by 1 + noise_scale * N(0, 1)."""
        for member in self._members():
            member.agent.perturb_weights(noise_scale)

    def teardown(self) -> None:
        """Release what the members hold."""
        for member in self._members():
            tear_down(member.agent)

    def _save(self, directory: Path, method: str, members: Sequence[Member], **more: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for member in members:
            getattr(member.agent, method)(member_path(directory, member.uid))
        (primary,) = (member.uid for member in self._members() if member.agent is self.primary_agent)
        listed = [{"uid": member.uid, "weight": member.weight} for member in members]
        write_index(directory, {"primary": primary, "members": listed, **more})

    def _load(self, path: str, method: str, record: Mapping[str, Any]) -> set[int]:
        """Uids of the members that were loaded."""
        here = [member for member in self._members() if member.uid in record["members"]]
        if not here:
            raise ValueError(f"'{path}' holds none of this ensemble's members: add agents in the order they were added")
        for member in here:
            getattr(member.agent, method)(member_path(path, member.uid))
        return {member.uid for member in here}

    # -- members -------------------------------------------------------------------------------------------

    def _members(self) -> list[Member]:
        members = self.policy_manager.members
        for member in members:
            if member.uid not in self._welcomed:
                if hasattr(member.agent, "act_recurrent"):
                    raise TypeError(
                        f"{type(member.agent).__name__} remembers what it saw, and an ensemble acts otherwise than "
                        "each of its members would: use agents without a memory"
                    )
                self._tell_bounds(member)
                self._welcomed.add(member.uid)
        return members

    def _tell_bounds(self, member: Member) -> None:
        tell = getattr(member.agent, "set_action_bounds", None)
        if tell is not None and self._bounds is not None:
            tell(*self._bounds)
