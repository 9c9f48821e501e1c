"""Agents whose policy is a graph of neurons that may change while they learn.

The graph is the agent's only copy of its weights: what edits it edits the policy, and the next window is learned from
with what is there then. What an optimiser knows and what running episodes remember follow the edits.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.adapters.jax import agent_files
from tensor_optix.adapters.jax.flax_base import revived
from tensor_optix.algorithms import flax_graph_files, host_ppo
from tensor_optix.algorithms.contract import TUNED
from tensor_optix.algorithms.flax_graph_inputs import InputMoments
from tensor_optix.algorithms.flax_graph_optimizer import GraphOptimizer
from tensor_optix.algorithms.flax_graph_programs import GraphPolicy, Programs, programs
from tensor_optix.algorithms.flax_ppo import Spaces, normalizers_of, whole
from tensor_optix.algorithms.flax_recurrent_host import RecurrentHost
from tensor_optix.algorithms.host_actions import ActionBounds
from tensor_optix.algorithms.recurrent_sequences import Drawn
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.loop import runtime
from tensor_optix.neuroevo.brain_network import BrainNetwork
from tensor_optix.neuroevo.graph.adam import TopologyAwareAdamState
from tensor_optix.neuroevo.graph.network import weights_of, with_weights
from tensor_optix.neuroevo.graph_state import taken_apart
from tensor_optix.neuroevo.moments import PARTS, BrainMoments, Moments
from tensor_optix.neuroevo.neuron_graph import NeuronGraph
from tensor_optix.neuroevo.routes import Routes, flat, unflat

DEFAULTS: dict[str, float] = {**host_ppo.DEFAULTS, "chunk_len": 64}


def complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """As `host_ppo.complete`, with "chunk_len" too: the steps that gradients flow back through."""
    return host_ppo.complete_with_steps(params, DEFAULTS, "chunk_len")


class GraphAgent(RecurrentHost):
    """PPO (Schulman et al. 2017) on a graph of neurons; its last output is the value.

    What the graph remembers, by delayed edges and gated neurons, is kept from step to step and forgotten where an
    episode starts; learning begins each row from what was remembered there, so before an update every probability ratio
    is 1. No gradients flow back through time: `RecurrentGraphAgent` has them.

    Args:
        graph: a `NeuronGraph` or a `BrainNetwork`. Its inputs take the observation, its outputs are the `n_actions`
            logits or means, then the value. It may be changed at any time between windows; `obs_dim` follows its
            inputs.
        obs_dim: size of an observation, a vector.
        n_actions: number of choices, or of action dimensions.
        continuous: actions are vectors, of a Gaussian policy as that of `FlaxGaussianPPOAgent`.
        hyperparams: any of `DEFAULTS`, over them, also as a mapping; other names are kept.
        device: "auto", None or what JAX has found.
        seed: of acting and shuffling.
        reward_normalizer: scales the rewards that are learned from; None makes one, since policy and value share the
            graph and large values would drown the policy. False: none.
        obs_normalizer: normalises what the graph sees, and follows its inputs. `normalize_observations` makes one.

    Attributes:
        callbacks: what a loop that trains the agent is to call.

    Raises:
        TypeError, ValueError: the graph's inputs or outputs do not fit, or a setting is out of its limits.
    """

    algorithm = "ppo"
    default_param_bounds = host_ppo.PARAM_BOUNDS
    default_log_params = host_ppo.LOG_PARAMS
    default_tuned = TUNED
    default_min_episodes_before_dormant = 20
    _through_delays = False

    def __init__(
        self,
        graph: NeuronGraph | BrainNetwork,
        obs_dim: int,
        n_actions: int,
        continuous: bool = False,
        hyperparams: HyperparamSet | Mapping[str, Any] | None = None,
        device: Any = None,
        *,
        seed: int = 0,
        reward_normalizer: RewardNormalizer | bool | None = None,
        obs_normalizer: ObsNormalizer | None = None,
        normalize_observations: bool = False,
    ) -> None:
        runtime.start()
        _check_device(device)
        width = whole("n_actions", n_actions)
        self.graph, self.continuous, self.n_actions = graph, bool(continuous), n_actions
        self._spaces = (
            Spaces((whole("obs_dim", obs_dim),), "continuous", action_dim=width)
            if continuous
            else Spaces((whole("obs_dim", obs_dim),), "discrete", n_actions=width)
        )
        self._regions = list(graph.regions) if isinstance(graph, BrainNetwork) else []
        self._ends = graph.output_regions if isinstance(graph, BrainNetwork) else []
        self._checked = -1  # version of the graph when it was last found to fit
        self._fits()
        if reward_normalizer is None or reward_normalizer is True:
            reward_normalizer = RewardNormalizer()
        parts: dict[str, Any] = normalizers_of(
            self._spaces, reward_normalizer or None, obs_normalizer, normalize_observations
        )
        self._bounds = ActionBounds(n_actions) if continuous else None
        self._inputs = InputMoments(parts["obs_normalizer"], graph.input_ids)
        self.callbacks: list[Any] = []
        self._hidden = {}
        graph.arrays  # noqa: B018  with all the room that it needs
        self._moments = BrainMoments(graph) if isinstance(graph, BrainNetwork) else Moments(graph)
        self._routes = Routes(graph)
        log_std = jnp.zeros(n_actions if continuous else 0, jnp.float32)
        opt = dict.fromkeys(PARTS, log_std)
        super().__init__(log_std, opt, _given(hyperparams), complete, seed, {**parts, "action_bounds": self._bounds})

    @property
    def obs_dim(self) -> int:
        """As many as the graph has inputs."""
        return len(self.graph.input_ids)

    @property
    def optimizer(self) -> GraphOptimizer:
        """What Adam knows of each parameter; to look at, also later on. It follows edits by itself."""
        return GraphOptimizer(self.graph, self._adam, lambda: self._hyperparams.params["learning_rate"])

    def set_action_bounds(self, low: Any, high: Any) -> None:
        """What -1 and 1 stand for, [n_actions] each; an infinite bound leaves its dimension unscaled."""
        if self._bounds is None:
            raise TypeError("the agent chooses among actions: only continuous ones have bounds")
        self._bounds.set(low, high)

    # -- acting --------------------------------------------------------------------------------------------

    def act_recurrent(
        self, observations: Any, hidden: Any, starts: Any, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions of N environments, and what is remembered of them after that, [N, 1 + C] float32.

        Args:
            observations: [N, obs_dim].
            hidden: what the last call gave, also from before an edit; None: nothing is remembered.
            starts: [N] bool, the observation starts an episode: what was remembered of that environment is forgotten.
            deterministic: the likeliest or mean action; no random number is used.
        """
        batch = self._observations(observations)
        inputs = (self._present(), batch, self._memory(hidden, len(batch)), np.asarray(starts, bool))
        if deterministic:
            actions, after = self._programs.mode(*inputs)
        else:
            actions, after, seen = self._programs.sample(*inputs, self._noise(len(batch)))
            self.graph.saw_all(seen)
        return self._as_actions(np.asarray(actions)), np.asarray(after)

    def act(self, observation: Any) -> Any:
        """The next action of the episode that the graph remembers; `reset_hidden` where another begins."""
        return self._one(self.act_batch(np.asarray(observation)[None]))

    def act_deterministic(self, observation: Any) -> Any:
        """The likeliest or mean action; no random number is used. Its episode is another than that of `act`."""
        return self._one(self.act_batch_deterministic(np.asarray(observation)[None]))

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [n_actions] of the next choice; the observation is remembered as `act` would."""
        if self.continuous:
            raise TypeError("action_probs are those of choices, and this agent's actions are continuous")
        batch, rows = self._observations(np.asarray(observation)[None]), self._memory(self._remembered(False, 1), 1)
        probs, after = self._programs.probs(self._present(), batch, rows, np.zeros(1, bool))
        self._keep(False, np.asarray(after))
        return np.asarray(probs)[0]

    def reset_hidden(self) -> None:
        """Forget what `act`, `act_batch` and their deterministic forms remember: to be called where an episode begins.

        Pipelines need not: they use `act_recurrent`, and so can whoever steps several environments.
        """
        self._hidden = {}
        self.graph.reset_state()

    def _one(self, actions: np.ndarray) -> Any:
        return actions[0] if self.continuous else int(actions[0])

    def _as_actions(self, chosen: np.ndarray) -> np.ndarray:
        return chosen if self._bounds is None else self._bounds.to_action(chosen)

    def _remembered(self, deterministic: bool, count: int) -> np.ndarray | None:
        """One environment's `act` shares its memory with the graph."""
        if deterministic or count > 1:
            return super()._remembered(deterministic, count)
        row = np.asarray(flat(self.graph.memory))[None]
        return np.concatenate([np.full((1, 1), self._routes.version, np.float32), row], axis=1)

    def _keep(self, deterministic: bool, hidden: np.ndarray) -> None:
        if deterministic or len(hidden) > 1:
            super()._keep(deterministic, hidden)
        else:
            self.graph.memory = unflat(self.graph.capacity, jnp.array(hidden[0, 1:]))

    def _memory(self, hidden: Any, count: int) -> np.ndarray:
        self._present()  # a brain makes room for new pathways
        if hidden is None:
            hidden = np.full((count, 1), self._routes.version, np.float32)  # nothing behind the version
        hidden = np.asarray(hidden, np.float32)
        if hidden.ndim != 2 or len(hidden) != count:
            raise ValueError(f"hidden states must be rows of {count} environments, got shape {list(hidden.shape)}")
        return self._routes.present(hidden)

    # -- learning ------------------------------------------------------------------------------------------

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        """One window; what `FlaxPPOAgent.learn` returns. Dale's law is enforced after every step of the optimiser.

        Gradients, as the optimiser's running mean, are then at the graph's parameters, and in `graph.gradient`.
        """
        count = len(episode_data.rewards)
        if self._bounds is None:
            actions = np.asarray(episode_data.actions).reshape(count).astype(np.int32)
            if actions.size and not 0 <= actions.min() <= actions.max() < self.n_actions:
                raise ValueError(
                    f"actions must be from 0 to {self.n_actions - 1}, got {actions.min()} to {actions.max()}"
                )
            return self._learn(episode_data, actions)
        raw = np.asarray(episode_data.actions, np.float64).reshape(count, self.n_actions)
        return self._learn(episode_data, self._bounds.to_unit(raw).astype(np.float32))

    def _sequence_length(self) -> int:
        return 1

    def _descend(
        self, drawn: Drawn, order: np.ndarray, n_updates: np.int32, hyper: dict[str, np.float32]
    ) -> dict[str, Any]:
        opt, (network, log_std) = self._adam(), self._present()
        params = jax.tree.map(jnp.array, (weights_of(network), log_std))
        (weights, log_std), opt, losses = self._programs.learn(params, opt, network, drawn, order, n_updates, hyper)
        self._set_arrays(with_weights(network, weights))
        self._moments.state = TopologyAwareAdamState(opt.count[0], opt.mu[0], opt.nu[0], ())
        self._params, self._opt = log_std, {"count": opt.count[1], "mu": opt.mu[1], "nu": opt.nu[1]}
        self.graph.set_gradients(opt.mu[0])
        return losses

    def _adam(self) -> TopologyAwareAdamState:
        """Copies, beside the graph's weights and beside log_std."""
        self._present()  # with all the room that it needs
        state, of_log_std = self._moments.state, jax.tree.map(jnp.array, self._opt)
        count, mu, nu = ((getattr(state, part), of_log_std[part]) for part in PARTS)
        return TopologyAwareAdamState(count, mu, nu, ())

    # -- the graph -----------------------------------------------------------------------------------------

    @property
    def _programs(self) -> Programs:
        return programs(not self.continuous, self._through_delays)

    def _present(self) -> GraphPolicy:
        log_std, network = super()._present(), self.graph.arrays
        if self.graph.version != self._checked:
            self._still_fits()
            self._checked = self.graph.version
        return GraphPolicy(network, log_std)

    def _still_fits(self) -> None:
        if len(self.graph.output_ids) != self.n_actions + 1:
            raise ValueError(
                f"the graph has {len(self.graph.output_ids)} output neurons by now, and the agent needs "
                f"{self.n_actions + 1}: outputs must stay"
            )
        if isinstance(self.graph, BrainNetwork):
            if list(self.graph.regions) != self._regions:
                raise ValueError("the brain has other regions than when the agent was made: make a new agent for it")
            if self.graph.output_regions != self._ends:
                raise ValueError(
                    f"the brain's output regions were {', '.join(self._ends)} and are "
                    f"{', '.join(self.graph.output_regions)} now: name them, BrainNetwork(output_regions=...)"
                )

    def _set_arrays(self, network: Any) -> None:
        self.graph.set_arrays(network)

    def _observations(self, obs: Any) -> np.ndarray:
        self._spaces = dataclasses.replace(self._spaces, obs_shape=(self.obs_dim,))  # inputs may have been added
        if np.shape(obs)[1:] != self._spaces.obs_shape:
            raise ValueError(f"observations must have shape {[self.obs_dim]} each, got {list(np.shape(obs)[1:])}")
        self._inputs.follow(self.graph.input_ids)
        return self.graph.placed(super()._observations(obs))

    def _fits(self) -> None:
        inputs, outputs = len(self.graph.input_ids), len(self.graph.output_ids)
        if inputs != self._spaces.obs_shape[0]:
            raise ValueError(
                f"the graph has {inputs} input neurons and observations have {self._spaces.obs_shape[0]} numbers "
                "(obs_dim): add as many inputs"
            )
        if outputs != self.n_actions + 1:
            raise ValueError(
                f"the graph has {outputs} output neurons, expected {self.n_actions + 1}: one for each of "
                f"{self.n_actions} actions (n_actions), then the value's"
            )

    # -- weights -------------------------------------------------------------------------------------------

    def save_weights(self, path: str) -> None:
        """Write the directory `path`: the graph with its structure, the optimiser, normalisers, hyperparameters."""
        self._write(path, {})

    def save_state(self, path: str) -> None:
        """`save_weights`, the random generator and memories: what comes after `load_state` is what would have come."""
        hidden = {str(which): rows.tolist() for which, rows in self._hidden.items()}
        self._write(
            path, {"generator": self._rng.bit_generator.state, "routes": self._routes.state(), "hidden": hidden}
        )

    def load_state(self, path: str) -> None:
        """Read what `save_state` wrote; raises as `load_weights`."""
        self._load(path, with_generator=True)

    def average_weights(self, paths: Sequence[str]) -> None:
        """Become the graph of several saved ones of the same structure, with the mean of their weights.

        What has the same id is averaged, wherever it lies. ValueError if neurons, edges or pathways differ.
        """
        mean = flax_graph_files.read_mean(paths)
        for agent in self._tried_first():
            agent._take_over(mean)

    def perturb_weights(self, noise_scale: float) -> None:
        """Multiply every weight by 1 + noise_scale * N(0, 1), under Dale's law; the optimiser's moments stay."""

        def noisy(leaf: Any) -> Any:
            noise = self._rng.standard_normal(leaf.shape, np.float32)
            return (np.asarray(leaf) * (1.0 + np.float32(noise_scale) * noise)).astype(np.float32)

        (network, log_std), moments = self._present(), self._moments.state
        self._set_arrays(with_weights(network, jax.tree.map(noisy, weights_of(network))))
        self.graph.enforce_dale()
        self._moments.state = moments
        self._params = jnp.array(noisy(log_std))

    def _write(self, path: str, more: Mapping[str, Any]) -> None:
        log_std = self._present().log_std
        self._inputs.follow(self.graph.input_ids)
        plain, arrays = taken_apart(self.graph.state_dict())
        model = {"graph": arrays, "log_std": log_std}
        opt = {"graph": self._moments.named(), "log_std": self._opt}
        agent_files.write(path, model, opt, {**self._record(), **self._inputs.record(), "graph": plain, **more})

    def _load(self, path: str, with_generator: bool) -> None:
        self._present()
        saved = flax_graph_files.read(path)
        record = saved.record
        params = complete(revived(record["hyperparams"]))
        if with_generator and "generator" not in record:
            raise ValueError(f"'{path}' has no generator: it was written by save_weights, expected save_state")
        try:
            for agent in self._tried_first():
                agent._take_over(saved)
                agent._moments.load(saved.of_graph)
        except (KeyError, ValueError) as error:
            raise ValueError(f"'{path}' was not saved by such an agent: {error}") from None
        self._opt = {part: jnp.array(x) for part, x in saved.of_log_std.items()}
        self._hyperparams = HyperparamSet(params, int(record["episode_id"]))
        if with_generator:
            self._rng.bit_generator.state = record["generator"]
            self._routes.load(record["routes"])
            self._hidden = {which == str(True): np.asarray(x, np.float32) for which, x in record["hidden"].items()}

    def _tried_first(self) -> tuple[GraphAgent, GraphAgent]:
        """A copy, where what fails does no harm, then the agent itself."""
        return copy.deepcopy(self, {id(self.callbacks): []}), self

    def _take_over(self, saved: flax_graph_files.Saved) -> None:
        """Graph, log_std and normalisers."""
        present = self._present().log_std
        if saved.log_std.shape != present.shape:
            raise ValueError(f"log_std has shape {list(saved.log_std.shape)}, expected {list(present.shape)}")
        self.graph.load_state_dict(saved.graph)
        self._inputs.expect(saved.record, self.graph.input_ids)
        self._params = jnp.array(saved.log_std)
        self._restore_parts(saved.record)
        self._present()


class RecurrentGraphAgent(GraphAgent):
    """A `GraphAgent` whose trainable recurrent neurons get gradients through time: truncated backpropagation.

    Where the graph has such neurons, or with `through_delays` (`is_recurrent`), the hyperparameter "chunk_len" says how
    many steps gradients flow back, and a minibatch has "minibatch_size" // "chunk_len" chunks. Where it has none it
    learns as a `GraphAgent`, row by row.

    Args:
        chunk_len: overrides the hyperparameter.
        through_delays: let gradients flow back through delayed edges, too.

    The others are those of `GraphAgent`.
    """

    def __init__(self, *args: Any, chunk_len: int | None = None, through_delays: bool = False, **kwargs: Any) -> None:
        self._through_delays = through_delays
        super().__init__(*args, **kwargs)
        if chunk_len is not None:
            self.set_hyperparams(HyperparamSet({"chunk_len": chunk_len}))

    @property
    def is_recurrent(self) -> bool:
        """Gradients flow back through some memory."""
        graphs = self.graph.regions.values() if isinstance(self.graph, BrainNetwork) else [self.graph]
        return self._through_delays or any(
            graph.get_neuron(name).is_recurrent for graph in graphs for name in graph.all_neuron_ids()
        )

    def recurrent_forward(self, observations: Any, starts: Any = None) -> Any:
        """Outputs [T, n_actions + 1] along a sequence of observations [T, obs_dim], from nothing remembered.

        starts: [T] bool, where further episodes start. JAX can differentiate through it with respect to observations.
        """
        obs = jnp.asarray(observations, jnp.float32)
        starts = np.zeros(len(obs), bool) if starts is None else np.asarray(starts, bool)
        return self._programs.sequence(self.graph.arrays, obs, starts)

    def _sequence_length(self) -> int:
        return self._hyperparams.params["chunk_len"] if self.is_recurrent else 1


def _given(hyperparams: Any) -> HyperparamSet:
    if isinstance(hyperparams, HyperparamSet):
        return hyperparams
    if not isinstance(hyperparams, Mapping | None):
        raise TypeError(f"hyperparams must be a HyperparamSet or a mapping of names to values, got {hyperparams!r}")
    return HyperparamSet(dict(hyperparams or {}))


def _check_device(device: Any) -> None:
    found = jax.devices()[0].platform
    if device not in (None, "auto", found):
        raise ValueError(f"device must be 'auto' or what JAX found, {found!r}, got {device!r}")
