"""`tune`: a search over the hyperparameters of a JAX algorithm, many trials at a time in one compiled program."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensor_optix.config import ConfigError, RunConfig, unknown
from tensor_optix.config_checks import whole
from tensor_optix.loop import runtime
from tensor_optix.loop.signals import asking_on_signals
from tensor_optix.orchestrator import require_optuna
from tensor_optix.plan import Plan, make_plan
from tensor_optix.trials.compiled_trials import CompiledTrials
from tensor_optix.trials.facts import env_facts, policy_fact
from tensor_optix.trials.space import Choice, TrialSpace, trial_space, trial_space_of
from tensor_optix.trials.tuned import TuneResult, kept_run

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial

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

    The best trial's policy is that of its run; where another process ran the trial and "best" does not hold it, the
    trial is trained again, and `notes` of the result say so if that went another way.

    Interrupted (Ctrl-C), what is finished counts: the result says so, and lacks a policy where the best trial would
    have to be trained again. KeyboardInterrupt if nothing is finished.

    Raises:
        ConfigError (a ValueError): what was asked for cannot be run.
        RuntimeError: no trial has a finite score.
    """
    require_optuna()
    from tensor_optix.trials.ledger import Ledger, best_of
    from tensor_optix.trials.study import talking

    began = time.perf_counter()
    n_trials, total_steps = whole("n_trials", n_trials), whole("total_steps", total_steps)
    batch, seed = min(whole("batch", batch), n_trials), whole("seed", seed, 0)
    seeds = [seed + i for i in range(whole("seeds_per_trial", seeds_per_trial))]
    runtime.start()
    run = RunConfig(
        env=env if isinstance(env, str) else _name(env),
        algorithm=algorithm,
        seeds=seeds,
        total_steps=total_steps,
        tune=False,
        stop=False,
        config=_mapping("config", config),
        hyperparams=_mapping("hyperparams", hyperparams),
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        eval_max_steps=eval_max_steps,
        final_episodes=final_episodes,
    )
    own = _mapping("networks", networks)
    plan = make_plan(run, None if isinstance(env, str) else env, own)
    chosen = _space(plan, space)
    if run_dir is not None and storage is None:
        storage, study_name = Path(run_dir) / _JOURNAL, study_name or _STUDY
    with talking(optuna_verbosity):
        study, opened = _open(
            plan,
            {"param_space": chosen.facts(), "networks": sorted(own)},
            storage,
            study_name,
            seed,
            n_startup_trials,
            _pruner(prune, n_startup_trials, total_steps // 4 if pruner_warmup_steps is None else pruner_warmup_steps),
        )
        trials = CompiledTrials(plan, chosen, batch, block)
        with asking_on_signals(trials.interrupted.set):
            try:
                with Ledger(study, opened, chosen, n_trials, callbacks) as ledger:
                    trials.run(ledger)
                best = best_of(study)
                if best is None:
                    _give_up(trials, study)
                assert best is not None
                found = trials.kept(best.number)
                if found is None and run_dir is not None:
                    hyper = trials.hyper(chosen.decoded(best.params))
                    found = kept_run(Path(run_dir) / _BEST, study, best, plan, hyper, env, own)
                found = found or trials.again(best)
            finally:
                trials.close()
    result = TuneResult(
        study=study,
        space=chosen,
        best_trial=best.number,
        best_params=chosen.decoded(best.params),
        best_score=float(best.value or 0.0),
        best=found,
        env_steps=trials.env_steps,
        compile_s=trials.compile_s,
        run_s=trials.run_s,
        wall_s=time.perf_counter() - began,
        interrupted=trials.interrupted.is_set(),
    )
    if run_dir is not None:
        result.keep(Path(run_dir), Path(run_dir) / _BEST, networks=sorted(own))
    return result


def _name(env: Any) -> str:
    name = getattr(env, "name", None)
    return name if isinstance(name, str) else getattr(env, "__name__", type(env).__name__)


def _mapping(name: str, given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{name} must be a mapping of names to values, got {given!r}")
    return dict(given or {})


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
    plan: Plan,
    searched: Mapping[str, Any],
    storage: Any,
    name: str | None,
    seed: int,
    n_startup: int,
    pruner: BasePruner,
) -> tuple[Study, Any]:
    from tensor_optix.trials.storage import open_storage
    from tensor_optix.trials.study import open_study

    run = plan.run
    facts = {
        **searched,
        **{f: getattr(run, f) for f in ("env", "algorithm", "total_steps", "seeds", "config", "hyperparams")},
        **{f: getattr(run, f) for f in ("eval_every", "eval_episodes", "eval_max_steps", "final_episodes")},
        "env_params": env_facts(plan),
        "policy": policy_fact(plan),
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


def _give_up(trials: CompiledTrials, study: Study) -> None:
    if trials.interrupted.is_set():
        raise KeyboardInterrupt
    raise RuntimeError(
        f"none of the {len(study.trials)} trials has a finite score: the space reaches where training diverges, or the "
        "environment's rewards are not finite; narrow the space"
    )
