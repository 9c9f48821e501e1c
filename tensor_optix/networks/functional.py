"""A flax.nnx module as two pure functions over a plain dict of arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
from flax import nnx

Params = Any  # nested dict of arrays


class Network:
    """`init(key) -> params` and `apply(params, *inputs)` of the module that `build(rngs)` makes.

    The module's structure is traced once and kept; only arrays live in a learner's state.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]) -> None:
        self._build = build

    @cached_property
    def _abstract(self) -> tuple[Any, Any]:
        return nnx.split(nnx.eval_shape(lambda: self._build(nnx.Rngs(0))))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters as a nested dict of arrays. Safe under jit and vmap."""
        return nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(params=key))))

    def apply(self, params: Params, *inputs: jax.Array) -> Any:
        """The module's output for `params`. Safe under jit, vmap and grad."""
        graph, state = self._abstract
        state = jax.tree.map(lambda leaf: leaf, state)  # a fresh container: the cached one stays untouched
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(*inputs)
