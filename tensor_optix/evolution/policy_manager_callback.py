"""What happens to policies when learning comes to a plateau: the loop callback of a `PolicyManager`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.regime_detector import RegimeDetector
from tensor_optix.core.types import EvalMetrics, HyperparamSet, StopReason
from tensor_optix.evolution.agent_bytes import from_bytes, to_bytes
from tensor_optix.evolution.decisions import MEMORY, MetaAction, weight_noise
from tensor_optix.evolution.making import another
from tensor_optix.evolution.meta_controller import MetaController, evaluations_of
from tensor_optix.evolution.policy_manager import PolicyManager

_WINDOW = 10  # evaluations that say how far a variant goes
_BASE_NOISE = np.float32(0.01)  # on a variant's weights

_log = logging.getLogger(__name__)


class PolicyManagerCallback:
    """On DORMANT: go back to the best policy if the last was worse, weigh the ensemble anew, then decide.

    SPAWN makes a variant of the best saved policy by `agent_factory`, which joins the ensemble. PRUNE drops the weakest
    member; where none may go, it is a SPAWN. After either, and after NO_OP, the loop goes on. When no spawn is left the
    report is logged and the loop stops, for `StopReason.SPAWN_BUDGET`. Without a factory nothing can be spawned: the
    loop stops, converged.

    A loop trains its own agent only. For variants that learn too, let it train an `EnsembleAgent` of the manager. Its
    best policy is saved with what the members weighed then, and comes back with it, also when the run ends.

    Args:
        manager: whose ensemble it is.
        agent: the one that is trained, or the primary of the ensemble that is.
        agent_factory: makes agents of the same kind; takes no argument, a mapping of hyperparameters or, called `env`,
            the loop's environment; see `making.another`. For the library's own `make_agent` the agent is copied.
        meta_controller: decides; without it every DORMANT is a SPAWN.
        score_fn: agent -> score. Asked about every member at each DORMANT, once the best policy is back, so that
            weights follow; what members did there is no experience. Without it only the agent that is trained has
            scores.

    Raises:
        TypeError: the factory or the score function cannot be called.
        ValueError: no variant could stay, for `max_ensemble_size` leaves room for those that are trained only.
    """

    def __init__(
        self,
        manager: PolicyManager,
        agent: BaseAgent,
        agent_factory: Callable[..., BaseAgent] | None = None,
        meta_controller: MetaController | None = None,
        score_fn: Callable[[BaseAgent], float] | None = None,
    ) -> None:
        for name, given in (("agent_factory", agent_factory), ("score_fn", score_fn)):
            if given is not None and not callable(given):
                raise TypeError(f"{name} must be a function, got {given!r}: give the function itself")
        if agent_factory is not None and not manager.budget_exhausted:
            manager.check_room(agent)
        self.manager, self.agent, self.meta_controller = manager, agent, meta_controller
        self._factory, self._score_fn = agent_factory, score_fn
        self._stop_fn: Callable[[], None] | None = None
        self._loop: Any = None
        self._detector = RegimeDetector()
        self._size = MEMORY if meta_controller is None else max(MEMORY, meta_controller.config.window)
        self._reported = False
        self.history: list[EvalMetrics] = []  # the newest evaluations

    def set_stop_fn(self, stop_fn: Callable[[], None]) -> None:
        """Called when the budget of spawns is spent. `LoopController` needs none: it hands itself over."""
        self._stop_fn = stop_fn

    def set_loop(self, loop: Any) -> None:
        """The loop that is about to begin: it trains its agent, has the policies in its registry, goes on or stops."""
        self._loop = loop
        self.manager.registry = loop.registry

    # -- hooks ---------------------------------------------------------------------------------------------

    def on_loop_start(self) -> None:
        """The agent is a member from now on, and stays one."""
        self.manager.keep(self.agent)

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        """Remember an evaluation."""
        if eval_metrics is None:
            return
        self.history = [*self.history, eval_metrics][-self._size :]
        agents = self.manager.agents
        alone = self._loop is None or self._loop.agent is self.agent
        if alone and self._score_fn is None and np.isfinite(eval_metrics.primary_score):
            for index, agent in enumerate(agents):
                if agent is self.agent:
                    self.manager.record_agent_score(index, eval_metrics.primary_score)

    def on_dormant(self, episode_id: int) -> None:
        """A plateau: do something about it."""
        manager = self.manager
        manager.set_regime(self._detector.detect(self.history))
        trained = self.agent if self._loop is None else self._loop.agent
        changed = bool(self.history) and manager.evolve(trained, self.history[-1].primary_score)
        before = manager.weights
        self._score_members()  # a policy that came back brought its weights with it, and is what is scored
        manager.auto_update_weights()
        changed = changed or (trained is not self.agent and manager.weights != before)
        action = self._decide()
        if action == MetaAction.STOP:
            self._finish()
            return
        if action == MetaAction.PRUNE and not manager.prune(1):
            action = MetaAction.SPAWN
        if action == MetaAction.SPAWN:
            if self._factory is None:
                self._finish()
                return
            self._spawn()
        if self._loop is not None:
            if changed or (trained is not self.agent and action != MetaAction.NO_OP):
                self._loop.policy_changed()
            self._loop.keep_going()

    # -- deciding and doing --------------------------------------------------------------------------------

    def _score_members(self) -> None:
        if self._score_fn is None:
            return
        for index, agent in enumerate(self.manager.agents):
            try:
                self.manager.record_agent_score(index, float(self._score_fn(agent)))
            finally:
                reset_cache = getattr(agent, "reset_cache", None)
                if reset_cache is not None:
                    reset_cache()  # acting there must not look like experience

    def _decide(self) -> MetaAction:
        if self.manager.budget_exhausted:
            return MetaAction.STOP
        if self.meta_controller is None:
            return MetaAction.SPAWN
        return self.meta_controller.decide(self.history, self.manager.status())

    def _spawn(self) -> None:
        manager, told = self.manager, evaluations_of(self.history, _WINDOW)
        noise = manager.adaptive_noise_scale(self.history, window=_WINDOW)
        variant = manager.spawn_variant(
            self._made(), noise, weight_noise=float(_weight_noise(told, _BASE_NOISE, _WINDOW))
        )
        manager.add_agent(variant, variant=True)
        _log.info(
            "variant %d was spawned: hyperparameters within %.3g of the best policy's", manager.spawn_count, noise
        )

    def _finish(self) -> None:
        exhausted = self.manager.budget_exhausted
        if not self._reported and self.manager.max_spawns is not None:
            # At a level that is seen without setting up logging: who gives a budget is promised a report.
            _log.warning("%s", self.manager.report_text)
            self._reported = True
        if exhausted and self._loop is not None:
            self._loop.stop(StopReason.SPAWN_BUDGET)
        if self._stop_fn is not None:
            self._stop_fn()

    def _made(self) -> BaseAgent:
        assert self._factory is not None
        made: BaseAgent = another(self.agent, self._factory, getattr(self._loop, "pipeline", None))
        return made

    # -- resume --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The manager's state, the variants with all their files, and what was evaluated."""
        return {
            "manager": self.manager.state_dict(),
            "reported": self._reported,
            "history": [_plain(metrics) for metrics in self.history],
            "variants": {
                str(member.uid): {
                    "hyperparams": dict(member.agent.get_hyperparams().params),
                    "files": to_bytes(member.agent),
                }
                for member in self.manager.members
                if member.variant
            },
        }

    def has_more(self, state: Mapping[str, Any]) -> bool:
        """Whether a run that ended with this saved `state_dict`, for its spawns were made, may make more now."""
        limit, made = self.manager.max_spawns, int(state["manager"]["spawn_count"])
        return self._factory is not None and (limit is None or made < limit)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Take over a saved `state_dict`: variants are made by the factory. Sentences about what could not be."""
        self._reported = bool(state["reported"]) and not self.has_more(state)
        self.history = [
            EvalMetrics(float(m["primary_score"]), dict(m["metrics"]), int(m["episode_id"]), float(m["timestamp"]))
            for m in state["history"]
        ]
        variants: dict[int, BaseAgent] = {}
        present = {member.uid for member in self.manager.members}
        for uid, saved in state["variants"].items() if self._factory is not None else ():
            if int(uid) not in present:
                agent = self._made()
                from_bytes(agent, saved["files"])
                agent.set_hyperparams(HyperparamSet(dict(saved["hyperparams"])))
                variants[int(uid)] = agent
        return self.manager.load_state_dict(state["manager"], variants)


def _plain(metrics: EvalMetrics) -> dict[str, Any]:
    """What decisions are made from."""
    kept = {k: float(metrics.metrics[k]) for k in ("train_score", "val_score") if metrics.metrics.get(k) is not None}
    return {
        "primary_score": float(metrics.primary_score),
        "metrics": kept,
        "episode_id": int(metrics.episode_id),
        "timestamp": float(metrics.timestamp),
    }


_weight_noise = jax.jit(weight_noise, static_argnums=2)
