"""Networks of the user's own in the places of an algorithm's: built once for each member, checked before anything runs.

A place is given a function of `nnx.Rngs` that makes an `nnx.Module`; its class will do where it takes nothing else. An
instance would hold one set of weights, and every member has to start with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
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


class OwnNetwork(Network):
    """A network that is called with one batch axis, whatever leading axes an algorithm has."""

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], rank: int) -> None:
        super().__init__(build)
        self._rank = rank  # axes of the first input, without batch axes

    def apply(self, params: Any, *inputs: jax.Array) -> Any:
        lead = inputs[0].shape[: inputs[0].ndim - self._rank]
        out = super().apply(params, *(x.reshape(-1, *x.shape[len(lead) :]) for x in inputs))
        return out.reshape(*lead, *out.shape[1:])


def _checked(name: str, build: Any, inputs: tuple[jax.ShapeDtypeStruct, ...], outputs: int) -> Network:
    what = f"networks[{name!r}]"
    if isinstance(build, nnx.Module) or not callable(build):
        raise ValueError(
            f"{what} must be a function of nnx.Rngs that makes an nnx.Module, got {type(build).__name__}: "
            "every member starts with weights of its own; give its class, or lambda rngs: MyModule(..., rngs=rngs)"
        )
    _check_variables(what, _attempt(f"{what} cannot be made by calling it with nnx.Rngs", partial(_parts, build)))
    network = OwnNetwork(build, len(inputs[0].shape))
    params = jax.eval_shape(network.init, jax.random.key(0))
    batch = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in inputs]
    called = " and ".join(str([2, *x.shape]) for x in inputs)
    plain = Network(build)
    found = _attempt(f"{what} cannot be called with {called}", lambda: jax.eval_shape(plain.apply, params, *batch))
    if getattr(found, "shape", None) != (2, outputs):
        raise ValueError(
            f"{what} turns {called} into {list(found.shape) if hasattr(found, 'shape') else found}, "
            f"expected {[2, outputs]}: give its last layer {outputs} output{'s' if outputs > 1 else ''}"
        )
    return network


def _parts(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, ...]:
    """Graph, parameters and the rest of the module, as shapes."""
    made: list[Any] = []

    def make() -> Any:
        made.append(build(nnx.Rngs(0)))
        return made[0] if isinstance(made[0], nnx.Module) else None

    module = nnx.eval_shape(make)
    if module is None:
        raise TypeError(f"it made a {type(made[0]).__name__}, no nnx.Module")
    return nnx.split(module, nnx.Param, ...)


def _check_variables(what: str, parts: tuple[Any, ...]) -> None:
    _, trained, rest = parts
    for path, leaf in jax.tree_util.tree_leaves_with_path(rest):
        raise ValueError(
            f"{what} has {jax.tree_util.keystr(path)} of {leaf.dtype}, which is no nnx.Param: leave out what keeps a "
            "state of its own, such as Dropout and BatchNorm"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        if leaf.dtype != jnp.float32:
            raise ValueError(f"{what} has {jax.tree_util.keystr(path)} of {leaf.dtype}: parameters must be float32")


def _attempt(failed: str, f: Callable[[], Any]) -> Any:
    """f(), or one sentence with the first line of what it raised: the module is somebody else's code."""
    try:
        return f()
    except Exception as error:
        raise ValueError(f"{failed}: {str(error).strip().splitlines()[0] if str(error) else error!r}") from error
