"""Recurrent PPO in JAX as host agents: the networks and loss of the compiled algorithm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.adapters.jax.modules import jit
from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.algorithms.flax_ppo import Spaces, normalizers_of, shape_of, whole
from tensor_optix.algorithms.flax_recurrent_host import RecurrentHost
from tensor_optix.algorithms.ppo_base import PPOPolicy
from tensor_optix.algorithms.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from tensor_optix.algorithms.recurrent_sequences import Drawn, update
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.loop import runtime
from tensor_optix.networks.recurrent import carry_size, forget

DEFAULTS: dict[str, float] = {**host_ppo.DEFAULTS, "n_epochs": 4, "bptt_len": 16}


def complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """As `host_ppo.complete`, with "bptt_len" too: the steps that gradients flow back through."""
    return host_ppo.complete_with_steps(params, DEFAULTS, "bptt_len")


class Programs(NamedTuple):
    """Compiled functions of one recurrent PPO, each once for each number of environments and bucket of rows.

    "hidden" [N, C] float32 is what the actor remembers, then what the critic does; "starts" is bool.
    """

    init: Callable[..., Any]  # key -> parameters, optimiser state
    sample: Callable[..., Any]  # parameters, obs [N], hidden, starts [N], noise -> actions, hidden
    mode: Callable[..., Any]  # parameters, obs [N], hidden, starts [N] -> actions, hidden
    probs: Callable[..., Any]  # parameters, obs [N], hidden, starts [N] -> [N, A], hidden
    unroll: Callable[..., Any]  # parameters, obs [T, N], actions, hidden, starts [T, N] -> log-probabilities, values,
    # hidden [T, N, C] before and after each row
    values: Callable[..., Any]  # parameters, obs [M], hidden [M, C] -> [M]
    learn: Callable[..., Any]  # parameters and optimiser state (donated), Drawn, ... -> the same and losses


def _programs(algorithm: RecurrentPPO) -> Programs:
    def init(key: jax.Array) -> tuple[Any, Any]:
        params = algorithm.init_params(*jax.random.split(key))
        return params, algorithm.init_opt(params)

    def step(params: Any, obs: jax.Array, hidden: jax.Array, starts: jax.Array) -> tuple[Any, jax.Array]:
        actor, critic = jnp.split(forget(hidden, starts), 2, axis=-1)
        policy = PPOPolicy(params["actor"], params.get("log_std", ()), ())
        dist, actor = algorithm.distribution(policy, obs, actor)
        _, critic = algorithm._values(params["critic"], obs, critic)
        return dist, jnp.concatenate([actor, critic], axis=-1)

    def sample(params: Any, obs: jax.Array, hidden: jax.Array, starts: jax.Array, noise: jax.Array) -> Any:
        dist, hidden = step(params, obs, hidden, starts)
        return dist.sample(noise), hidden

    def mode(params: Any, obs: jax.Array, hidden: jax.Array, starts: jax.Array) -> Any:
        dist, hidden = step(params, obs, hidden, starts)
        return dist.mode(), hidden

    def probs(params: Any, obs: jax.Array, hidden: jax.Array, starts: jax.Array) -> Any:
        dist, hidden = step(params, obs, hidden, starts)
        return jax.nn.softmax(dist.logits), hidden

    def unroll(params: Any, obs: jax.Array, actions: jax.Array, hidden: jax.Array, starts: jax.Array) -> Any:
        actor, critic = jnp.split(hidden, 2, axis=-1)
        out, actor = algorithm._actor.apply(params["actor"], obs, actor, starts)
        value, critic = algorithm._values(params["critic"], obs, critic, starts)
        log_prob = algorithm._as_distribution(out, params.get("log_std", ()), obs).log_prob(actions)
        after = jnp.concatenate([actor, critic], axis=-1)
        before = forget(jnp.concatenate([hidden[None], after[:-1]]), starts)
        return log_prob, value, before, after

    def values(params: Any, obs: jax.Array, hidden: jax.Array) -> jax.Array:
        return algorithm._values(params["critic"], obs, jnp.split(hidden, 2, axis=-1)[1])[0]

    return Programs(
        init=jit(init, runs_once=True),
        sample=jit(sample),
        mode=jit(mode),
        probs=jit(probs),
        unroll=jit(unroll),
        values=jit(values),
        learn=jit(functools.partial(update, algorithm), donate_argnums=(0, 1)),
    )


_shared_programs = functools.lru_cache(maxsize=32)(_programs)


class FlaxRecurrentPPOBase(RecurrentHost):
    """What the discrete and the continuous agent share. See `FlaxRecurrentPPOAgent` for the arguments."""

    defaults: ClassVar = DEFAULTS
    complete = staticmethod(complete)
    default_param_bounds = host_ppo.PARAM_BOUNDS
    default_log_params = host_ppo.LOG_PARAMS
    default_tuned = TUNED
    default_min_episodes_before_dormant = 20

    def __init__(
        self,
        spaces: Spaces,
        hyperparams: HyperparamSet,
        settings: Mapping[str, Any],
        seed: int,
        parts: dict[str, Any],
    ) -> None:
        runtime.start()
        sizes = (*settings["hidden_sizes"], settings["hidden_size"])
        if not all(isinstance(n, int) and n >= 1 for n in sizes):
            raise ValueError(f"hidden_sizes and hidden_size must be positive whole numbers, got {list(sizes)}")
        config = RecurrentPPOConfig(1, 1, 1, 1, sequence_length=1, **settings)
        self._spaces = spaces
        self._programs = _shared_programs(RecurrentPPO(cast(Any, spaces), config))
        self._carried = 2 * carry_size(config.cell, config.hidden_size)
        self._hidden: dict[bool, np.ndarray] = {}  # of `act` (False) and `act_deterministic` (True), [N, C]
        params, opt = self._programs.init(jax.random.key(seed))
        super().__init__(params, opt, hyperparams, complete, seed, parts)

    def _sequence_length(self) -> int:
        return self._hyperparams.params["bptt_len"]

    def _descend(
        self, drawn: Drawn, order: np.ndarray, n_updates: np.int32, hyper: dict[str, np.float32]
    ) -> dict[str, Any]:
        programs = self._programs
        self._params, self._opt, losses = programs.learn(self._present(), self._opt, drawn, order, n_updates, hyper)
        return losses


class FlaxRecurrentPPOAgent(FlaxRecurrentPPOBase):
    """Recurrent PPO with a choice among `n_actions`: for tasks whose observations do not tell the state.

    Args:
        obs_dim: shape of an observation, an int for a vector; [H, W, C] takes a CNN. Networks get float32, unscaled.
        n_actions: number of choices.
        hyperparams: any of `DEFAULTS`; "adam_eps" (1e-5) is read too, other names are kept. "bptt_len" is the number of
            steps that gradients flow back through, and a minibatch has "minibatch_size" // "bptt_len" sequences of so
            many rows. A value of these two that was not used before is a new shape: compiled for it, once.
        hidden_size: units of each memory, the actor's and the critic's.
        seed: of the first weights, of acting and of shuffling.
        cell: "lstm" or "gru".
        hidden_sizes, activation: of the encoders before the memories; see `networks.torsos`.
        reward_normalizer: scales the rewards that are learned from.
        obs_normalizer: normalises what the networks see. It is frozen while a window is collected and learned from,
            and takes the window in afterwards. `normalize_observations` makes one.

    A window's `hidden_states` [number of environments, C] say what was remembered before each environment's first row;
    without them memories begin empty. `learn` returns what `FlaxPPOAgent.learn` does.
    """

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        n_actions: int,
        hyperparams: HyperparamSet,
        hidden_size: int = 64,
        seed: int = 0,
        *,
        cell: str = "lstm",
        hidden_sizes: tuple[int, ...] = (64,),
        activation: str = "tanh",
        reward_normalizer: RewardNormalizer | None = None,
        obs_normalizer: ObsNormalizer | None = None,
        normalize_observations: bool = False,
    ) -> None:
        spaces = Spaces(shape_of(obs_dim), "discrete", n_actions=whole("n_actions", n_actions))
        parts = normalizers_of(spaces, reward_normalizer, obs_normalizer, normalize_observations)
        settings = {
            "cell": cell, "hidden_size": hidden_size, "hidden_sizes": tuple(hidden_sizes), "activation": activation
        }  # fmt: skip
        super().__init__(spaces, hyperparams, settings, seed, parts)

    def act(self, observation: Any) -> int:
        """The next action of the episode that the agent remembers; `reset_hidden` where another begins."""
        return int(self.act_batch(np.asarray(observation)[None])[0])

    def act_deterministic(self, observation: Any) -> int:
        """The likeliest action; no random number is used. Its episode is another than that of `act`."""
        return int(self.act_batch_deterministic(np.asarray(observation)[None])[0])

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [n_actions] of the next action; the observation is remembered as `act` would."""
        batch, hidden = self._observations(np.asarray(observation)[None]), self._remembered(False, 1)
        inputs = (batch, self._memory(hidden, 1), np.zeros(1, bool))
        probs, after = self._programs.probs(self._present(), *inputs)
        self._hidden[False] = np.asarray(after)
        return np.asarray(probs)[0]

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        actions = np.asarray(episode_data.actions).reshape(len(episode_data.rewards)).astype(np.int32)
        if actions.size and not 0 <= actions.min() <= actions.max() < self._spaces.n_actions:
            raise ValueError(
                f"actions must be from 0 to {self._spaces.n_actions - 1}, got {actions.min()} to {actions.max()}"
            )
        return self._learn(episode_data, actions)
