"""Adam for parameters whose meaning may change: each has a step count of its own, and can be told to start anew.

After a topology edit the moments of what was touched belong to something else. They are forgotten, and so is the count
behind the bias correction (Kingma & Ba 2015, algorithm 1): a new weight's first step has the size of a first step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TopologyAwareAdamState(NamedTuple):
    """Beside each parameter, in its shape."""

    count: Any  # float32, steps since it began
    mu: Any  # float32, mean gradient
    nu: Any  # float32, mean squared gradient
    peak: Any  # float32, largest corrected `nu` (AMSGrad); () without


def topology_aware_adam(
    learning_rate: float | jax.Array,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The transformation; `update(grads, state, params, kept=mask)` forgets first where the mask is False.

    Args:
        weight_decay: added to the gradient, as in Adam with L2 regularisation.
        amsgrad: never let the step grow again (Reddi et al. 2018).

    `kept`: bool in the place of every parameter, for example `edits.kept(before, after)`; without it all are kept.
    Where no parameter is (its gradient is 0 and stays 0) nothing moves.

    Raises:
      ValueError: a beta is outside [0, 1), or eps is not positive.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must lie in [0, 1), got {betas}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    b1, b2 = betas

    def init(params: Any) -> TopologyAwareAdamState:
        def zeros() -> Any:
            return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)

        return TopologyAwareAdamState(zeros(), zeros(), zeros(), zeros() if amsgrad else ())

    def update(
        grads: Any, state: TopologyAwareAdamState, params: Any = None, *, kept: Any = None, **_: Any
    ) -> tuple[Any, TopologyAwareAdamState]:
        if kept is not None:
            state = forget(state, kept)
        if weight_decay:
            if params is None:
                raise ValueError("weight_decay needs the parameters: call update(grads, state, params)")
            grads = jax.tree.map(lambda g, p: g + weight_decay * p, grads, params)
        count = jax.tree.map(lambda c: c + 1, state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        second = jax.tree.map(lambda v, c: v / (1 - b2**c), nu, count)
        peak = jax.tree.map(jnp.maximum, state.peak, second) if amsgrad else ()
        updates = jax.tree.map(
            lambda m, c, v: -learning_rate * m / (1 - b1**c) / (jnp.sqrt(v) + eps),
            mu,
            count,
            peak if amsgrad else second,
        )
        return updates, TopologyAwareAdamState(count, mu, nu, peak)

    return optax.GradientTransformationExtraArgs(init, update)


def forget(state: TopologyAwareAdamState, kept: Any) -> TopologyAwareAdamState:
    """The state with nothing known of parameters whose entry in `kept` is False."""

    def only(tree: Any) -> Any:
        return jax.tree.map(lambda x, k: jnp.where(k, x, jnp.float32(0.0)), tree, kept)

    return TopologyAwareAdamState(*(only(part) if part != () else () for part in state))
