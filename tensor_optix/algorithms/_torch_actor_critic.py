"""PPO over a PyTorch actor and critic, for any `Distribution` of actions. No torch in here: see `_torch_update`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms._torch_agent import ModuleAgent, require_torch
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.core.window_returns import Bootstraps

if TYPE_CHECKING:
    import torch

    from tensor_optix.algorithms._torch_networks import Networks
    from tensor_optix.algorithms._torch_update import Batch, Distribution


class ActorCriticAgent(ModuleAgent):
    """What the PPO agents share; they say how actions are distributed.

    Acting runs the actor only, and samples in NumPy. Observations are float32 for the networks, images unscaled.
    `obs_normalizer` is frozen while a window is collected and learned from, and sees the window after that.
    """

    default_param_bounds: ClassVar[dict[str, tuple[float, float]]] = host_ppo.PARAM_BOUNDS
    default_log_params: ClassVar[frozenset[str]] = host_ppo.LOG_PARAMS
    default_tuned: ClassVar[tuple[str, ...]] = TUNED

    def __init__(
        self,
        networks: Networks,
        distribution: Distribution,
        hyperparams: HyperparamSet,
        reward_normalizer: RewardNormalizer | None,
        obs_normalizer: ObsNormalizer | None,
        seed: int,
        **parts: Any,
    ) -> None:
        parts = {"obs_normalizer": obs_normalizer, "reward_normalizer": reward_normalizer, **parts}
        super().__init__(networks, hyperparams, host_ppo.complete, parts, seed)
        self._actor, self._critic = networks.modules["actor"], networks.modules["critic"]
        self._distribution = distribution
        self._obs_normalizer, self._reward_normalizer = obs_normalizer, reward_normalizer
        self._obs_shape: tuple[int, ...] | None = None  # of one observation, once there was one

    # -- acting --------------------------------------------------------------------------------------------

    def act(self, observation: Any) -> Any:
        """One observation -> one action, sampled: an int, or float32 [D]."""
        return self._one(self.act_batch(np.asarray(observation)[None]))

    def act_batch(self, observations: Any) -> np.ndarray:
        """[N, ...] -> int64 [N] or float32 [N, D], sampled."""
        return self._distribution.sample(self._outputs(observations), self._generators["act"])

    def act_deterministic(self, observation: Any) -> Any:
        """One observation -> the most likely action."""
        return self._one(self.act_batch_deterministic(np.asarray(observation)[None]))

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """[N, ...] -> the most likely actions; draws no random numbers."""
        return self._distribution.mode(self._outputs(observations))

    @staticmethod
    def _one(actions: np.ndarray) -> Any:
        return int(actions[0]) if actions.ndim == 1 else actions[0]

    def _outputs(self, observations: Any) -> np.ndarray:
        """The actor's [N, A]."""
        batch = self._prepared(observations)
        with self._networks.threads():
            outputs = self._networks.forward("actor", batch)
        if outputs.ndim != 2 or len(outputs) != len(batch):
            raise ValueError(
                f"the actor must give a row of numbers for each of {len(batch)} observations, "
                f"got an output of shape {list(outputs.shape)}"
            )
        return outputs

    def _prepared(self, observations: Any) -> np.ndarray:
        """As the networks take them, float32."""
        batch = np.asarray(observations)
        self._obs_shape = batch.shape[1:]
        return (
            batch.astype(np.float32, copy=False)
            if self._obs_normalizer is None
            else self._obs_normalizer.normalize(batch)
        )

    def _values(self, batch: np.ndarray) -> np.ndarray:
        values = self._networks.forward("critic", batch)
        if values.size != len(batch):
            raise ValueError(
                f"the critic must give one value for each of {len(batch)} observations, "
                f"got an output of shape {list(values.shape)}: its last layer has one unit"
            )
        return values.reshape(-1)

    # -- learning ------------------------------------------------------------------------------------------

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        """PPO on one window of any shape; {} and no change if none of its rows can be learned from.

        Returns floats: policy_loss, value_loss (half the squared error), entropy, approx_kl (k3), means over all
        minibatches; explained_var of the value targets before the update; n_updates, minibatches. ValueError for
        networks or `log_probs` that do not fit the window.
        """
        if not len(episode_data.rewards) or not Bootstraps.of(episode_data).usable.any():
            return {}
        params, observations = self._hyperparams.params, self._prepared(episode_data.observations)
        with self._networks.threads():
            rows = host_ppo.learning_rows(
                episode_data, observations, self._values, self._prepared, params, self._reward_normalizer
            )
            result = self._update(self._batch(episode_data, observations, rows))
        if self._obs_normalizer is not None:
            self._obs_normalizer.update(episode_data.observations)
        return {**result, "explained_var": rows.explained_variance}

    def _batch(self, data: EpisodeData, observations: np.ndarray, rows: host_ppo.Rows) -> Batch:
        """The usable rows on the device, with the log-probabilities given, or those of the present actor."""
        import torch

        from tensor_optix.algorithms._torch_update import Batch

        tensor, index = self._networks.tensor, rows.index
        batch = tensor(observations[index])
        with torch.no_grad():
            outputs = self._actor(batch)
        targets = tensor(self._distribution.targets(data.actions, outputs.shape[-1])[index])
        targets = targets if targets.is_floating_point() else targets.long()  # once, not in every minibatch
        if data.log_probs is None:
            with torch.no_grad():
                log_probs, _ = self._distribution.log_prob_and_entropy(outputs, targets)
        else:
            given = np.asarray(data.log_probs, np.float32).reshape(-1)
            if len(given) != len(data.rewards):
                raise ValueError(f"log_probs must be one number for each of {len(data.rewards)} rows, got {len(given)}")
            log_probs = tensor(given[index])
        return Batch(batch, targets, log_probs, tensor(rows.advantages), tensor(rows.targets))

    def _update(self, batch: Batch) -> dict[str, float]:
        from tensor_optix.algorithms._torch_update import update

        params, rng = self._hyperparams.params, self._generators["learn"]
        order = host_ppo.minibatches(rng, len(batch.returns), params["minibatch_size"], params["n_epochs"])
        return update(self._networks, self._distribution, batch, params, order)

    # -- export --------------------------------------------------------------------------------------------

    def export_onnx(self, path: str) -> None:
        """Write the policy, normaliser included: "observation" [N, ...] as the environment gives it -> [N, A].

        The output is "logits", or "mean", the mean action in unit range. ImportError without onnx; ValueError if the
        shape of an observation is not known yet.
        """
        from tensor_optix.algorithms._torch_update import Exported

        module = Exported(self._actor, self._distribution, self._obs_normalizer)
        self._networks.export(module, path, self._shape_of_observation(), self._distribution.output_name)

    def _shape_of_observation(self) -> tuple[int, ...]:
        if self._obs_shape is not None:
            return self._obs_shape
        leaves = (module for module in self._actor.modules() if not list(module.children()))
        features = getattr(next(leaves, None), "in_features", None)
        if features is None:
            raise ValueError("the shape of an observation is not known yet: let the agent act once, then export")
        return (int(features),)


def networks_of(
    name: str, actor: torch.nn.Module, critic: torch.nn.Module, optimizer: Any, device: Any, n_threads: int | None
) -> Networks:
    """Both on the device. ImportError, naming the class that is being made, without PyTorch."""
    require_torch(name)
    from tensor_optix.algorithms._torch_networks import Networks

    return Networks({"actor": actor, "critic": critic}, optimizer, device, n_threads)
