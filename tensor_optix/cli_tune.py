"""`tensor-optix tune`: a search over the hyperparameters of a JAX algorithm."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# Settings that may stand behind the options as key=value; the others have options.
_SETTINGS = ("config", "hyperparams", "space", "eval_every", "eval_episodes", "eval_max_steps", "final_episodes")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `tune` understands, besides what other commands do."""
    parser.add_argument("env", metavar="ENV", help="an environment's id, or module:Class")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings, such as 'space.learning_rate=[log_float, 1e-4, 3e-3]' or config.n_envs=8",
    )
    parser.add_argument("-a", "--algorithm", default="ppo", help="its name (default: ppo)")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="in total (default: 20)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="trials side by side (default: 4)")
    parser.add_argument("--seeds-per-trial", type=int, default=1, metavar="N", help="behind each score (default: 1)")
    parser.add_argument("--no-prune", action="store_true", help="train every trial to its end")
    parser.add_argument("--seed", type=int, default=0, help="of the proposals and the trials")
    parser.add_argument(
        "--storage", metavar="URL", help="where the study is kept: sqlite:///FILE, or FILE.journal (default: --run-dir)"
    )
    parser.add_argument("--study", metavar="NAME", help="its name; one that is there goes on")
    parser.add_argument(
        "--run-dir", metavar="DIR", help="keeps the study, its figure and the best run (default: runs/)"
    )
    parser.add_argument("--no-run-dir", action="store_true", help="keep nothing on disk, but for --storage")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search as the options say; the exit code."""
    from tensor_optix import cli
    from tensor_optix.config import ConfigError, apply_overrides, unknown

    settings = apply_overrides({}, args.overrides)
    for name in settings:
        if name not in _SETTINGS:
            raise ConfigError(unknown("setting of tune", name, _SETTINGS))
    for name in ("config", "hyperparams", "space"):
        if not isinstance(settings.get(name, {}), dict):
            raise ConfigError(f"{name} must be set entry by entry, as in {name}.name=value, got {settings[name]!r}")
    cli._check_plot(args.plot)
    cli._start_runtime(args)
    cli._check_environment(args.env)
    from tensor_optix.orchestrator import require_optuna

    try:
        require_optuna()
    except ImportError as error:
        raise ConfigError(str(error)) from None
    from tensor_optix.trials.compiled import tune

    result = tune(
        args.env,
        args.algorithm,
        **settings,
        n_trials=args.trials,
        batch=args.batch,
        **({} if args.steps is None else {"total_steps": args.steps}),
        seed=args.seed,
        seeds_per_trial=args.seeds_per_trial,
        prune=not args.no_prune,
        study_name=args.study,
        storage=args.storage,
        run_dir=None if args.no_run_dir else args.run_dir or _fresh(args),
        callbacks=[] if args.quiet else [_Lines(args.trials)],
    )
    if not args.quiet:
        print(result.report())
        if result.best.run_dir is not None:
            print(f"kept in {Path(result.best.run_dir).parent}")
    if args.plot:
        result.plot(args.plot)
    if args.json:
        print(json.dumps(result.to_json(), allow_nan=False))
    return cli.INTERRUPTED if result.interrupted else cli.OK


class _Lines:
    """A line for every trial that ends."""

    def __init__(self, n_trials: int) -> None:
        self._width = len(str(n_trials))

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        from tensor_optix.trials.ledger import best_of

        best = best_of(study)
        score = trial.state.name.lower() if trial.value is None else f"{trial.value:.4g}"
        params = "  ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
        champion = "" if best is None else f"  best {best.value:.4g} (trial {best.number})"
        print(f"trial {trial.number:>{self._width}}  {score:>8}{champion}  {params}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _fresh(args: argparse.Namespace) -> Path:
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in args.env)
    base = Path("runs") / f"{name}-{args.algorithm}-tune-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}-{count}")
    return path
