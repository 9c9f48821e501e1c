"""A user's flax.nnx module as pure functions, and what host agents compile with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tensor_optix.loop import runtime
from tensor_optix.networks.functional import Params


class ModuleNetwork:
    """`init(key) -> params` and `apply(params, *inputs)` of a module that is there already.

    Its nnx.Param variables are the parameters, and their present values the first ones. All other variables (running
    statistics, generators of dropout) stay as they are; the module itself is never written to.
    """

    def __init__(self, module: nnx.Module) -> None:
        if not isinstance(module, nnx.Module):
            raise TypeError(f"expected a flax.nnx.Module, got {type(module).__name__}")
        parts: tuple[Any, ...] = nnx.split(module, nnx.Param, ...)
        self._graph, self._first, self._rest = parts

    def init(self, key: jax.Array | None = None) -> Params:
        """A copy of the module's own parameters as a nested dict; the key is not used."""
        return jax.tree.map(jnp.array, nnx.to_pure_dict(self._first))

    def module(self, params: Params) -> Any:
        """A module of its own with `params`."""
        state = jax.tree.map(lambda leaf: leaf, self._first)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state, self._rest, copy=True)

    def apply(self, params: Params, *inputs: jax.Array) -> Any:
        """The module's output for `params`. Safe under jit and grad."""
        return self.module(params)(*inputs)


def check_output(what: str, apply: Callable[..., Any], params: Params, obs_shape: tuple[int, ...], width: int) -> None:
    """ValueError unless observations [2, *obs_shape] become [2, width]."""
    found = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((2, *obs_shape), jnp.float32)).shape
    if found != (2, width):
        raise ValueError(
            f"{what} turns observations [2, {', '.join(map(str, obs_shape))}] into {list(found)}, expected "
            f"[2, {width}]: give its last layer {width} output{'s' if width > 1 else ''}"
        )


def jit(function: Callable[..., Any], runs_once: bool = False, **options: Any) -> Any:
    """`jax.jit` with the compiler options of training programs, where this XLA knows them."""
    return jax.jit(function, compiler_options=dict(_compiler_options(runs_once)) or None, **options)


@functools.cache
def _compiler_options(runs_once: bool) -> tuple[tuple[str, Any], ...]:
    options = runtime.compiler_options(jax.default_backend(), runs_once)
    try:
        jax.jit(lambda x: -x, compiler_options=options or None)(np.float32(0.0))
    except jax.errors.JaxRuntimeError:  # they only make it faster
        return ()
    return tuple(options.items())


def bucket(n: int) -> int:
    """The smallest power of two from `n` on, at least 8: arrays of many lengths share one program."""
    return max(8, 1 << (n - 1).bit_length())


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """[n, ...] -> [size, ...], zeros at the end."""
    if len(rows) == size:
        return rows
    out = np.zeros((size, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out
