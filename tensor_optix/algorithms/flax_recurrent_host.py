"""PPO whose policy has a memory, as a host agent: acting, and learning from windows that a pipeline brings.

What the networks remember belongs to whoever acts: a pipeline keeps it for each of its environments, and records in
`hidden_states` what was remembered where a window begins. From there `learn` goes through the window once more, so what
was remembered at each row, and its log-probability, is what it was while acting.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import numpy as np

from tensor_optix.adapters.jax import agent_files
from tensor_optix.adapters.jax.flax_base import FlaxBase
from tensor_optix.adapters.jax.modules import bucket, padded
from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms.clipped_surrogate import Batch
from tensor_optix.algorithms.flax_ppo import Spaces, minibatch_order
from tensor_optix.algorithms.ppo_base import HYPERPARAMS
from tensor_optix.algorithms.recurrent_sequences import Drawn, cut, episode_starts
from tensor_optix.core.types import EpisodeData
from tensor_optix.core.window_returns import Bootstraps, Segments


class Unrolled(NamedTuple):
    """A window as the present networks see it, from what was remembered at its beginning."""

    starts: np.ndarray  # [T] bool
    log_prob: np.ndarray  # [T] float32
    value: np.ndarray  # [T] float32
    before: np.ndarray  # [T, C] float32, remembered before each observation
    after: np.ndarray  # [T, C] float32


class RecurrentHost(FlaxBase):
    """What agents with a memory share; subclasses say what their programs are and what is learned.

    A memory is a row [C] of floats for each environment.
    """

    _spaces: Spaces
    _programs: Any  # compiled functions, see `flax_recurrent_ppo.Programs`
    _carried: int  # C
    _hidden: dict[bool, np.ndarray]  # of `act` (False) and `act_deterministic` (True), [N, C]

    def _sequence_length(self) -> int:
        """Steps that gradients flow back through."""
        raise NotImplementedError

    def _descend(
        self, drawn: Drawn, order: np.ndarray, n_updates: np.int32, hyper: dict[str, np.float32]
    ) -> dict[str, Any]:
        """Learns from the minibatches `order` [U, M] of `drawn`, the first `n_updates` of them; returns losses."""
        raise NotImplementedError

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
        count = len(observations)
        hidden, none = self._remembered(deterministic, count), np.zeros(count, bool)
        actions, after = self.act_recurrent(observations, hidden, none, deterministic)
        self._keep(deterministic, after)
        return actions

    def _keep(self, deterministic: bool, hidden: np.ndarray) -> None:
        self._hidden[deterministic] = hidden

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
        length = min(self._sequence_length(), bucket(int(segments.lengths.max())))
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
        losses = self._descend(
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
