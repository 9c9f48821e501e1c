"""What `tune` found: the study, the best trial as a run, a report, a figure, files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensor_optix.plan import Plan
from tensor_optix.results import MemberResult, TrainResult
from tensor_optix.trials.space import TrialSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from tensor_optix.policy import Policy

_FIGURE, _TRIALS = "study.png", "best.json"
_TRIAL = "trial"  # in the manifest of the best trial's run: whose it is

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class TuneResult:
    """A search that is over. Printing it reports it."""

    study: Study = field(repr=False)  # Optuna's, with every trial
    space: TrialSpace = field(repr=False)
    best_trial: int  # its number
    best_params: dict[str, Any]  # of the best trial: what was searched
    best_score: float  # its mean return over fresh episodes and its seeds
    best: TrainResult = field(repr=False)  # the best trial as a run of its own, with its policy
    env_steps: int  # of all trials of this call
    compile_s: float
    run_s: float
    wall_s: float
    interrupted: bool = False

    @property
    def notes(self) -> list[str]:
        """What is to be known about the best trial's policy."""
        return self.best.notes

    @property
    def hyperparams(self) -> dict[str, float]:
        """All hyperparameters of the best trial, for `train(hyperparams=...)`."""
        return dict(self.best.config["hyperparams"])

    @property
    def policy(self) -> Policy | None:
        """Of the best trial's best seed. None if the trial ran elsewhere and an interrupt left it at that."""
        return self.best.policy

    def counts(self) -> dict[str, int]:
        """Trials by state, in lower case; states without trials are left out."""
        states = [trial.state.name.lower() for trial in self.study.get_trials(deepcopy=False)]
        return {state: states.count(state) for state in sorted(set(states))}

    def report(self) -> str:
        """A few lines of plain text."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts().items())
        lines = [
            f"{self.best.env}   {self.best.algorithm}   study {self.study.study_name}: {counts}",
            f"best score {self.best_score:.4g} (trial {self.best_trial}), with",
            *(f"  {name:<20} {_shown(value)}" for name, value in self.best_params.items()),
            f"{self.env_steps:,} environment steps in {self.run_s:.1f} s, {self.compile_s:.1f} s of compiling",
        ]
        if self.interrupted:
            lines.append("interrupted: the same call goes on where the study is kept")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report()

    def to_json(self) -> dict[str, Any]:
        """The result as strict JSON values."""
        return {
            "env": self.best.env,
            "algorithm": self.best.algorithm,
            "study": self.study.study_name,
            "trials": self.counts(),
            "best_trial": self.best_trial,
            "best_score": self.best_score,
            "best_params": self.best_params,
            "hyperparams": self.hyperparams,
            "env_steps": self.env_steps,
            "compile_s": self.compile_s,
            "run_s": self.run_s,
            "wall_s": self.wall_s,
            "interrupted": self.interrupted,
            "notes": self.notes,
            "run_dir": self.best.run_dir,
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Scores over trials, and over each searched hyperparameter; written to `path` if given.

        Needs matplotlib: `pip install "tensor-optix[plot]"`.
        """
        try:
            from tensor_optix.trials.figures import study_figure
        except ImportError as error:
            raise ImportError('plot() needs matplotlib: pip install "tensor-optix[plot]"') from error
        figure = study_figure(self.study, self.space, f"{self.best.env}   {self.best.algorithm}")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def keep(self, directory: Path, best: Path, networks: Sequence[str]) -> None:
        """Write the figure and the best configuration into `directory`, the best trial's run into `best`.

        A run that was read from there, or has no policy, is not written.
        """
        from tensor_optix.loop.durable import json_bytes, write_file

        if self.policy is not None and self.best.run_dir is None:
            self._keep_best(best, networks)
        write_file(directory / _TRIALS, json_bytes(self.to_json()))
        with contextlib.suppress(ImportError):  # of matplotlib: the study can be drawn elsewhere
            self.plot(directory / _FIGURE)

    def _keep_best(self, directory: Path, networks: Sequence[str]) -> None:
        from tensor_optix.loop.run_dir import RunDir

        assert self.policy is not None
        trial = _mark(self.study, self.best_trial, self.best_score)
        manifest = {"config": self.best.config, "seeds": self.best.config["seeds"], "networks": list(networks)}
        with RunDir.create(directory, manifest | {_TRIAL: trial}, overwrite=True) as run:
            self.best.run_dir = str(directory)
            run.save_result(*self.best.to_payload())
            facts = {"algorithm": self.best.algorithm, "env": self.best.env, "seed": self.best.best.seed}
            run.save_policy(self.policy.arrays(), facts)
            reasons = {str(member.seed): member.stop_reason.label for member in self.best.members}
            run.update_manifest(status="finished", stop_reasons=reasons)


def kept_run(
    directory: Path,
    study: Study,
    trial: FrozenTrial,
    plan: Plan,
    hyper: Mapping[str, float],
    env: Any,
    networks: Mapping[str, Any],
) -> TrainResult | None:
    """The run that `TuneResult.keep` wrote into `directory`, if it is that trial's; None otherwise.

    hyper: all hyperparameters of the trial. env, networks: as given to `tune`.
    """
    from tensor_optix.finished import load_run
    from tensor_optix.loop.run_dir import RunDir, RunDirError

    try:
        manifest = RunDir.read(directory).manifest
        asked = json.loads(json.dumps(_config(plan, hyper)))
        is_it = manifest.get(_TRIAL) == _mark(study, trial.number, float(trial.value or 0.0))
        if not is_it or manifest.get("status") != "finished" or manifest["config"] != asked:
            return None
        return load_run(directory, None if isinstance(env, str) else env, networks)
    except (RunDirError, ValueError, KeyError) as error:
        if directory.exists():
            _log.warning("the run in '%s' cannot be read, so its trial is trained again: %s", directory, error)
        return None


def result_of_trial(
    plan: Plan, hyper: Mapping[str, float], members: Sequence[MemberResult], policy: Any, notes: Sequence[str] = ()
) -> TrainResult:
    """One trial as a run: what `train` with its hyperparameters, `tune=False` and `stop=False` would give."""
    return TrainResult(
        env=plan.run.env,
        algorithm=plan.run.algorithm,
        members=list(members),
        env_steps=sum(member.env_steps for member in members),
        compile_s=0.0,
        run_s=0.0,
        wall_s=0.0,
        config=_config(plan, hyper),
        notes=list(notes),
        policy=policy,
    )


def _config(plan: Plan, hyper: Mapping[str, float]) -> dict[str, Any]:
    return dataclasses.replace(plan.run, hyperparams=dict(hyper)).to_dict()


def _mark(study: Study, number: int, score: float) -> dict[str, Any]:
    """What tells one trial from all others."""
    return {"study": study.study_name, "number": number, "score": score}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
