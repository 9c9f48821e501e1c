"""An environment that no dithering masters: its reward lies at the end of one single path out of a great many."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.envs.spaces import Box, Discrete


@struct.dataclass
class DeepSeaState:
    """The cell where the diver is."""

    row: jax.Array  # [] int32, steps taken; depth at the end
    column: jax.Array  # [] int32; depth once the treasure was found


class DeepSea:
    """A square of cells; every step leads one row down, and one column to the right or to the left.

    An episode begins in the upper left cell and terminates after `depth` steps. A step to the right costs 0.01 / depth,
    and that from the lower right cell brings 1: only `depth` steps to the right get there, which uniform play does in
    one of 2**depth episodes, while on the way the cost alone is seen. Fails if: exploration is nothing but noise on the
    actions. Osband et al. 2020, "Behaviour suite for reinforcement learning", deterministic deep sea. Which of the
    actions 0 and 1 leads to the right is drawn for every cell, once for all episodes, so that no rule for all cells
    finds the way.

    Observations are the cell as one-hot, row by row: float32 [depth**2]; all are 0 at the end. Optimal return 0.99,
    without exploration 0.

    Args:
        depth: rows and columns. ValueError below 2.
        seed: of what the actions mean, an integer of at least 0. None: action 1 leads to the right in every cell.
        continuous: the action is a number in [-1, 1]; above 0 it means action 1.
    """

    name = "DeepSea"
    default_params = None
    move_cost = 0.01  # of an episode of steps to the right
    optimal_return = 1.0 - move_cost

    def __init__(self, depth: int = 10, seed: int | None = 0, continuous: bool = False) -> None:
        if depth < 2:
            raise ValueError(f"depth must be at least 2 rows, got {depth}")
        self.depth, self.continuous = depth, continuous
        self.max_steps_in_episode = depth
        cells = (depth, depth)
        self.right = np.ones(cells, bool) if seed is None else np.random.default_rng(seed).random(cells) < 0.5

    def observation_space(self, params: Any) -> Box:
        return Box(0.0, 1.0, (self.depth**2,))

    def action_space(self, params: Any) -> Any:
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, DeepSeaState]:
        state = DeepSeaState(jnp.int32(0), jnp.int32(0))
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: DeepSeaState, action: jax.Array, params: Any
    ) -> tuple[jax.Array, DeepSeaState, jax.Array, jax.Array, dict[str, Any]]:
        chosen = action[0] > 0 if self.continuous else action == 1
        to_the_right = chosen == jnp.asarray(self.right)[state.row, state.column]
        treasure = to_the_right & (state.column == self.depth - 1)
        cost = jnp.where(to_the_right, jnp.float32(self.move_cost / self.depth), jnp.float32(0.0))
        column = state.column + jnp.where(to_the_right, jnp.int32(1), jnp.int32(-1))
        state = DeepSeaState(state.row + jnp.int32(1), jnp.maximum(column, 0))
        return self.observe(state), state, treasure.astype(jnp.float32) - cost, state.row >= self.depth, {}

    def is_truncated(self, state: DeepSeaState, params: Any) -> jax.Array:
        return jnp.zeros((), bool)

    def observe(self, state: DeepSeaState) -> jax.Array:
        """[depth**2] float32; the end has no cell of its own."""
        return jax.nn.one_hot(state.row * self.depth + state.column, self.depth**2, dtype=jnp.float32)


# Ids that `envs.make` knows beside those of gymnax.
IDS: dict[str, Any] = {DeepSea.name: DeepSea}
