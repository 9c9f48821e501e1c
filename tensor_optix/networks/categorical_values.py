"""The network of Rainbow: a distribution of returns for every action, dueling and noisy by choice."""

from __future__ import annotations

import math

import jax
from flax import nnx

from tensor_optix.networks.noisy import NoisyMLP, split_noise
from tensor_optix.networks.torsos import ACTIVATIONS, CNN, MLP


class CategoricalValues(nnx.Module):
    """Logits of `n_atoms` returns for every action: [..., *obs] -> [..., n_actions, n_atoms]. With 1 atom: values.

    dueling: two streams with hidden layers of their own, the last of `hidden_sizes`, behind shared ones; they give
    v [n_atoms] and a [n_actions, n_atoms], and the logits are v + a - mean of a over actions (Wang et al. 2016,
    equation 9; per atom as in Hessel et al. 2018). noisy: all dense layers are (Fortunato et al. 2018); an image's
    convolution is not, and is shared.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        n_actions: int,
        n_atoms: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        dueling: bool,
        noisy: bool,
        rngs: nnx.Rngs,
    ) -> None:
        def stream(n_in: int, n_out: int, sizes: tuple[int, ...], gain: float = 1.0) -> NoisyMLP | MLP:
            if noisy:
                return NoisyMLP(n_in, n_out, sizes, activation, rngs)
            return MLP(n_in, n_out, sizes, activation, gain, rngs)

        width = math.prod(obs_shape)
        image = shared = None
        if len(obs_shape) == 3:
            image = CNN(obs_shape, 1, (), activation, 1.0, rngs)
            width = image.out[0] * image.out[1] * image.conv.out_features
            image.mlp = _Straight()  # type: ignore[assignment]  # what follows the convolution is below
        elif len(obs_shape) > 1:
            raise ValueError(
                f"no network for observations of shape {obs_shape}; expected a vector [n] or an image [H, W, C]: "
                "flatten the observation in the environment"
            )
        if dueling and len(hidden_sizes) > 1:
            *before, last = hidden_sizes[:-1]
            shared = stream(width, last, tuple(before), math.sqrt(2.0))
            width, hidden_sizes = last, hidden_sizes[-1:]
        self.image, self.shared = image, shared
        self.value = stream(width, n_atoms, hidden_sizes) if dueling else None
        self.advantage = stream(width, n_actions * n_atoms, hidden_sizes)
        self.shape = (n_actions, n_atoms)
        self.activation = activation
        self.noise_sizes = tuple(getattr(p, "noise_size", 0) for p in (self.shared, self.value, self.advantage))
        self.noise_size = sum(self.noise_sizes)  # numbers that one use takes; 0 where no layer is noisy

    def __call__(self, obs: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """With the mean weights, or with noise float32 [noise_size] for all rows or [..., noise_size] for each."""
        of_shared, of_value, of_advantage = split_noise(noise, self.noise_sizes)
        x = obs if self.image is None else self.image(obs)
        if self.shared is not None:
            x = ACTIVATIONS[self.activation](_through(self.shared, x, of_shared))
        advantage = _through(self.advantage, x, of_advantage)
        advantage = advantage.reshape(*advantage.shape[:-1], *self.shape)
        if self.value is None:
            return advantage
        value = _through(self.value, x, of_value)
        return value[..., None, :] + advantage - advantage.mean(axis=-2, keepdims=True)


def _through(stream: NoisyMLP | MLP, x: jax.Array, noise: jax.Array | None) -> jax.Array:
    return stream(x, noise) if isinstance(stream, NoisyMLP) else stream(x)


class _Straight(nnx.Module):
    """What goes in comes out."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x
