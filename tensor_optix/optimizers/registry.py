"""Pure tuners by name, as configurations write them."""

from __future__ import annotations

from tensor_optix.optimizers.adaptive import Adaptive
from tensor_optix.optimizers.backoff import Backoff
from tensor_optix.optimizers.momentum import Momentum
from tensor_optix.optimizers.pbt import PBT
from tensor_optix.optimizers.spsa import SPSA

TUNERS: dict[str, type] = {
    "spsa": SPSA,
    "momentum": Momentum,
    "backoff": Backoff,
    "pbt": PBT,
    "adaptive": Adaptive,
}
