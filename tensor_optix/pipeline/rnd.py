"""A bonus for what is new: random network distillation around any pipeline.

A small network learns to say what a fixed random network says about the observations that actions led to. Where it
has been often it is right; its error elsewhere is the bonus. The agent learns from it, the score never sees it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.core import novelty
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.normalizers import RunningMeanStd
from tensor_optix.core.novelty import Params, Predictor
from tensor_optix.core.types import EpisodeData, LoopState, PolicySnapshot
from tensor_optix.core.window_returns import Bootstraps
from tensor_optix.pipeline.rows import positive

_MINIBATCH = 64  # rows; also the least that a window is padded to
_EPOCHS = 4  # over each window
_AFTER_IMPROVEMENT, _AFTER_PLATEAU, _MOST = 0.9, 1.5, 4.0  # factors of eta; the last of the eta that was given


class RNDPipeline(BasePipeline):
    """Adds `eta * |f(o') - g(o')|^2 / std` to each reward; o' is the observation that the row's action led to.

    g is a random two-layer network that stays as it is, f learns to predict it, and std is the running standard
    deviation of the squared error. Observations are normalised by running moments and clipped to +-5. A row whose
    outcome the window does not tell, or is not finite, gets no bonus. Burda et al. 2018, "Exploration by random network
    distillation", section 2.2-2.4.

    A window's `rewards` [T] include the bonus; `metadata["extrinsic_rewards"]` [T] are those of the wrapped pipeline,
    and scores are made from these; `metadata["intrinsic_mean"]` is the mean of what was added.

    As a callback of the loop it needs ever less novelty while scores improve (eta * 0.9), more on a plateau (eta * 1.5,
    at most 4 times the given one, which is also where a plateau after DORMANT begins again), and none when DORMANT.

    Args:
        pipeline: where windows come from.
        obs_dim: numbers in one observation.
        embedding_dim: outputs of both networks.
        eta: weight of the bonus.
        predictor_lr: learning rate of f (Adam).
        norm_eps: added to std.
        seed: of both networks and of the order of training.
    """

    def __init__(
        self,
        pipeline: BasePipeline,
        obs_dim: int,
        embedding_dim: int = 64,
        eta: float = 0.1,
        predictor_lr: float = 1e-3,
        norm_eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        if not callable(getattr(pipeline, "episodes", None)):
            raise TypeError(f"RNDPipeline wraps a pipeline such as BatchPipeline(env), got {pipeline!r}")
        if not predictor_lr > 0:
            raise ValueError(f"predictor_lr must be above 0, got {predictor_lr}")
        self._pipeline = pipeline
        self._sizes = positive("obs_dim", obs_dim), positive("embedding_dim", embedding_dim)
        self._predictor_lr, self._norm_eps = float(predictor_lr), float(norm_eps)
        self.set_eta(eta)
        key_target, key_predictor, self._key = jax.random.split(jax.random.key(seed), 3)
        self._target: Params = _init_network(key_target, *self._sizes)
        self._predictor: Predictor = _init_predictor(key_predictor, *self._sizes)
        self._obs_moments = RunningMeanStd((self._sizes[0],))
        self._error_moments = RunningMeanStd()

    @property
    def pipeline(self) -> BasePipeline:
        """The wrapped one."""
        return self._pipeline

    @property
    def eta(self) -> float:
        """Weight of the bonus now."""
        return self._eta

    def set_eta(self, x: float) -> None:
        """Give the bonus another weight; what the loop does to it starts from there. ValueError below 0."""
        if not (math.isfinite(x) and x >= 0):
            raise ValueError(f"eta must be a finite number of at least 0, got {x}")
        self._eta = self._base_eta = float(x)

    # -- the wrapped pipeline ------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        return self._pipeline.is_live

    @property
    def spaces(self) -> tuple[Any, Any]:
        """(observation space, action space) of the wrapped pipeline; None for what it does not tell."""
        return getattr(self._pipeline, "spaces", (None, None))

    @property
    def faults(self) -> list[str]:
        """The newest faults that the wrapped pipeline survived."""
        return getattr(self._pipeline, "faults", [])

    @property
    def n_faults(self) -> int:
        """Faults that the wrapped pipeline survived so far."""
        return getattr(self._pipeline, "n_faults", 0)

    def setup(self) -> None:
        self._pipeline.setup()

    def teardown(self) -> None:
        self._pipeline.teardown()

    def set_agent(self, agent: BaseAgent) -> None:
        """Let `agent` act in the wrapped pipeline, if it asks for one."""
        set_agent = getattr(self._pipeline, "set_agent", None)
        if set_agent is not None:
            set_agent(agent)

    def episodes(self) -> Iterator[EpisodeData]:
        """The wrapped pipeline's windows with the bonus. ValueError where observations are not `obs_dim` numbers."""
        return map(self._with_bonus, self._pipeline.episodes())

    # -- what the loop tells -------------------------------------------------------------------------------

    def on_improvement(self, snapshot: PolicySnapshot) -> None:
        """Less novelty is needed."""
        self._eta *= _AFTER_IMPROVEMENT

    def on_plateau(self, episode_id: int, state: LoopState) -> None:
        """More novelty is needed."""
        raised = self._eta * _AFTER_PLATEAU if self._eta else self._base_eta
        self._eta = min(raised, _MOST * self._base_eta)

    def on_dormant(self, episode_id: int) -> None:
        """Novelty did not help."""
        self._eta = 0.0

    # -- the bonus -----------------------------------------------------------------------------------------

    def novelty(self, observations: Any) -> np.ndarray:
        """The bonus before `eta` of observations [N, ...], float64 [N]; nothing is learned from them."""
        rows = np.asarray(observations, np.float64)
        return self._scaled(self._errors(self._normalized(self._flat(rows)), len(rows)))

    def _with_bonus(self, data: EpisodeData) -> EpisodeData:
        outcomes, known = _outcomes(data)
        outcomes = self._flat(outcomes)
        known = known & np.isfinite(outcomes).all(axis=1)
        bonus = np.zeros(len(known))
        if known.any():
            bonus[known] = self._eta * self._learn(outcomes[known])
        rewards = np.asarray(data.rewards, np.float64)
        metadata = {
            "extrinsic_rewards": rewards.tolist(),
            **data.metadata,  # of a bonus within a bonus, the inner one knows what the task gave
            "intrinsic_mean": float(bonus.mean()),
        }
        return dataclasses.replace(data, rewards=(rewards + bonus).tolist(), metadata=metadata)

    def _learn(self, outcomes: np.ndarray) -> np.ndarray:
        """The bonus before `eta` [N] of observations [N, obs_dim]; then the predictor learns them."""
        self._obs_moments.update(outcomes)
        n, x = len(outcomes), self._normalized(outcomes)
        errors = self._errors(x, n)
        self._error_moments.update(errors)
        self._key, key_order = jax.random.split(self._key)
        present = (np.arange(len(x)) < n).astype(np.float32)
        self._predictor = _train(self._target, self._predictor, x, present, key_order, np.float32(self._predictor_lr))
        return self._scaled(errors)

    def _flat(self, observations: np.ndarray) -> np.ndarray:
        """[N, ...] -> [N, obs_dim]."""
        flat, obs_dim = observations.reshape(len(observations), -1), self._sizes[0]
        if flat.shape[1] != obs_dim:
            raise ValueError(f"observations have {flat.shape[1]} numbers each, but RNDPipeline got obs_dim={obs_dim}")
        return flat

    def _normalized(self, rows: np.ndarray) -> np.ndarray:
        """float32, padded with zeros to a power of two, so that windows of other lengths do not recompile."""
        normalized = self._obs_moments.normalize(rows, novelty.OBS_CLIP)
        size = max(_MINIBATCH, 1 << (len(rows) - 1).bit_length())
        return np.pad(normalized, ((0, size - len(rows)), (0, 0)))

    def _errors(self, x: np.ndarray, n: int) -> np.ndarray:
        return np.asarray(_squared_errors(self._target, self._predictor[0], x), np.float64)[:n]

    def _scaled(self, errors: np.ndarray) -> np.ndarray:
        return novelty.scaled(errors, self._error_moments.var, self._norm_eps)

    # -- resume --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: NumPy arrays and floats, and what the wrapped pipeline has to say."""
        moments = {"observations": self._obs_moments, "errors": self._error_moments}
        inner = getattr(self._pipeline, "state_dict", None)
        return {
            **({} if inner is None else {"pipeline": inner()}),
            "eta": self._eta,
            "base_eta": self._base_eta,
            "key": np.asarray(jax.random.key_data(self._key)),
            **{f"{name}/{k}": v for name, rms in moments.items() for k, v in rms.state_dict().items()},
            **{name: np.asarray(leaf) for name, leaf in self._named_leaves()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Take over a saved `state_dict`. ValueError if it was saved for other sizes.

        Returns the wrapped pipeline's sentences about what could not be put back.
        """
        leaves = []
        for name, leaf in self._named_leaves():
            if name not in state or np.shape(state[name]) != leaf.shape:
                got = f"has shape {np.shape(state[name])}" if name in state else "is missing"
                raise ValueError(
                    f"saved {name} {got}, expected {leaf.shape}: give the obs_dim and embedding_dim it had"
                )
            leaves.append(jnp.asarray(state[name], leaf.dtype))
        networks = self._target, self._predictor
        self._target, self._predictor = jax.tree.unflatten(jax.tree.structure(networks), leaves)
        for name, rms in (("observations", self._obs_moments), ("errors", self._error_moments)):
            rms.load_state_dict({k: state[f"{name}/{k}"] for k in ("mean", "var", "count")})
        self._key = jax.random.wrap_key_data(jnp.asarray(state["key"], jnp.uint32))
        self._eta, self._base_eta = float(state["eta"]), float(state["base_eta"])
        inner = getattr(self._pipeline, "load_state_dict", None)
        return list(inner(state["pipeline"]) or []) if inner is not None and "pipeline" in state else []

    def _named_leaves(self) -> list[tuple[str, jax.Array]]:
        networks = {"target": self._target, "predictor": self._predictor}
        # In the order of (target, predictor): a dict would be sorted by name.
        return [
            (f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}", leaf)
            for name, network in networks.items()
            for path, leaf in jax.tree_util.tree_leaves_with_path(network)
        ]


def _outcomes(data: EpisodeData) -> tuple[np.ndarray, np.ndarray]:
    """What each row led to, float64 [T, ...], and where that is known, bool [T]."""
    observations = np.asarray(data.observations)
    # The next row, but for the ends of episodes and segments: all of them here as if they were to be bootstrapped from.
    ends = dataclasses.replace(data, terminated=[False] * len(observations), truncated=data.dones)
    found = Bootstraps.of(ends)
    outcomes = np.concatenate([observations[1:], observations[-1:]]).astype(np.float64)
    outcomes[found.rows] = found.observations
    return outcomes, found.usable


_init_network = jax.jit(novelty.init_network, static_argnums=(1, 2))
_init_predictor = jax.jit(novelty.init_predictor, static_argnums=(1, 2))
_squared_errors = jax.jit(novelty.squared_errors)


@jax.jit
def _train(
    target: Params, predictor: Predictor, x: jax.Array, present: jax.Array, key: jax.Array, learning_rate: jax.Array
) -> Predictor:
    """Some epochs of minibatches over the rows [B, obs_dim] that are `present` [B] (1 or 0)."""

    def step(predictor: Predictor, rows: jax.Array) -> tuple[Predictor, None]:
        return novelty.adam_step(target, predictor, x[rows], present[rows], learning_rate), None

    orders = jax.vmap(lambda k: jax.random.permutation(k, len(x)))(jax.random.split(key, _EPOCHS))
    return jax.lax.scan(step, predictor, orders.reshape(-1, _MINIBATCH))[0]
