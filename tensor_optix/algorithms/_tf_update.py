"""The TensorFlow side of learning: log-probabilities, and a window's whole update as one compiled call.

Row counts are unknown to the compiled functions and hyperparameters are arguments, so each is traced once for an agent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tensor_optix.algorithms.host_actions import LOG_STD_RANGE, Categorical, Gaussian

LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl")
COEFFICIENTS = ("clip_ratio", "vf_coef", "entropy_coef", "max_grad_norm")

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Forward:
    """A compiled network: float32 [N, *obs] in, float32 out. Networks never run in training mode.

    Raises ValueError for a network whose output is not [N, n_outputs], `n_outputs` being any number if None.
    """

    def __init__(self, name: str, network: Any, obs_shape: tuple[int, ...], n_outputs: int | None, why: str) -> None:
        self._network = network
        spec = tf.TensorSpec([None, *obs_shape], tf.float32)
        self.function = tf.function(self.trace, input_signature=[spec], autograph=False)
        self._call = self.function.get_concrete_function()  # calling it saves a third of the time of a small network
        shape = self._call.output_shapes
        if shape.rank != 2 or shape[1] is None or (n_outputs is not None and shape[1] != n_outputs):
            wanted = "A" if n_outputs is None else n_outputs
            raise ValueError(f"{name} must give [N, {wanted}] ({why}), got {list(shape)}: change its last layer")
        self.n_outputs = int(shape[1])

    def trace(self, x: Any) -> Any:
        return tf.cast(self._network(x, training=False), tf.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._call(tf.constant(x, tf.float32)).numpy()


def log_prob_and_entropy(distribution: Categorical | Gaussian, outputs: Any, targets: Any) -> tuple[Any, Any]:
    """[N] each, of `distribution.targets(...)`.

    Of a Gaussian these are densities in unit range. With squash, log p(u) = log p(z) - sum 2 (log 2 - z - softplus(-2
    z)) for u = tanh(z), and the entropy is that of z: that of u has no closed form.
    """
    if isinstance(distribution, Categorical):
        log_probs = tf.nn.log_softmax(outputs)
        # An action that is ruled out (logit -inf) adds 0 to the entropy, not 0 * -inf.
        entropy = -tf.reduce_sum(tf.exp(log_probs) * tf.maximum(log_probs, log_probs.dtype.min), axis=-1)
        return tf.gather(log_probs, targets, batch_dims=1), entropy
    mean, log_std = tf.split(outputs, 2, axis=-1)
    log_std = tf.clip_by_value(log_std, *LOG_STD_RANGE)
    deviation = (targets - mean) * tf.exp(-log_std)
    log_prob = tf.reduce_sum(-0.5 * tf.square(deviation) - log_std - _HALF_LOG_2PI, axis=-1)
    if distribution.squash:
        log_prob -= tf.reduce_sum(2.0 * (math.log(2.0) - targets - tf.nn.softplus(-2.0 * targets)), axis=-1)
    return log_prob, tf.reduce_sum(log_std + 0.5 + _HALF_LOG_2PI, axis=-1)


def normalized(x: Any) -> Any:
    """Mean 0, standard deviation 1; a single number stays as it is."""
    scaled = (x - tf.reduce_mean(x)) / (tf.math.reduce_std(x) + 1e-8)
    return tf.where(tf.size(x) > 1, scaled, x)


class PPOGraph:
    """What a PPO agent calls: `actor` and `critic` forward, and `update`."""

    def __init__(
        self,
        actor: Any,
        critic: Any,
        optimizer: Any,
        variables: Sequence[Any],
        distribution: Categorical | Gaussian,
        obs_shape: tuple[int, ...],
    ) -> None:
        discrete = isinstance(distribution, Categorical)
        width = None if isinstance(distribution, Categorical) else 2 * distribution.action_dim
        why = "a logit for each action" if discrete else "mean and log_std of each of the action's numbers"
        self.actor = Forward("actor", actor, obs_shape, width, why)
        self.critic = Forward("critic", critic, obs_shape, 1, "the value")
        self._optimizer, self._variables, self._distribution = optimizer, list(variables), distribution
        rows = tf.TensorSpec([None], tf.float32)
        integers = tf.TensorSpec([None], tf.int32)
        targets = integers if width is None else tf.TensorSpec([None, width // 2], tf.float32)
        signature = [
            tf.TensorSpec([None, *obs_shape], tf.float32), targets, rows, tf.TensorSpec([], tf.bool), rows, rows,
            integers, integers, tf.TensorSpec([len(COEFFICIENTS)], tf.float32),
        ]  # fmt: skip
        self.update = tf.function(self._update, input_signature=signature, autograph=False)

    def _update(
        self,
        obs: Any,
        targets: Any,
        log_probs: Any,
        given: Any,
        advantages: Any,
        returns: Any,
        order: Any,
        starts: Any,
        coefficients: Any,
    ) -> Any:
        """Minibatch i is rows order[starts[i]:starts[i + 1]]. Returns the mean over minibatches of each of `LOSSES`.

        `log_probs` are the behaviour policy's if `given`, else the present policy's are computed here.
        """

        def present() -> Any:
            return log_prob_and_entropy(self._distribution, self.actor.trace(obs), targets)[0]

        window = (obs, targets, tf.cond(given, lambda: log_probs, present), advantages, returns)
        count = tf.size(starts) - 1

        def step(i: Any, sums: Any) -> tuple[Any, Any]:
            index = order[starts[i] : starts[i + 1]]
            return i + 1, sums + self._step([tf.gather(x, index) for x in window], coefficients)

        _, sums = tf.while_loop(lambda i, _: i < count, step, (0, tf.zeros(len(LOSSES))), parallel_iterations=1)
        return sums / tf.cast(count, tf.float32)

    def _step(self, rows: Sequence[Any], coefficients: Any) -> Any:
        """Clipped surrogate, value and entropy (equation 9 of Schulman et al. 2017), one step of the optimizer."""
        obs, targets, log_probs, advantages, returns = rows
        clip, vf_coef, entropy_coef, max_norm = tf.unstack(coefficients)
        advantages = normalized(advantages)
        with tf.GradientTape() as tape:
            new, entropy = log_prob_and_entropy(self._distribution, self.actor.trace(obs), targets)
            log_ratio = new - log_probs
            ratio = tf.exp(log_ratio)
            clipped = tf.clip_by_value(ratio, 1.0 - clip, 1.0 + clip)
            policy_loss = -tf.reduce_mean(tf.minimum(ratio * advantages, clipped * advantages))
            value_loss = 0.5 * tf.reduce_mean(tf.square(self.critic.trace(obs)[:, 0] - returns))
            entropy = tf.reduce_mean(entropy)
            loss = policy_loss + vf_coef * value_loss - entropy_coef * entropy
        gradients = tape.gradient(loss, self._variables)
        descend(self._optimizer, self._variables, gradients, max_norm)
        return tf.stack([policy_loss, value_loss, entropy, tf.reduce_mean(ratio - 1.0 - log_ratio)])


class ReinforceGraph:
    """What `TFAgent` calls: `model` forward, and `update`, one step of the optimizer."""

    def __init__(self, model: Any, optimizer: Any, variables: Sequence[Any], obs_shape: tuple[int, ...]) -> None:
        self.model = Forward("model", model, obs_shape, None, "a logit for each action")
        self._optimizer, self._variables = optimizer, list(variables)
        rows = tf.TensorSpec([None], tf.float32)
        signature = [
            tf.TensorSpec([None, *obs_shape], tf.float32), tf.TensorSpec([None], tf.int32), rows,
            tf.TensorSpec([], tf.float32),
        ]  # fmt: skip
        self.update = tf.function(self._update, input_signature=signature, autograph=False)

    def _update(self, obs: Any, targets: Any, weights: Any, max_norm: Any) -> tuple[Any, Any]:
        """loss and the gradients' global norm before clipping."""
        with tf.GradientTape() as tape:
            log_probs, _ = log_prob_and_entropy(Categorical(), self.model.trace(obs), targets)
            loss = -tf.reduce_mean(log_probs * normalized(weights))
        return loss, descend(self._optimizer, self._variables, tape.gradient(loss, self._variables), max_norm)


def descend(optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any], max_norm: Any) -> Any:
    """One step along gradients whose global norm is at most `max_norm`, which may be infinite; the norm before."""
    norm = tf.linalg.global_norm(gradients)
    scale = tf.where(norm > max_norm, max_norm / norm, 1.0)
    optimizer.apply([_scaled(gradient, scale) for gradient in gradients], variables)
    return norm


def _scaled(gradient: Any, scale: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):  # of an embedding: only the rows that were looked up
        return tf.IndexedSlices(gradient.values * scale, gradient.indices, gradient.dense_shape)
    return None if gradient is None else gradient * tf.cast(scale, gradient.dtype)


def gradients_of(loss_fn: Any, model: Any, data: Any, variables: Sequence[Any]) -> tuple[Any, Any]:
    """loss_fn(model, data) and its gradients. TypeError if it is no scalar tensor that depends on the variables."""
    with tf.GradientTape() as tape:
        loss = loss_fn(model, data)
    if not tf.is_tensor(loss) or loss.shape.rank != 0:
        raise TypeError(f"compute_loss_fn must give a scalar tensor, got {loss!r}")
    gradients = tape.gradient(loss, variables)
    if all(gradient is None for gradient in gradients):
        raise TypeError("compute_loss_fn gave a loss that does not depend on the model: compute it in TensorFlow")
    return loss, gradients
