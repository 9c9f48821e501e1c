"""The search that `RLOptimizer` makes before its run, where it is given a `param_space`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensor_optix.loop.durable import json_bytes
from tensor_optix.loop.run_dir import RunDir
from tensor_optix.orchestrator import TrialOrchestrator
from tensor_optix.trials.facts import difference
from tensor_optix.trials.fixed import tells_its_space

_RECORD = "trials"  # in the manifest of the run: what the search came to
_SPACE = "param_space"  # in there: what was searched

_log = logging.getLogger(__name__)


class TrialsFirst:
    """Trials, each with a share of the run's budget; then their best configuration and weights for the run.

    Args:
      max_episodes: the run's budget in windows; a trial gets `fraction` of it, at least one window.
      settings: further arguments of each trial's `RLOptimizer`; None is left out. An optimizer tunes within the trials
        too, but nothing that they search; one that cannot be kept from that is left to the run.

    Raises:
      TypeError, ValueError: what is missing for a search, or wrong with it.
    """

    def __init__(
        self,
        param_space: Mapping[str, Any],
        n_trials: int,
        fraction: float,
        max_episodes: int | None,
        agent_factory: Callable[..., Any] | None,
        pipeline_factory: Callable[..., Any] | None,
        val_pipeline_factory: Callable[..., Any] | None,
        settings: Mapping[str, Any],
        seed: int,
    ) -> None:
        if agent_factory is None or pipeline_factory is None:
            raise TypeError(
                "a search over trials (param_space) makes many agents and pipelines: give agent_factory and "
                "pipeline_factory instead of agent and pipeline"
            )
        if max_episodes is None:
            raise TypeError(
                "a search over trials (param_space) gives each trial trial_steps_fraction of the budget: give "
                "max_episodes, the budget in windows"
            )
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ValueError(f"trial_steps_fraction must lie in (0, 1], got {fraction!r}")
        settings = {k: v for k, v in settings.items() if v is not None}
        if not tells_its_space(settings.get("optimizer")):  # it may tune what the trials search, in the run
            settings.pop("optimizer", None)
        self._search = TrialOrchestrator(
            agent_factory,
            pipeline_factory,
            param_space,
            n_trials=n_trials,
            trial_episodes=max(1, math.ceil(fraction * max_episodes)),
            val_pipeline_factory=val_pipeline_factory,
            rloptimizer_kwargs=settings | {"seed": seed},
            seed=seed,
        )
        self.manifest: dict[str, Any] = {}  # entries for the run's manifest, from `params` on

    def stop(self) -> None:
        self._search.stop()

    def params(self, resume_from: str | Path | None) -> dict[str, Any]:
        """Those of the best trial; of an earlier run's search, where that run is gone on with."""
        if resume_from is not None:
            record = RunDir.read(resume_from).manifest.get(_RECORD)
            if record is None:
                raise ValueError(f"the run at '{resume_from}' began without a search: leave param_space out")
            now = json.loads(json_bytes(self._search.space.facts()))
            differs = difference("param_space", record.get(_SPACE, now), now)
            if differs is not None:
                raise ValueError(
                    f"the run at '{resume_from}' searched {differs}: give the param_space that it began with, or leave "
                    "resume_from out to search anew"
                )
            return self._search.space.decoded(record["params"])
        if not self.manifest:
            best = self._search.run()
            study = self._search.study
            assert study is not None
            record = {"params": study.best_trial.params, "score": best.score, "trials": len(study.trials)}
            self.manifest = {_RECORD: record | {_SPACE: self._search.space.facts()}}
        return self._search.best_params or {}

    def warm_start(self, agent: Any) -> None:
        """Put the best trial's weights into the agent, if they fit; a run that is gone on with has its own."""
        path = self._search.best_weights_path
        if path is None:
            return
        try:
            agent.load_weights(path)
        except Exception as error:
            _log.warning(
                "the best trial's weights do not fit the agent of agent_factory (%s: %s): the run begins with its "
                "configuration alone",
                type(error).__name__,
                error,
            )
        self._search.close()
