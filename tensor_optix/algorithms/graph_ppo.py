"""PPO whose policy is a graph of neurons: arrays of fixed capacity in which the topology is data, not code.

Schulman et al. 2017 on one graph for policy and value (the last output). What the graph remembers (delayed edges, gated
cells) is kept from step to step and zero where an episode starts. Learning runs the same forward pass from the memories
that were there while acting, so before the first update every probability ratio is 1. With `sequence_length` above 1
gradients flow back through so many steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from tensor_optix.algorithms.clipped_surrogate import Batch, clipped_loss, descend_over
from tensor_optix.algorithms.contract import Hyperparams, WindowStats
from tensor_optix.algorithms.graph_ppo_config import ACTIVATIONS, CELLS, GraphPPOConfig
from tensor_optix.algorithms.ppo_base import BasePPO, PPOLearner, Rollout
from tensor_optix.algorithms.ppo_sequences import cut, minibatches
from tensor_optix.core import normalizers, returns
from tensor_optix.core.finite import all_finite
from tensor_optix.envs.vector import EpisodeSums
from tensor_optix.networks.distributions import Categorical, DiagonalGaussian
from tensor_optix.neuroevo.graph import dale, growth
from tensor_optix.neuroevo.graph.arrays import (
    N_GATES,
    Activation,
    Capacity,
    Graph,
    Kind,
    Memory,
    Topology,
    Weights,
    count_edges,
    count_neurons,
    forgotten,
    fresh_memory,
)
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.graph.growth import Activity, Growth, Told
from tensor_optix.neuroevo.graph.wiring import layered

_POLICY_GAIN = 0.01  # of an actor's head: the first policy is nearly uniform
_SOFTPLUS_GAIN = 0.5  # the same under softplus, where the gradient of a small weight is as small


class GraphPolicy(struct.PyTreeNode):
    """What acting needs."""

    params: dict[str, jax.Array]
    topology: Topology
    moments: Any  # observation moments, or () without normalisation


class GraphLearner(PPOLearner):
    """A PPO learner with a graph, and what its N environments' episodes remember.

    `params`: edges [1 + D, N, N], bias [N]; gates [N, 12] where cells may be gated; log_std [A] for continuous actions.
    """

    topology: Topology
    memory: Memory  # [N, ...], before `obs`
    growing: Any  # Growing, or () where the topology stays


class Growing(struct.PyTreeNode):
    """What decides on the topology."""

    growth: Growth
    activity: Activity  # summed over the windows since the evaluation before
    windows: jax.Array  # [] int32, how many they are


class Trace(NamedTuple):
    """One window as collected."""

    rollout: Rollout
    value: jax.Array  # [T, N] float32
    memory: Memory  # [T, N, ...], before each observation
    activity: Any  # of each step, [T, ...]; () where the topology stays


class Sequences(NamedTuple):
    """What the update draws minibatches from: S sequences of L steps, each of one environment."""

    rows: Batch  # [S, L, ...]
    starts: jax.Array  # [S, L] bool, the observation starts an episode
    memory: Memory  # [S, ...], before the first observation


@dataclass(frozen=True)
class GraphPPO(BasePPO):
    """Graph PPO on one environment: a hashable description whose methods are pure."""

    config: GraphPPOConfig = dataclasses.field(default_factory=GraphPPOConfig)

    name = "graph_ppo"
    config_type = GraphPPOConfig

    def __post_init__(self) -> None:
        if len(self.env.obs_shape) != 1:
            raise ValueError(
                f"a graph of neurons takes vectors, and {self.env.name} shows {list(self.env.obs_shape)}: flatten the "
                "observations, or take ppo"
            )

    @cached_property
    def capacity(self) -> Capacity:
        """What the program has room for."""
        config, kind = self.config, CELLS[self.config.cell]
        gated = kind != Kind.POINT
        return Capacity(
            inputs=self.env.obs_shape[0],
            outputs=self._n_actions + 1,
            hidden=max(config.max_neurons, sum(config.hidden_sizes)),
            delays=max(config.max_delay, config.feedback, int(gated)),
            levels=config.levels,
            gated=gated,
            activations=tuple(sorted({Activation.LINEAR, ACTIVATIONS[config.activation]})),
            softplus=config.dale == "softplus",
        )

    @property
    def _n_actions(self) -> int:
        return self.env.n_actions if self._discrete else self.env.action_dim

    # -- what the driver asks ------------------------------------------------------------------------------

    def init(self, key: jax.Array, hyper: Hyperparams) -> GraphLearner:
        config = self.config
        key_graph, key_env = jax.random.split(key)
        key_env, key_novelty = jax.random.split(key_env) if config.rnd else (key_env, key_env)
        kind, activation = CELLS[config.cell], ACTIVATIONS[config.activation]
        gain = _SOFTPLUS_GAIN if config.dale == "softplus" else _POLICY_GAIN
        gains = [gain] * self._n_actions + [1.0]
        graph = layered(
            self.capacity, config.hidden_sizes, activation, kind, config.feedback, gains, key_graph,
            inhibitory=None if config.dale == "off" else config.inhibitory,
        )  # fmt: skip
        params = self.params_of(graph)
        if not self._discrete:
            params["log_std"] = jnp.full((self.env.action_dim,), config.initial_log_std, jnp.float32)
        env_state, obs = self.env.reset(key_env, config.n_envs)
        return GraphLearner(
            params=params,
            opt=self.init_opt(params),
            obs_moments=normalizers.init_moments(self.env.obs_shape) if config.normalize_observations else (),
            reward_scale=normalizers.init_reward_scale(config.n_envs) if config.normalize_rewards else (),
            novelty=self.init_novelty(key_novelty),
            env_state=env_state,
            obs=obs,
            window=jnp.int32(0),
            topology=graph.topology,
            memory=fresh_memory(self.capacity, (config.n_envs,)),
            growing=self._init_growing(),
        )

    def window(self, learner: GraphLearner, hyper: Hyperparams, key: jax.Array) -> tuple[GraphLearner, WindowStats]:
        key_shuffle, key_collect = jax.random.split(key)
        after, trace, episodes = self._collect(learner, key_collect)
        reward_scale, known, rewards = self._rewards(learner, trace.rollout, hyper)
        sequences = self._sequences(learner, after, trace, rewards, hyper)
        params, opt, losses = self._update(learner, sequences, hyper, key_shuffle)
        after = after.replace(
            params=self._lawful(params, learner.topology),
            opt=opt,
            obs_moments=self._observed(learner, trace.rollout),
            reward_scale=reward_scale,
            novelty=known,
            window=learner.window + jnp.int32(1),
            growing=self._watched(learner, trace),
        )
        if self.config.growth:
            counts = {"neurons": count_neurons(learner.topology), "edges": count_edges(learner.topology)}
            losses |= {name: count.astype(jnp.float32) for name, count in counts.items()}
        carried = (ravel_pytree(params)[0], opt, after.obs_moments, reward_scale, known, after.memory)
        stats = WindowStats(
            return_sum=episodes.return_sum,
            episodes=episodes.episodes,
            finite=all_finite((*carried, trace.rollout.reward)),
            losses=losses,
        )
        return after, stats

    def policy(self, learner: GraphLearner) -> GraphPolicy:  # type: ignore[override]
        return GraphPolicy(learner.params, learner.topology, learner.obs_moments)

    def initial_carry(self) -> Memory:
        return fresh_memory(self.capacity)

    def act(
        self, policy: GraphPolicy, obs: jax.Array, carry: Memory, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Memory]:
        """Action [*batch] int32 or [*batch, A] float32, and the memory [*batch, ...] after it.

        For observations [*batch, I] and memories [*batch, ...]; one memory stands for that of every observation.
        """
        normalized = self._normalize(policy.moments, obs)
        # One memory may stand for that of every observation.
        carry = jax.tree.map(lambda x, one: jnp.broadcast_to(x, (*obs.shape[:-1], *one.shape)), carry,
                             self.initial_carry())  # fmt: skip
        out, carry, _ = step(self.graph_of(policy.params, policy.topology), carry, normalized)
        dist = self._distribution(out, policy.params, normalized)
        if deterministic:
            return dist.mode(), carry
        return dist.sample(dist.noise(key, dist.noise_shape)), carry

    def snapshot(self, learner: GraphLearner) -> Any:  # type: ignore[override]
        return (super().snapshot(learner), learner.topology, learner.growing)

    def restore(self, learner: GraphLearner, snapshot: Any) -> GraphLearner:  # type: ignore[override]
        """The graph comes back with what is known of its neurons; how often and when it grew is not undone."""
        rest, topology, growing = snapshot
        restored: Any = super().restore(learner, rest)
        if self.config.growth:
            now, then = learner.growing.growth, growing.growth
            parts = ("age", "importance", "weak")
            growing = growing.replace(growth=now.replace(**{name: getattr(then, name) for name in parts}))
        # What episodes remember is of other neurons now.
        memory = jax.tree.map(jnp.zeros_like, learner.memory) if self.config.growth else learner.memory
        return restored.replace(topology=topology, growing=growing, memory=memory)

    def reset_envs(self, learner: GraphLearner, key: jax.Array) -> GraphLearner:
        env_state, obs = self.env.reset(key, self.config.n_envs)
        return learner.replace(env_state=env_state, obs=obs, memory=fresh_memory(self.capacity, (self.config.n_envs,)))

    def init_opt(self, params: Any) -> Any:
        """Where the graph grows each parameter counts its own steps: a new one's first step is as large as any first.

        The count is behind Adam's bias correction (Kingma & Ba 2015, algorithm 1).
        """
        opt = super().init_opt(params)
        return opt._replace(count=jnp.zeros_like(opt.mu, jnp.int32)) if self.config.growth else opt

    # -- the graph -----------------------------------------------------------------------------------------

    def params_of(self, graph: Graph) -> dict[str, jax.Array]:
        """What is learned of a graph."""
        params = {"edges": graph.weights.edges, "bias": graph.weights.bias}
        return params | ({"gates": graph.weights.gates} if self.capacity.gated else {})

    def graph_of(self, params: dict[str, jax.Array], topology: Topology) -> Graph:
        """The graph that acts with these parameters."""
        return Graph(topology, self._weights(params), self.capacity)

    def _weights(self, params: dict[str, jax.Array]) -> Weights:
        """Of parameters, or of what an optimiser keeps beside them."""
        gates = params.get("gates")
        if gates is None:
            gates = jnp.zeros((self.capacity.neurons, N_GATES), jnp.float32)
        return Weights(params["edges"], params["bias"], gates)

    def _lawful(self, params: dict[str, jax.Array], topology: Topology) -> dict[str, jax.Array]:
        graph = dale.enforced(self.graph_of(params, topology))
        return {**params, "edges": graph.weights.edges}

    def _distribution(
        self, out: jax.Array, params: dict[str, jax.Array], obs: jax.Array
    ) -> Categorical | DiagonalGaussian:
        """Of outputs [*batch, O]; obs: normalised."""
        logits = out[..., :-1]
        if self._discrete:
            return self._categorical(logits, obs)
        return DiagonalGaussian(logits, jnp.broadcast_to(params["log_std"], logits.shape))

    # -- growing -------------------------------------------------------------------------------------------

    @property
    def grows(self) -> bool:
        """Whether the driver has to tell of evaluations."""
        return self.config.growth is not None

    def evaluated(self, learner: GraphLearner, score: jax.Array, key: jax.Array) -> tuple[GraphLearner, jax.Array]:
        """The learner after an evaluation, which may have changed its topology, and whether it has grown ([] bool).

        Weights that were not touched keep the optimiser's moments; new ones start without, and learn from the next
        window on.
        """
        config, growing = self.config.growth, learner.growing
        assert config is not None
        graph = self.graph_of(learner.params, learner.topology)
        unravel = ravel_pytree(learner.params)[1]
        moments = [unravel(flat) for flat in (learner.opt.mu, learner.opt.nu)]
        begun = jax.tree.map(jnp.ones_like, learner.params)
        windows = jnp.maximum(growing.windows, 1).astype(jnp.float32)
        activity = jax.tree.map(lambda x: x / windows, growing.activity)
        told = Told(score, activity, self._weights(moments[0]))
        decided = growth.step(config, graph, growing.growth, learner.memory, told, key)
        mu, nu, kept = (ravel_pytree(self._masked(tree, decided.kept))[0] for tree in (*moments, begun))
        count = jnp.where(kept > 0, learner.opt.count, jnp.int32(0))
        fresh = self._init_growing()
        after = learner.replace(
            params={**learner.params, **self.params_of(decided.graph)},
            opt=learner.opt._replace(count=count, mu=mu, nu=nu),
            topology=decided.graph.topology,
            memory=decided.memory,
            growing=fresh.replace(growth=decided.growth),
        )
        return after, decided.grew

    def _init_growing(self) -> Any:
        if self.config.growth is None:
            return ()
        n = self.capacity.neurons
        nothing = jnp.zeros((n,), jnp.float32)
        activity = Activity(nothing, nothing, jnp.zeros((n, n), jnp.float32))
        return Growing(growth.init(self.config.growth, self.capacity), activity, jnp.int32(0))

    def _watched(self, learner: GraphLearner, trace: Trace) -> Any:
        if self.config.growth is None:
            return ()
        growing = learner.growing
        summed = jax.tree.map(lambda total, seen: total + seen.mean(axis=0), growing.activity, trace.activity)
        return growing.replace(activity=summed, windows=growing.windows + 1)

    def _masked(self, tree: dict[str, jax.Array], untouched: Weights) -> dict[str, jax.Array]:
        """What stands beside the parameters, with zeros beside those that an edit has touched."""
        masks = {"edges": untouched.edges, "bias": untouched.bias, "gates": untouched.gates}
        return {k: jnp.where(masks[k], x, jnp.float32(0.0)) if k in masks else x for k, x in tree.items()}

    # -- collecting ----------------------------------------------------------------------------------------

    def _collect(self, learner: GraphLearner, key: jax.Array) -> tuple[GraphLearner, Trace, EpisodeSums]:
        """`n_steps` steps of every environment: the learner with environments and memories moved on, the trace."""
        keys = jax.random.split(key, 1 + self.config.n_steps)
        graph = self.graph_of(learner.params, learner.topology)
        kind = Categorical if self._discrete else DiagonalGaussian
        tail = () if self._discrete else (self.env.action_dim,)
        noise = kind.noise(keys[0], (self.config.n_steps, self.config.n_envs, *tail))

        def one_step(state: tuple[Any, ...], xs: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, ...], Trace]:
            env_state, obs, memory = state
            noise_t, key_step = xs
            normalized = self._normalize(learner.obs_moments, obs)
            outputs, after, values = step(graph, memory, normalized)
            activity: Any = ()
            if self.config.growth:
                product = values.T @ values / jnp.float32(values.shape[0])
                activity = Activity(values.mean(axis=0), jnp.abs(values).mean(axis=0), product)
            dist = self._distribution(outputs, learner.params, normalized)
            action = dist.sample(noise_t)
            env_state, out = self.env.step(key_step, env_state, action)
            row = Rollout(obs, action, dist.log_prob(action), out.reward, out.terminated, out.truncated, out.final_obs)
            return (env_state, out.obs, forgotten(after, out.done)), Trace(row, outputs[..., -1], memory, activity)

        start = (learner.env_state, learner.obs, learner.memory)
        (env_state, obs, memory), trace = jax.lax.scan(one_step, start, (noise, keys[1:]))
        env_state, episodes = self.env.drain(env_state)
        return learner.replace(env_state=env_state, obs=obs, memory=memory), trace, episodes

    def _sequences(
        self, learner: GraphLearner, after: GraphLearner, trace: Trace, rewards: jax.Array, hyper: Hyperparams
    ) -> Sequences:
        """The window in sequences, with advantages and targets."""
        rollout, graph = trace.rollout, self.graph_of(learner.params, learner.topology)
        done = rollout.terminated | rollout.truncated
        last, _, _ = step(graph, after.memory, self._normalize(learner.obs_moments, after.obs))
        next_values = returns.next_values(trace.value, last[..., -1], done, self._final_values(learner, trace))
        advantages, targets = returns.gae(
            rewards, trace.value, next_values, rollout.terminated, done, hyper["gamma"], hyper["gae_lambda"]
        )
        obs = self._normalize(learner.obs_moments, rollout.obs)
        rows = Batch(obs, rollout.action, rollout.log_prob, trace.value, advantages, targets)
        starts = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])  # a memory that is kept is wiped already
        rows, starts, memory = jax.tree.map(partial(cut, self.config), (rows, starts, trace.memory))
        return Sequences(rows, starts, jax.tree.map(lambda x: x[:, 0], memory))

    def _final_values(self, learner: GraphLearner, trace: Trace) -> jax.Array:
        """V(final observation) [T, N] where an episode was truncated, 0 elsewhere.

        What was remembered then is what a step from the memory before gives.
        """
        rollout, graph = trace.rollout, self.graph_of(learner.params, learner.topology)
        rows = rollout.truncated.size
        flat = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), (rollout.obs, rollout.final_obs, trace.memory))

        def value(index: jax.Array) -> jax.Array:
            obs, final, memory = jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="fill", fill_value=0), flat)
            _, memory, _ = step(graph, memory, self._normalize(learner.obs_moments, obs))
            return step(graph, memory, self._normalize(learner.obs_moments, final))[0][..., -1]

        return self._at_truncations(rollout.truncated, value)

    # -- learning ------------------------------------------------------------------------------------------

    def _update(
        self, learner: GraphLearner, sequences: Sequences, hyper: Hyperparams, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """`n_epochs` passes over the window in shuffled minibatches of whole sequences."""
        config, hyper = self.config, self._annealed(learner, hyper)

        def loss(params: Any, drawn: Sequences, hyper: Hyperparams) -> tuple[jax.Array, dict[str, jax.Array]]:
            return self._loss(params, learner.topology, drawn, hyper)

        return descend_over(minibatches(config, key), sequences, learner.params, learner.opt, loss, hyper)

    def _loss(
        self, params: Any, topology: Topology, drawn: Sequences, hyper: Hyperparams
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of a minibatch of M sequences."""
        graph = self.graph_of(params, topology)
        rows, starts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (drawn.rows, drawn.starts))  # [L, M, ...]

        def one_step(memory: Memory, xs: tuple[jax.Array, jax.Array]) -> tuple[Memory, jax.Array]:
            obs, start = xs
            memory = forgotten(memory, start)
            out, memory, _ = step(graph, memory, obs, through_delays=self.config.through_delays)
            return memory, out

        if self.config.sequence_length == 1:  # the memory before is the one that was there
            out = step(graph, drawn.memory, rows.obs[0])[0][None]
        else:
            _, out = jax.lax.scan(one_step, drawn.memory, (rows.obs, starts))
        dist = self._distribution(out, params, rows.obs)
        return clipped_loss(dist, out[..., -1], rows, hyper, self.config.normalize_advantages, self.config.clip_value)
