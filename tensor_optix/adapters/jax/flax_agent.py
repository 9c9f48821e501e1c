"""Any flax.nnx policy network as a host agent: REINFORCE, or a loss of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tensor_optix.adapters.jax.flax_base import FlaxBase
from tensor_optix.adapters.jax.modules import ModuleNetwork, bucket, jit, padded
from tensor_optix.algorithms.host_ppo import explained_variance
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.core.window_returns import discounted_returns
from tensor_optix.loop import runtime
from tensor_optix.networks.distributions import Categorical

_RATE, _GAMMA, _NO_LIMIT = 3e-4, 0.99, float("inf")
# Where each makes sense, both ends included.
_LIMITS = {"learning_rate": (0.0, 1.0), "gamma": (0.0, 1.0), "max_grad_norm": (1e-6, _NO_LIMIT)}


class RatedOptimizer:
    """An optax optimiser whose learning rate is an argument of each step. Its state never holds a built object.

    Args:
        given: learning_rate -> optimiser; or `optax.inject_hyperparams(...)(...)`, whose learning rate is set; or any
            other optimiser, whose steps are scaled by the rate asked for over `built_with`.
        built_with: the learning rate that the hyperparameters named at the start, if they did.
    """

    def __init__(self, given: Any, built_with: float | None) -> None:
        given = getattr(given, "tx", given)  # an nnx.Optimizer
        self._factory: Callable[[Any], Any] | None = None
        self._fixed: Any = None
        if isinstance(given, optax.GradientTransformation):
            self._fixed = given
        elif callable(given):
            self._factory = given
        else:
            raise TypeError(
                f"optimizer must be an optax optimiser or a function learning_rate -> optimiser, got {given!r}: give "
                "optax.adam, for example"
            )
        if self._fixed is not None and built_with == 0.0:
            raise ValueError("learning_rate 0 cannot be what the optimizer was built with: give it as a function")
        self._built_with = built_with

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        with jax.numpy_dtype_promotion("standard"):
            return self._at(jnp.float32(self._built_with or _RATE)).init(params)

    def rate(self, opt: Any) -> float | None:
        """The learning rate where the hyperparameters do not name one; None if it cannot be known."""
        if self._factory is not None:
            return _RATE
        return float(opt.hyperparams["learning_rate"]) if self._injected(opt) else None

    def step(self, grads: Any, opt: Any, params: Any, rate: jax.Array) -> tuple[Any, Any]:
        """Parameters and state after one step; `rate` [] float32, traced."""
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer count with floats
            if self._injected(opt):
                opt = opt._replace(hyperparams={**opt.hyperparams, "learning_rate": rate})
            updates, opt = self._at(rate).update(grads, opt, params)
            if self._built_with and self._fixed is not None and not self._injected(opt):
                share = rate / jnp.float32(self._built_with)
                updates = jax.tree.map(lambda x: x * share.astype(x.dtype), updates)
            return optax.apply_updates(params, updates), opt

    def _at(self, rate: jax.Array) -> Any:
        return self._fixed if self._factory is None else self._factory(rate)

    def _injected(self, opt: Any) -> bool:
        return self._fixed is not None and "learning_rate" in getattr(opt, "hyperparams", ())


class FlaxAgent(FlaxBase):
    """A policy network that gives logits [N, A] for observations [N, ...], trained by policy gradient.

    `act` samples, `act_deterministic` takes the likeliest action. The loss is REINFORCE (Williams 1992): minus the mean
    of log-probability times return to go, which stops where an episode or an environment's rows end; with `data.values`
    the advantage, return minus value, takes the return's place. Either is normalised over the window.

    Args:
        model: nnx.Module. It is read once: what is learned is in the agent, and `agent.model` shows it.
        optimizer: function learning_rate -> optax optimiser, such as optax.adam, or an optax optimiser. With the latter
            the learning rate that `hyperparams` names at the start counts as the one it was built with, and others
            scale its steps; where none is named it cannot be changed later.
        hyperparams: learning_rate (3e-4), gamma (0.99), max_grad_norm (global norm of the gradient; no limit); other
            names are kept.
        compute_loss_fn: (model, EpisodeData) -> scalar loss, instead. It runs uncompiled, so it may do anything that
            jax can differentiate.
        seed: of acting.

    `learn` returns loss, grad_norm (before the limit), baseline_type ("none" or "value") and explained_variance of
    the returns by the values (0 without).
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: Any,
        hyperparams: HyperparamSet,
        compute_loss_fn: Callable[[Any, EpisodeData], Any] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        runtime.start()
        _check(hyperparams.params)
        self._network, self._compute_loss_fn = ModuleNetwork(model), compute_loss_fn
        self._optimizer = RatedOptimizer(optimizer, hyperparams.params.get("learning_rate"))
        params = self._network.init()
        opt = jax.tree.map(jnp.array, self._optimizer.init(params))  # some optimisers hold the parameters themselves
        self._default_rate = self._optimizer.rate(opt)
        self._rate_is_free = self._default_rate is not None or "learning_rate" in hyperparams.params
        super().__init__(params, opt, hyperparams, self._completed, seed, {})
        logits = self._network.apply
        self._sample = jit(lambda params, obs, noise: Categorical(logits(params, obs)).sample(noise))
        self._mode = jit(lambda params, obs: Categorical(logits(params, obs)).mode())
        self._probs = jit(lambda params, obs: jax.nn.softmax(logits(params, obs)))
        self._reinforce = jit(self._reinforced, donate_argnums=(0, 1))
        self._apply = jit(self._applied, donate_argnums=(0, 1))

    @property
    def model(self) -> Any:
        """A module with the present weights."""
        return self._network.module(jax.tree.map(jnp.array, self._present()))

    # -- acting --------------------------------------------------------------------------------------------

    def act(self, observation: Any) -> int:
        return int(self.act_batch(np.asarray(observation)[None])[0])

    def act_batch(self, observations: Any) -> np.ndarray:
        """Sampled actions int32 [N] for observations [N, ...]."""
        batch = self._prepared(observations)
        return np.asarray(self._sample(self._present(), batch, self._rng.random(len(batch), np.float32)))

    def act_deterministic(self, observation: Any) -> int:
        """The likeliest action; no random number is used."""
        return int(self.act_batch_deterministic(np.asarray(observation)[None])[0])

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """The likeliest actions int32 [N]."""
        return np.asarray(self._mode(self._present(), self._prepared(observations)))

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [A] for one observation."""
        return np.asarray(self._probs(self._present(), self._prepared(np.asarray(observation)[None])))[0]

    # -- learning ------------------------------------------------------------------------------------------

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        if not len(episode_data.rewards):
            return {}
        params = self._hyperparams.params
        rate = np.float32(params.get("learning_rate", _RATE))
        limit = np.float32(params.get("max_grad_norm", _NO_LIMIT))
        returns = discounted_returns(episode_data, params["gamma"])
        values = None if episode_data.values is None else np.asarray(episode_data.values, np.float64).reshape(-1)
        if self._compute_loss_fn is None:
            weights = _normalized(returns if values is None else returns - values)
            loss, norm = self._learn_rows(episode_data, weights, rate, limit)
        else:
            loss, grads = self._user_loss(episode_data)
            self._params, self._opt, norm = self._apply(self._params, self._opt, grads, rate, limit)
        return {
            "loss": float(loss),
            "grad_norm": float(norm),
            "baseline_type": "none" if values is None else "value",
            "explained_variance": 0.0 if values is None else explained_variance(values, returns),
        }

    def _learn_rows(self, data: EpisodeData, weights: np.ndarray, rate: np.float32, limit: np.float32) -> Any:
        obs, count = self._prepared(data.observations), len(weights)
        actions = np.asarray(data.actions).reshape(count).astype(np.int32)
        size = bucket(count)
        rows = (padded(obs, size), padded(actions, size), padded(weights.astype(np.float32), size))
        self._params, self._opt, loss, norm = self._reinforce(
            self._present(), self._opt, *rows, np.float32(count), rate, limit
        )
        return jax.device_get((loss, norm))

    def _user_loss(self, data: EpisodeData) -> Any:
        def loss_of(params: Any) -> jax.Array:
            loss = jnp.asarray(self._compute_loss_fn(self._network.module(params), data))  # type: ignore[misc]
            if loss.shape != ():
                raise ValueError(
                    f"compute_loss_fn must return a scalar, got an array {list(loss.shape)}: take its mean"
                )
            return loss

        return jax.value_and_grad(loss_of)(self._present())

    def _reinforced(
        self,
        params: Any,
        opt: Any,
        obs: jax.Array,
        actions: jax.Array,
        weights: jax.Array,
        count: jax.Array,
        rate: jax.Array,
        limit: jax.Array,
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        """One step on rows [B, ...], of which the first `count` are real: the others have weight 0."""

        def loss_of(params: Any) -> jax.Array:
            chosen = Categorical(self._network.apply(params, obs)).log_prob(actions)
            return -jnp.sum(chosen * weights) / count

        loss, grads = jax.value_and_grad(loss_of)(params)
        params, opt, norm = self._applied(params, opt, grads, rate, limit)
        return params, opt, loss, norm

    def _applied(
        self, params: Any, opt: Any, grads: Any, rate: jax.Array, limit: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        norm = optax.tree.norm(grads)
        grads, _ = optax.clip_by_global_norm(limit).update(grads, optax.EmptyState())
        params, opt = self._optimizer.step(grads, opt, params, rate)
        return params, opt, norm

    def _completed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`params` over the defaults. TypeError or ValueError for a bad value."""
        rate = {} if self._default_rate is None else {"learning_rate": self._default_rate}
        _check(params)
        if "learning_rate" in params and not self._rate_is_free:
            raise ValueError(
                "the learning rate of a built optimiser that was given without one cannot be changed: give the "
                "optimizer as a function, such as optax.adam"
            )
        result = {**rate, "gamma": _GAMMA, **params}
        return result | {name: float(result[name]) for name in _LIMITS.keys() & result.keys()}


def _check(params: Mapping[str, Any]) -> None:
    for name in _LIMITS.keys() & params.keys():
        value, (low, high) = params[name], _LIMITS[name]
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")


def _normalized(x: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1; one row alone stays as it is."""
    return x if len(x) < 2 else (x - x.mean()) / (x.std() + 1e-8)
