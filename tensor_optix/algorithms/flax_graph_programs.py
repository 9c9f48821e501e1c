"""What a host agent compiles for a graph of neurons: acting, and PPO along the weights of a topology that is data.

Memories are rows [1 + C]: their version (see `neuroevo.routes`), then what the graph remembers. The version is handed
on untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tensor_optix.adapters.jax.modules import jit
from tensor_optix.algorithms.clipped_surrogate import LOSSES, rows_at
from tensor_optix.algorithms.contract import Hyperparams
from tensor_optix.algorithms.recurrent_sequences import Drawn, counted_loss
from tensor_optix.networks.distributions import Categorical, DiagonalGaussian
from tensor_optix.networks.recurrent import forget
from tensor_optix.neuroevo.graph.adam import topology_aware_adam
from tensor_optix.neuroevo.graph.arrays import Memory, forgotten, fresh_memory
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.graph.network import Network, by_regions, lawful, weights_of, whole, with_weights
from tensor_optix.neuroevo.routes import flat, unflat

ADAM_EPS = 1e-5


class GraphPolicy(NamedTuple):
    """What acting needs."""

    network: Network
    log_std: jax.Array  # [A] float32 of continuous actions, else [0]


class Programs(NamedTuple):
    """Compiled functions, each once for each capacity, number of environments and bucket of rows."""

    sample: Callable[..., Any]  # policy, obs [N], memory, starts [N], noise -> actions, memory, `by_regions`
    mode: Callable[..., Any]  # policy, obs [N], memory, starts [N] -> actions, memory
    probs: Callable[..., Any]  # policy, obs [N], memory, starts [N] -> [N, A], memory
    unroll: Callable[..., Any]  # policy, obs [T, N], actions, memory, starts [T, N] -> log-probabilities, values,
    # memories [T, N, 1 + C] before and after each row
    values: Callable[..., Any]  # policy, obs [M], memory [M, 1 + C] -> [M]
    sequence: Callable[..., Any]  # network, obs [T], starts [T] -> outputs [T, O], from nothing remembered
    learn: Callable[..., Any]  # see `_learn`


@functools.lru_cache(maxsize=8)
def programs(discrete: bool, through_delays: bool) -> Programs:
    """Those of a policy over choices or of continuous actions."""

    def distribution(policy: GraphPolicy, out: jax.Array) -> Any:
        logits = out[..., :-1]
        return (
            Categorical(logits)
            if discrete
            else DiagonalGaussian(logits, jnp.broadcast_to(policy.log_std, logits.shape))
        )

    def onward(policy: GraphPolicy, obs: jax.Array, rows: jax.Array, starts: jax.Array) -> tuple[Any, ...]:
        graph, before = whole(policy.network), forget(rows[:, 1:], starts)
        out, memory, values = step(graph, unflat(graph.capacity, before), obs)
        return out, jnp.concatenate([rows[:, :1], flat(memory)], axis=-1), values

    def sample(policy: GraphPolicy, obs: jax.Array, rows: jax.Array, starts: jax.Array, noise: jax.Array) -> Any:
        out, after, values = onward(policy, obs, rows, starts)
        before = unflat(whole(policy.network).capacity, forget(rows[:, 1:], starts))
        return distribution(policy, out).sample(noise), after, by_regions(policy.network, values, before)

    def mode(policy: GraphPolicy, obs: jax.Array, rows: jax.Array, starts: jax.Array) -> Any:
        out, after, _ = onward(policy, obs, rows, starts)
        return distribution(policy, out).mode(), after

    def probs(policy: GraphPolicy, obs: jax.Array, rows: jax.Array, starts: jax.Array) -> Any:
        out, after, _ = onward(policy, obs, rows, starts)
        return jax.nn.softmax(distribution(policy, out).logits), after

    def unroll(policy: GraphPolicy, obs: jax.Array, actions: jax.Array, rows: jax.Array, starts: jax.Array) -> Any:
        def one(before: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
            out, after, _ = onward(policy, xs[0], before, xs[1])
            before = jnp.concatenate([before[:, :1], forget(before[:, 1:], xs[1])], axis=-1)
            return after, (out, before, after)

        _, (out, before, after) = jax.lax.scan(one, rows, (obs, starts))
        return distribution(policy, out).log_prob(actions), out[..., -1], before, after

    def values(policy: GraphPolicy, obs: jax.Array, rows: jax.Array) -> jax.Array:
        return onward(policy, obs, rows, jnp.zeros(len(obs), bool))[0][..., -1]

    def sequence(network: Network, obs: jax.Array, starts: jax.Array) -> jax.Array:
        graph = whole(network)

        def one(memory: Memory, xs: tuple[jax.Array, jax.Array]) -> tuple[Memory, jax.Array]:
            out, memory, _ = step(graph, forgotten(memory, xs[1]), xs[0], through_delays=through_delays)
            return memory, out

        return jax.lax.scan(one, fresh_memory(graph.capacity), (obs, starts))[1]

    return Programs(
        sample=jit(sample),
        mode=jit(mode),
        probs=jit(probs),
        unroll=jit(unroll),
        values=jit(values),
        sequence=jax.jit(sequence),  # may be differentiated, or called in a program of someone's own
        learn=jit(functools.partial(_learn, distribution, through_delays), donate_argnums=(0, 1)),
    )


def _learn(
    distribution: Callable[[GraphPolicy, jax.Array], Any],
    through_delays: bool,
    params: Any,
    opt: Any,
    network: Network,
    drawn: Drawn,
    order: jax.Array,
    n_updates: jax.Array,
    hyper: Hyperparams,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """`n_updates` steps of Adam: parameters (weights, log_std), its state, mean losses.

    Args:
        params: weights as `weights_of` the network gives them, and log_std.
        opt: the state of `topology_aware_adam` for them.
        network: whose topology is kept.
        drawn: sequences; advantages not normalised.
        order: [U, M] int32, the sequences of each minibatch; those from `n_updates` on are not used.
        n_updates: [] int32, at least 1, traced.
        hyper: those of the loss, the learning rate and max_grad_norm.
    """
    adam = topology_aware_adam(hyper["learning_rate"], eps=ADAM_EPS)

    def loss(params: Any, part: Drawn) -> tuple[jax.Array, dict[str, jax.Array]]:
        policy = GraphPolicy(with_weights(network, params[0]), params[1])
        graph = whole(policy.network)
        rows, starts, counts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), part[:3])  # [L, M, ...]

        def one(memory: Memory, xs: tuple[jax.Array, jax.Array]) -> tuple[Memory, jax.Array]:
            out, memory, _ = step(graph, forgotten(memory, xs[1]), xs[0], through_delays=through_delays)
            return memory, out

        memory = unflat(graph.capacity, part.hidden[:, 1:])
        if rows.obs.shape[0] == 1:  # the memory before is wiped already
            out = step(graph, memory, rows.obs[0])[0][None]
        else:
            _, out = jax.lax.scan(one, memory, (rows.obs, starts))
        return counted_loss(lambda out, _: distribution(policy, out), out, out[..., -1], rows, counts, hyper)

    def one_update(i: jax.Array, carry: tuple[Any, Any, dict[str, jax.Array]]) -> tuple[Any, ...]:
        params, opt, sums = carry
        grads, losses = jax.grad(loss, has_aux=True)(params, rows_at(drawn, order[i]))
        size = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        scale = jnp.minimum(jnp.float32(1.0), hyper["max_grad_norm"] / jnp.maximum(size, jnp.float32(1e-12)))
        updates, opt = adam.update(jax.tree.map(lambda g: g * scale, grads), opt, params)
        weights, log_std = jax.tree.map(jnp.add, params, updates)
        weights = weights_of(lawful(with_weights(network, weights)))
        return (weights, log_std), opt, jax.tree.map(jnp.add, sums, losses)

    zeros = dict.fromkeys(LOSSES, jnp.float32(0.0))
    params, opt, sums = jax.lax.fori_loop(0, n_updates, one_update, (params, opt, zeros))
    return params, opt, jax.tree.map(lambda x: x / n_updates.astype(jnp.float32), sums)
