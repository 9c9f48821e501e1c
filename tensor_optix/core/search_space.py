"""Hyperparameters as points of the unit cube.

A tuner works in [0, 1]^D, one axis per tuned hyperparameter, so that one step size suits a learning rate of 3e-4 and
a discount of 0.99 alike. `SearchSpace` says which hyperparameters are tuned, between which bounds and on which scale;
it is static and hashable, so it may be closed over or passed as a static argument. The maps are pure and run under jit:

    linear  v = low + x (high - low)          log  v = low (high / low)^x

Resolution is that of float32: a linear range narrower than about 1e-6 of its own bounds cannot be resolved.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# scale name -> (log, integer); "float" and "log_float" are the names that trial searches use
_SCALES = {
    "linear": (False, False),
    "float": (False, False),
    "log": (True, False),
    "log_float": (True, False),
    "int": (False, True),
    "log_int": (True, True),
}
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Parameter:
    """One tuned hyperparameter: `low` < `high`, both included.

    Args:
      low: smallest value.
      high: largest value.
      log: equal steps of the unit axis are equal ratios of the value; needs `low` > 0.
      integer: values are rounded to whole numbers (and still carried as float32).

    Raises:
      ValueError: if a bound is not finite, low >= high, a log bound is not positive, or an integer bound is not whole.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"bounds must be finite, got ({self.low}, {self.high})")
        if not self.low < self.high:
            raise ValueError(
                f"low must be below high, got ({self.low}, {self.high}); leave a fixed value out of the space"
            )
        if self.log and self.low <= 0:
            raise ValueError(f'a log scale needs positive bounds, got ({self.low}, {self.high}); use "linear"')
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"an integer parameter needs whole bounds, got ({self.low}, {self.high})")
        smallest = self.low if self.log else self.high - self.low  # a subnormal counts as zero on most devices
        if smallest < _TINY or max(abs(self.low), abs(self.high), self.high - self.low) > _HUGE:
            raise ValueError(f"the range ({self.low}, {self.high}) does not fit float32; rescale the parameter")
        low, high = self.float32_bounds
        if not low < high:
            raise ValueError(f"float32 cannot tell the bounds ({self.low}, {self.high}) apart; widen the range")

    @property
    def float32_bounds(self) -> tuple[float, float]:
        """The outermost float32 values inside [low, high], so that rounding never leaves the user's range."""
        low, high = np.float32(self.low), np.float32(self.high)
        if float(low) < self.low:
            low = np.nextafter(low, np.float32(np.inf))
        if float(high) > self.high:
            high = np.nextafter(high, np.float32(-np.inf))
        return float(low), float(high)

    @property
    def resolution(self) -> float:
        """Unit-axis length of the widest gap between neighbouring integers; 0.0 for a continuous parameter."""
        if not self.integer:
            return 0.0
        if self.log:
            return math.log1p(1.0 / self.low) / math.log(self.high / self.low)
        return 1.0 / (self.high - self.low)


@dataclass(frozen=True)
class SearchSpace:
    """The tuned hyperparameters: (name, Parameter) pairs, sorted by name. Build it with `search_space`."""

    entries: tuple[tuple[str, Parameter], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.entries)

    @property
    def dim(self) -> int:
        """D, the number of tuned hyperparameters. Zero is legal: there is nothing to tune."""
        return len(self.entries)


def search_space(bounds: Mapping[str, Any], log: Iterable[str] = ()) -> SearchSpace:
    """Builds and checks a space.

    Args:
      bounds: for each name (low, high), (scale, low, high) with scale one of "linear", "log", "int", "log_int",
        or a `Parameter`. May be empty.
      log: further names on a log scale, for bounds written as (low, high).

    Raises:
      TypeError: if `log` is a string, or an entry is none of these forms.
      ValueError: for bad bounds, an unknown scale, or a name in `log` that has no bounds.
    """
    if isinstance(log, str):
        raise TypeError(f"log must be a collection of names, got the string {log!r}; write {{{log!r}}}")
    log_names = frozenset(log)
    for name in sorted(log_names - set(bounds)):
        raise ValueError(f"log scale asked for {name!r}, which has no bounds{_did_you_mean(name, bounds)}")
    return SearchSpace(tuple((name, _parameter(name, bounds[name], name in log_names)) for name in sorted(bounds)))


def with_integers(space: SearchSpace, params: Mapping[str, Any]) -> SearchSpace:
    """The space with each parameter made integer whose value in `params` is a Python int and whose bounds are whole."""

    def mended(name: str, p: Parameter) -> Parameter:
        whole = type(params.get(name)) is int and float(p.low).is_integer() and float(p.high).is_integer()
        return replace(p, integer=True) if whole else p

    return SearchSpace(tuple((name, mended(name, p)) for name, p in space.entries))


def to_unit(space: SearchSpace, params: Mapping[str, Any]) -> jax.Array:
    """The unit-cube vector float32 [D] of `params`; values outside the bounds go to the nearest bound.

    Raises:
      ValueError: if a tuned name is missing from `params`.
    """
    if space.dim == 0:
        return jnp.zeros((0,), jnp.float32)
    for name in space.names:
        if name not in params:
            raise ValueError(f"hyperparameters lack {name!r}, which is to be tuned{_did_you_mean(name, params)}")
    low, high, is_log, log_ratio, _ = _columns(space)
    values = jnp.stack([jnp.asarray(params[name]).astype(jnp.float32) for name in space.names])
    values = jnp.clip(values, low, high)
    x = (values - low) / (high - low)
    if is_log.any():
        # the discarded branch must be finite too: a linear range may hold 0 or negative values
        ratio = jnp.where(is_log, values, np.float32(1.0)) / np.where(is_log, low, np.float32(1.0))
        x = jnp.where(is_log, jnp.log(ratio) / np.where(is_log, log_ratio, np.float32(1.0)), x)
    return jnp.clip(x, np.float32(0.0), np.float32(1.0))


def from_unit(space: SearchSpace, x: jax.Array, base: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the tuned entries replaced by float32 [] values at `x`, float32 [D].

    A value never lies outside [low, high], whatever `x`; an integer parameter is a whole number. Other entries of
    `base` pass through unchanged.
    """
    if space.dim == 0:
        return dict(base)
    if x.shape != (space.dim,):
        raise ValueError(f"x must have shape ({space.dim},), one entry for each of {space.names}, got {x.shape}")
    low, high, is_log, log_ratio, is_integer = _columns(space)
    x = jnp.clip(x, np.float32(0.0), np.float32(1.0))
    values = low + x * (high - low)
    if is_log.any():
        values = jnp.where(is_log, low * jnp.exp(x * log_ratio), values)
    if is_integer.any():
        values = jnp.where(is_integer, jnp.round(values), values)
    values = jnp.clip(values, low, high)
    return {**base, **{name: values[i] for i, name in enumerate(space.names)}}


def _columns(space: SearchSpace) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """low, high [D] float32, is_log [D] bool, log(high / low) [D] float32 (0 where linear), is_integer [D] bool."""
    parameters = [p for _, p in space.entries]
    bounds = np.array([p.float32_bounds for p in parameters], np.float64).reshape(-1, 2)
    is_log = np.array([p.log for p in parameters], bool)
    log_ratio = np.log(np.where(is_log, bounds[:, 1], 1.0) / np.where(is_log, bounds[:, 0], 1.0))
    is_integer = np.array([p.integer for p in parameters], bool)
    low, high = bounds.astype(np.float32).T
    return low, high, is_log, log_ratio.astype(np.float32), is_integer


def _parameter(name: str, spec: Any, log: bool) -> Parameter:
    if isinstance(spec, Parameter):
        return spec
    if isinstance(spec, str) or not hasattr(spec, "__len__") or len(spec) not in (2, 3):
        raise TypeError(f"bounds of {name!r} must be (low, high) or (scale, low, high), got {spec!r}")
    scale, low, high = ("log" if log else "linear", *spec) if len(spec) == 2 else spec
    if scale not in _SCALES:
        raise ValueError(f"unknown scale {scale!r} for {name!r}{_did_you_mean(str(scale), _SCALES)}")
    for bound in (low, high):
        if isinstance(bound, (bool, str)) or not isinstance(bound, (int, float, np.number)):
            raise TypeError(f"bounds of {name!r} must be numbers, got {spec!r}")
    is_log, is_integer = _SCALES[scale]
    try:
        return Parameter(float(low), float(high), is_log or log, is_integer)
    except ValueError as error:
        raise ValueError(f"bounds of {name!r}: {error}") from None


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(repr, names)) or 'none'}"
