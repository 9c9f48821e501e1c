"""The off-policy algorithms in JAX as host agents: the compiled algorithms' networks and updates, on given windows.

A window's transitions go to a replay in NumPy; the updates that it asks for are drawn from there in bulk and run as one
compiled loop. Acting is one compiled call for each step. Both are shared by all agents of equal networks, and
hyperparameters are arguments of them.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tensor_optix.adapters.jax.flax_base import FlaxBase
from tensor_optix.adapters.jax.modules import bucket, jit, padded
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.algorithms.flat_adam import Trained
from tensor_optix.algorithms.flax_ppo import Spaces
from tensor_optix.algorithms.host_off_policy import Progress, Table, beta
from tensor_optix.algorithms.host_replay import Drawn, HostReplay
from tensor_optix.core.replay import Transitions
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.loop import durable, runtime
from tensor_optix.loop.durable import RunDirError, failure
from tensor_optix.loop.episode_returns import EpisodeReturns
from tensor_optix.loop.host_state import read_tree, write_tree

# Updates in one call of the compiled loop: priorities are written back after each.
_CHUNK, _PRIORITIZED_CHUNK = 256, 32
_CHUNK_BYTES = 1 << 26  # of drawn observations, which bounds the chunk where they are images
_AGENT, _REPLAY = "agent", "replay"  # what `save_state` writes


class Programs(NamedTuple):
    """Compiled functions of one algorithm; each is compiled once for each number of rows or updates."""

    init: Callable[..., Any]  # key, hyperparameters -> parameters, rest
    explore: Callable[..., Any]  # parameters, obs, seed words, hyperparameters -> actions
    mode: Callable[..., Any]  # parameters, obs -> actions
    learn: Callable[..., Any]  # parameters and rest (donated), Drawn, weights, count, ... -> the same, errors, losses


class Layout(NamedTuple):
    """How an algorithm's agent is laid out as named parameters and the rest."""

    unravel: Mapping[str, Callable[[jax.Array], Any]]  # name of what is trained -> flat parameters to a tree
    targets: Mapping[str, str]  # name of a target -> name of what it follows

    def split(self, agent: Any, updates: jax.Array) -> tuple[Any, Any]:
        """Parameters as trees; and what goes on with learning needs besides: moments, targets, the count of updates."""
        params = {name: unravel(getattr(agent, name).params) for name, unravel in self.unravel.items()}
        moments = {name: getattr(agent, name).opt for name in self.unravel}
        return params, {
            "moments": moments,
            "targets": {name: self.unravel[own](getattr(agent, name)) for name, own in self.targets.items()},
            "updates": updates,
        }

    def joined(self, kind: Any, params: Any, rest: Any = None) -> Any:
        """The inverse; without `rest` as much as acting needs."""
        moments = rest["moments"] if rest else dict.fromkeys(params)
        trained = {name: Trained(ravel_pytree(tree)[0], moments[name]) for name, tree in params.items()}
        targets = {name: ravel_pytree(rest["targets"][name])[0] if rest else None for name in self.targets}
        return kind(**trained, **targets)


def programs_of(algorithm: Any, kind: Any, layout: Layout) -> Programs:
    """Those of an algorithm whose agent is a `kind`."""

    def init(key: jax.Array, hyper: Any) -> tuple[Any, Any]:
        return layout.split(algorithm.init_agent(key, hyper), jnp.int32(0))

    def explore(params: Any, obs: jax.Array, words: jax.Array, hyper: Any) -> jax.Array:
        noise = algorithm.draw_exploration(_key(words), (obs.shape[0],))
        return algorithm.explore(layout.joined(kind, params), obs, noise, hyper, jnp.int32(0))

    def mode(params: Any, obs: jax.Array) -> jax.Array:
        policy = algorithm.policy(SimpleNamespace(agent=layout.joined(kind, params)))
        return algorithm.act(policy, obs, (), jax.random.key(0), deterministic=True)[0]

    def learn(
        params: Any, rest: Any, drawn: Drawn, weights: jax.Array, count: jax.Array, words: jax.Array, hyper: Any
    ) -> tuple[Any, Any, jax.Array, dict[str, jax.Array]]:
        batches = Transitions(**drawn._asdict(), weight=weights)
        noise = algorithm.draw_updates(_key(words), weights.shape[0])

        def update(i: jax.Array, carry: Any) -> Any:
            agent, updates, errors, sums = carry
            batch, own = jax.tree.map(lambda x: x[i], (batches, noise))
            agent, error, losses = algorithm.update(agent, batch, own, hyper, updates)
            return agent, updates + 1, errors.at[i].set(error), jax.tree.map(jnp.add, sums, losses)

        sums = dict.fromkeys(algorithm.losses, jnp.float32(0.0))
        start = (layout.joined(kind, params, rest), rest["updates"], jnp.zeros_like(weights), sums)
        agent, updates, errors, sums = jax.lax.fori_loop(0, count, update, start)
        return *layout.split(agent, updates), errors, sums

    return Programs(
        init=jit(init, runs_once=True),
        explore=jit(explore),
        mode=jit(mode),
        learn=jit(learn, donate_argnums=(0, 1)),
    )


class FlaxOffPolicy(FlaxBase):
    """What the agents share. See `FlaxDQNAgent` for the arguments.

    Args:
        spaces: what is observed and done.
        hyperparams: what the user gave.
        settings: fields of the algorithm's configuration that stay.
        networks: of the user's own, by the algorithm's field; none is None.
        seed: of the first weights, acting and drawing.
        parts: what else is saved, as for `FlaxBase`.
    """

    table: ClassVar[Table]
    statics: ClassVar[Mapping[str, str]] = {"batch_size": "batch_size"}  # hyperparameter -> field of the configuration
    names: ClassVar[Mapping[str, str]] = {}  # the algorithm's names of hyperparameters where they differ -> ours
    default_param_bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    default_log_params: ClassVar[frozenset[str]] = frozenset()
    default_tuned: ClassVar[tuple[str, ...]] = TUNED

    def __init__(
        self,
        spaces: Spaces,
        hyperparams: HyperparamSet,
        settings: Mapping[str, Any],
        networks: Mapping[str, Any],
        seed: int,
        parts: Mapping[str, Any],
    ) -> None:
        runtime.start()
        if not all(isinstance(n, int) and n >= 1 for n in settings["hidden_sizes"]):
            raise ValueError(f"hidden_sizes must be positive whole numbers, got {list(settings['hidden_sizes'])}")
        self._spaces, self._settings, self._networks = spaces, dict(settings), dict(networks)
        self._own_programs: dict[Any, Programs] = {}
        self._progress, self._returns = Progress(), EpisodeReturns()
        self._hyper_of: HyperparamSet | None = None
        self._set_for(self.table.complete(hyperparams.params))
        self._replay = HostReplay(self.table.complete(hyperparams.params)["replay_capacity"])
        params, rest = self._programs.init(jax.random.key(seed), self._hyper)
        parts = {"progress": self._progress, **parts}
        super().__init__(params, rest, hyperparams, self.table.complete, seed, parts)

    # -- what an agent's file gives ------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def _algorithm(spaces: Any, settings: Mapping[str, Any], networks: Mapping[str, Any]) -> Any:
        """The compiled algorithm."""

    @staticmethod
    @abstractmethod
    def _layout(algorithm: Any) -> tuple[Any, Layout]:
        """The class of its agent, and how that is laid out."""

    @abstractmethod
    def _random_actions(self, count: int) -> np.ndarray:
        """Uniform, in the policy's range."""

    @property
    def is_on_policy(self) -> bool:
        return False

    # -- acting --------------------------------------------------------------------------------------------

    def _observations(self, obs: Any) -> np.ndarray:
        """A batch [N, *obs] as the networks take it. ValueError for another shape."""
        batch = self._prepared(obs)
        if batch.shape[1:] != self._spaces.obs_shape:
            shape = list(self._spaces.obs_shape)
            raise ValueError(f"observations must have shape {shape} each, got {list(batch.shape[1:])}")
        return batch

    def _explored(self, obs: Any) -> np.ndarray:
        """Actions [N] or [N, D] to learn from, in the policy's range; random for `learning_starts` steps."""
        batch = self._observations(obs)
        if self._progress.steps < self._hyperparams.params["learning_starts"]:
            return self._random_actions(len(batch))
        hyper = self._current()
        return np.asarray(self._programs.explore(self._present(), batch, self._words(), hyper))

    def _modes(self, obs: Any) -> np.ndarray:
        return np.asarray(self._programs.mode(self._present(), self._observations(obs)))

    # -- learning ------------------------------------------------------------------------------------------

    def _learn(self, data: EpisodeData, actions: np.ndarray) -> dict[str, Any]:
        """Take in a window of which the policy's actions are `actions` [T] int32 or [T, D] float32, and learn."""
        count, params = len(data.rewards), self._hyperparams.params
        if not count:
            return {}
        self._observations(data.observations)  # their shape
        if params["replay_capacity"] != self._replay.capacity:
            self._replay = self._replay.resized(params["replay_capacity"])
        finite = self._replay.store(data, actions)
        returns, _ = self._returns.update(data)
        progress = self._progress
        if returns and np.isfinite(returns).all():
            progress.episode_reward = float(np.mean(returns))
        progress.steps += count
        progress.windows += 1
        if not finite:  # a loss that is none tells the loop of the fault
            return {name: float("nan") for name in self._algorithm_now.losses}
        n_updates, asked = 0, count * params["updates_per_step"]
        if len(self._replay) >= params["learning_starts"]:
            progress.owed += asked
            n_updates = int(progress.owed)
            progress.owed -= n_updates
        report = self._updates(n_updates, math.ceil(asked)) if n_updates else {}
        return {**report, "buffer_size": float(len(self._replay)), "n_updates": float(n_updates)}

    def _updates(self, count: int, most: int) -> dict[str, float]:
        """So many gradient steps, where windows of this length never ask for more than `most`; mean losses."""
        limit = min(_PRIORITIZED_CHUNK if self._hyperparams.params["per_alpha"] else _CHUNK, self._most_at_once)
        size = min(limit, bucket(most))  # one for all windows of a length: another would be compiled anew
        done, totals = 0, dict.fromkeys(self._algorithm_now.losses, 0.0)
        while done < count:
            n = min(size, count - done)
            sums = self._some_updates(n, size)
            totals = {name: total + float(sums[name]) for name, total in totals.items()}
            done += n
        return {name: total / count for name, total in totals.items()}

    def _some_updates(self, n: int, size: int) -> dict[str, np.ndarray]:
        """`n` of them in arrays for `size`."""
        params = self._hyperparams.params
        shape, weights = (n, params["batch_size"]), np.ones((n, params["batch_size"]), np.float32)
        if params["per_alpha"]:
            exponent = beta(self._progress.steps, params)
            places, weights = self._replay.draw_by_priority(self._rng, shape, params["per_alpha"], exponent)
        else:
            places = self._replay.draw(self._rng, shape)
        drawn = self._replay.read(padded(places, size), params["n_step"], params["gamma"])
        words, hyper = self._words(), self._current()
        self._params, self._opt, errors, sums = self._programs.learn(
            self._present(), self._opt, drawn, padded(weights, size), np.int32(n), words, hyper
        )
        errors, sums = jax.device_get((errors, sums))
        if params["per_alpha"]:
            self._replay.set_priorities(places, errors[:n], params["per_eps"])
        return sums

    @property
    def _updates_done(self) -> int:
        """Gradient steps so far."""
        self._present()
        return int(self._opt["updates"])

    @property
    def _most_at_once(self) -> int:
        """Updates whose observations take `_CHUNK_BYTES`; a power of two, so that buckets fit."""
        rows = 2 * self._hyperparams.params["batch_size"]
        each = rows * int(np.prod(self._spaces.obs_shape)) * 4
        return 1 << max(0, (_CHUNK_BYTES // each).bit_length() - 1)

    # -- hyperparameters -----------------------------------------------------------------------------------

    def _current(self) -> dict[str, Any]:
        """The algorithm's hyperparameters in force."""
        if self._hyper_of is not self._hyperparams:
            self._set_for(self._hyperparams.params)
            self._hyper_of = self._hyperparams
        return self._hyper

    def _set_for(self, params: Mapping[str, Any]) -> None:
        """Programs and arguments for complete hyperparameters."""
        statics = {field: params[name] for name, field in self.statics.items()}
        self._algorithm_now = self._algorithm(self._spaces, {**self._settings, **statics}, self._networks)
        self._hyper = {
            name: np.float32(params[self.names.get(name, name)]) for name in self._algorithm_now.hyperparams()
        }
        self._programs = self._programs_for(self._algorithm_now)

    def _programs_for(self, algorithm: Any) -> Programs:
        if not self._networks:
            return _shared_programs(algorithm, type(self)._layout)
        # A user's modules are in no other agent, and must not outlive this one.
        if algorithm not in self._own_programs:
            self._own_programs[algorithm] = programs_of(algorithm, *self._layout(algorithm))
        return self._own_programs[algorithm]

    def _words(self) -> np.ndarray:
        """Two random words uint32, a key's worth."""
        return self._rng.integers(0, 1 << 32, 2, np.uint32)

    # -- weights -------------------------------------------------------------------------------------------

    def average_weights(self, paths: Sequence[str]) -> None:
        """Load the mean of several saved weights; the targets are that mean too."""
        super().average_weights(paths)
        self._align_targets()

    def perturb_weights(self, noise_scale: float) -> None:
        """Multiply every weight by 1 + noise_scale * N(0, 1); the targets become those weights, the moments stay."""
        super().perturb_weights(noise_scale)
        self._align_targets()

    def _align_targets(self) -> None:
        _, layout = self._layout(self._algorithm_now)
        targets = {name: jax.tree.map(jnp.array, self._params[own]) for name, own in layout.targets.items()}
        self._opt = {**self._opt, "targets": targets}

    def save_state(self, path: str) -> None:
        """Write the directory `path`: the agent, its random generator and the replay. Whole, or not there.

        What comes after `load_state` is what would have come here. Raises as `save_weights`.
        """
        final = Path(path).absolute()
        foreign = sorted({p.name for p in final.iterdir()} - {_AGENT, _REPLAY}) if final.is_dir() else []
        if foreign or (final.exists() and not final.is_dir()):
            what = f"holds {foreign[0]} too" if foreign else "is a file"
            raise ValueError(f"a state is saved to a directory of its own, but '{final}' {what}: give another path")
        staging = final.with_name(f"{durable.TEMPORARY}{final.name}")
        try:
            durable.remove(staging)
            (staging / _REPLAY).mkdir(parents=True)
            super().save_state(str(staging / _AGENT))
            write_tree(staging / _REPLAY, {"replay": self._replay.state_dict(), "returns": self._returns.state_dict()})
            durable.publish_directory(staging, final)
        except OSError as error:
            raise failure("save the state", final, error) from error
        finally:
            durable.discard(staging)

    def load_state(self, path: str) -> None:
        """Read what `save_state` wrote. RunDirError or ValueError leave the agent as it was."""
        folder = Path(path) / _REPLAY
        try:
            state = read_tree(folder)
        except FileNotFoundError:
            raise RunDirError(f"There is no state in '{path}'; give the path that save_state was given.") from None
        except (OSError, ValueError, KeyError) as error:
            raise RunDirError(f"'{folder}' is damaged: {error}.") from None
        replay = HostReplay.from_state(state["replay"])
        super().load_state(str(Path(path) / _AGENT))
        self._replay = replay
        self._returns.load_state_dict(state["returns"])

    def teardown(self) -> None:
        """Free weights and replay; the agent neither acts nor learns afterwards. May be called again."""
        super().teardown()
        self._replay = HostReplay(1)


def _key(words: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(words[0]), words[1])


@functools.lru_cache(maxsize=64)
def _shared_programs(algorithm: Any, layout_of: Callable[[Any], tuple[Any, Layout]]) -> Programs:
    return programs_of(algorithm, *layout_of(algorithm))
