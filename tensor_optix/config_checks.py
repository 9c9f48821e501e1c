"""What checking a run's settings takes, whatever the driver: the error that is shown, and a few kinds of value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
    """What was asked for cannot be run; the message is one sentence for the person who asked."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence: "unknown setting 'lr'; did you mean 'learning_rate'? known: ..."."""
    names = sorted(known)
    by_lower = {one.lower(): one for one in names}
    close = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)]
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}"


def check_shared(run: Any) -> None:
    """The settings that both drivers have."""
    if not isinstance(run.env, str) or not run.env:
        raise ConfigError(f'env must be the id of an environment, for example "CartPole-v1", got {run.env!r}')
    if run.target_score is not None and not is_number(run.target_score):
        raise ConfigError(f"target_score must be a finite number, got {run.target_score!r}")
    if not isinstance(run.stop, bool):
        raise ConfigError(f"stop must be true or false, got {run.stop!r}")
    if not isinstance(run.tune, bool) and not (
        isinstance(run.tune, list) and all(isinstance(name, str) for name in run.tune)
    ):
        raise ConfigError(f"tune must be true, false or a list of hyperparameter names, got {run.tune!r}")


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, or one sentence why not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def is_number(value: Any) -> bool:
    """A finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
