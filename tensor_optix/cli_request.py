"""From the words of the command line to a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensor_optix.config import ConfigError, apply_overrides, config_from_dict, driver_of, read_yaml
from tensor_optix.host_config import windows_for

if TYPE_CHECKING:
    from tensor_optix.config import RunConfig
    from tensor_optix.host_config import TrainConfig


def requested(args: argparse.Namespace) -> RunConfig | TrainConfig:
    """The run that `train` was asked for: a file or an environment's id, options over it, settings over those.

    Raises ConfigError.
    """
    what = args.what
    if "=" in what:
        raise ConfigError(f"expected an environment or a YAML file before the settings, got {what!r}")
    is_file = what.endswith((".yaml", ".yml")) or Path(what).is_file()
    given = {
        "driver": args.driver,
        "framework": args.framework,
        "algorithm": args.algorithm,
        "target_score": args.target,
        "population": args.population,
        "max_spawns": args.max_spawns,
        "tune": False if args.no_tune else None,
        "stop": False if args.no_stop else None,
    }
    values = read_yaml(what) if is_file else {"env": what}
    values |= {name: value for name, value in given.items() if value is not None}
    whole_run = apply_overrides(values, args.overrides)
    values |= _extent(args) if driver_of(whole_run)[0] == "compiled" else _extent_on_host(args, whole_run)
    return config_from_dict(apply_overrides(values, args.overrides))


def _extent(args: argparse.Namespace) -> dict[str, Any]:
    """How many seeds and steps, in the words of the compiled driver."""
    given = {"seeds": None if args.seeds is None else _seeds(args.seeds), "total_steps": args.steps}
    return {name: value for name, value in given.items() if value is not None}


def _extent_on_host(args: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """The same for the host driver, whose windows depend on the other `values`."""
    if args.seeds is not None and _seeds(args.seeds) != 1:
        raise ConfigError(f"the host driver trains one seed in a run, got --seeds {args.seeds}: choose it with seed=3")
    if args.steps is None:
        return {}
    config: Any = config_from_dict({**values, "stop": True})
    return {"max_episodes": windows_for(config, args.steps)}


def _seeds(text: str) -> Any:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds must be a number of seeds or a list of them such as 3,5,7, got {text!r}") from None
    return values if "," in text else values[0]
