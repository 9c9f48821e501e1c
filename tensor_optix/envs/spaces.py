"""Spaces, and the two translations between an environment and an algorithm.

Algorithms see one array per observation (a vector of float32, or an image) and emit one action per environment
(an int32 choice, or a vector in [-1, 1]). Everything else is translated here and nowhere else.

Spaces are recognised by what they have (`n`; `nvec`; `low`, `high`, `shape`; `spaces`), so those of gymnax and
Gymnasium work too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of several choices at once: each combination has an output of the network.
MOST_COMBINATIONS = 4096


@dataclass(frozen=True)
class Discrete:
    """The integers 0 .. n-1, as an int32 scalar."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> Any:
        return jnp.int32


@dataclass(frozen=True)
class Box:
    """Arrays of one shape with bounds: scalars, or (nested) tuples of that shape. Infinite bounds are allowed."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32


@dataclass(frozen=True)
class MultiDiscrete:
    """Vectors of integers; entry i is one of 0 .. nvec[i]-1, as int32."""

    nvec: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)

    @property
    def dtype(self) -> Any:
        return jnp.int32


@dataclass(frozen=True)
class Dict:
    """Named spaces; a value is a dict with the same names."""

    spaces: Mapping[str, Any]


@dataclass(frozen=True)
class Tuple:
    """Spaces in order; a value is a tuple of that length."""

    spaces: Sequence[Any]


def is_discrete(space: Any) -> bool:
    """True for one integer choice; MultiDiscrete and MultiBinary are not."""
    return isinstance(getattr(space, "n", None), (int, np.integer)) and tuple(getattr(space, "shape", ())) == ()


def choices(space: Any) -> tuple[int, ...] | None:
    """How many values each entry of a MultiDiscrete or MultiBinary takes; None for other spaces."""
    nvec, n = getattr(space, "nvec", None), getattr(space, "n", None)
    if nvec is not None:
        return tuple(int(count) for count in np.asarray(nvec).ravel())
    if n is None or is_discrete(space) or is_box(space) or hasattr(space, "spaces"):
        return None
    return (2,) * int(np.prod(n))


def is_box(space: Any) -> bool:
    """True for arrays of one shape between bounds."""
    return all(hasattr(space, name) for name in ("low", "high", "shape"))


@dataclass(frozen=True)
class ActionSpec:
    """What a policy has to emit. Hashable: bounds are kept as tuples, one entry per dimension."""

    kind: str  # "discrete" or "continuous"
    n: int  # number of choices (discrete) or dimensions (continuous)
    shape: tuple[int, ...] = ()  # of the environment's own action, without batch axes
    dtype: str = "int32"
    start: int = 0  # first integer of a Gymnasium Discrete
    nvec: tuple[
        int, ...
    ] = ()  # of several choices at once, whose combinations are the n choices; the last runs fastest
    starts: tuple[int, ...] = ()  # their first integers
    center: tuple[float, ...] = ()  # (high + low) / 2 where both bounds are finite, else 0
    half_range: tuple[float, ...] = ()  # (high - low) / 2 where both bounds are finite, else 1
    bounded: tuple[bool, ...] = ()

    def to_env(self, action: jax.Array) -> jax.Array:
        """One policy action ([] int32, or [n] float32 in [-1, 1]) as the environment wants it.

        A bounded dimension is clipped to [-1, 1] and mapped affinely to [low, high]; others pass unchanged.
        """
        if self.nvec:
            return self._several(action)
        if self.kind == "discrete":
            return action.astype(jnp.int32) + jnp.int32(self.start) if self.start else action.astype(jnp.int32)
        action = action.astype(jnp.float32)
        center, half_range = np.asarray(self.center, np.float32), np.asarray(self.half_range, np.float32)
        scaled = center + half_range * jnp.clip(action, jnp.float32(-1.0), jnp.float32(1.0))
        mapped = jnp.where(np.asarray(self.bounded), scaled, action)
        return mapped.reshape(self.shape).astype(self.dtype)

    def _several(self, action: jax.Array) -> jax.Array:
        """The vector of choices that number `action` [] stands for."""
        entries = jnp.unravel_index(action.astype(jnp.int32), self.nvec)
        shifted = [entry.astype(jnp.int32) + start for entry, start in zip(entries, self.starts, strict=True)]
        return jnp.stack(shifted).reshape(self.shape).astype(self.dtype)

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Uniform random policy actions: int32 [n], or float32 [n, dimensions] in [-1, 1)."""
        if self.kind == "discrete":
            return jax.random.randint(key, (n,), 0, self.n, jnp.int32)
        return jax.random.uniform(key, (n, self.n), jnp.float32, -1.0, 1.0)


def action_spec(space: Any) -> ActionSpec:
    """Describe an action space. ValueError for anything but Discrete, MultiDiscrete, MultiBinary and Box."""
    if is_discrete(space):
        return ActionSpec("discrete", int(space.n), start=int(getattr(space, "start", 0)))
    nvec = choices(space)
    if nvec is not None:
        return _joint_spec(space, nvec)
    if not is_box(space) or not jnp.issubdtype(space.dtype, jnp.floating):
        raise ValueError(
            f"action space {space!r} is not supported: expected Discrete, MultiDiscrete, MultiBinary or a floating "
            "point Box; wrap the environment so that it takes one of them"
        )
    shape = tuple(int(size) for size in space.shape)
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), shape).ravel() for bound in (space.low, space.high))
    if np.any(low >= high):
        bounds = f"low {low.tolist()} and high {high.tolist()}"
        raise ValueError(f"action space has {bounds}; every low must be below its high")
    # Bounds at the end of float32's range mean "no bound"; their difference would overflow.
    bounded = (np.abs(low) < 1e30) & (np.abs(high) < 1e30)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return ActionSpec(
        "continuous",
        int(np.prod(shape, dtype=np.int64)),
        shape=shape,
        dtype=np.dtype(space.dtype).name,
        center=tuple(map(float, (low + high) / 2.0)),
        half_range=tuple(map(float, (high - low) / 2.0)),
        bounded=tuple(map(bool, bounded)),
    )


def _joint_spec(space: Any, nvec: tuple[int, ...]) -> ActionSpec:
    """Several choices at once as one among their combinations."""
    n = math.prod(nvec)
    if not 0 < n <= MOST_COMBINATIONS:
        raise ValueError(
            f"action space {space!r} has {n} combinations, expected 1 to {MOST_COMBINATIONS}; "
            "wrap the environment so that it takes a Discrete, or a Box that it rounds"
        )
    starts = np.broadcast_to(np.asarray(getattr(space, "start", 0)).ravel(), (len(nvec),))
    return ActionSpec(
        "discrete",
        n,
        shape=tuple(int(size) for size in space.shape),
        dtype=jax.dtypes.canonicalize_dtype(space.dtype).name,
        nvec=nvec,
        starts=tuple(int(start) for start in starts),
    )


def to_array(obs: Any, space: Any) -> jax.Array:
    """One observation as one array.

    A Box [H, W, C] is an image and keeps its shape (and uint8); every other Box becomes a float32 vector; a Discrete
    becomes a one-hot vector, a MultiDiscrete one for each entry, side by side; Dict and Tuple become the concatenation
    of their parts, images in them flattened.
    """
    if not hasattr(space, "spaces"):
        return _leaf_to_array(obs, space)
    parts = [_leaf_to_array(part, child) for part, child in _leaves(obs, space)]
    return jnp.concatenate([part.reshape(-1).astype(jnp.float32) for part in parts])


def is_single(obs: Any, space: Any) -> bool:
    """Whether a Dict or a Tuple is one observation; False: each of its arrays has a batch axis in front."""
    leaf, own = _leaves(obs, space)[0]
    return np.ndim(leaf) == (0 if is_discrete(own) else len(own.shape))


def spans(obs: Any, space: Any) -> dict[str, tuple[int, int]]:
    """Where in `to_array(obs, space)` each named part of a Dict lies, as (start, stop); {} for other spaces."""
    children: Any = getattr(space, "spaces", None)
    if not hasattr(children, "items"):
        return {}
    found, stop = {}, 0
    for name, child in children.items():
        start, stop = stop, stop + to_array(_child(obs, name), child).size
        found[name] = (start, stop)
    return found


def _leaf_to_array(obs: Any, space: Any) -> jax.Array:
    obs = jnp.asarray(obs)
    if hasattr(space, "nvec"):
        counts = choices(space) or ()
        if obs.size != len(counts):
            raise ValueError(f"an observation of {space!r} must have {len(counts)} entries, got {obs.size}")
        starts = np.broadcast_to(np.asarray(getattr(space, "start", 0)).ravel(), (obs.size,))
        entries, flat = enumerate(counts), obs.reshape(-1)
        return jnp.concatenate([jax.nn.one_hot(flat[i] - starts[i], n, dtype=jnp.float32) for i, n in entries])
    if is_discrete(space):
        return jax.nn.one_hot(obs.reshape(()) - int(getattr(space, "start", 0)), int(space.n), dtype=jnp.float32)
    if obs.ndim == 3:
        return obs if obs.dtype == jnp.uint8 else obs.astype(jnp.float32)
    return obs.reshape(-1).astype(jnp.float32)


def _leaves(obs: Any, space: Any) -> list[tuple[Any, Any]]:
    """Pairs of an array and its space, depth first, in the order of the space."""
    if not hasattr(space, "spaces"):
        return [(obs, space)]
    children = space.spaces
    named = children.items() if hasattr(children, "items") else enumerate(children)
    return [pair for name, child in named for pair in _leaves(_child(obs, name), child)]


def _child(obs: Any, name: Any) -> Any:
    # gymnax's own Dict space describes observations that are dataclasses.
    return obs[name] if isinstance(name, int) or isinstance(obs, Mapping) else getattr(obs, name)
