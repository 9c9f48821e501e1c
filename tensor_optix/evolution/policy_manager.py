"""Variants of the best policy, within a budget, and the ensemble that they make: weighed by their scores, pruned."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EvalMetrics, HyperparamSet, PolicySnapshot
from tensor_optix.evolution import combining
from tensor_optix.evolution.decisions import MIN_SCORES, spawn_noise
from tensor_optix.evolution.ensemble_files import primary_weights
from tensor_optix.evolution.members import Member, check_weight, is_on_policy, reweigh, tear_down, weakest
from tensor_optix.evolution.meta_controller import MetaController, evaluations_of
from tensor_optix.evolution.mutation import mutated
from tensor_optix.evolution.report import report_text

if TYPE_CHECKING:
    from tensor_optix.evolution.policy_manager_callback import PolicyManagerCallback

_log = logging.getLogger(__name__)


class PolicyManager:
    """Keeps an ensemble of agents, and makes variants of the best saved policy.

    Args:
        registry: a `CheckpointRegistry`, or what has its `best`, `snapshots` and `load_best`. A loop that takes the
            callback of `as_callback` puts its own in the place of this one: that is where its policies are.
        score_window: newest scores of a member that count.
        max_spawns: variants that may be made; None: no limit.
        max_ensemble_size: members that are kept: beyond it the weakest go. None: no limit.
        seed: of the variants' hyperparameters, and of drawing members that act.

    Raises:
        TypeError: a count is no whole number.
        ValueError: it is too small.
    """

    def __init__(
        self,
        registry: Any,
        score_window: int = 10,
        max_spawns: int | None = None,
        max_ensemble_size: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("score_window", score_window, 1),
            ("max_spawns", max_spawns, 0),
            ("max_ensemble_size", max_ensemble_size, 1),
        ):
            if value is not None or name == "score_window":
                _check_count(name, value, least)
        self.registry = registry
        self.score_window, self.max_spawns, self.max_ensemble_size = score_window, max_spawns, max_ensemble_size
        self.members: list[Member] = []
        self.regime = "ranging"
        self.spawn_count, self.prune_count = 0, 0
        self._next_uid = 0
        self._kept: list[BaseAgent] = []  # never pruned
        self._key = jax.random.key(seed)
        self._rng = np.random.default_rng(seed)

    # -- the ensemble --------------------------------------------------------------------------------------

    @property
    def ensemble_size(self) -> int:
        return len(self.members)

    @property
    def agents(self) -> list[BaseAgent]:
        return [member.agent for member in self.members]

    @property
    def weights(self) -> list[float]:
        """What the members weigh, relative to each other."""
        return [member.weight for member in self.members]

    def add_agent(self, agent: BaseAgent, weight: float = 1.0, *, variant: bool = False) -> None:
        """One more member. Beyond `max_ensemble_size` the weakest of the others goes.

        variant: somebody else keeps the agent's state, as `PolicyManagerCallback` does for what it spawns.
        ValueError for a weight that is negative or not finite, or an agent that is a member already.
        """
        if self._find(agent) is not None:
            raise ValueError(f"this {type(agent).__name__} is a member already: boost it to give it more weight")
        member = Member(agent, check_weight(weight), self._next_uid, variant)
        self.members.append(member)
        self._next_uid += 1
        self._keep_limit(newcomer=member)

    def keep(self, agent: BaseAgent) -> None:
        """`agent` is being trained: never prune it. It becomes a member if it is none."""
        if not any(agent is kept for kept in self._kept):
            self._kept.append(agent)
        if self._find(agent) is None:
            self.add_agent(agent)

    def check_room(self, agent: BaseAgent) -> None:
        """ValueError if no variant could stay, because `agent` and others that are trained fill the ensemble."""
        kept = len(self._kept) + (not any(agent is other for other in self._kept))
        if self.max_ensemble_size is not None and kept >= self.max_ensemble_size:
            raise ValueError(
                f"max_ensemble_size={self.max_ensemble_size} has room for the agent that is trained, which is never "
                f"pruned, and every variant would leave at once: give at least {kept + 1}, or no agent_factory"
            )

    def prune(self, bottom_k: int = 1) -> list[BaseAgent]:
        """Remove the `bottom_k` weakest members, tear them down, and return them.

        Those go that weigh least; of equal weight the one with the lower mean score, then the older. At least one
        member stays, and so does an agent that a loop is training. ValueError or TypeError for what is no count.
        """
        _check_count("bottom_k", bottom_k, 0)
        return self._remove([m for m in weakest(self.members) if not self._is_kept(m)], bottom_k)

    def boost(self, agent: BaseAgent | int, factor: float = 2.0) -> None:
        """Multiply what a member (or the one of this index) weighs, until its weight is next set from scores."""
        member = self._at(agent) if isinstance(agent, int) else self._find(agent)
        if member is None:
            raise ValueError(f"this {type(agent).__name__} is not in the ensemble: add it with add_agent")
        member.weight = check_weight(member.weight * check_weight(factor))

    def ensemble_action(self, obs: Any, deterministic: bool = False) -> Any:
        """The ensemble's action for one observation; see `combining.act`. ValueError while it is empty."""
        return combining.act(self.agents, self.weights, obs, deterministic, self._rng)

    # -- scores --------------------------------------------------------------------------------------------

    def record_agent_score(self, index: int, score: float) -> None:
        """A new score of the member of this index; one that is not finite is passed over, and logged."""
        member = self._at(index)
        if not math.isfinite(score):
            _log.warning("member %d scored %r, which is not counted", index, score)
            return
        member.scores = [*member.scores, float(score)][-self.score_window :]

    def update_weights(self, scores: Mapping[int, float]) -> None:
        """Weigh the members by these scores (index -> score); see `decisions.ensemble_weights`. Others keep theirs."""
        if not isinstance(scores, Mapping):
            raise TypeError(f"scores must be a mapping of a member's index to its score, got {scores!r}")
        for index, score in scores.items():
            self._at(index)
            if not math.isfinite(score):
                raise ValueError(f"the score of member {index} is {score!r}: leave out what is not finite")
        reweigh(self.members, [[float(scores[i])] if i in scores else [] for i in range(len(self.members))])

    def auto_update_weights(self) -> None:
        """Weigh the members by their last `score_window` recorded scores; one without any keeps its weight."""
        reweigh(self.members, [member.scores for member in self.members])

    def set_regime(self, regime: str) -> None:
        """What the scores look like (see `RegimeDetector`), for the report."""
        if not isinstance(regime, str):
            raise TypeError(f"a regime is a word such as 'trending', got {regime!r}")
        self.regime = regime

    # -- variants ------------------------------------------------------------------------------------------

    @property
    def budget_exhausted(self) -> bool:
        return self.max_spawns is not None and self.spawn_count >= self.max_spawns

    @property
    def spawns_remaining(self) -> int | None:
        """None: no limit."""
        return None if self.max_spawns is None else max(0, self.max_spawns - self.spawn_count)

    @property
    def ranked_snapshots(self) -> list[PolicySnapshot]:
        """The saved policies that were scored, best first."""
        return [s for s in self.registry.snapshots if math.isfinite(s.eval_metrics.primary_score)]

    def evolve(self, agent: BaseAgent, score: float) -> bool:
        """Load the best saved policy into `agent` if `score` is below the best's, or not finite. True: it was loaded.

        Never for an agent that is not on-policy: its replay is of other policies.
        """
        best = self.registry.best
        if best is None or score >= best.eval_metrics.primary_score or not is_on_policy(agent):
            return False
        return self.registry.load_best(agent) is not None

    def spawn_variant(
        self,
        shell: BaseAgent,
        noise_scale: float = 0.01,
        mutation_fn: Callable[[HyperparamSet], Any] | None = None,
        *,
        weight_noise: float = 0.0,
    ) -> BaseAgent:
        """Make `shell` a variant of the best saved policy, and return it. It counts as one spawn.

        The weights and hyperparameters come from the registry's best policy (of a saved ensemble: from its primary
        agent); where nothing is saved the shell's own stay. Then the hyperparameters are moved (see
        `mutation.mutated`), or replaced by what `mutation_fn` makes of them.

        Args:
            shell: an agent of the same kind, whose weights do not matter.
            noise_scale: standard deviation, as a share of a hyperparameter's range.
            mutation_fn: given a copy of the hyperparameters returns others, a `HyperparamSet` or a mapping.
            weight_noise: the weights are multiplied by 1 + weight_noise * N(0, 1), if the agent can do that.

        Raises:
            RuntimeError: all of `max_spawns` were made.
        """
        if self.budget_exhausted:
            raise RuntimeError(f"all {self.max_spawns} spawns were made: raise max_spawns, or ask budget_exhausted")
        self.registry.load_best(_Receiver(shell))
        before = shell.get_hyperparams()
        if mutation_fn is None:
            key = jax.random.fold_in(self._key, self.spawn_count)
            params: Any = mutated(key, shell, before.params, noise_scale)
        else:
            changed = mutation_fn(before.copy())
            params = changed.params if isinstance(changed, HyperparamSet) else changed
        shell.set_hyperparams(HyperparamSet(dict(params), before.episode_id))
        if weight_noise > 0:
            try:
                shell.perturb_weights(weight_noise)
            except NotImplementedError:
                _log.info("%s has no perturb_weights: the variant differs in hyperparameters", type(shell).__name__)
        self.spawn_count += 1
        return shell

    def adaptive_noise_scale(
        self, history: Sequence[EvalMetrics], min_scale: float = 0.001, max_scale: float = 0.1, window: int = 10
    ) -> float:
        """How far the next variant should go, from three signals of the newest evaluations; `decisions.spawn_noise`.

        ValueError unless 0 <= min_scale <= max_scale and the window is at least 3.
        """
        if not 0.0 <= min_scale <= max_scale < math.inf:
            raise ValueError(f"expected 0 <= min_scale <= max_scale, got {min_scale!r} and {max_scale!r}")
        if window < MIN_SCORES:
            raise ValueError(f"window is {window!r}: give at least {MIN_SCORES} evaluations")
        told = evaluations_of(history, window)
        noise = float(_spawn_noise(told, np.float32(min_scale), np.float32(max_scale), window))
        return min(max(noise, min_scale), max_scale)

    # -- what is told --------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Members and counts, in plain values."""
        return {
            "ensemble_size": self.ensemble_size,
            "max_ensemble_size": self.max_ensemble_size,
            "agents": [
                {"index": i, "weight": m.weight, "mean_score": m.mean_score, "recent_scores": list(m.scores)}
                for i, m in enumerate(self.members)
            ],
            "regime": self.regime,
            "spawn_count": self.spawn_count,
            "max_spawns": self.max_spawns,
            "spawns_remaining": self.spawns_remaining,
            "budget_exhausted": self.budget_exhausted,
            "prune_count": self.prune_count,
        }

    def training_report(self) -> dict[str, Any]:
        """`status`, and the best saved policy's scores; None for what there is not."""
        best = self.registry.best
        metrics = None if best is None else best.eval_metrics
        return {
            **self.status(),
            "best_score": None if metrics is None else metrics.primary_score,
            "best_val_score": None if metrics is None else metrics.metrics.get("val_score"),
            "best_generalization_gap": None if metrics is None else metrics.generalization_gap,
        }

    @property
    def report_text(self) -> str:
        """`training_report` for people."""
        return report_text(self.training_report())

    def as_callback(
        self,
        agent: BaseAgent,
        agent_factory: Callable[..., BaseAgent] | None = None,
        meta_controller: MetaController | None = None,
        *,
        score_fn: Callable[[BaseAgent], float] | None = None,
    ) -> PolicyManagerCallback:
        """The loop callback that evolves policies whenever learning comes to a plateau; see its class."""
        from tensor_optix.evolution.policy_manager_callback import PolicyManagerCallback

        return PolicyManagerCallback(self, agent, agent_factory, meta_controller, score_fn)

    # -- kept by a callback --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All but the agents, in plain values."""
        return {
            "spawn_count": self.spawn_count,
            "prune_count": self.prune_count,
            "next_uid": self._next_uid,
            "regime": self.regime,
            "rng": self._rng.bit_generator.state,
            "members": [member.record() for member in self.members],
        }

    def load_state_dict(self, state: Mapping[str, Any], variants: Mapping[int, BaseAgent]) -> list[str]:
        """Take over a saved `state_dict`; sentences about what could not be put back.

        variants: by uid, those that are no members yet. Members that the state does not know were pruned: they go.
        """
        self.spawn_count, self.prune_count = int(state["spawn_count"]), int(state["prune_count"])
        self.regime = state["regime"]
        self._rng.bit_generator.state = state["rng"]
        present = {member.uid: member for member in self.members}
        problems, members = [], []
        for record in state["members"]:
            uid = int(record["uid"])
            member = present.pop(uid, None)
            if member is None and uid in variants:
                member = Member(variants[uid], 1.0, uid)
            if member is None:
                problems.append(f"member {uid} of the ensemble is missing: it was neither added nor can it be made")
                continue
            member.restore(record)
            members.append(member)
        gone = [member for member in present.values() if not self._is_kept(member)]
        self.members = [*members, *(member for member in present.values() if self._is_kept(member))]
        self._next_uid = max([int(state["next_uid"]), *(member.uid + 1 for member in self.members)])
        for member in gone:
            tear_down(member.agent)
        return problems

    # -- parts ---------------------------------------------------------------------------------------------

    def _at(self, index: int) -> Member:
        whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if not whole or not 0 <= index < len(self.members):
            raise ValueError(f"the ensemble has no member {index!r}: it has {len(self.members)}, counted from 0")
        return self.members[index]

    def _find(self, agent: Any) -> Member | None:
        return next((member for member in self.members if member.agent is agent), None)

    def _is_kept(self, member: Member) -> bool:
        return any(member.agent is agent for agent in self._kept)

    def _keep_limit(self, newcomer: Member) -> None:
        if self.max_ensemble_size is None:
            return
        # The newcomer goes only where every other has to stay.
        order = [m for m in weakest(self.members) if m is not newcomer] + [newcomer]
        self._remove([m for m in order if not self._is_kept(m)], len(self.members) - self.max_ensemble_size)

    def _remove(self, candidates: Sequence[Member], count: int) -> list[BaseAgent]:
        leaving = candidates[: max(0, min(count, len(self.members) - 1))]
        self.members = [member for member in self.members if not any(member is other for other in leaving)]
        self.prune_count += len(leaving)
        for member in leaving:
            tear_down(member.agent)
        return [member.agent for member in leaving]


class _Receiver:
    """Stands in the place of an agent that a snapshot is loaded into; of an ensemble's it takes the primary's part."""

    def __init__(self, agent: BaseAgent) -> None:
        self._agent = agent

    def load_weights(self, path: str) -> None:
        self._agent.load_weights(primary_weights(path))

    def set_hyperparams(self, hyperparams: HyperparamSet) -> None:
        self._agent.set_hyperparams(hyperparams)


def _check_count(name: str, value: Any, least: int) -> None:
    """TypeError unless `value` is a whole number, ValueError unless it is at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


_spawn_noise = jax.jit(spawn_noise, static_argnums=3)
