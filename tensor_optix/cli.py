"""The command line: tensor-optix train | resume | evaluate | tune | plot | validate | doctor.

Exit codes: 0 done, 1 the run failed, 2 what was asked for cannot be run (one sentence on standard error, nothing
written), 130 interrupted (the run was saved and can be resumed).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from tensor_optix.config import RunConfig
    from tensor_optix.results import TrainResult

_FIGURES = (".png", ".svg", ".pdf")
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from tensor_optix.config import ConfigError
    from tensor_optix.loop.durable import RunDirError

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for environments as module:Class; last, so that it shadows nothing
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse ends a list of settings at the first option; settings may stand behind options too.
    if rest and not (hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest)):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    try:
        return int(args.run(args))
    except (ConfigError, RunDirError) as error:
        print(f"tensor-optix: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("tensor-optix: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"tensor-optix: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def _parser() -> argparse.ArgumentParser:
    import tensor_optix

    parser = _Parser(
        prog="tensor-optix", description="Training that runs itself: it tunes, watches, restores and stops itself."
    )
    parser.add_argument("--version", action="version", version=tensor_optix.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train on an environment, or as a YAML file says"))
    _add_resume(commands.add_parser("resume", help="go on with an interrupted run"))
    _add_evaluate(commands.add_parser("evaluate", help="score a finished run's best policy on fresh episodes"))
    _add_tune(commands.add_parser("tune", help="search for the hyperparameters that score best"))
    _add_plot(commands.add_parser("plot", help="draw a finished run"))
    _add_validate(commands.add_parser("validate", help="check a YAML file without running it"))
    doctor = commands.add_parser("doctor", help="show devices, versions and caches, and what is wrong with them")
    doctor.add_argument("--json", action="store_true", help="as one JSON object")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=_whole, metavar="N", help="training budget of each seed, environment steps")
    parser.add_argument("--json", action="store_true", help="the last line of standard output is one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress display and no report")
    parser.add_argument("--plot", metavar="FILE", help="draw the run into a file (.png, .svg, .pdf)")
    parser.add_argument("--cache-dir", metavar="DIR", help="where compiled programs are kept")
    parser.add_argument("--no-cache", action="store_true", help="compile everything anew")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="ENV|CONFIG.yaml", help="an environment's id, module:Class, or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings, such as hyperparams.learning_rate=3e-4"
    )
    parser.add_argument("-a", "--algorithm", help="its name (default: ppo), or an agent's class such as TorchPPOAgent")
    parser.add_argument(
        "--driver", choices=("compiled", "host"), help="host: any Gymnasium environment, one seed (default: as asked)"
    )
    parser.add_argument("--framework", choices=("torch", "tf", "jax"), help="of the agent; asks for the host driver")
    parser.add_argument("--seeds", metavar="N", help="how many, or which: 8 or 3,5,7; one only with the host driver")
    parser.add_argument("--target", type=float, metavar="SCORE", help="stop where the score stays at or above it")
    parser.add_argument(
        "--population", type=_whole, metavar="N", help="members of each seed that learn side by side and exchange"
    )
    parser.add_argument(
        "--max-spawns", type=_whole, metavar="N", help="variants that a seed may make of its best policy"
    )
    parser.add_argument("--no-tune", action="store_true", help="leave the hyperparameters as they are")
    parser.add_argument("--no-stop", action="store_true", help="use the whole budget even after convergence")
    parser.add_argument(
        "--run-dir", metavar="DIR", help="where the run is kept (default: under runs/); host: its parent"
    )
    parser.add_argument("--no-run-dir", action="store_true", help="keep nothing on disk")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in --run-dir")
    _add_common(parser)
    parser.set_defaults(run=_train)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    _add_common(parser)
    parser.set_defaults(run=_resume)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--episodes", type=_whole, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_evaluate)


def _add_tune(parser: argparse.ArgumentParser) -> None:
    from tensor_optix import cli_tune

    cli_tune.add_options(parser)
    _add_common(parser)


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: RUN_DIR/curves.png")
    parser.set_defaults(run=_plot)


def _add_validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    parser.set_defaults(run=_validate)


def _train(args: argparse.Namespace) -> int:
    from tensor_optix.cli_request import requested
    from tensor_optix.config import RunConfig
    from tensor_optix.training import run_config

    run = requested(args)
    if not isinstance(run, RunConfig):
        return _on_host("train", run, args)
    _check_plot(args.plot)
    _start_runtime(args)  # before gymnax is imported, which computes
    _check_environment(run.env)
    run_dir = None if args.no_run_dir else args.run_dir or _fresh_run_dir(run)
    result = run_config(run, run_dir=run_dir, overwrite=args.overwrite, progress=not args.quiet)
    return _present(result, args)


def _on_host(command: str, what: Any, args: argparse.Namespace) -> int:
    """Train or resume with the host driver."""
    from tensor_optix import cli_host
    from tensor_optix.config import ConfigError

    _check_plot(args.plot)
    if getattr(args, "overwrite", False):
        raise ConfigError("--overwrite has nothing to replace: every host run gets a directory of its own in --run-dir")
    _start_runtime(args)
    return OK if getattr(cli_host, command)(what, args) else INTERRUPTED


def _check_environment(env: str) -> None:
    """Name the way out where only Gymnasium has the environment."""
    import gymnasium

    from tensor_optix import envs
    from tensor_optix.config import ConfigError

    if ":" not in env and env in gymnasium.registry and env not in envs.list_environments():
        raise ConfigError(
            f"the compiled driver has no environment {env!r}, but Gymnasium has: train on it with --driver host "
            "(driver: host in YAML), or with -a TorchPPOAgent for an agent of PyTorch"
        )


def _resume(args: argparse.Namespace) -> int:
    from tensor_optix.cli_host import is_host_run
    from tensor_optix.training import resume

    if is_host_run(args.run_dir):
        return _on_host("resume", args.run_dir, args)
    _check_plot(args.plot)
    _start_runtime(args)
    return _present(resume(args.run_dir, total_steps=args.steps, progress=not args.quiet), args)


def _present(result: TrainResult, args: argparse.Namespace) -> int:
    from tensor_optix.core.types import StopReason

    if not args.quiet:
        print(result.report())
    if args.plot:
        result.plot(args.plot)
    if args.json:
        print(json.dumps(result.to_json(), allow_nan=False))
    interrupted = any(member.stop_reason == StopReason.INTERRUPTED for member in result.members)
    return INTERRUPTED if interrupted else OK


def _check_plot(path: str | None, option: str = "--plot") -> None:
    """Say before the training, not after it, that there will be no figure."""
    import importlib.util

    from tensor_optix.config import ConfigError

    if path is None:
        return
    if Path(path).suffix.lower() not in _FIGURES:
        raise ConfigError(f"{option} {path}: the file must end in one of {', '.join(_FIGURES)}")
    if not Path(path).parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no directory {Path(path).parent}; make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('drawing needs matplotlib: pip install "tensor-optix[plot]"')


def _evaluate(args: argparse.Namespace) -> int:
    from tensor_optix import cli_host
    from tensor_optix.finished import evaluate_run

    score = cli_host.evaluate if cli_host.is_host_run(args.run_dir) else evaluate_run
    facts = score(args.run_dir, episodes=args.episodes, seed=args.seed)
    if args.json:
        print(json.dumps(facts, allow_nan=False))
    else:
        low, high = facts["score_interval"]
        print(f"{facts['env']}: {facts['score']:.4g} [{low:.4g}, {high:.4g}] over {facts['episodes']} fresh episodes")
    return OK


def _plot(args: argparse.Namespace) -> int:
    from tensor_optix.cli_host import figure_of, is_host_run
    from tensor_optix.loop.run_dir import RunDir
    from tensor_optix.results import TrainResult

    _check_plot(args.output, "-o")
    if is_host_run(args.run_dir):
        output = Path(args.output or Path(args.run_dir) / "curves.png")
        figure_of(args.run_dir).savefig(output, dpi=150)
        print(output)
        return OK
    result = TrainResult.from_payload(*RunDir.read(args.run_dir).load_result())
    output = Path(args.output or Path(args.run_dir) / "curves.png")
    result.plot(output)
    print(output)
    if result.algorithm == "graph_ppo":
        from tensor_optix.finished import load_run
        from tensor_optix.growth import output_names
        from tensor_optix.neuroevo.graph.drawing import graph_figure

        _start_runtime(args)
        policy = load_run(args.run_dir).policy
        assert policy is not None
        picture = output.with_name("graph.png")
        graph = policy.algorithm.graph_of(policy.params.params, policy.params.topology)
        title = f"{result.env}: the best policy"
        graph_figure(graph, title, output_names=output_names(graph.capacity)).savefig(picture, dpi=150)
        print(picture)
    if result.growth is not None:
        for name in ("growth.png", "growth.gif"):
            result.plot_growth(output.with_name(name))
            print(output.with_name(name))
    return OK


def _validate(args: argparse.Namespace) -> int:
    from tensor_optix import cli_host
    from tensor_optix.config import RunConfig, config_to_dict, load_config
    from tensor_optix.plan import make_plan

    run = load_config(args.config, args.overrides)
    _start_runtime(args)
    if isinstance(run, RunConfig):
        _check_environment(run.env)
        print(json.dumps(config_to_dict(make_plan(run).run), indent=1))
    else:
        print(json.dumps(cli_host.validate(run), indent=1))
    return OK


def _doctor(args: argparse.Namespace) -> int:
    from tensor_optix.loop import runtime

    facts = runtime.examine(runtime.start(runtime.default_cache_dir()))
    if args.json:
        print(json.dumps(facts))
        return OK if not facts["problems"] else FAILED
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if name != "problems":
            print(f"{name:<{width}}  {value}")
    for problem in facts["problems"]:
        print(f"problem: {problem}")
    return OK if not facts["problems"] else FAILED


def _start_runtime(args: argparse.Namespace) -> None:
    from tensor_optix.loop import runtime

    if getattr(args, "no_cache", False):
        runtime.start()
    else:
        runtime.start(getattr(args, "cache_dir", None) or runtime.default_cache_dir())


def _fresh_run_dir(run: RunConfig) -> Path:
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in run.env)
    base = Path("runs") / f"{name}-{run.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}-{count}")
    return path


def _whole(text: str) -> int:
    try:
        value = float(text)
        if value.is_integer():
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"must be a whole number, got {text}")


if __name__ == "__main__":
    sys.exit(main())
