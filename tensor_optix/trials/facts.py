"""What tells one search from another, as JSON values: a study holds it, and trials of another search are refused."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from tensor_optix.plan import Plan

_SHORT = 8  # numbers of an array that are kept as they are; of a longer one a digest
_DEPTH = 8  # environments within each other that are looked into
_MISSING = object()


def env_facts(plan: Plan) -> dict[str, Any]:
    """The parameters of a plan's environment, and the plain attributes of its object."""
    env = plan.program.algorithm.env
    leaves = jax.tree_util.tree_leaves_with_path(env.params)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): _fact(leaf) for path, leaf in leaves}
    return {"params": named, "object": _attributes(env.env)}


def policy_fact(plan: Plan) -> str:
    """Names, shapes and dtypes of the policy's parameters: how many, and a digest."""
    from tensor_optix.finished import _policy_shapes

    leaves = jax.tree_util.tree_leaves_with_path(_policy_shapes(plan))
    lines = [f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves]
    numbers = sum(math.prod(leaf.shape) for _, leaf in leaves)
    return f"{len(leaves)} arrays of {numbers} numbers ({_digest(chr(10).join(lines).encode())})"


def difference(name: str, before: Any, now: Any) -> str | None:
    """The first thing in which two JSON values called `name` differ, as "name X, got Y"; None if they are equal."""
    if before == now:
        return None
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            inside = difference(f"{name}.{key}", before.get(key, _MISSING), now.get(key, _MISSING))
            if inside is not None:
                return inside
    shown = ["nothing" if value is _MISSING else value for value in (before, now)]
    return f"{name} {shown[0]}, got {shown[1]}"


def name_of(value: Any) -> str:
    """What a function or a class is called; of anything else what its class is called."""
    while isinstance(value, functools.partial):
        value = value.func
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _attributes(env: Any, depth: int = _DEPTH) -> dict[str, Any]:
    """The class of an environment and its attributes; of an environment that it wraps the same."""
    kind, facts = type(env), dict[str, Any]({"class": type(env).__qualname__})
    for name, value in getattr(env, "__dict__", {}).items():
        if isinstance(getattr(kind, name, None), functools.cached_property):
            continue
        is_env = not isinstance(value, type) and callable(getattr(value, "observation_space", None))
        facts[name] = _attributes(value, depth - 1) if is_env and depth else _fact(value)
    return facts


def _fact(value: Any) -> Any:
    """`value` as JSON; of an object that is none of its kinds the class alone."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if array.size > _SHORT:
            return f"{array.dtype}{list(array.shape)} ({_digest(array.tobytes())})"
        return _fact(array.tolist())
    if isinstance(value, Mapping):
        return {str(key): _fact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fact(item) for item in value]
    return name_of(value)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
