"""The one forward pass: acting, learning and recording all go through `step`.

Edges without delay are followed level by level: every sweep computes all neurons from the values of the sweep before,
so that after as many sweeps as there are levels every value is that of its inputs. Sweeps beyond the depth of a graph
change nothing. Neither values nor gradients differ from those of an evaluation in topological order, and all graphs of
a capacity share one program, whatever their edges.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tensor_optix.neuroevo.graph import cells, dale
from tensor_optix.neuroevo.graph.arrays import Graph, Memory, Role


def step(
    graph: Graph, memory: Memory, obs: jax.Array, *, through_delays: bool = False
) -> tuple[jax.Array, Memory, jax.Array]:
    """One step of the graph.

    Args:
        graph: one graph.
        memory: of the step before, [*batch, ...].
        obs: [*batch, I] float32.
        through_delays: let gradients flow back through delayed edges, too. Without it only the memories of trainable
            cells carry any.

    Returns:
        Outputs [*batch, O] float32, the memory after the step, and the values of all neurons [*batch, N].
    """
    matrix = dale.effective(graph)

    def one(memory: Memory, obs: jax.Array) -> tuple[jax.Array, Memory, jax.Array]:
        return _one(graph, matrix, memory, obs, through_delays)

    for _ in obs.shape[:-1]:
        one = jax.vmap(one)
    return one(memory, obs)


def _one(
    graph: Graph, matrix: jax.Array, memory: Memory, obs: jax.Array, through_delays: bool
) -> tuple[jax.Array, Memory, jax.Array]:
    """`step` without batch axes; matrix: the effective weights."""
    capacity, topology, weights = graph.capacity, graph.topology, graph.weights
    n_in = capacity.inputs
    inputs = jnp.where(topology.role[:n_in] == int(Role.INPUT), obs, jnp.float32(0.0))
    past = memory.past if through_delays else jax.lax.stop_gradient(memory.past)  # () without delays
    fixed = weights.bias[n_in:] + matrix[0, n_in:, :n_in] @ inputs
    for d in range(capacity.delays):
        fixed = fixed + matrix[d + 1, n_in:] @ past[d]

    alive = topology.role[n_in:] != int(Role.ABSENT)
    activation = topology.activation[n_in:]
    if capacity.gated:
        # A neuron's own memory: of a trainable cell with its gradient.
        trainable = cells.is_trainable(topology)[n_in:]
        own = memory.past[0, n_in:], memory.cell[n_in:]
        h, c = (jnp.where(trainable, x, jax.lax.stop_gradient(x)) for x in own)

    def neurons(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = cells.activate(capacity, activation, x)
        if not capacity.gated:
            return jnp.where(alive, values, jnp.float32(0.0)), memory.cell
        gated, cell, is_gated = cells.gated(topology.kind[n_in:], weights.gates[n_in:], x, h, c)
        return jnp.where(alive, jnp.where(is_gated, gated, values), jnp.float32(0.0)), cell

    values, cell = neurons(fixed)
    for _ in range(capacity.levels - 1):
        values, cell = neurons(fixed + matrix[0, n_in:, n_in:] @ values)
    if capacity.gated:
        cell = jnp.concatenate([memory.cell[:n_in], cell])
    everything = jnp.concatenate([inputs, values])
    kept = jnp.concatenate([everything[None], memory.past])[: capacity.delays] if capacity.delays else ()
    return values[: capacity.outputs], Memory(kept, cell), everything
