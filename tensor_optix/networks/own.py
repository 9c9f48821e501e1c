"""Networks of the user's own in the places of an algorithm's: built once for each member, checked before anything runs.

A place is given a function of `nnx.Rngs` that makes an `nnx.Module`; its class will do where it takes nothing else. An
instance would hold one set of weights, and every member has to start with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tensor_optix.networks.functional import Network

# By name: the arrays that a network is called with, without batch axes, and how many numbers it answers with.
Places = Mapping[str, tuple[tuple[jax.ShapeDtypeStruct, ...], int]]


def place(*inputs: tuple[tuple[int, ...], Any], outputs: int) -> tuple[tuple[jax.ShapeDtypeStruct, ...], int]:
    """One entry of `Places`, from (shape, dtype) of each input."""
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in inputs), outputs


def own_networks(given: Mapping[str, Callable[[nnx.Rngs], nnx.Module]], places: Places) -> dict[str, Network]:
    """The given networks, by place.

    ValueError: a place that is not there, no function of rngs, variables besides float32 parameters, or outputs of
    another shape than [B, outputs].
    """
    unknown = sorted(set(given) - set(places))
    if unknown:
        there = ", ".join(places) or "none"
        raise ValueError(f"there is no place for a network {unknown[0]!r}; places of this algorithm: {there}")
    return {name: _checked(name, build, *places[name]) for name, build in given.items()}


def _checked(name: str, build: Any, inputs: tuple[jax.ShapeDtypeStruct, ...], outputs: int) -> Network:
    if isinstance(build, nnx.Module) or not callable(build):
        raise ValueError(
            f"networks[{name!r}] must be a function of nnx.Rngs that makes an nnx.Module, got {type(build).__name__}: "
            "every member starts with weights of its own; give its class, or lambda rngs: MyModule(..., rngs=rngs)"
        )
    parts: tuple[Any, ...] = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, ...)
    _, trained, rest = parts
    strange = [*jax.tree_util.tree_leaves_with_path(rest)]
    strange += [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(trained) if x.dtype != jnp.float32]
    for path, leaf in strange:
        raise ValueError(
            f"networks[{name!r}] has {jax.tree_util.keystr(path)} of {leaf.dtype}: only float32 parameters (nnx.Param) "
            "can be trained here; leave out what keeps a state of its own, such as Dropout and BatchNorm"
        )
    network = Network(build)
    params = jax.eval_shape(network.init, jax.random.key(0))
    batch = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in inputs]
    found = jax.eval_shape(network.apply, params, *batch)
    if getattr(found, "shape", None) != (2, outputs):
        called = " and ".join(str([2, *x.shape]) for x in inputs)
        raise ValueError(
            f"networks[{name!r}] turns {called} into {list(found.shape) if hasattr(found, 'shape') else found}, "
            f"expected {[2, outputs]}: give its last layer {outputs} output{'s' if outputs > 1 else ''}"
        )
    return network
