"""What an agent reports, in numbers: diagnostics of learning, and hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def diagnostics_of(learned: Any) -> dict[str, Any]:
    """What `agent.learn` returned; TypeError unless it is a mapping or None."""
    if learned is None:
        return {}
    if not isinstance(learned, Mapping):
        raise TypeError(f"agent.learn must return a mapping of names to numbers, or None; got {learned!r}")
    return dict(learned)


def numeric(params: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers, and not flags."""
    return {
        k: float(v) for k, v in params.items() if isinstance(v, int | float | np.number) and not isinstance(v, bool)
    }


def all_finite(diagnostics: Mapping[str, Any]) -> bool:
    """No number is NaN or infinite."""
    return all(math.isfinite(value) for value in numeric(diagnostics).values())
