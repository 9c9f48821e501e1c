"""NumPy, JAX or PyTorch in, the same out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def unwrapped(x: Any) -> tuple[np.ndarray | jax.Array, Callable[[Any], Any]]:
    """A float32 array of `x`, and what makes an array the kind of thing that `x` is.

    Numbers and lists count as NumPy. A PyTorch tensor's gradient ends here; what comes back is on its device. PyTorch
    is not imported for the question.
    """
    if isinstance(x, jax.Array):
        return jnp.asarray(x, jnp.float32), lambda y: y
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        device = x.device
        return x.detach().cpu().numpy().astype(np.float32), lambda y: torch.from_numpy(np.array(y)).to(device)
    return np.asarray(x, np.float32), np.array
