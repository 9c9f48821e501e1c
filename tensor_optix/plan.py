"""From a `RunConfig` to the program and the members that the compiled driver runs; every mistake is found here."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tensor_optix.algorithms import registry
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.algorithms.presets import Preset, preset
from tensor_optix.config import ConfigError, RunConfig, unknown
from tensor_optix.core.autonomy import NO_LIMIT, AutonomyConfig
from tensor_optix.core.backoff_scheduler import BackoffConfig
from tensor_optix.core.search_space import SearchSpace, search_space
from tensor_optix.envs.vector import VectorEnv
from tensor_optix.evolution.population import RULES
from tensor_optix.evolution.spawning import SpawnConfig
from tensor_optix.host_config import AGENTS
from tensor_optix.loop.compiled import Program
from tensor_optix.loop.exchange import Exchanger
from tensor_optix.loop.meeting import Meeting
from tensor_optix.loop.session import MemberSpec
from tensor_optix.loop.spawner import Spawner
from tensor_optix.networks.own import own_networks

DEFAULT_TOTAL_STEPS = 10_000_000  # environment steps of one member
DEFAULT_EVAL_EVERY = 4096  # environment steps
DEFAULT_EVAL_EPISODES = 24
DEFAULT_EVAL_MAX_STEPS = 1000


@dataclass(frozen=True)
class Plan:
    """A run, ready to be compiled."""

    run: RunConfig  # every default filled in: what the manifest records
    program: Program
    members: list[MemberSpec]
    max_windows: int
    target_score: float
    space: SearchSpace  # what is tuned, or what members and variants differ in
    meeting: Meeting | None = None  # of a run of populations, or of one that spawns


def make_plan(run: RunConfig, env: Any = None, networks: Mapping[str, Any] | None = None) -> Plan:
    """Resolve and check a run.

    `env`: an environment object instead of the id in `run.env`. `networks`: networks of the user's own by place, see
    `tensor_optix.networks.own`.

    Raises ConfigError with one sentence: what, got, expected, how to mend.
    """
    from tensor_optix import envs

    if run.algorithm not in registry.names():
        agents = difflib.get_close_matches(str(run.algorithm), AGENTS, n=1, cutoff=0.7)
        host = f", and {agents[0]} for the host driver" if agents else ""
        raise ConfigError(unknown("algorithm", str(run.algorithm), registry.names()) + host)
    try:
        vector = envs.make(run.env if env is None else env)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    kind = registry.get(run.algorithm)
    if vector.action_kind not in kind.action_kinds:
        raise ConfigError(
            f"{run.algorithm} needs {' or '.join(kind.action_kinds)} actions, and {run.env} has {vector.action_kind} "
            f"ones; algorithms that fit: {', '.join(_fitting(vector)) or 'none'}"
        )
    chosen = preset(run.algorithm, run.env if env is None else "")
    config = _algorithm_config(kind.config_type, {**chosen.config, **run.config})
    try:
        algorithm = kind(vector, config)
        algorithm = dataclasses.replace(algorithm, **own_networks(networks or {}, algorithm.places()))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    # A preset's hyperparameter may belong to a part that the caller's settings have switched off.
    known = {name: value for name, value in chosen.hyperparams.items() if name in algorithm.hyperparams()}
    chosen = dataclasses.replace(chosen, hyperparams=known)
    hyper = _hyperparams(algorithm, {**chosen.hyperparams, **run.hyperparams}, run.variants)
    if run.autonomy.get("rollback_on_degradation") and not algorithm.is_on_policy:
        raise ConfigError(
            f"rollback_on_degradation is for on-policy algorithms, got it with {run.algorithm}, which would go on "
            "learning from a replay that other policies filled: leave it out"
        )
    alone, space = (_space(algorithm, run, hyper, names) for names in (TUNED, None))
    run = _filled(run, chosen, algorithm, vector, hyper[0] if not run.variants else None)
    meeting: Meeting | None = None
    if run.population > 1:
        brain = _brain(run, space, algorithm.steps_per_window)
        meeting = _exchanger(run, space, brain)
        # Its members learn on while the population does; what they take next is the exchange's choice.
        brain = dataclasses.replace(brain, tuner=None, space=search_space({}), stop_on_convergence=False)
    else:
        brain = _brain(run, alone, algorithm.steps_per_window)
        if run.max_spawns:  # variants differ in more than each of them tunes
            meeting = _spawner(run, space, brain)
        else:
            space = alone
    assert run.eval_episodes is not None
    assert run.eval_max_steps is not None
    assert run.total_steps is not None
    program = Program(algorithm, brain, run.eval_episodes, run.eval_max_steps)
    max_windows = -(-run.total_steps // algorithm.steps_per_window)
    if max_windows >= NO_LIMIT:
        raise ConfigError(f"total_steps={run.total_steps} is more than {NO_LIMIT} windows of this algorithm")
    size = 1 if meeting is None else meeting.size  # the members of one group stand together
    members = [
        MemberSpec(seed, size * v + k, values)
        for v, values in enumerate(hyper)
        for seed in run.seed_list()
        for k in range(size)
    ]
    target = math.inf if run.target_score is None else float(run.target_score)
    return Plan(run, program, members, max_windows, target, space, meeting)


def _fitting(env: VectorEnv) -> list[str]:
    return [name for name in registry.names() if env.action_kind in registry.get(name).action_kinds]


def _algorithm_config(config_type: Any, values: Mapping[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(config_type)}
    for name in values:
        if name not in fields:
            raise ConfigError(unknown(f"{config_type.__name__} setting", name, fields))
    converted = {name: _converted(name, value, fields[name].default) for name, value in values.items()}
    try:
        return config_type(**converted)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None


def _converted(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of the field's default, or one sentence why not."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    if isinstance(default, int):
        if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(type(v) is int and v > 0 for v in value):
            return tuple(value)
        raise ConfigError(f"{name} must be a list of positive whole numbers, got {value!r}")
    if default == "off" and value is False:
        return default  # what YAML makes of off
    if isinstance(default, str) and not isinstance(value, str):
        raise ConfigError(f"{name} must be a name, got {value!r}")
    return value


def _hyperparams(
    algorithm: Any, given: Mapping[str, float], variants: list[dict[str, float]]
) -> list[dict[str, float]]:
    """Hyperparameters by variant; one variant where none are asked for."""
    defaults, limits = algorithm.hyperparams(), algorithm.hyperparam_limits()
    result = []
    for variant in variants or [{}]:
        values = {**given, **variant}
        for name, value in values.items():
            if name not in defaults:
                raise ConfigError(unknown("hyperparameter", name, defaults))
            low, high = limits[name]
            if not low <= value <= high:
                raise ConfigError(f"hyperparameter {name} must lie in [{low:g}, {high:g}], got {value!r}")
        result.append({**defaults, **{name: float(value) for name, value in values.items()}})
    return result


def _space(
    algorithm: Any, run: RunConfig, hyper: list[dict[str, float]], default: Collection[str] | None
) -> SearchSpace:
    """What is tuned, or what members and variants differ in; default: names, where the caller says no more than True.

    The algorithm's own bounds stretch to take in the values given; the user's are a promise.
    """
    entries: dict[str, Any] = dict(algorithm.search_space().entries)
    if run.tune is True and default is not None:
        entries = {name: entry for name, entry in entries.items() if name in default}
    if isinstance(run.tune, list):
        for name in run.tune:
            if name not in entries and name not in run.search_space:
                raise ConfigError(unknown("tunable hyperparameter", name, {**entries, **run.search_space}))
        entries = {name: entry for name, entry in entries.items() if name in run.tune}
    for name, entry in entries.items():
        values = [variant[name] for variant in hyper]
        entries[name] = dataclasses.replace(entry, low=min(entry.low, *values), high=max(entry.high, *values))
    for name, bounds in run.search_space.items():
        if name not in algorithm.hyperparams():
            raise ConfigError(unknown("hyperparameter in search_space", name, algorithm.hyperparams()))
        try:
            entry = dict(search_space({name: bounds}).entries)[name]
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from None
        outside = [variant[name] for variant in hyper if not entry.low <= variant[name] <= entry.high]
        if outside:
            raise ConfigError(
                f"{name}={outside[0]:g} lies outside its search_space [{entry.low:g}, {entry.high:g}]: widen the "
                f"bounds or start inside them with hyperparams.{name}"
            )
        entries[name] = entry
    return search_space({} if run.tune is False else entries)


def _filled(
    run: RunConfig, chosen: Preset, algorithm: Any, env: VectorEnv, hyper: Mapping[str, float] | None
) -> RunConfig:
    """The run with every default written out."""
    general = {
        "total_steps": DEFAULT_TOTAL_STEPS,
        "eval_every": DEFAULT_EVAL_EVERY,
        "eval_episodes": DEFAULT_EVAL_EPISODES,
        "eval_max_steps": env.max_episode_steps or DEFAULT_EVAL_MAX_STEPS,
    } | dict(chosen.run)
    missing = {name: value for name, value in general.items() if getattr(run, name) is None}
    return dataclasses.replace(
        run,
        seeds=run.seed_list(),
        config={**dataclasses.asdict(algorithm.config)},
        hyperparams=dict(hyper) if hyper is not None else {**chosen.hyperparams, **run.hyperparams},
        **missing,
    )


def _brain(run: RunConfig, space: SearchSpace, steps_per_window: int) -> AutonomyConfig:
    from tensor_optix.optimizers.registry import TUNERS

    if run.tuner not in TUNERS:
        raise ConfigError(unknown("tuner", run.tuner, TUNERS))
    scheduler: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(BackoffConfig)}
    brain: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(AutonomyConfig) if f.name in _BRAIN_SETTINGS}
    for name in run.autonomy:
        if name not in scheduler and name not in brain:
            raise ConfigError(unknown("autonomy setting", name, {**scheduler, **brain}))
    assert run.eval_every is not None
    base = max(1, round(run.eval_every / steps_per_window))
    try:
        chosen = {
            name: _converted(name, run.autonomy[name], default)
            for name, default in scheduler.items()
            if name in run.autonomy
        }
        if "base_interval" not in chosen:
            # An evaluation is cheap beside the training between two of them, so the interval does not grow by itself.
            chosen["base_interval"] = base
            chosen.setdefault("max_interval", base)
        return AutonomyConfig(
            scheduler=BackoffConfig(**chosen),
            tuner=TUNERS[run.tuner]() if space.dim else None,
            space=space,
            stop_on_convergence=run.stop,
            **{n: _converted(n, run.autonomy[n], d) for n, d in brain.items() if n in run.autonomy},
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None


def _exchanger(run: RunConfig, space: SearchSpace, brain: AutonomyConfig) -> Exchanger:
    """How the members of this run's populations exchange."""
    settings = dict(run.exchange)
    name = settings.pop("rule", "pbt")
    if not isinstance(name, str) or name not in RULES:
        raise ConfigError(unknown("exchange rule", str(name), RULES))
    if space.dim == 0:
        raise ConfigError(f"{run.algorithm} has nothing to tune: give search_space, or set population to 1")
    rule = _made(RULES[name], settings, f"setting of the exchange rule {name}")
    # It is told of every evaluation, so that it counts in evaluations.
    scheduler = dataclasses.replace(brain.scheduler, base_interval=1, max_interval=1)
    copy_replay = bool(getattr(rule, "copy_replay", False))
    return Exchanger(rule, run.population, space, scheduler, run.stop, copy_replay)


def _spawner(run: RunConfig, space: SearchSpace, brain: AutonomyConfig) -> Spawner:
    """How this run spawns variants."""
    config = _made(SpawnConfig, {**run.evolution, "max_spawns": run.max_spawns}, "evolution setting")
    if config.window > brain.scheduler.capacity:
        raise ConfigError(
            f"evolution.window is {config.window} evaluations, and {brain.scheduler.capacity} are remembered: give no "
            "more, or raise autonomy.dormant_threshold"
        )
    return Spawner(config, space)


def _made(kind: Any, settings: Mapping[str, Any], what: str) -> Any:
    """A frozen config from plain values."""
    knobs = {f.name: f.default for f in dataclasses.fields(kind) if isinstance(f.default, int | float | str)}
    if settings and not knobs:
        raise ConfigError(f"there is no {what}, got {', '.join(map(repr, settings))}: leave it out")
    for setting in settings:
        if setting not in knobs:
            raise ConfigError(unknown(what, str(setting), knobs))
    try:
        return kind(**{setting: _converted(setting, value, knobs[setting]) for setting, value in settings.items()})
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None


_BRAIN_SETTINGS = ("rollback_on_degradation", "improvement_margin", "target_patience", "max_faults")
