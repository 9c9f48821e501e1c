"""A trained policy as a function: observation in, action out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tensor_optix.envs.spaces import is_single, to_array


class Policy:
    """The best policy of one member. Call it with an observation, or with a batch of them.

    Deterministic unless a key is given: then the action is sampled. Actions are the environment's own (a Box action
    is scaled to its bounds).

    A policy with memory remembers from call to call: every observation is taken for what follows the one before it.
    Call `reset` where an episode starts. Without memory it does nothing, and need not be called.
    """

    def __init__(self, algorithm: Any, params: Any) -> None:
        self.algorithm = algorithm
        self.params = params
        self._act = jax.jit(self._batch, static_argnames="deterministic")
        self._carry: Any = None  # of every row of the calls so far, leading axis [B]; None before the first

    def __call__(self, obs: Any, key: jax.Array | None = None) -> np.ndarray:
        """The action for `obs` [*obs_shape], or actions [B, ...] for observations [B, *obs_shape].

        What the environment shows will do too, where that is a Dict or a Tuple: of one environment, or batched.
        ValueError for observations of another shape, and, with memory, for another B than that of the call before.
        """
        shape = self.algorithm.env.obs_shape
        obs = np.asarray(self._flat(obs), self.algorithm.env.obs_dtype)
        single = obs.shape == tuple(shape)
        if not single and obs.shape[1:] != tuple(shape):
            raise ValueError(f"observation has shape {obs.shape}, expected {shape} or a batch [B, {shape}]")
        batch = obs[None] if single else obs
        deterministic = key is None
        key = jax.random.key(0) if key is None else key
        carry = self._memory(len(batch))
        action, self._carry = self._act(self.params, batch, carry, key, deterministic=deterministic)
        return np.asarray(action)[0] if single else np.asarray(action)

    def _flat(self, obs: Any) -> Any:
        """Observations that are a Dict or a Tuple as the algorithm sees them; others as they are."""
        space = self.algorithm.env.observation_space
        if not hasattr(space, "spaces") or isinstance(obs, np.ndarray | jax.Array | list):
            return obs
        try:
            obs = jax.tree.map(np.asarray, obs)
            if is_single(obs, space):
                return to_array(obs, space)
            return jax.vmap(lambda x: to_array(x, space))(obs)
        except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"the observation does not fit {space}: {error}; give what the environment shows"
            ) from None

    def reset(self, ended: Any = None) -> None:
        """Forget what was seen: an episode starts. `ended` [B] bool: only in those rows of the batch.

        ValueError if `ended` has another length than the batch of the calls before.
        """
        if ended is None or self._carry is None:
            self._carry = None
            return
        mask = np.atleast_1d(np.asarray(ended, bool))
        self._carry = jax.tree.map(
            lambda old, new: np.where(mask.reshape(-1, *[1] * new.ndim), new, old),
            self._memory(len(mask)),
            self.algorithm.initial_carry(),
        )

    def _memory(self, count: int) -> Any:
        """What is carried for each of `count` rows."""
        if self._carry is None:
            start = self.algorithm.initial_carry()
            self._carry = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (count, *x.shape)), start)
        rows = {len(x) for x in jax.tree.leaves(self._carry)}
        if rows - {count}:
            raise ValueError(
                f"the policy remembers {rows.pop()} environments and got {count}: call reset() where new ones start"
            )
        return self._carry

    def _batch(
        self, params: Any, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        action, carry = self.algorithm.act(params, obs, carry, key, deterministic)
        return jax.vmap(self.algorithm.env.action.to_env)(action), carry

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array under its path, for `safetensors` or any other file of named arrays."""
        return named_arrays(self.params)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write `policy.safetensors` and `policy.json` into `directory`."""
        from tensor_optix.loop.policy_file import write_policy

        folder = Path(directory)
        write_policy(folder, self.arrays(), {"algorithm": self.algorithm.name, "env": self.algorithm.env.name})
        return folder


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """A pytree as a flat dict, each leaf under its path, such as "actor/hidden/0/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def from_named_arrays(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Inverse of `named_arrays`; `template` has the structure, shapes and dtypes that are expected.

    Raises ValueError that names the leaf and both shapes, or what the template has no place for.
    """
    known: set[str] = set()

    def pick(path: Any, like: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        known.add(name)
        if name not in arrays:
            raise ValueError(f"the saved policy lacks {name}; it has {', '.join(sorted(arrays))}")
        array = arrays[name]
        if array.shape != like.shape or array.dtype != like.dtype:
            raise ValueError(
                f"saved {name} is {array.dtype}{list(array.shape)}, expected {like.dtype}{list(like.shape)}: it "
                "belongs to another network or environment"
            )
        return array

    policy = jax.tree_util.tree_map_with_path(pick, template)
    if surplus := sorted(set(arrays) - known):
        raise ValueError(f"the saved policy also has {', '.join(surplus)}: it belongs to another network")
    return policy
