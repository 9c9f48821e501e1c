"""Recurrent PPO in JAX as host agents: the compiled algorithm's networks and loss, on windows that a pipeline brings.

What the networks remember belongs to whoever acts: a pipeline keeps it for each of its environments, and records in
`hidden_states` what was remembered where a window begins. From there `learn` goes through the window once more, so what
was remembered at each row, and its log-probability, is what it was while acting.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.adapters.jax import agent_files
from tensor_optix.adapters.jax.flax_base import FlaxBase
from tensor_optix.adapters.jax.modules import bucket, jit, padded
from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms.clipped_surrogate import Batch
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.algorithms.flax_ppo import Spaces, minibatch_order, normalizers_of, shape_of, whole
from tensor_optix.algorithms.ppo_base import HYPERPARAMS, PPOPolicy
from tensor_optix.algorithms.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from tensor_optix.algorithms.recurrent_sequences import Drawn, cut, episode_starts, update
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.core.window_returns import Bootstraps, Segments
from tensor_optix.loop import runtime
from tensor_optix.networks.recurrent import carry_size, forget

DEFAULTS: dict[str, float] = {**host_ppo.DEFAULTS, "n_epochs": 4, "bptt_len": 16}
_BPTT_LIMITS = (1, 1_000_000)


def complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """As `host_ppo.complete`, with "bptt_len" too: the steps that gradients flow back through."""
    result = host_ppo.complete({**DEFAULTS, **params})
    value, (low, high) = result["bptt_len"], _BPTT_LIMITS
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"bptt_len must be a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"bptt_len must be from {low} to {high}, got {value!r}")
    return {**result, "bptt_len": round(float(value))}


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


class Unrolled(NamedTuple):
    """A window as the present networks see it, from what was remembered at its beginning."""

    starts: np.ndarray  # [T] bool
    log_prob: np.ndarray  # [T] float32
    value: np.ndarray  # [T] float32
    before: np.ndarray  # [T, C] float32, remembered before each observation
    after: np.ndarray  # [T, C] float32


class FlaxRecurrentPPOBase(FlaxBase):
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

    # -- acting --------------------------------------------------------------------------------------------

    def act_recurrent(
        self, observations: Any, hidden: Any, starts: Any, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions of N environments, and what is remembered of them after that; the agent itself keeps nothing.

        Args:
            observations: [N, *obs].
            hidden: [N, C] float32, what was remembered before, from the last call; None: nothing.
            starts: [N] bool, the observation starts an episode: what was remembered of that environment is forgotten.
            deterministic: the likeliest or mean action; no random number is used.
        """
        batch = self._observations(observations)
        inputs = (self._present(), batch, self._memory(hidden, len(batch)), np.asarray(starts, bool))
        if deterministic:
            actions, after = self._programs.mode(*inputs)
        else:
            actions, after = self._programs.sample(*inputs, self._noise(len(batch)))
        return self._as_actions(np.asarray(actions)), np.asarray(after)

    def reset_hidden(self) -> None:
        """Forget what `act`, `act_batch` and their deterministic forms remember: to be called where an episode begins.

        Pipelines need not: they use `act_recurrent`, and so can whoever steps several environments.
        """
        self._hidden = {}

    def act_batch(self, observations: Any) -> np.ndarray:
        """Sampled actions [N] or [N, D] for observations [N, *obs]; see `act`."""
        return self._onward(observations, False)

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """The likeliest or mean actions; see `act_deterministic`."""
        return self._onward(observations, True)

    def _onward(self, observations: Any, deterministic: bool) -> np.ndarray:
        hidden, count = self._remembered(deterministic, len(observations)), len(observations)
        none = np.zeros(count, bool)
        actions, self._hidden[deterministic] = self.act_recurrent(observations, hidden, none, deterministic)
        return actions

    def _remembered(self, deterministic: bool, count: int) -> np.ndarray | None:
        """What was remembered of `count` environments. ValueError if they were others."""
        hidden = self._hidden.get(deterministic)
        if hidden is not None and len(hidden) != count:
            raise ValueError(
                f"the agent remembers {len(hidden)} environments and got {count}: call reset_hidden() before"
            )
        return hidden

    def _as_actions(self, chosen: np.ndarray) -> np.ndarray:
        """The policy's actions as the environment's."""
        return chosen

    def _noise(self, count: int) -> np.ndarray:
        if self._spaces.action_kind == "discrete":
            return self._rng.random(count, np.float32)
        return self._rng.standard_normal((count, self._spaces.action_dim), np.float32)

    def _memory(self, hidden: Any, count: int) -> np.ndarray:
        """[N, C] float32 of N environments; zeros for None. ValueError for another shape."""
        if hidden is None:
            return np.zeros((count, self._carried), np.float32)
        hidden = np.asarray(hidden, np.float32)
        if hidden.shape != (count, self._carried):
            raise ValueError(
                f"hidden states must have shape {[count, self._carried]}, got {list(hidden.shape)}: those of another "
                "agent mean nothing here, give None instead"
            )
        return hidden

    def _observations(self, obs: Any) -> np.ndarray:
        """A batch [N, *obs] as the networks take it. ValueError for another shape."""
        batch = self._prepared(obs)
        if batch.shape[1:] != self._spaces.obs_shape:
            shape = list(self._spaces.obs_shape)
            raise ValueError(f"observations must have shape {shape} each, got {list(batch.shape[1:])}")
        return batch

    # -- learning ------------------------------------------------------------------------------------------

    def _learn(self, data: EpisodeData, actions: np.ndarray) -> dict[str, Any]:
        """One window of which the policy's actions are `actions` [T] int32 or [T, D] float32."""
        if not len(data.rewards):
            return {}
        bootstraps, params = Bootstraps.of(data), self._hyperparams.params
        if not bootstraps.usable.any():
            return {}
        raw = np.asarray(data.observations)
        obs = self._observations(raw)
        seen = self._unrolled(data, obs, actions)

        def values_of(batch: np.ndarray) -> np.ndarray:  # the window's rows, then what lies outside them
            outside, after = batch[len(obs) :], seen.after[bootstraps.rows]
            return np.concatenate([seen.value, self._values(outside, after, bucket(len(Segments.of(data).starts)))])

        rows = host_ppo.learning_rows(data, obs, values_of, self._observations, params, self.reward_normalizer)
        losses, n_updates = self._update(data, seen, rows, obs, actions)
        if self.obs_normalizer is not None:
            self.obs_normalizer.update(raw)
        return {**losses, "explained_var": rows.explained_variance, "n_updates": float(n_updates)}

    def _values(self, obs: np.ndarray, hidden: np.ndarray, size: int) -> np.ndarray:
        """[K] for observations [K, *obs] and what was remembered before them, `size` at a time: K varies much."""
        found = np.zeros(len(obs), np.float32)
        for at in range(0, len(obs), size):
            part = slice(at, at + size)
            inputs = padded(obs[part], size), padded(hidden[part], size)
            found[part] = np.asarray(self._programs.values(self._present(), *inputs))[: len(obs[part])]
        return found

    def _unrolled(self, data: EpisodeData, obs: np.ndarray, actions: np.ndarray) -> Unrolled:
        segments = Segments.of(data)
        starts = episode_starts(data, segments)
        size = bucket(int(segments.lengths.max()))
        grids = (padded(segments.to_grid(rows), size) for rows in (obs, actions, starts))
        obs_grid, action_grid, start_grid = grids
        hidden = self._memory(data.hidden_states, len(segments.starts))
        found = self._programs.unroll(self._present(), obs_grid, action_grid, hidden, start_grid)
        return Unrolled(starts, *(segments.to_rows(np.asarray(grid)) for grid in found))

    def _update(
        self, data: EpisodeData, seen: Unrolled, rows: host_ppo.Rows, obs: np.ndarray, actions: np.ndarray
    ) -> tuple[dict[str, float], int]:
        segments, params = Segments.of(data), self._hyperparams.params
        usable, advantages, targets = (np.zeros(len(obs), kind) for kind in (bool, np.float32, np.float32))
        usable[rows.index], advantages[rows.index], targets[rows.index] = True, rows.advantages, rows.targets
        log_prob = seen.log_prob if data.log_probs is None else np.asarray(data.log_probs, np.float32)
        if log_prob.shape != (len(obs),):
            raise ValueError(f"log_probs must have shape [{len(obs)}], one for each row, got {list(log_prob.shape)}")
        length = min(params["bptt_len"], bucket(int(segments.lengths.max())))
        index, counts = cut(segments, usable, length)
        # The values are read by the clipped value loss only, which the agents do not use.
        columns = Batch(*(cast(Any, rows[index]) for rows in (obs, actions, log_prob, targets, advantages, targets)))
        drawn = Drawn(columns, seen.starts[index], counts, seen.before[index[:, 0]])
        drawn = jax.tree.map(lambda x: padded(x, bucket(len(index))), drawn)
        size = max(1, params["minibatch_size"] // length)
        order = minibatch_order(self._rng, len(index), size, params["n_epochs"])
        hyper = {
            "learning_rate": params["learning_rate"],
            "clip_range": params["clip_ratio"],
            "entropy_coef": params["entropy_coef"],
            "value_coef": params["vf_coef"],
            "max_grad_norm": params["max_grad_norm"],
            "adam_eps": params.get("adam_eps", HYPERPARAMS["adam_eps"]),
        }
        self._params, self._opt, losses = self._programs.learn(
            self._present(),
            self._opt,
            drawn,
            padded(order, bucket(len(order))),
            np.int32(len(order)),
            {name: np.float32(value) for name, value in hyper.items()},
        )
        return {name: float(value) for name, value in jax.device_get(losses).items()}, len(order)

    # -- saving --------------------------------------------------------------------------------------------

    def save_state(self, path: str) -> None:
        """`save_weights`, the random generator and what `act` remembers."""
        hidden = {str(which): each.tolist() for which, each in self._hidden.items()}
        record = {**self._record(), "generator": self._rng.bit_generator.state, "hidden": hidden}
        agent_files.write(path, self._present(), self._opt, record)

    def load_state(self, path: str) -> None:
        """Read what `save_state` wrote; raises as `load_weights`."""
        super().load_state(path)
        saved = agent_files.read(path, self._present(), self._opt).record.get("hidden", {})
        self._hidden = {which == str(True): np.asarray(each, np.float32) for which, each in saved.items()}


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
