"""Which hyperparameters a search over trials chooses, and from what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.trial import Trial

    from tensor_optix.core.search_space import SearchSpace

_FORMS = '("float", low, high), ("log_float", low, high), ("int", low, high), ("log_int", low, high)'
_SCALES = ("float", "log_float", "int", "log_int")
_PLAIN = (type(None), bool, int, float, str)  # what a study can store as it is


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: equal ratios are equally likely."""

    low: float
    high: float
    log: bool
    integer: bool

    def suggest(self, trial: Trial, name: str) -> None:
        """Let the trial draw its value, which it stores."""
        if self.integer:
            trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        else:
            trial.suggest_float(name, self.low, self.high, log=self.log)

    def decoded(self, value: Any) -> Any:
        """A stored value as the trial gets it."""
        return int(value) if self.integer else float(value)

    def fact(self) -> list[Any]:
        scale = ("log_" if self.log else "") + ("int" if self.integer else "float")
        return [scale, self.low, self.high]


@dataclass(frozen=True)
class Choice:
    """One of `values`. What a study cannot store (a tuple of widths, say) is stored by its text."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> None:
        """Let the trial draw its value, which it stores."""
        trial.suggest_categorical(name, self._labels)

    def decoded(self, value: Any) -> Any:
        """A stored value as the trial gets it."""
        if self._stored_as_text:
            return self.values[self._labels.index(value)]
        return value

    def fact(self) -> list[Any]:
        return ["categorical", *self._labels]

    @property
    def _stored_as_text(self) -> bool:
        return not all(isinstance(value, _PLAIN) for value in self.values)

    @property
    def _labels(self) -> tuple[Any, ...]:
        return tuple(repr(value) for value in self.values) if self._stored_as_text else self.values


@dataclass(frozen=True)
class TrialSpace:
    """Names and what each is drawn from, in the order given."""

    entries: tuple[tuple[str, Range | Choice], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.entries)

    def decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Stored parameters of a trial as its factories get them."""
        return {name: entry.decoded(params[name]) for name, entry in self.entries}

    def facts(self) -> dict[str, list[Any]]:
        """JSON values that tell this space from another."""
        return {name: entry.fact() for name, entry in self.entries}


def trial_space(specs: Any) -> TrialSpace:
    """Builds and checks a space.

    Args:
      specs: for each name ("float" | "log_float" | "int" | "log_int", low, high) or ("categorical", value, value, ...).

    Raises:
      TypeError, ValueError: one sentence that names the hyperparameter, what was got and what is expected.
    """
    if not isinstance(specs, Mapping):
        raise TypeError(f"param_space must map names to specifications such as {_FORMS}, got {specs!r}")
    if not specs:
        raise ValueError(f"param_space is empty: name at least one hyperparameter to search, with one of {_FORMS}")
    return TrialSpace(tuple((str(name), _entry(str(name), spec)) for name, spec in specs.items()))


def trial_space_of(space: SearchSpace) -> TrialSpace:
    """What an online tuner would move, as a space of trials."""
    return TrialSpace(tuple((name, Range(p.low, p.high, p.log, p.integer)) for name, p in space.entries))


def _entry(name: str, spec: Any) -> Range | Choice:
    if isinstance(spec, str) or not isinstance(spec, tuple | list) or not spec:
        raise TypeError(f'param_space[{name!r}] must be one of {_FORMS} or ("categorical", *values), got {spec!r}')
    kind, *values = spec
    if kind == "categorical":
        return _choice(name, values)
    if kind not in _SCALES:
        raise ValueError(
            f"param_space[{name!r}] begins with {kind!r}, expected one of {', '.join(_SCALES)}, categorical"
        )
    if len(values) != 2:
        raise ValueError(f"param_space[{name!r}] must be ({kind!r}, low, high), got {len(values)} numbers: {spec!r}")
    low, high = (_number(name, kind, value) for value in values)
    if not low < high:
        raise ValueError(f"param_space[{name!r}] needs low < high, got {spec!r}; leave a fixed value out of the space")
    log, integer = kind.startswith("log_"), kind.endswith("int")
    if log and low < (1 if integer else np.finfo(float).tiny):
        least = "at least 1" if integer else "above 0"
        raise ValueError(f"param_space[{name!r}] is on a log scale, so low must be {least}, got {spec!r}")
    return Range(low, high, log, integer)


def _number(name: str, kind: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise TypeError(f"param_space[{name!r}] needs finite numbers as bounds, got {value!r}")
    if kind.endswith("int"):
        if not float(value).is_integer():
            raise ValueError(f"param_space[{name!r}] is {kind}, so its bounds must be whole numbers, got {value!r}")
        return int(value)
    return float(value)


def _choice(name: str, values: list[Any]) -> Choice:
    if len(values) == 1 and isinstance(values[0], list | set | frozenset | dict):
        raise ValueError(
            f"param_space[{name!r}] offers one value, the {type(values[0]).__name__} {values[0]!r}: write its items "
            'one by one, as in ("categorical", 32, 64)'
        )
    if not values:
        raise ValueError(f'param_space[{name!r}] offers no value: write ("categorical", value, value, ...)')
    plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    if len({repr(value) for value in plain}) < len(plain):
        raise ValueError(f"param_space[{name!r}] offers a value twice: {list(plain)!r}")
    return Choice(plain)
