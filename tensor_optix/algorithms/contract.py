"""What the compiled driver asks of an algorithm."""

from __future__ import annotations

from typing import Any, Protocol

import jax
from flax import struct

from tensor_optix.core.search_space import SearchSpace
from tensor_optix.envs.vector import VectorEnv
from tensor_optix.networks.own import Places

Hyperparams = dict[str, jax.Array]  # name -> [] float32, traced
Learner = Any  # everything the algorithm carries, a pytree
Policy = Any  # the small pytree that acting needs
Snapshot = Any  # what a roll-back brings back, a pytree


# What one learner tunes unless the caller says otherwise, in both drivers: more than the learning rate has not paid,
# and has done harm where the others were good (benchmarks/RESULTS.md, "Does tuning while training pay?").
TUNED = ("learning_rate",)


class WindowStats(struct.PyTreeNode):
    """What one window reports. Reduced inside: nothing here grows with the number of steps."""

    return_sum: jax.Array  # [] float32, summed raw returns of the episodes that ended in the window
    episodes: jax.Array  # [] int32, how many ended
    finite: jax.Array  # [] bool, no NaN or infinity in rewards, parameters, optimiser state or moments
    losses: dict[str, jax.Array]  # name -> [] float32, means over the window's updates


class Algorithm(Protocol):
    """A frozen, hashable configuration with pure methods, all safe under jit and vmap.

    Everything static (shapes, counts, choices) is in the configuration; every float hyperparameter is an argument.
    """

    @property
    def env(self) -> VectorEnv: ...

    @property
    def is_on_policy(self) -> bool:
        """False: it learns from what earlier policies did, so its parameters are never rolled back for a bad score."""
        ...

    @property
    def steps_per_window(self) -> int:
        """Environment steps that one `window` takes."""
        ...

    def replay_bytes(self) -> int:
        """Memory of one member's replay; 0 for an algorithm that keeps none."""
        ...

    def hyperparams(self) -> dict[str, float]:
        """Defaults of every hyperparameter."""
        ...

    def hyperparam_limits(self) -> dict[str, tuple[float, float]]:
        """Where each hyperparameter makes sense, both ends included."""
        ...

    def search_space(self) -> SearchSpace:
        """Those that are tuned online, with their bounds."""
        ...

    def places(self) -> Places:
        """Where networks of the user's own may stand: names of the algorithm's fields."""
        ...

    def init(self, key: jax.Array, hyper: Hyperparams) -> Learner: ...

    def window(self, learner: Learner, hyper: Hyperparams, key: jax.Array) -> tuple[Learner, WindowStats]:
        """Collect one window and learn from it."""
        ...

    def policy(self, learner: Learner) -> Policy: ...

    def initial_carry(self) -> Any:
        """Memory of the policy at the start of an episode, of one environment; () for a policy without any."""
        ...

    def act(
        self, policy: Policy, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """The environment's action for one observation, and the memory after it; or for a batch of both."""
        ...

    def snapshot(self, learner: Learner) -> Snapshot: ...

    def restore(self, learner: Learner, snapshot: Snapshot) -> Learner: ...

    def reset_envs(self, learner: Learner, key: jax.Array) -> Learner:
        """Start fresh episodes; the rest of the learner stays."""
        ...

    def perturb(self, learner: Learner, key: jax.Array, noise: jax.Array) -> Learner:
        """Every weight multiplied by 1 + noise * N(0, 1), noise [] float32. Targets are those weights; moments stay."""
        ...
