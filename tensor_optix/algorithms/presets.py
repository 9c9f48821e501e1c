"""Settings that suit an environment better than the general ones; used unless the caller says otherwise.

How each was found, and what it reaches, is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Differences from an algorithm's defaults."""

    config: Mapping[str, Any] = field(default_factory=dict)
    hyperparams: Mapping[str, float] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)  # fields of RunConfig: eval_every, eval_episodes


PRESETS: dict[tuple[str, str], Preset] = {}


def preset(algorithm: str, env: str) -> Preset:
    """The preset for an algorithm on an environment id; an empty one where there is none."""
    return PRESETS.get((algorithm, env), Preset())
