"""PPO over a Keras actor and critic, for any distribution of actions. No tensorflow in here: see `_tf_update`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms._tf_agent import TFNetworkAgent
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.algorithms.host_actions import Categorical, Gaussian
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.core.window_returns import Bootstraps


class TFActorCriticAgent(TFNetworkAgent):
    """What the PPO agents share; they say how actions are distributed.

    Acting runs the actor only, and samples in NumPy. Observations are float32 for the networks, images unscaled.
    `obs_normalizer` is frozen while a window is collected and learned from, and sees the window after that.
    """

    default_param_bounds: ClassVar[dict[str, tuple[float, float]]] = host_ppo.PARAM_BOUNDS
    default_log_params: ClassVar[frozenset[str]] = host_ppo.LOG_PARAMS
    default_tuned: ClassVar[tuple[str, ...]] = TUNED

    def __init__(
        self,
        actor: Any,
        critic: Any,
        optimizer: Any,
        hyperparams: HyperparamSet,
        distribution: Categorical | Gaussian,
        reward_normalizer: RewardNormalizer | None,
        obs_normalizer: ObsNormalizer | None,
        seed: int,
    ) -> None:
        bounds = getattr(distribution, "bounds", None)
        parts = {"obs_normalizer": obs_normalizer, "reward_normalizer": reward_normalizer, "action_bounds": bounds}
        networks = {"actor": actor, "critic": critic}
        super().__init__(networks, optimizer, hyperparams, host_ppo.complete, parts, seed)
        self._distribution = distribution
        self._obs_normalizer, self._reward_normalizer = obs_normalizer, reward_normalizer

    @property
    def _actor(self) -> Any:
        return self._networks["actor"]

    @property
    def _critic(self) -> Any:
        return self._networks["critic"]

    def _compile(self, obs_shape: tuple[int, ...]) -> Any:
        from tensor_optix.algorithms._tf_update import PPOGraph

        return PPOGraph(self._actor, self._critic, self._optimizer, self._variables, self._distribution, obs_shape)

    # -- acting --------------------------------------------------------------------------------------------

    def act(self, observation: Any) -> Any:
        """One observation -> one action, sampled: an int, or float32 [D]."""
        return _one(self.act_batch(np.asarray(observation)[None]))

    def act_batch(self, observations: Any) -> np.ndarray:
        """[N, ...] -> int64 [N] or float32 [N, D], sampled."""
        return self._distribution.sample(self._outputs(observations), self._generators["acting"])

    def act_deterministic(self, observation: Any) -> Any:
        """One observation -> the most likely action."""
        return _one(self.act_batch_deterministic(np.asarray(observation)[None]))

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """[N, ...] -> the most likely actions; draws no random numbers."""
        return self._distribution.mode(self._outputs(observations))

    def _outputs(self, observations: Any) -> np.ndarray:
        """The actor's [N, A]."""
        inputs = self._inputs(observations)
        return self._graph(inputs).actor(inputs)

    # -- learning ------------------------------------------------------------------------------------------

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        """PPO on one window of any shape; {} and no change if none of its rows can be learned from.

        Returns floats: policy_loss, value_loss (half the squared error), entropy, approx_kl (k3), means over all
        minibatches; explained_var of the value targets before the update; n_updates, steps of the optimizer.
        ValueError for networks, actions or `log_probs` that do not fit the window.
        """
        data = episode_data
        if not len(data.rewards) or not Bootstraps.of(data).usable.any():
            return {}
        inputs = self._inputs(data.observations)
        graph = self._graph(inputs)
        targets = self._distribution.targets(data.actions, graph.actor.n_outputs)
        log_probs = _log_probs(data)
        rows = host_ppo.learning_rows(
            data, inputs, graph.critic, self._inputs, self._hyperparams.params, self._reward_normalizer
        )
        losses = self._update(graph, rows, inputs, targets, log_probs)
        if self._obs_normalizer is not None:
            self._obs_normalizer.update(data.observations)
        return {**losses, "explained_var": rows.explained_variance}

    def _update(
        self, graph: Any, rows: host_ppo.Rows, inputs: np.ndarray, targets: np.ndarray, log_probs: np.ndarray | None
    ) -> dict[str, float]:
        from tensor_optix.algorithms._tf_update import COEFFICIENTS, LOSSES

        params, index = self._hyperparams.params, rows.index
        rng, size, n_epochs = self._generators["learning"], params["minibatch_size"], params["n_epochs"]
        order = list(host_ppo.minibatches(rng, len(index), size, n_epochs))
        means = graph.update(
            inputs[index],
            targets[index],
            rows.targets if log_probs is None else log_probs[index],  # anything of that shape where there are none
            log_probs is not None,
            rows.advantages,
            rows.targets,
            np.concatenate(order).astype(np.int32),
            np.cumsum([0, *map(len, order)], dtype=np.int32),
            np.array([params[name] for name in COEFFICIENTS], np.float32),
        ).numpy()
        return {**dict(zip(LOSSES, map(float, means), strict=True)), "n_updates": float(len(order))}


def _one(actions: np.ndarray) -> Any:
    return int(actions[0]) if actions.ndim == 1 else actions[0]


def _log_probs(data: EpisodeData) -> np.ndarray | None:
    """Those the window brings, float32 [T]."""
    if data.log_probs is None:
        return None
    given = np.asarray(data.log_probs, np.float32).reshape(-1)
    if len(given) != len(data.rewards):
        raise ValueError(f"log_probs must be one number for each of {len(data.rewards)} rows, got {len(given)}")
    return given
