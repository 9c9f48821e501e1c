"""What a run is asked to do, from keywords, YAML or the command line, checked before anything starts.

`RunConfig` is a run of the compiled driver, `TrainConfig` (in `host_config.py`) one of the host driver. A file says
which it is with `driver: compiled` or `driver: host`, or by what it asks for.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tensor_optix.config_checks import ConfigError, check_shared, is_number, unknown, whole

if TYPE_CHECKING:
    from tensor_optix.host_config import TrainConfig

_Config = TypeVar("_Config", bound="RunConfig | TrainConfig")
_INSTEAD = {  # a setting of one driver -> what comes nearest in the other
    "seeds": "seed",
    "total_steps": "max_episodes (windows)",
    "hyperparams": "agent",
    "autonomy": "optimizer",
    "seed": "seeds",
    "max_episodes": "total_steps",
    "agent": "hyperparams",
    "optimizer": "autonomy",
    "hidden_sizes": "config.hidden_sizes",
    "n_envs": "config.n_envs",
    "window_size": "config.n_steps",
}


@dataclass
class RunConfig:
    """One compiled run. Everything in it is plain data; a run directory records it fully resolved."""

    env: str
    algorithm: str = "ppo"
    seeds: int | list[int] = 1  # how many (0, 1, ...), or which
    total_steps: int | None = None  # training budget of each member in environment steps; None: 10 million
    target_score: float | None = None  # stop where the score stays at or above it
    tune: bool | list[str] = True  # tune hyperparameters online: the learning rate, those named here, or none
    tuner: str = "spsa"  # by which of `optimizers.registry.TUNERS`; populations tune by their exchanges
    stop: bool = True  # stop at convergence; False: use the whole budget
    config: dict[str, Any] = field(default_factory=dict)  # the algorithm's static configuration
    hyperparams: dict[str, float] = field(default_factory=dict)
    variants: list[dict[str, float]] = field(default_factory=list)  # hyperparameters by variant: seeds x variants run
    population: int = 1  # members of each seed (and variant) that learn side by side and exchange
    exchange: dict[str, Any] = field(default_factory=dict)  # how: {"rule": "pbt" or "spsa", and the rule's settings}
    max_spawns: int = 0  # variants of its best policy that each seed may make when learning stands still
    evolution: dict[str, Any] = field(default_factory=dict)  # how: settings of `evolution.spawning.SpawnConfig`
    search_space: dict[str, Any] = field(default_factory=dict)  # name -> (low, high) or (scale, low, high)
    autonomy: dict[str, Any] = field(default_factory=dict)  # scheduler, tuner and roll-back settings
    eval_every: int | None = None  # environment steps of a member between evaluations
    eval_episodes: int | None = None  # episodes of one evaluation
    eval_max_steps: int | None = None  # length at which an evaluation episode is cut; None: the environment's limit
    final_episodes: int = 100  # fresh episodes that the reported score is the mean of

    def __post_init__(self) -> None:
        _check(self)

    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """A `RunConfig` from plain data; unknown keys are refused with the nearest name."""
    return _made(RunConfig, values)


def config_from_dict(values: Mapping[str, Any]) -> RunConfig | TrainConfig:
    """The configuration that plain data asks for; see `driver_of`. The inverse of `config_to_dict`.

    Raises ConfigError also for a setting of the other driver.
    """
    from tensor_optix.host_config import TrainConfig

    driver, reason = driver_of(values)
    kind, other = (TrainConfig, RunConfig) if driver == "host" else (RunConfig, TrainConfig)
    foreign = set(_names(other)) - set(_names(kind))
    for key in values:
        if key in foreign:
            owner = "compiled" if driver == "host" else "host"
            hint = f"use {_INSTEAD[key]} instead, or take it out" if key in _INSTEAD else "take it out"
            raise ConfigError(
                f"setting {key!r} is of the {owner} driver, and this run is of the {driver} driver because {reason}: "
                f"{hint}, or set driver: {owner}"
            )
    return _made(kind, {key: value for key, value in values.items() if key != "driver"})


def config_to_dict(config: RunConfig | TrainConfig) -> dict[str, Any]:
    """Everything in `config` as plain data, and which driver it is for."""
    return {"driver": "compiled" if isinstance(config, RunConfig) else "host", **dataclasses.asdict(config)}


def driver_of(values: Mapping[str, Any]) -> tuple[str, str]:
    """The driver, "compiled" or "host", and why: what `driver` says, else a host agent or setting in `values`."""
    from tensor_optix.host_config import MARKS, is_agent_class

    driver, algorithm = values.get("driver"), values.get("algorithm")
    if driver in ("compiled", "host"):
        return str(driver), f"it says driver: {driver}"
    if driver is not None:
        raise ConfigError(unknown("driver", str(driver), ("compiled", "host")))
    if is_agent_class(algorithm):
        return "host", f"{algorithm} is an agent of that driver"
    marks = [str(key) for key in values if key in MARKS]
    if marks:
        return "host", f"{marks[0]} is set"
    return "compiled", "nothing asks for the host driver"


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig | TrainConfig:
    """Read a YAML file and apply `key=value` overrides; the file decides on the driver (`driver_of`).

    Raises ConfigError where the file cannot be read, is not YAML, or says something that cannot be run.
    """
    return config_from_dict(apply_overrides(read_yaml(path), overrides))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_loader())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {type(values).__name__}")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with each "a.b=value" put in place; values are read as YAML (so 3e-4 is a number)."""
    import copy

    import yaml

    result = copy.deepcopy(dict(values))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"override {override!r} is not key=value, for example hyperparams.learning_rate=3e-4")
        try:
            value = yaml.load(text, Loader=_loader())
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: {' '.join(str(error).split())}") from None
        *path, last = name.strip().split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"override {override!r}: {part} is not a mapping")
        place[last] = value
    return result


def _made(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    known = _names(kind)
    for key in values:
        if key not in known:
            inside = ""
            if kind is RunConfig and not difflib.get_close_matches(str(key), known, n=1, cutoff=0.75):
                inside = f" (a hyperparameter would be hyperparams.{key}, a setting of the algorithm config.{key})"
            raise ConfigError(unknown("setting", str(key), known) + inside)
    if "env" not in values:
        raise ConfigError('no environment given: set env, for example env: "CartPole-v1"')
    return kind(**values)


def _names(kind: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _check(run: RunConfig) -> None:
    _check_seeds(run.seeds)
    for name in ("total_steps", "eval_every", "eval_episodes", "eval_max_steps", "final_episodes"):
        if getattr(run, name) is not None or name == "final_episodes":
            setattr(run, name, whole(name, getattr(run, name)))
    run.population = whole("population", run.population)
    run.max_spawns = whole("max_spawns", run.max_spawns, least=0)
    for name in ("config", "hyperparams", "search_space", "autonomy", "exchange", "evolution"):
        if not isinstance(getattr(run, name), dict):
            raise ConfigError(f"{name} must be a mapping of names to values, got {getattr(run, name)!r}")
    if not isinstance(run.algorithm, str) or not run.algorithm:
        raise ConfigError(f'algorithm must be a name such as "ppo", got {run.algorithm!r}')
    if not isinstance(run.tuner, str):
        raise ConfigError(f'tuner must be a name such as "spsa", got {run.tuner!r}: to tune nothing set tune to false')
    if not isinstance(run.variants, list) or not all(isinstance(v, dict) for v in run.variants):
        raise ConfigError(f"variants must be a list of mappings of hyperparameters, got {run.variants!r}")
    check_shared(run)
    if run.population == 1 and run.exchange:
        raise ConfigError(f"exchange={run.exchange!r} is between members of a population: set population to 2 or more")
    if "max_spawns" in run.evolution:
        raise ConfigError(
            f"evolution has max_spawns={run.evolution['max_spawns']!r}, which is a setting of the run itself: set "
            "max_spawns, and take it out of evolution"
        )
    if run.evolution and not run.max_spawns:
        raise ConfigError(f"evolution={run.evolution!r} says how variants are spawned: set max_spawns to 1 or more")
    if run.max_spawns and run.population > 1:
        raise ConfigError(
            f"max_spawns={run.max_spawns} and population={run.population}: variants are spawned of one learner, and "
            "members of a population learn side by side from the start; take one of the two out"
        )
    if run.max_spawns and not run.stop:
        raise ConfigError("variants are spawned when learning stands still: set stop to true, or max_spawns to 0")
    if run.population > 1 and run.tuner != "spsa":
        raise ConfigError(
            f"tuner={run.tuner!r} is for one learner, and a population of {run.population} tunes by its exchanges: "
            "take tuner out (exchange says how), or set population to 1"
        )
    if run.population > 1 and run.tune is False:
        raise ConfigError("a population tunes hyperparameters by its exchanges: set tune to true, or population to 1")
    for values in (run.hyperparams, *run.variants):
        for name, value in values.items():
            if not is_number(value):
                raise ConfigError(f"hyperparameter {name!r} must be a finite number, got {value!r}")


def _check_seeds(seeds: Any) -> None:
    listed = isinstance(seeds, Sequence) and not isinstance(seeds, str)
    values = list(seeds) if listed else [seeds]
    if not values:
        raise ConfigError("seeds is empty: give at least one seed")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise ConfigError(f"seeds must be whole numbers from 0 to 2**32 - 1, got {value!r}")
    if not listed and seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    if len(set(values)) != len(values):
        raise ConfigError(f"seeds must differ from each other, got {values}")


def _loader() -> Any:
    """YAML 1.1 as PyYAML reads it, but with numbers such as 3e-4 read as numbers."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
    return Loader
