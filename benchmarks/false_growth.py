"""How often does a graph grow for nothing, and does it grow where it should? Whole runs of the pure decision.

A run is 200 evaluations (`neuroevo.graph.growth.step`) of a graph whose neurons all get gradients, so that the third
signal always holds; pruning and merging are off. Its scores are N(0, 1) noise around one of these:

    plateau   a constant: there is nothing to grow for
    rising    0.05 more at every evaluation: learning goes on
    falling   0.05 less
    wave      a sine of amplitude 1 and a period of 50 evaluations: structure that the graph does not capture

For "signals" (all three) and "plateau" (the first alone): the share of runs that grow at least once, with its Wilson
95 % interval; growths per 100 evaluations, mean over runs with its normal 95 % interval; and the share of single
evaluations, from the first that may grow on, at which the trigger holds. On a plateau the normal law promises 2.3 % of
those for the autocorrelation alone, which bounds what all three make.

    python -m benchmarks.false_growth --json
"""

from __future__ import annotations

import os

os.environ.setdefault("NPROC", "8")  # XLA's CPU client can hang when its thread pool has two threads

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._report import Row, arguments, emit, parse
from benchmarks.decisions import wilson
from tensor_optix.neuroevo.graph import growth
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Kind, fresh_memory
from tensor_optix.neuroevo.graph.growth import Activity, GrowthConfig, Told
from tensor_optix.neuroevo.graph.wiring import layered

TRIGGERS = ("signals", "plateau")
FAMILIES = ("plateau", "rising", "falling", "wave")
SLOPE, AMPLITUDE, PERIOD = 0.05, 1.0, 50.0  # in standard deviations of the noise; evaluations
BY_CHANCE = 0.0228  # P(z > 2)

# Delayed edges grow: there is room for more of them than a run has evaluations, in a graph of few neurons.
CAPACITY = Capacity(3, 2, 8, delays=2, levels=2, activations=(Activation.LINEAR, Activation.TANH))


def means(evaluations: int) -> dict[str, jax.Array]:
    """Family -> what the scores scatter around, [T] float32."""
    t = jnp.arange(evaluations, dtype=jnp.float32)
    wave = AMPLITUDE * jnp.sin(2 * jnp.pi * t / PERIOD)
    return {"plateau": 0 * t, "rising": SLOPE * t, "falling": -SLOPE * t, "wave": wave}


def run(config: GrowthConfig, scores: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of scores [T]: at which evaluations the graph grew, and at which the trigger held, [T] bool each."""
    graph = layered(CAPACITY, [8], Activation.TANH, Kind.POINT, 0, [1.0] * CAPACITY.outputs, jax.random.key(0))
    busy = jax.tree.map(jnp.ones_like, graph.weights)
    n = CAPACITY.neurons
    activity = Activity(jnp.zeros(n, jnp.float32), jnp.ones(n, jnp.float32), jnp.eye(n, dtype=jnp.float32))

    def evaluation(carry: Any, xs: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        score, i = xs
        told = Told(score, activity, busy)
        decided = growth.step(config, *carry, told, jax.random.fold_in(key, i))
        stands, structured, utilised = growth.signals(config, decided.growth)
        holds = stands if config.grow_trigger == "plateau" else stands & structured & utilised
        return (decided.graph, decided.growth, decided.memory), (decided.grew, holds)

    start = (graph, growth.init(config, CAPACITY), fresh_memory(CAPACITY))
    return jax.lax.scan(evaluation, start, (scores, jnp.arange(scores.shape[0])))[1]


@partial(jax.jit, static_argnums=(0, 1, 2))
def simulate(configs: tuple[GrowthConfig, ...], runs: int, evaluations: int, key: jax.Array) -> Any:
    """Trigger -> family -> `run` of each, [R, T] bool twice. The same noise for every trigger."""
    found: dict[str, dict[str, Any]] = {}
    for config in configs:
        found[config.grow_trigger] = {}
        for i, (family, mean) in enumerate(means(evaluations).items()):
            key_noise, key_runs = jax.random.split(jax.random.fold_in(key, i))
            scores = mean + jax.random.normal(key_noise, (runs, evaluations), jnp.float32)
            results = jax.vmap(partial(run, config))(scores, jax.random.split(key_runs, runs))
            found[config.grow_trigger][family] = results
    return found


def rows_of(name: str, grew: np.ndarray, held: np.ndarray, first: int) -> list[Row]:
    """grew, held: [R, T] bool; first: the evaluation at which growing may begin, from 0."""
    runs, evaluations = grew.shape
    ever = grew.any(axis=1)
    low, high = wilson(int(ever.sum()), runs)
    rows = [Row(f"{name}: grow at least once", f"{ever.mean():.3f} [{low:.3f}, {high:.3f}]", "of runs")]
    often = 100 * grew.mean(axis=1)
    half = 1.96 * often.std() / np.sqrt(runs)
    text = f"{often.mean():.2f} [{often.mean() - half:.2f}, {often.mean() + half:.2f}]"
    rows.append(Row(f"{name}: growths", text, "per 100 evaluations"))
    share = float(held[:, first:].mean()) if first < evaluations else 0.0
    reference = BY_CHANCE if name == "signals, plateau" else None
    rows.append(Row(f"{name}: holds", share, "of evaluations", reference, share / reference if reference else None))
    return rows


def main() -> None:
    default = GrowthConfig()
    parser = arguments(__doc__ or "", timeout_s=1800.0)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--buffer", type=int, default=default.min_score_buffer, help="scores before the first growth")
    parser.add_argument("--cooldown", type=int, default=default.grow_cooldown, help="evaluations between two growths")
    args = parse(parser)
    off: dict[str, Any] = {
        "prune_edge_threshold": 0.0,
        "prune_neuron_threshold": 0.0,
        "merge_similarity_threshold": 2.0,
        "grow_op": "add_edge",
    }
    asked = {"min_score_buffer": args.buffer, "grow_cooldown": args.cooldown}
    configs = tuple(GrowthConfig(**off, **asked, grow_trigger=trigger) for trigger in TRIGGERS)
    found = jax.device_get(simulate(configs, args.runs, args.evaluations, jax.random.key(0)))
    rows = []
    for trigger in TRIGGERS:
        for family in FAMILIES:
            rows += rows_of(f"{trigger}, {family}", *found[trigger][family], args.buffer - 1)
    setting = f"{args.runs} runs of {args.evaluations} evaluations; first growth after {args.buffer}, then every"
    emit("false_growth", rows, args.json, [f"{setting} {args.cooldown} at most"])


if __name__ == "__main__":
    main()
