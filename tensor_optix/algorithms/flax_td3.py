"""TD3 in JAX as a host agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flax import nnx

from tensor_optix.algorithms import host_off_policy
from tensor_optix.algorithms.flax_off_policy import Layout
from tensor_optix.algorithms.flax_sac import FlaxActorCritic
from tensor_optix.algorithms.host_off_policy import Table
from tensor_optix.algorithms.td3 import TD3, TD3Agent, TD3Config
from tensor_optix.core.types import EpisodeData, HyperparamSet


class FlaxTD3Agent(FlaxActorCritic):
    """TD3 with actions [action_dim]: a deterministic actor with noise for exploring, twin critics, and a replay.

    The policy's range is -1 to 1; `set_action_bounds` says what that stands for, and noises are in units of half of it.

    Args:
        hyperparams: any of `FlaxTD3Agent.table.defaults`; the actor and the targets move with every "policy_delay"-th
            update of the critics. "per_alpha" above 0 prioritises the replay. Other names are kept.
        actor: an nnx module of the user's own instead: [N, *obs] -> [N, action_dim], before the tanh.

    The other arguments are those of `FlaxSACAgent`, and so is `learn`, which returns actor_loss, critic_loss and
    q_mean, means over the updates (absent where there was none), policy_update (1 if the actor moved), buffer_size and
    n_updates.
    """

    table = Table(
        {**host_off_policy.DEFAULTS, **TD3.defaults, "policy_delay": 2},
        {**host_off_policy.LIMITS, **TD3.limits},
    )
    statics: ClassVar = {"batch_size": "batch_size", "policy_delay": "policy_delay"}
    outputs = 1
    critic_targets = "target_critics"

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        action_dim: int,
        hyperparams: HyperparamSet,
        hidden_size: int = 256,
        seed: int = 0,
        *,
        hidden_sizes: tuple[int, ...] | None = None,
        activation: str = "relu",
        actor: nnx.Module | None = None,
        critics: Sequence[nnx.Module] | None = None,
    ) -> None:
        sizes = (hidden_size, hidden_size) if hidden_sizes is None else tuple(hidden_sizes)
        super().__init__(obs_dim, action_dim, hyperparams, sizes, activation, seed, actor, critics, {})

    @staticmethod
    def _algorithm(spaces: Any, settings: Mapping[str, Any], networks: Mapping[str, Any]) -> TD3:
        return TD3(spaces, TD3Config(replay_size=1 << 30, **settings), **networks)

    @staticmethod
    def _layout(algorithm: TD3) -> tuple[Any, Layout]:
        unravel = {"actor": algorithm._unravel_actor, "critics": algorithm._critics.unravel}
        return TD3Agent, Layout(unravel, {"target_actor": "actor", "target_critics": "critics"})

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        delay = self._hyperparams.params["policy_delay"]
        before = self._updates_done // delay
        report = super().learn(episode_data)
        return {**report, "policy_update": float(self._updates_done // delay > before)} if report else {}
