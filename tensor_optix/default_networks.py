"""The networks of agents that are made by name, for PyTorch and Keras: tanh layers with orthogonal weights.

Those of the JAX agents are in `networks/torsos.py`; all are initialised alike (Engstrom et al. 2020): gain sqrt 2
inside, `head_gain` at the head, biases 0. A seed decides on the weights, and no global generator is touched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

ACTOR_GAIN, CRITIC_GAIN = 0.01, 1.0  # of the heads: nearly uniform at first; values of the size of returns


def torch_mlp(n_in: int, n_out: int, hidden_sizes: Sequence[int], head_gain: float, seed: Sequence[int]) -> Any:
    """torch.nn.Sequential, float32 [N, n_in] -> [N, n_out]."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(_seeds(seed, 1)[0])

    def linear(sizes: tuple[int, int], gain: float) -> nn.Linear:
        layer = nn.utils.skip_init(nn.Linear, *sizes)  # its own initialisation would draw from the global generator
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        nn.init.zeros_(layer.bias)
        return layer

    pairs = list(itertools.pairwise([n_in, *hidden_sizes]))
    hidden = [part for pair in pairs for part in (linear(pair, math.sqrt(2.0)), nn.Tanh())]
    return nn.Sequential(*hidden, linear((hidden_sizes[-1], n_out), head_gain))


def keras_mlp(n_in: int, n_out: int, hidden_sizes: Sequence[int], head_gain: float, seed: Sequence[int]) -> Any:
    """keras.Sequential, float32 [N, n_in] -> [N, n_out]."""
    import keras

    *seeds, head_seed = _seeds(seed, len(hidden_sizes) + 1)

    def dense(size: int, gain: float, seed: int, **settings: Any) -> Any:
        initial = keras.initializers.Orthogonal(gain, seed=seed)
        return keras.layers.Dense(size, kernel_initializer=initial, **settings)

    hidden = [
        dense(size, math.sqrt(2.0), own, activation="tanh") for size, own in zip(hidden_sizes, seeds, strict=True)
    ]
    return keras.Sequential([keras.layers.Input((n_in,)), *hidden, dense(n_out, head_gain, head_seed)])


def _seeds(seed: Sequence[int], count: int) -> list[int]:
    """Seeds that have nothing in common, below 2**31."""
    return [int(value) >> 1 for value in np.random.SeedSequence(list(seed)).generate_state(count)]
