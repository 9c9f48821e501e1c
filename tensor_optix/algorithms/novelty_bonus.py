"""Random network distillation as an option of every compiled algorithm: a reward for what is new, beside the task's.

Scores never see it. `core.novelty` is the mathematics; the rewards of task and novelty are added, as the host's
`RNDPipeline` does. PPO gets it for the last observation of a task too, which the off-policy algorithms do not keep.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tensor_optix.algorithms.contract import Hyperparams
from tensor_optix.core import novelty
from tensor_optix.core.novelty import Novelty

# At ten times this learning rate the novelty of a long way wears off before it has been gone (DeepSea, 10 deep).
HYPERPARAMS = {"rnd_coef": 0.1, "rnd_learning_rate": 3e-4}
LIMITS = {"rnd_coef": (0.0, 1e6), "rnd_learning_rate": (0.0, 1.0)}


def rewarded(
    known: Novelty, obs: jax.Array, weight: jax.Array | None, hyper: Hyperparams, n_minibatches: int = 1
) -> tuple[Novelty, jax.Array]:
    """What is known after observations [*batch, *obs], and the rewards [*batch] float32 for having come there.

    Rows whose `weight` [*batch] float32 is 0 are not learned from and bring nothing. The predictor goes over the rows
    once, in minibatches that each reach over all of the first axis; `n_minibatches` divides the rows.
    """
    known = novelty.observe(known, obs, weight)
    reward = hyper["rnd_coef"] * novelty.bonus(known, obs)
    shape = known.obs_moments.mean.shape
    rows = obs.reshape(-1, n_minibatches, *shape)
    weights = None if weight is None else weight.reshape(-1, n_minibatches)

    def step(i: Any, known: Novelty) -> Novelty:
        own = None if weights is None else weights[:, i]
        return novelty.train(known, rows[:, i], own, hyper["rnd_learning_rate"])

    known = step(0, known) if n_minibatches == 1 else jax.lax.fori_loop(0, n_minibatches, step, known)
    return known, reward if weight is None else jnp.where(weight > 0, reward, jnp.float32(0.0))
