"""Graphs of neurons: dense matrices against lists of edges, many different graphs at once, act and learn.

layouts     one graph of N neurons with five edges a neuron, 64 observations: forward, and forward with gradient;
            dense (what the library does) against a list of edges (gather, sum by target), same sweeps
many        1000 different graphs of 30 neurons and 144 edges on 32 observations each: forwards a second, against
            the same list of edges, against a node after the other in topological order (how NEAT libraries
            evaluate: each node gathers what comes in), and against as many dense layers of the same size
learning    graph PPO on CartPole, steps a second of acting and learning, 1 and 16 members, 16 and 64 hidden

python -m benchmarks.graphs --json
"""

from __future__ import annotations

import os

os.environ.setdefault("NPROC", "8")  # XLA's CPU client can hang when its thread pool has two threads

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._report import Row, arguments, emit, median_ratio, parse
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Graph, Role, Topology, Weights, fresh_memory
from tensor_optix.neuroevo.graph.forward import step

LEVELS = 4


def random_graph(rng: np.random.Generator, capacity: Capacity, n_edges: int) -> Graph:
    """A random acyclic graph: hidden neurons in LEVELS - 1 layers, edges from any earlier layer to any later one."""
    n, first = capacity.neurons, capacity.first_hidden
    layer = np.zeros(n, int)
    layer[capacity.inputs : first] = LEVELS
    layer[first:] = rng.integers(1, LEVELS, n - first)
    allowed = layer[:, None] > layer[None, :]
    chosen = rng.choice(np.flatnonzero(allowed), min(n_edges, int(allowed.sum())), replace=False)
    edges = np.zeros((1 + capacity.delays, n, n), bool)
    edges[0].flat[chosen] = True
    role = np.full(n, Role.HIDDEN, np.int8)
    role[: capacity.inputs], role[capacity.inputs : first] = Role.INPUT, Role.OUTPUT
    activation = np.where(role == Role.HIDDEN, Activation.TANH, Activation.LINEAR).astype(np.int8)
    nothing = np.zeros(n, np.int8)
    weights = Weights(
        np.where(edges, rng.normal(size=edges.shape), 0).astype(np.float32),
        np.where(role > Role.INPUT, rng.normal(size=n), 0).astype(np.float32),
        np.zeros((n, 12), np.float32),
    )
    return jax.tree.map(jnp.asarray, Graph(Topology(role, nothing, activation, nothing, edges), weights, capacity))


def dense(graph: Graph, obs: jax.Array) -> jax.Array:
    """Outputs [B, O] for obs [B, I]."""
    return step(graph, fresh_memory(graph.capacity, obs.shape[:1]), obs)[0]


def edge_list(graph: Graph) -> dict[str, np.ndarray]:
    """The edges of delay 0 one after the other: from, to, weight."""
    dst, src = np.nonzero(np.asarray(graph.topology.edges[0]))
    return {"src": src, "dst": dst, "weight": np.asarray(graph.weights.edges[0])[dst, src]}


def listed(graph: Graph, edges: Any, weights: jax.Array, obs: jax.Array) -> jax.Array:
    """The same by a list of edges: LEVELS sweeps of a gather and a sum by target."""
    n_in, n = graph.capacity.inputs, graph.capacity.neurons
    linear = graph.topology.activation == int(Activation.LINEAR)

    def one(obs: jax.Array) -> jax.Array:
        values = jnp.zeros(n).at[:n_in].set(obs)
        for _ in range(LEVELS):
            x = graph.weights.bias.at[edges["dst"]].add(weights * values[edges["src"]])
            values = jnp.where(linear, x, jnp.tanh(x)).at[:n_in].set(obs)
        return values[n_in : n_in + graph.capacity.outputs]

    return jax.vmap(one)(obs)


def in_order(graph: Graph, order: jax.Array, obs: jax.Array) -> jax.Array:
    """The same, one neuron after the other in topological order, each gathering all that comes in."""
    n_in, n = graph.capacity.inputs, graph.capacity.neurons
    linear = graph.topology.activation == int(Activation.LINEAR)

    def one(obs: jax.Array) -> jax.Array:
        def node(i: jax.Array, values: jax.Array) -> jax.Array:
            slot = order[i]
            row = jnp.where(graph.topology.edges[0, slot], graph.weights.edges[0, slot], 0.0)
            x = graph.weights.bias[slot] + (row * values).sum()
            return values.at[slot].set(jnp.where(slot < n_in, values[slot], jnp.where(linear[slot], x, jnp.tanh(x))))

        values = jax.lax.fori_loop(0, n, node, jnp.zeros(n).at[:n_in].set(obs))
        return values[n_in : n_in + graph.capacity.outputs]

    return jax.vmap(one)(obs)


def seconds(call: Callable[[], Any], least: float = 0.3) -> float:
    """Of one call, compiled before; the mean over at least so many seconds."""
    jax.block_until_ready(call())
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < least or count < 3:
        jax.block_until_ready(call())
        count += 1
    return (time.perf_counter() - started) / count


def layouts(sizes: list[int], rounds: int) -> list[Row]:
    rows = []
    for size in sizes:
        rng = np.random.default_rng(0)
        capacity = Capacity(8, 4, size - 12, delays=0, levels=LEVELS, activations=(Activation.LINEAR, Activation.TANH))
        graph = random_graph(rng, capacity, 5 * size)
        edges = jax.tree.map(jnp.asarray, edge_list(graph))
        obs = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
        np.testing.assert_allclose(dense(graph, obs), listed(graph, edges, edges["weight"], obs), rtol=1e-3, atol=1e-4)

        def with_matrix(matrix: jax.Array, graph: Graph = graph, obs: jax.Array = obs) -> jax.Array:
            return dense(graph.replace(weights=graph.weights.replace(edges=matrix)), obs).sum()

        def with_list(weights: jax.Array, graph: Graph = graph, edges: Any = edges, obs: jax.Array = obs) -> jax.Array:
            return listed(graph, edges, weights, obs).sum()

        for name, wrap in (("forward", lambda f: f), ("forward and gradient", jax.value_and_grad)):
            a, b = jax.jit(wrap(with_matrix)), jax.jit(wrap(with_list))
            pair = median_ratio(
                lambda a=a, g=graph: seconds(lambda: a(g.weights.edges)),
                lambda b=b, e=edges: seconds(lambda: b(e["weight"])),
                rounds,
            )
            title = f"{size} neurons, {int(edges['src'].size)} edges, {name}: dense, against a list of edges"
            rows.append(Row(title, pair.a * 1e6, "us", pair.b * 1e6, pair.ratio))
    return rows


def many(count: int, rounds: int) -> list[Row]:
    capacity = Capacity(4, 3, 23, delays=0, levels=LEVELS, activations=(Activation.LINEAR, Activation.TANH))
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, capacity, 144) for _ in range(count)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *graphs)
    obs = jnp.asarray(rng.normal(size=(count, 32, 4)), jnp.float32)
    lists = [edge_list(graph) for graph in graphs]
    lists = {name: jnp.asarray(np.stack([one[name] for one in lists])) for name in lists[0]}
    depth = [np.asarray(_depth(graph)) for graph in graphs]
    order = jnp.asarray(np.stack([np.argsort(d, kind="stable") for d in depth]))
    layers = [jnp.asarray(rng.normal(size=(count, a, b)), jnp.float32) for a, b in ((4, 23), (23, 3))]

    def fixed(weights: list[jax.Array], obs: jax.Array) -> jax.Array:
        return jnp.tanh(obs @ weights[0]) @ weights[1]

    calls = {
        "dense": (jax.jit(jax.vmap(dense)), (stacked, obs)),
        "a list of edges": (
            jax.jit(jax.vmap(lambda g, e, o: listed(g, e, e["weight"], o))), (stacked, lists, obs),
        ),
        "a node after the other": (jax.jit(jax.vmap(in_order)), (stacked, order, obs)),
        "a fixed dense net 4-23-3": (jax.jit(jax.vmap(fixed)), (layers, obs)),
    }  # fmt: skip
    ours, args = calls.pop("dense")
    rows = []
    for name, (call, given) in calls.items():
        if "fixed" not in name:
            np.testing.assert_allclose(ours(*args), call(*given), rtol=1e-3, atol=1e-3)
        pair = median_ratio(
            lambda: seconds(lambda: ours(*args)), lambda c=call, g=given: seconds(lambda: c(*g)), rounds
        )
        total = count * 32 / 1e6
        title = f"{count} graphs x 32 observations, dense against {name}"
        rows.append(Row(title, total / pair.a, "M forwards/s", total / pair.b, 1 / pair.ratio))
    return rows


def _depth(graph: Graph) -> jax.Array:
    from tensor_optix.neuroevo.graph.levels import levels

    return levels(graph.topology.edges[0], LEVELS, graph.capacity.inputs)[0]


def learning() -> list[Row]:
    import tensor_optix

    rows = []
    for hidden in (16, 64):
        for members in (1, 16):
            result = tensor_optix.train(
                "CartPole-v1", "graph_ppo", seeds=members, total_steps=200_000, stop=False, tune=False, progress=False,
                config={"hidden_sizes": [hidden], "n_envs": 8, "n_steps": 64}, eval_every=20_000, final_episodes=2,
            )  # fmt: skip
            title = f"graph PPO, {hidden} hidden neurons, {members} members: act and learn"
            rows.append(Row(title, result.env_steps_per_s / 1e3, "k steps/s"))
            rows.append(Row(f"{title}: compiling", result.compile_s, "s"))
    return rows


def main() -> None:
    from tensor_optix.loop import runtime

    parser = arguments(__doc__ or "", timeout_s=1800.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--part", nargs="+", default=["layouts", "many", "learning"])
    args = parse(parser)
    runtime.start()
    parts = {
        "layouts": lambda: layouts(args.sizes, args.rounds),
        "many": lambda: many(args.graphs, args.rounds),
        "learning": learning,
    }
    emit("graphs", [row for part in args.part for row in parts[part]()], args.json)


if __name__ == "__main__":
    main()
