"""A pure tuner with state of its own, for the host loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.search_space import SearchSpace, from_unit, search_space, to_unit, with_integers
from tensor_optix.core.types import EvalMetrics, HyperparamSet

_log = logging.getLogger(__name__)


_HOOKS = ("suggest", "on_improvement", "on_plateau")  # what a loop calls of an optimizer


class TunerOptimizer(BaseOptimizer):
    """What all stateful tuners are: a subclass names its pure one and adds nothing.

    Args:
      param_bounds: for each tuned hyperparameter (low, high) or (scale, low, high); see `search_space`. A whole-number
        hyperparameter with whole bounds stays a Python int. A flag cannot be tuned.
      log_params: names tuned on a log scale.
      seed: of what the tuner draws at random.
      **knobs: fields of the pure tuner.

    Raises:
      TypeError, ValueError: for bad bounds or knobs.
    """

    pure: ClassVar[type]  # the pure tuner: a frozen dataclass whose fields are the knobs

    def __init__(
        self,
        param_bounds: Mapping[str, Any] | None = None,
        log_params: Iterable[str] | None = None,
        *,
        seed: int = 0,
        **knobs: Any,
    ) -> None:
        name = type(self).__name__
        known = [knob.name for knob in fields(self.pure)]
        for knob in knobs:
            if knob not in known:
                raise TypeError(f"{name} has no knob {knob!r}; known: {', '.join(known)}")
        if param_bounds is not None and not isinstance(param_bounds, Mapping):
            raise TypeError(f"param_bounds must be a mapping of names to (low, high), got {param_bounds!r}")
        self.tuner = self.pure(**knobs)
        self.space = search_space(param_bounds or {}, log_params or ())
        self._seed, self._key = seed, jax.random.key(seed)
        self._state: Any = None
        self._suggested: dict[str, Any] = {}
        if self.space.dim == 0:
            _log.warning(
                "%s got no bounds, so no hyperparameter is tuned; give it param_bounds of hyperparameters that "
                "the agent has, or name them in the default_param_bounds of its class",
                name,
            )

    def suggest(self, current: HyperparamSet, history: Sequence[EvalMetrics]) -> HyperparamSet:
        """The next suggestion. The newest score of `history` is credited to `current` if that was suggested last.

        If it is not, the loop put other hyperparameters in force (a roll-back): the tuner begins anew around them.

        Raises:
          TypeError: a hyperparameter with bounds is a flag, or no number.
          ValueError: `current` lacks a hyperparameter with bounds.
        """
        if self.space.dim == 0:
            return current.copy()
        if self._state is None:
            self._state = self._begin(current.params)
        elif self._changed(current.params):
            self._state = self.tuner.recentre(self._state, to_unit(self.space, current.params))
        elif history:
            score = np.float32(history[-1].primary_score)
            self._state = _observe(self.tuner, self._state, score, np.float32(0.0), np.isfinite(score))
        self._state, x = _suggest(self.tuner, self._state)
        values = from_unit(self.space, x, {})
        self._suggested = {
            name: round(float(values[name])) if parameter.integer else float(values[name])
            for name, parameter in self.space.entries
        }
        return HyperparamSet({**current.params, **self._suggested}, current.episode_id)

    @property
    def is_probing(self) -> bool:
        """True while a probe is in force."""
        return self._state is not None and bool(self.tuner.is_probing(self._state))

    @property
    def is_pure(self) -> bool:
        """The pure tuner is all there is to it: a loop may run that one alone, within its brain.

        Then the tuner's state is the loop's, and `is_probing` here stays False.
        """
        own = (getattr(type(self), name) is getattr(TunerOptimizer, name) for name in _HOOKS)
        return all(own)

    def key_in(self, key: jax.Array) -> jax.Array:
        """The key of a loop's tuner: the loop's, and with a seed of its own another for each."""
        return jax.random.fold_in(key, self._seed) if self._seed else key

    def space_of(self, params: Mapping[str, Any]) -> SearchSpace:
        """The space for hyperparameters `params`: whole numbers with whole bounds stay whole.

        One that lies outside its bounds begins at the nearer one, which is said.

        Raises:
          TypeError: one with bounds is a flag, or no number.
        """
        for name in self.space.names:
            value = params.get(name, 0)
            why = ""
            if isinstance(value, bool | np.bool_):
                why = f"a flag, {value!r}, with no values between"
            elif not isinstance(value, int | float | np.number) and getattr(value, "shape", None) != ():
                why = f"no number but {value!r}"
            if why:
                raise TypeError(f"hyperparameter {name!r} is {why}; leave it out of param_bounds")
        for name, entry in self.space.entries:
            if name in params and not entry.low <= float(params[name]) <= entry.high:
                _log.warning(
                    "hyperparameter %r is %g, outside its bounds [%g, %g]: tuning begins at the nearer one",
                    name, float(params[name]), entry.low, entry.high,
                )  # fmt: skip
        return with_integers(self.space, params)

    def _begin(self, params: Mapping[str, Any]) -> Any:
        self.space = self.space_of(params)
        return self.tuner.init(self.space, to_unit(self.space, params), self._key)

    def _changed(self, params: Mapping[str, Any]) -> bool:
        return any(not math.isclose(float(params[n]), v, rel_tol=1e-5) for n, v in self._suggested.items())


_observe = jax.jit(lambda tuner, state, *told: tuner.observe(state, *map(jnp.asarray, told)), static_argnums=0)
_suggest = jax.jit(lambda tuner, state: tuner.suggest(state), static_argnums=0)
