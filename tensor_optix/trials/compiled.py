"""`tune`: a search over the hyperparameters of a JAX algorithm, many trials at a time in one compiled program."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.config import ConfigError, RunConfig, unknown
from tensor_optix.config_checks import whole
from tensor_optix.core.types import StopReason
from tensor_optix.loop import runtime
from tensor_optix.loop.session import MemberSpec
from tensor_optix.loop.signals import asking_on_signals
from tensor_optix.orchestrator import require_optuna
from tensor_optix.plan import Plan, make_plan
from tensor_optix.trials.space import Choice, TrialSpace, trial_space, trial_space_of
from tensor_optix.trials.tuned import TuneResult, result_of_trial

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from tensor_optix.loop.events import ChunkReport
    from tensor_optix.results import MemberResult
    from tensor_optix.trials.batches import Batches
    from tensor_optix.trials.ledger import Ledger

_JOURNAL, _BEST = "study.journal", "best"  # in a run_dir
_STUDY = "tune"  # its name there


def tune(
    env: Any,
    algorithm: str = "ppo",
    space: Mapping[str, Any] | None = None,
    *,
    n_trials: int = 20,
    batch: int = 4,
    total_steps: int = 100_000,
    seed: int = 0,
    seeds_per_trial: int = 1,
    config: Mapping[str, Any] | None = None,
    hyperparams: Mapping[str, float] | None = None,
    networks: Mapping[str, Any] | None = None,
    eval_every: int | None = None,
    eval_episodes: int | None = None,
    eval_max_steps: int | None = None,
    final_episodes: int = 100,
    n_startup_trials: int = 10,
    prune: bool = True,
    pruner_warmup_steps: int | None = None,
    study_name: str | None = None,
    storage: Any = None,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    optuna_verbosity: int | None = None,
    block: int | None = None,
) -> TuneResult:
    """Search for the hyperparameters with which `algorithm` scores best on `env`.

    Optuna's TPE proposes them, `batch` trials at a time, which then train side by side: hyperparameters are inputs of
    the compiled program, so that it is compiled once for all batches. Within a trial they stay as they are, and the
    whole budget is used, unless a trial is pruned. All trials have the same seeds: only their hyperparameters differ.

    Args:
        env, algorithm, config, hyperparams, networks, eval_every, eval_episodes, eval_max_steps: as in `train`;
            hyperparams are those of all trials, where `space` does not name them.
        space: as `param_space` of `TrialOrchestrator`, for hyperparameters of the algorithm; by default what the
            algorithm would tune online.
        n_trials: in total, those that the study already has included.
        batch: trials side by side. The proposals of a batch do not know of each other's scores.
        total_steps: budget of each seed of a trial, environment steps.
        seed: of the proposals; the trials' own seeds are `seed`, `seed` + 1, ...
        seeds_per_trial: a trial's score is the mean over so many.
        final_episodes: fresh episodes of its best policy behind the score of each seed.
        n_startup_trials: drawn at random, and complete before the first is pruned.
        prune: end a trial whose best score so far is below the median of the complete trials after as many steps.
        pruner_warmup_steps: environment steps of a seed before it may be; None: a quarter of `total_steps`.
        study_name, storage: where the study is kept and goes on, as in `TrialOrchestrator`.
        run_dir: keeps the study (unless `storage` does), its figure, and the best trial as a run of its own in "best",
            for `load_run` and the command line. A study that is there goes on.
        callbacks: called as `callback(study, trial)` when a trial has ended.

    Interrupted (Ctrl-C), what is finished counts: the result says so. KeyboardInterrupt if nothing is.

    Raises:
        ConfigError (a ValueError): what was asked for cannot be run.
        RuntimeError: no trial has a finite score.
    """
    require_optuna()
    from tensor_optix.trials.ledger import Ledger, best_of
    from tensor_optix.trials.study import talking

    began = time.perf_counter()
    n_trials, batch = whole("n_trials", n_trials), min(whole("batch", batch), n_trials)
    seeds = [seed + i for i in range(whole("seeds_per_trial", seeds_per_trial))]
    runtime.start()
    run = RunConfig(
        env=env if isinstance(env, str) else type(env).__name__,
        algorithm=algorithm,
        seeds=seeds,
        total_steps=total_steps,
        tune=False,
        stop=False,
        config=dict(config or {}),
        hyperparams=dict(hyperparams or {}),
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        eval_max_steps=eval_max_steps,
        final_episodes=final_episodes,
    )
    plan = make_plan(run, None if isinstance(env, str) else env, networks)
    chosen = _space(plan, space)
    if run_dir is not None and storage is None:
        storage, study_name = Path(run_dir) / _JOURNAL, study_name or _STUDY
    with talking(optuna_verbosity):
        study, opened = _open(
            plan,
            chosen,
            storage,
            study_name,
            seed,
            n_startup_trials,
            _pruner(prune, n_startup_trials, total_steps // 4 if pruner_warmup_steps is None else pruner_warmup_steps),
        )
        trials = _Trials(plan, chosen, batch, block)
        with asking_on_signals(trials.interrupted.set):
            try:
                with Ledger(study, opened, chosen, n_trials, callbacks) as ledger:
                    trials.run(ledger)
                best = best_of(study)
                if best is None:
                    _give_up(trials, study)
                assert best is not None
                # Of a trial that another process ran, the policy is not known here; the same seeds give it again.
                members, policy = trials.kept(best.number) or trials.again(chosen.decoded(best.params))
            finally:
                trials.close()
    result = TuneResult(
        study=study,
        space=chosen,
        best_trial=best.number,
        best_params=chosen.decoded(best.params),
        best_score=float(best.value or 0.0),
        best=result_of_trial(plan, trials.hyper(chosen.decoded(best.params)), members, policy),
        env_steps=trials.env_steps,
        compile_s=trials.compile_s,
        run_s=trials.run_s,
        wall_s=time.perf_counter() - began,
        interrupted=trials.interrupted.is_set(),
    )
    if run_dir is not None:
        result.keep(Path(run_dir), Path(run_dir) / _BEST, networks=sorted(networks or {}))
    return result


class _Trials:
    """The trials of one process, in batches of one compiled program."""

    def __init__(self, plan: Plan, space: TrialSpace, batch: int, block: int | None) -> None:
        self._plan, self._space, self._batch, self._block = plan, space, batch, block
        self._session: Batches | None = None  # compiled for the first batch
        self._best: tuple[int, float, Any] | None = None  # trial number, score, (members, policy)
        self.interrupted = threading.Event()
        self.env_steps = 0

    @property
    def compile_s(self) -> float:
        return 0.0 if self._session is None else self._session.compile_s

    @property
    def run_s(self) -> float:
        return 0.0 if self._session is None else self._session.run_s

    def hyper(self, params: Mapping[str, Any]) -> dict[str, float]:
        """All hyperparameters of a trial."""
        return {**self._plan.members[0].hyper, **{name: float(value) for name, value in params.items()}}

    def kept(self, number: int) -> Any:
        """Results and best policy of the trial, if it was the best one that ran here."""
        return self._best[2] if self._best is not None and self._best[0] == number else None

    def run(self, ledger: Ledger) -> None:
        """Batch after batch, until the ledger has no more or an interrupt."""
        while not self.interrupted.is_set():
            taken: list[tuple[int, dict[str, Any]]] = []
            while len(taken) < self._batch and (one := ledger.take()) is not None:
                taken.append(one)
            if not taken:
                return
            reports = partial(self._report, ledger, [number for number, _ in taken])
            ended = self._train([params for _, params in taken], reports)
            if ended is None:
                return  # the ledger gives them up
            for (number, _), (members, policy) in zip(taken, ended, strict=True):
                self._tell(ledger, number, members, policy)

    def again(self, params: Mapping[str, Any]) -> Any:
        """Results and best policy of a trial that ran in another process."""
        ended = self._train([params], lambda report: ())
        if ended is None:
            raise KeyboardInterrupt
        return ended[0]

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _train(
        self, batch: Sequence[Mapping[str, Any]], judge: Callable[[ChunkReport], Sequence[int]]
    ) -> list[tuple[list[MemberResult], Any]] | None:
        """For each trial its members' results and its best policy; None if interrupted."""
        seeds = self._plan.run.seed_list()
        members = [MemberSpec(seed, 0, self.hyper(params)) for params in batch for seed in seeds]
        ended = self._compiled().run(members, lambda: not self.interrupted.is_set(), judge)
        if ended is None:
            return None
        results, policies, env_steps = ended
        self.env_steps += env_steps
        groups = [range(i, i + len(seeds)) for i in range(0, len(members), len(seeds))]
        return [([results[i] for i in group], _policy_of(self._plan, results, policies, group)) for group in groups]

    def _report(self, ledger: Ledger, numbers: Sequence[int], report: ChunkReport) -> list[int]:
        """Tell of the evaluations in a chunk; the members of trials that are pruned."""
        per_window, count = self._plan.program.algorithm.steps_per_window, len(self._plan.run.seed_list())
        lanes = np.argsort(report.member_ids)
        scored = report.active & report.evaluated
        ended: list[int] = []
        for k in range(len(scored)):
            for i, number in enumerate(numbers):
                members = range(i * count, (i + 1) * count)
                rows = lanes[list(members)]
                if not scored[k, rows].all():
                    continue
                step = int(report.windows()[k, rows[0]] + 1) * per_window
                if ledger.report(number, step, float(np.mean(report.score[k, rows], dtype=np.float64))):
                    ended += members
        return ended

    def _tell(self, ledger: Ledger, number: int, members: list[MemberResult], policy: Any) -> None:
        from optuna.trial import TrialState

        from tensor_optix.trials.ledger import Outcome

        if any(member.stop_reason == StopReason.PRUNED for member in members):
            steps = sum(member.env_steps for member in members)
            ledger.finish(number, Outcome(TrialState.PRUNED, facts={"env_steps": steps}))
            return
        score = float(np.mean([member.score for member in members]))
        facts: dict[str, Any] = {"env_steps": sum(member.env_steps for member in members)}
        if np.isfinite(score):
            facts["scores"] = [member.score for member in members]  # by seed
        if np.isfinite(score) and (self._best is None or score > self._best[1]):
            self._best = number, score, (members, policy)
        ledger.finish(number, Outcome(TrialState.COMPLETE, score=score, facts=facts))

    def _compiled(self) -> Batches:
        import jax

        from tensor_optix.loop.session import default_block
        from tensor_optix.trials.batches import Batches

        if self._session is None:
            hyper = self._plan.members[0].hyper
            members = [MemberSpec(seed, 0, hyper) for seed in self._plan.run.seed_list() for _ in range(self._batch)]
            self._session = Batches(
                self._plan.program,
                members,
                devices=jax.local_devices(),
                block=self._block or default_block(jax.default_backend()),
                max_windows=self._plan.max_windows,
                final_episodes=self._plan.run.final_episodes,
            )
            self._session.compile()
        return self._session


def _policy_of(plan: Plan, results: Sequence[MemberResult], policies: Any, group: range) -> Any:
    """The policy of the group's best member; that of the first where none has a finite score."""
    import jax

    from tensor_optix.policy import Policy

    scores = np.nan_to_num([results[i].score for i in group], nan=-np.inf)
    best = group[int(np.argmax(scores))]
    return Policy(plan.program.algorithm, jax.tree.map(lambda x: np.asarray(x)[best], policies))


def _space(plan: Plan, given: Mapping[str, Any] | None) -> TrialSpace:
    """What is searched, within what the algorithm allows."""
    algorithm = plan.program.algorithm
    known, limits = algorithm.hyperparams(), algorithm.hyperparam_limits()
    if given is None:
        space = trial_space_of(algorithm.search_space())
        if not space.entries:
            raise ConfigError(f"{plan.run.algorithm} names nothing to tune: give a space")
        return space
    try:
        space = trial_space(given)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    for name, entry in space.entries:
        if name in plan.run.config:
            raise ConfigError(
                f"{name} is a setting of {plan.run.algorithm} that its program is compiled for, and all trials share "
                f"one program: set it with config={{{name!r}: ...}}, or search it with TrialOrchestrator"
            )
        if name not in known:
            raise ConfigError(unknown("hyperparameter in space", name, known))
        values = entry.values if isinstance(entry, Choice) else (entry.low, entry.high)
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise ConfigError(f"space[{name!r}] must offer numbers, got {list(values)!r}")
        low, high = limits[name]
        outside = [value for value in values if not low <= value <= high]
        if outside:
            raise ConfigError(f"space[{name!r}] must lie in [{low:g}, {high:g}], got {outside[0]!r}")
    return space


def _open(
    plan: Plan, space: TrialSpace, storage: Any, name: str | None, seed: int, n_startup: int, pruner: BasePruner
) -> tuple[Study, Any]:
    from tensor_optix.trials.storage import open_storage
    from tensor_optix.trials.study import open_study

    run = plan.run
    facts = {
        "param_space": space.facts(),
        **{f: getattr(run, f) for f in ("env", "algorithm", "total_steps", "seeds", "config", "hyperparams")},
        **{f: getattr(run, f) for f in ("eval_every", "eval_episodes", "eval_max_steps", "final_episodes")},
    }
    try:
        opened = open_storage(storage)
        study = open_study(
            opened,
            name,
            direction="maximize",
            seed=seed,
            n_startup_trials=whole("n_startup_trials", n_startup, 0),
            pruner=pruner,
            facts=facts,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    return study, opened


def _pruner(prune: bool, n_startup: int, warmup: int) -> BasePruner:
    import optuna

    if not prune:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=whole("n_startup_trials", n_startup, 0),
        n_warmup_steps=whole("pruner_warmup_steps", warmup, 0),
        interval_steps=1,
        n_min_trials=1,
    )


def _give_up(trials: _Trials, study: Study) -> None:
    if trials.interrupted.is_set():
        raise KeyboardInterrupt
    raise RuntimeError(
        f"none of the {len(study.trials)} trials has a finite score: the space reaches where training diverges, or the "
        "environment's rewards are not finite; narrow the space"
    )
