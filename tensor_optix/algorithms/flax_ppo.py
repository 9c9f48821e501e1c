"""PPO in JAX as a host agent: the compiled algorithm's networks, loss and update, on windows that a pipeline brings.

With `VectorBatchPipeline` and `LoopController` this is the host loop in which the JAX algorithm trains on Gymnasium
environments. Acting is one compiled call for each step, learning one for each window; both are shared by all agents
of equal networks, and hyperparameters are arguments of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tensor_optix.adapters.jax.flax_base import FlaxBase
from tensor_optix.adapters.jax.modules import ModuleNetwork, bucket, check_output, jit, padded
from tensor_optix.algorithms import host_ppo, ppo
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.algorithms.ppo import PPO, Batch, PPOConfig, PPOPolicy
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.core.window_returns import Bootstraps
from tensor_optix.loop import runtime

# The names that host agents share -> those of the compiled algorithm.
_NAMES = {
    "learning_rate": "learning_rate",
    "clip_ratio": "clip_range",
    "entropy_coef": "entropy_coef",
    "vf_coef": "value_coef",
    "max_grad_norm": "max_grad_norm",
}


@dataclass(frozen=True)
class Spaces:
    """Stands in the place of an environment where nothing is collected."""

    obs_shape: tuple[int, ...]
    action_kind: str  # "discrete" or "continuous"
    n_actions: int = 0
    action_dim: int = 0
    name: str = "it"
    goals: None = None
    mask: None = None

    def action_mask(self, obs: jax.Array) -> None:
        """All actions are allowed."""


class Programs(NamedTuple):
    """Compiled functions of one PPO; each is compiled once for each bucket of rows."""

    init: Callable[..., Any]  # key -> parameters, optimiser state
    actor: Callable[..., Any]  # actor parameters, obs -> logits or means
    values: Callable[..., Any]  # parameters, obs -> [M]
    sample: Callable[..., Any]  # policy, obs, noise -> actions
    mode: Callable[..., Any]  # policy, obs -> actions
    probs: Callable[..., Any]  # policy, obs -> [M, A]
    learn: Callable[..., Any]  # parameters and optimiser state (donated), rows, ... -> the same and losses


def _programs(algorithm: PPO) -> Programs:
    def init(key: jax.Array) -> tuple[Any, Any]:
        params = algorithm.init_params(*jax.random.split(key))
        return params, algorithm.init_opt(params)

    def learn(
        params: Any, opt: Any, rows: Batch, own: jax.Array, order: jax.Array, n_updates: jax.Array, hyper: Any
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        policy = PPOPolicy(params["actor"], params.get("log_std", ()), ())
        present = algorithm.distribution(policy, rows.obs).log_prob(rows.action)
        rows = rows._replace(log_prob=jnp.where(own, rows.log_prob, present))
        return algorithm.update(params, opt, rows, order, n_updates, hyper)

    return Programs(
        init=jit(init, runs_once=True),
        actor=jit(lambda params, obs: algorithm._actor.apply(params, obs)),
        values=jit(algorithm.values),
        sample=jit(lambda policy, obs, noise: algorithm.distribution(policy, obs).sample(noise)),
        mode=jit(lambda policy, obs: algorithm.distribution(policy, obs).mode()),
        probs=jit(lambda policy, obs: jax.nn.softmax(algorithm._actor.apply(policy.actor, obs))),
        learn=jit(learn, donate_argnums=(0, 1)),
    )


_shared_programs = functools.lru_cache(maxsize=32)(_programs)


def minibatch_order(rng: np.random.Generator, n_rows: int, size: int, n_epochs: int) -> np.ndarray:
    """The rows of each minibatch, int32 [U, M]: shuffled passes over the window, one after the other, cut into parts.

    All parts have M rows, so a part may end one pass and begin the next. M is `size`, or the largest power of two that
    the window holds where that is less; U is what makes `n_epochs` passes, rounded.
    """
    size = size if n_rows >= size else 1 << (n_rows.bit_length() - 1)
    count = max(1, round(n_epochs * n_rows / size))
    passes = [rng.permutation(n_rows) for _ in range(math.ceil(count * size / n_rows))]
    return np.concatenate(passes)[: count * size].reshape(count, size).astype(np.int32)


class FlaxPPOBase(FlaxBase):
    """What the discrete and the continuous agent share. See `FlaxPPOAgent` for the arguments."""

    default_param_bounds = host_ppo.PARAM_BOUNDS
    default_log_params = host_ppo.LOG_PARAMS
    default_tuned = TUNED

    def __init__(
        self,
        spaces: Spaces,
        hyperparams: HyperparamSet,
        hidden_sizes: tuple[int, ...],
        activation: str,
        seed: int,
        actor: nnx.Module | None,
        critic: nnx.Module | None,
        parts: dict[str, Any],
    ) -> None:
        runtime.start()
        if not all(isinstance(n, int) and n >= 1 for n in hidden_sizes):
            raise ValueError(f"hidden_sizes must be positive whole numbers, got {list(hidden_sizes)}")
        networks = [None if module is None else ModuleNetwork(module) for module in (actor, critic)]
        config = PPOConfig(1, 1, 1, 1, hidden_sizes=tuple(hidden_sizes), activation=activation)
        self._ppo = PPO(cast(Any, spaces), config, *networks)
        self._spaces = spaces
        # A user's modules are in no other agent, and must not outlive this one.
        self._programs = _programs(self._ppo) if any(networks) else _shared_programs(self._ppo)
        widths = (spaces.n_actions or spaces.action_dim, 1)
        for what, network, width in zip(("actor", "critic"), networks, widths, strict=True):
            if network is not None:
                check_output(f"the {what}", network.apply, network.init(), spaces.obs_shape, width)
        params, opt = self._programs.init(jax.random.key(seed))
        super().__init__(params, opt, hyperparams, host_ppo.complete, seed, parts)

    # -- for subclasses of the user ------------------------------------------------------------------------

    @property
    def _actor(self) -> Callable[[Any], jax.Array]:
        """Observations [M, *obs] as the networks take them -> logits [M, A] or means [M, D], with present weights."""
        return functools.partial(self._programs.actor, self._present()["actor"])

    @property
    def _critic(self) -> Callable[[Any], jax.Array]:
        """Observations [M, *obs] as the networks take them -> values [M], with present weights."""
        return functools.partial(self._programs.values, self._present())

    # -- acting --------------------------------------------------------------------------------------------

    def _policy(self) -> PPOPolicy:
        params = self._present()
        return PPOPolicy(params["actor"], params.get("log_std", ()), ())

    def _observations(self, obs: Any) -> np.ndarray:
        """A batch [N, *obs] as the networks take it. ValueError for another shape."""
        batch = self._prepared(obs)
        if batch.shape[1:] != self._spaces.obs_shape:
            shape = list(self._spaces.obs_shape)
            raise ValueError(f"observations must have shape {shape} each, got {list(batch.shape[1:])}")
        return batch

    def _sampled(self, obs: Any) -> np.ndarray:
        """Policy actions [N] or [N, D]."""
        batch = self._observations(obs)
        if self._spaces.action_kind == "discrete":
            noise = self._rng.random(len(batch), np.float32)
        else:
            noise = self._rng.standard_normal((len(batch), self._spaces.action_dim), np.float32)
        return np.asarray(self._programs.sample(self._policy(), batch, noise))

    def _modes(self, obs: Any) -> np.ndarray:
        return np.asarray(self._programs.mode(self._policy(), self._observations(obs)))

    # -- learning ------------------------------------------------------------------------------------------

    def _learn(self, data: EpisodeData, actions: np.ndarray) -> dict[str, Any]:
        """One window of which the policy's actions are `actions` [T] int32 or [T, D] float32."""
        if not len(data.rewards) or not Bootstraps.of(data).usable.any():
            return {}
        params = self._hyperparams.params
        raw = np.asarray(data.observations)
        obs = self._observations(raw)
        rows = host_ppo.learning_rows(data, obs, self._values, self._observations, params, self.reward_normalizer)
        losses, n_updates = self._update(rows, obs, actions, data.log_probs)
        if self.obs_normalizer is not None:
            self.obs_normalizer.update(raw)
        return {**losses, "explained_var": rows.explained_variance, "n_updates": float(n_updates)}

    def _values(self, obs: np.ndarray) -> np.ndarray:
        batch = padded(obs, bucket(len(obs)))
        return np.asarray(self._programs.values(self._present(), batch))[: len(obs)]

    def _update(
        self, rows: host_ppo.Rows, obs: np.ndarray, actions: np.ndarray, log_probs: Any
    ) -> tuple[dict[str, float], int]:
        index, params = rows.index, self._hyperparams.params
        size = bucket(len(index))
        given = np.zeros(len(obs)) if log_probs is None else np.asarray(log_probs, np.float64)
        if given.shape != (len(obs),):
            raise ValueError(f"log_probs must have shape [{len(obs)}], one for each row, got {list(given.shape)}")
        columns = {
            "obs": obs[index],
            "action": actions[index],
            "log_prob": given[index].astype(np.float32),
            "value": rows.targets,  # read by the clipped value loss only, which the agents do not use
            "advantage": rows.advantages,
            "target": rows.targets,
        }
        batch = Batch(**{name: cast(Any, padded(column, size)) for name, column in columns.items()})
        order = minibatch_order(self._rng, len(index), params["minibatch_size"], params["n_epochs"])
        hyper = {theirs: np.float32(params[ours]) for ours, theirs in _NAMES.items()}
        hyper["adam_eps"] = np.float32(params.get("adam_eps", ppo.HYPERPARAMS["adam_eps"]))
        self._params, self._opt, losses = self._programs.learn(
            self._present(),
            self._opt,
            batch,
            np.bool_(log_probs is not None),
            padded(order, bucket(len(order))),
            np.int32(len(order)),
            hyper,
        )
        return {name: float(value) for name, value in jax.device_get(losses).items()}, len(order)


class FlaxPPOAgent(FlaxPPOBase):
    """PPO with a choice among `n_actions`.

    Args:
        obs_dim: shape of an observation, an int for a vector; [H, W, C] takes a CNN. Networks get float32, unscaled.
        n_actions: number of choices.
        hyperparams: any of `host_ppo.DEFAULTS`; "adam_eps" (1e-5) is read too, other names are kept.
        hidden_size: width of two hidden layers; `hidden_sizes` says each.
        seed: of the first weights, of acting and of shuffling.
        hidden_sizes, activation: of the default networks, actor and critic alike; see `networks.torsos`.
        actor, critic: nnx modules of the user's own instead: [N, *obs] -> [N, n_actions] logits and [N, 1]. They
            are read once: what is learned is in the agent.
        reward_normalizer: scales the rewards that are learned from.
        obs_normalizer: normalises what the networks see. It is frozen while a window is collected and learned from,
            and takes the window in afterwards. `normalize_observations` makes one.

    `learn` returns policy_loss, value_loss, entropy (nats), approx_kl (Schulman's k3), each the mean over minibatches,
    explained_var and n_updates; {} for a window of which no row can be learned from, which changes nothing.
    """

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        n_actions: int,
        hyperparams: HyperparamSet,
        hidden_size: int = 64,
        seed: int = 0,
        *,
        hidden_sizes: tuple[int, ...] | None = None,
        activation: str = "tanh",
        actor: nnx.Module | None = None,
        critic: nnx.Module | None = None,
        reward_normalizer: RewardNormalizer | None = None,
        obs_normalizer: ObsNormalizer | None = None,
        normalize_observations: bool = False,
    ) -> None:
        spaces = Spaces(shape_of(obs_dim), "discrete", n_actions=whole("n_actions", n_actions))
        parts = normalizers_of(spaces, reward_normalizer, obs_normalizer, normalize_observations)
        sizes = (hidden_size, hidden_size) if hidden_sizes is None else tuple(hidden_sizes)
        super().__init__(spaces, hyperparams, sizes, activation, seed, actor, critic, parts)

    def act(self, observation: Any) -> int:
        return int(self._sampled(np.asarray(observation)[None])[0])

    def act_batch(self, observations: Any) -> np.ndarray:
        """Sampled actions int32 [N] for observations [N, *obs]."""
        return self._sampled(observations)

    def act_deterministic(self, observation: Any) -> int:
        """The likeliest action; no random number is used."""
        return int(self._modes(np.asarray(observation)[None])[0])

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """The likeliest actions int32 [N]."""
        return self._modes(observations)

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [n_actions] for one observation."""
        batch = self._observations(np.asarray(observation)[None])
        return np.asarray(self._programs.probs(self._policy(), batch))[0]

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        actions = np.asarray(episode_data.actions).reshape(len(episode_data.rewards)).astype(np.int32)
        if actions.size and not 0 <= actions.min() <= actions.max() < self._spaces.n_actions:
            raise ValueError(
                f"actions must be from 0 to {self._spaces.n_actions - 1}, got {actions.min()} to {actions.max()}"
            )
        return self._learn(episode_data, actions)


def shape_of(obs_dim: Any) -> tuple[int, ...]:
    """A shape from an int or several."""
    sizes = tuple(obs_dim) if isinstance(obs_dim, tuple | list) else (obs_dim,)
    return tuple(whole("obs_dim", size) for size in sizes)


def whole(name: str, value: Any) -> int:
    """`value` as an int. TypeError or ValueError if it is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def normalizers_of(
    spaces: Spaces, reward_normalizer: RewardNormalizer | None, obs_normalizer: ObsNormalizer | None, wanted: bool
) -> dict[str, Any]:
    """The parts of an agent that normalise."""
    if obs_normalizer is None and wanted:
        obs_normalizer = ObsNormalizer(spaces.obs_shape)
    return {"obs_normalizer": obs_normalizer, "reward_normalizer": reward_normalizer}
