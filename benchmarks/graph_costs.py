"""What graphs of neurons cost: by neurons, edges, delays and members, and how often anything is compiled.

forward     one step of one graph on 64 observations
learning    one window of graph PPO on CartPole: 512 steps in 8 environments, and four epochs in eight minibatches

neurons     hidden neurons, one layer, all edges; against the fewest
edges       a share of the edges of 128 hidden neurons; against all: arithmetic is dense, so that it should not matter
delays      room for delayed edges, all there within the hidden layer (64 neurons); against none
members     graphs in one call, time per graph; for learning through the driver, time per member; against one
compiled    programs compiled while a graph grows from 4 to 200 hidden neurons, one by one, and all sizes run: at most
            one for each power of two (a NeuronGraph begins at 8), and none when another graph grows as far

Times are medians; each is measured in turns with what it is compared with (that with itself, too: the noise). Compiling
is apart.

    python -m benchmarks.graph_costs --json
"""

from __future__ import annotations

import os

os.environ.setdefault("NPROC", "8")  # XLA's CPU client can hang when its thread pool has two threads

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from benchmarks._report import Row, arguments, emit, median_ratio, parse
from benchmarks.graphs import seconds
from tensor_optix.algorithms.graph_ppo import GraphLearner, GraphPPO
from tensor_optix.algorithms.graph_ppo_config import GraphPPOConfig
from tensor_optix.loop import runtime
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Kind, fresh_memory
from tensor_optix.neuroevo.graph.capacity import grown
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.graph.wiring import layered

ENV = "CartPole-v1"
CONFIG: dict[str, Any] = {"n_envs": 8, "n_steps": 64, "n_epochs": 4, "n_minibatches": 8}
OBSERVATIONS = 64
Calls = dict[str, Callable[[], Any]]  # "forward" and "learning" -> a compiled call


# --- time -------------------------------------------------------------------------------------------------------------


def compiled(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A call of `function` on `args`, compiled as the driver compiles."""
    program = runtime.compile_program(jax.jit(function).lower(*args), jax.default_backend())
    return lambda: program(*args)


def described(**config: Any) -> GraphPPO:
    from tensor_optix import envs

    return GraphPPO(envs.make(ENV), GraphPPOConfig(**(CONFIG | config)))


def calls_of(algorithm: GraphPPO, change: Callable[[GraphLearner], GraphLearner] = lambda learner: learner) -> Calls:
    """Both calls on a fresh learner after `change`."""
    hyper = {name: jnp.float32(value) for name, value in algorithm.hyperparams().items()}
    learner = change(jax.jit(algorithm.init)(jax.random.key(0), hyper))
    graph = algorithm.graph_of(learner.params, learner.topology)
    obs = jax.random.normal(jax.random.key(1), (OBSERVATIONS, algorithm.capacity.inputs), jnp.float32)
    memory = fresh_memory(algorithm.capacity, (OBSERVATIONS,))
    return {
        "forward": compiled(lambda g, m, o: step(g, m, o)[:2], graph, memory, obs),
        "learning": compiled(algorithm.window, learner, hyper, jax.random.key(2)),
    }


def compared(titles: dict[Any, str], calls: dict[Any, Calls], base: Any, rounds: int) -> list[Row]:
    """Each of `calls` against the one at `base`."""
    rows = []
    for what in ("forward", "learning"):
        for at, title in titles.items():
            pair = median_ratio(
                lambda call=calls[at][what]: seconds(call), lambda call=calls[base][what]: seconds(call), rounds
            )
            rows.append(Row(f"{what}: {title}", pair.a * 1e6, "us", pair.b * 1e6, pair.ratio))
    return rows


def neurons(sizes: list[int], rounds: int) -> list[Row]:
    calls = {size: calls_of(described(hidden_sizes=(size,))) for size in sizes}
    return compared({size: f"{size} hidden neurons" for size in sizes}, calls, min(sizes), rounds)


def edges(hidden: int, shares: list[float], rounds: int) -> list[Row]:
    algorithm = described(hidden_sizes=(hidden,))
    titles, calls = {}, {}
    for share in shares:
        counted: list[int] = []

        def thin(learner: GraphLearner, share: float = share, counted: list[int] = counted) -> GraphLearner:
            drawn = jax.random.uniform(jax.random.key(3), learner.topology.edges.shape) < share
            there = learner.topology.edges & drawn
            counted.append(int(there.sum()))
            weights = jnp.where(there, learner.params["edges"], jnp.float32(0.0))
            topology = learner.topology.replace(edges=there)
            return learner.replace(params=learner.params | {"edges": weights}, topology=topology)

        calls[share] = calls_of(algorithm, thin)
        titles[share] = f"{hidden} hidden neurons, {counted[0]} edges"
    return compared(titles, calls, max(shares), rounds)


def delays(hidden: int, longest: list[int], rounds: int) -> list[Row]:
    calls = {d: calls_of(described(hidden_sizes=(hidden,), max_delay=d, feedback=d)) for d in longest}
    return compared({d: f"{hidden} hidden neurons, {d} delays" for d in longest}, calls, min(longest), rounds)


# --- members ----------------------------------------------------------------------------------------------------------


def members(hidden: int, counts: list[int], windows: int, rounds: int) -> list[Row]:
    """Time of one graph, and of one member's steps, among so many."""
    from benchmarks.population import run

    forwards = {count: forward_of(hidden, count) for count in counts}
    sessions = {count: session_of(hidden, count, windows) for count in counts}
    first, rows = min(counts), []
    for count in counts:
        pair = median_ratio(lambda n=count: seconds(forwards[n]) / n, lambda: seconds(forwards[first]) / first, rounds)
        title = f"forward: {count} graphs of {hidden} hidden neurons, each"
        rows.append(Row(title, pair.a * 1e6, "us", pair.b * 1e6, pair.ratio))
    for count in counts:
        pair = median_ratio(
            lambda n=count: run(sessions[n]) / n / windows, lambda: run(sessions[first]) / first / windows, rounds
        )
        title = f"learning: {count} members of {hidden} hidden neurons, a window of each"
        rows.append(Row(title, pair.a * 1e6, "us", pair.b * 1e6, pair.ratio))
    return rows


def forward_of(hidden: int, count: int) -> Callable[[], Any]:
    """One step of `count` graphs, each on observations of its own."""
    algorithm = described(hidden_sizes=(hidden,))
    hyper = {name: jnp.float32(value) for name, value in algorithm.hyperparams().items()}
    learners = jax.jit(jax.vmap(algorithm.init, in_axes=(0, None)))(jax.random.split(jax.random.key(0), count), hyper)
    graphs = jax.vmap(algorithm.graph_of)(learners.params, learners.topology)
    obs = jax.random.normal(jax.random.key(1), (count, OBSERVATIONS, algorithm.capacity.inputs), jnp.float32)
    memory = fresh_memory(algorithm.capacity, (count, OBSERVATIONS))
    return compiled(jax.vmap(lambda g, m, o: step(g, m, o)[:2]), graphs, memory, obs)


def session_of(hidden: int, count: int, windows: int) -> Any:
    """The driver with so many members, evaluated once, at the end. It has run before."""
    from benchmarks.population import run
    from tensor_optix import RunConfig
    from tensor_optix.loop.session import Session, default_block
    from tensor_optix.plan import make_plan

    steps = windows * CONFIG["n_envs"] * CONFIG["n_steps"]
    config = CONFIG | {"hidden_sizes": [hidden]}
    plan = make_plan(
        RunConfig(
            env=ENV, algorithm="graph_ppo", seeds=count, total_steps=steps, eval_every=steps, eval_episodes=1,
            stop=False, tune=False, config=config,
        )
    )  # fmt: skip
    block = default_block(jax.default_backend())
    session = Session(
        plan.program, plan.members, devices=jax.local_devices(), block=block, max_windows=plan.max_windows
    )
    run(session)  # compiled, and warm
    return session


# --- compilations -----------------------------------------------------------------------------------------------------


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that XLA compiles meanwhile."""
    names: list[str] = []
    listening = [True]

    def heard(event: str, duration: float, **about: Any) -> None:
        if listening and event == "/jax/core/compile/backend_compile_duration":
            names.append(str(about.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield names
    finally:
        listening.clear()  # a listener cannot be taken back


def compiled_while_growing(smallest: int, largest: int) -> list[Row]:
    """Programs, against as many as there are powers of two among the sizes, and against none."""
    rows, powers = [], len({(hidden - 1).bit_length() for hidden in range(smallest, largest + 1)})
    for which, most in (("a graph", powers), ("another graph", 0)):
        with compilations() as names:
            growing(smallest, largest)
        found = sum("_forward" in name for name in names)
        title = f"NeuronGraph.forward: {which} grows from {smallest} to {largest} hidden neurons, one by one"
        rows.append(Row(title, found, "programs", most, found / most if most else None))
        rows.append(Row(f"{title}: with all edits", len(names), "programs"))

    run, start = jax.jit(step), Capacity(4, 3, smallest, levels=2, activations=(Activation.LINEAR, Activation.TANH))
    for which, most in (("graphs", powers), ("the same again, graphs", 0)):
        with compilations() as names:
            for hidden in range(smallest, largest + 1):
                capacity = grown(start, hidden=hidden)
                gains = [1.0] * capacity.outputs
                graph = layered(capacity, [hidden], Activation.TANH, Kind.POINT, 1, gains, jax.random.key(hidden))
                run(graph, fresh_memory(capacity), jnp.ones(capacity.inputs, jnp.float32))
        found = sum("step" in name for name in names)
        title = f"step: {which} of {smallest} to {largest} hidden neurons"
        rows.append(Row(title, found, "programs", most, found / most if most else None))
    return rows


def growing(smallest: int, largest: int) -> None:
    """Runs a `NeuronGraph` at every size."""
    from tensor_optix.neuroevo.neuron_graph import NeuronGraph
    from tensor_optix.neuroevo.operations import split_neuron

    graph, rng = NeuronGraph(), np.random.default_rng(0)
    inputs = [graph.add_neuron("input") for _ in range(4)]
    outputs = [graph.add_neuron("output", "linear") for _ in range(3)]
    for _ in range(smallest):
        hidden = graph.add_neuron()
        for src, dst in [(i, hidden) for i in inputs] + [(hidden, o) for o in outputs]:
            graph.add_edge(src, dst, float(rng.normal()))
    graph.reset_state()
    obs = np.ones(4, np.float32)
    graph.forward(obs)
    while len(graph.hidden_ids) < largest:
        split_neuron(graph, graph.hidden_ids[int(rng.integers(len(graph.hidden_ids)))], share=0.6)
        graph.forward(obs)


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.1, 0.5, 1.0])
    parser.add_argument("--edges-at", type=int, default=128, help="hidden neurons whose edges are thinned out")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--delays-at", type=int, default=64)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--members-at", type=int, default=16)
    parser.add_argument("--windows", type=int, default=40, help="of each member")
    parser.add_argument("--largest", type=int, default=200, help="hidden neurons that a graph grows to")
    parser.add_argument("--part", nargs="+", default=["neurons", "edges", "delays", "members", "compiled"])
    args = parse(parser)
    runtime.start()
    parts = {
        "neurons": lambda: neurons(args.sizes, args.rounds),
        "edges": lambda: edges(args.edges_at, args.shares, args.rounds),
        "delays": lambda: delays(args.delays_at, args.delays, args.rounds),
        "members": lambda: members(args.members_at, args.members, args.windows, args.rounds),
        "compiled": lambda: compiled_while_growing(4, args.largest),
    }
    emit("graph_costs", [row for part in args.part for row in parts[part]()], args.json)


if __name__ == "__main__":
    main()
