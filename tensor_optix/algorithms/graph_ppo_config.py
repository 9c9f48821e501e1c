"""What a graph PPO is told before it is compiled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tensor_optix.algorithms.ppo_sequences import SequencePPOConfig
from tensor_optix.neuroevo.graph import growth
from tensor_optix.neuroevo.graph.arrays import Activation, Kind
from tensor_optix.neuroevo.graph.growth import GrowthConfig

GROWTH = GrowthConfig()
_UNLIMITED = 2**31 - 1  # neurons of all roles: the room for hidden ones is the limit


@dataclass(frozen=True)
class GraphPPOConfig(SequencePPOConfig):
    """Everything static about a graph PPO. Changing a field recompiles.

    `hidden_sizes` are layers of neurons to start from, each fully connected to the next.
    """

    hidden_sizes: tuple[int, ...] = (16,)
    # Policy and value share the graph: at the scale of raw returns the value's gradients drown the policy's.
    normalize_rewards: bool = True
    cell: str = "point"  # what hidden neurons are: point, gru, lstm, trainable_gru or trainable_lstm
    feedback: int = 0  # delayed edges within each hidden layer: delays 1 to so many
    # Dale's law: every weight that leaves a hidden neuron has the neuron's sign. "clamp" or "softplus", or "off".
    dale: str = "off"
    # Share of hidden neurons that inhibit, where the law holds; those inserted on edges are of any type.
    inhibitory: float = 0.2
    max_neurons: int = 0  # hidden neurons there is room for; 0: as many as there are
    max_delay: int = 0  # longest delay there is room for; 0: as long as there are
    # Chain of neurons there is room for; 0: as many as there are, twice as many where neurons are inserted on edges.
    max_levels: int = 0
    sequence_length: int = 1  # steps that gradients flow back through; divides n_steps
    through_delays: bool = True  # they flow back through delayed edges too, and not only through trainable cells
    # The topology changes where this is not "off": how it grows, and the settings of `neuroevo.graph.growth`.
    grow_op: str = "off"  # "insert_edge", "split_neuron" or "add_edge"
    grow_trigger: str = GROWTH.grow_trigger
    grow_cooldown: int = GROWTH.grow_cooldown
    grow_grad_threshold: float = GROWTH.grow_grad_threshold
    min_score_buffer: int = GROWTH.min_score_buffer
    maturation_window: int = GROWTH.maturation_window
    prune_edge_threshold: float = GROWTH.prune_edge_threshold
    prune_edge_patience: int = GROWTH.prune_edge_patience
    prune_neuron_threshold: float = GROWTH.prune_neuron_threshold
    merge_similarity_threshold: float = GROWTH.merge_similarity_threshold
    merge_check_interval: int = GROWTH.merge_check_interval

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation of a neuron must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        if self.dale not in ("off", "clamp", "softplus"):
            raise ValueError(f"dale must be off, clamp or softplus, got {self.dale!r}")
        if not 0 <= self.inhibitory <= 1:
            raise ValueError(f"inhibitory must be in [0, 1], got {self.inhibitory}")
        if self.grow_op not in ("off", *growth.GROW_EDITS):
            raise ValueError(f"grow_op must be off, {', '.join(growth.GROW_EDITS)}, got {self.grow_op!r}")
        if self.grow_op == "add_edge" and not max(self.max_delay, self.feedback):
            raise ValueError("grow_op=add_edge adds delayed edges: give them room with max_delay=3")
        if self.grow_op in ("insert_edge", "split_neuron") and self.max_neurons <= sum(self.hidden_sizes):
            raise ValueError(
                f"grow_op={self.grow_op} needs room for more hidden neurons than {sum(self.hidden_sizes)}: set "
                f"max_neurons, got {self.max_neurons}"
            )
        if self.grow_op == "insert_edge" and 0 < self.max_levels <= self.start_levels:
            raise ValueError(
                f"grow_op=insert_edge makes chains longer than the {self.start_levels} neurons of the start: set "
                f"max_levels above, or 0, got {self.max_levels}"
            )
        self.growth  # noqa: B018  its own checks
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes must name a layer of neurons or more, got none")
        least = {"feedback": 0, "max_neurons": 0, "max_delay": 0, "max_levels": 0}
        for name, at_least in least.items():
            if getattr(self, name) < at_least:
                raise ValueError(f"{name} must be at least {at_least}, got {getattr(self, name)}")
        for name, needed in (("max_neurons", sum(self.hidden_sizes)), ("max_delay", self.feedback)):
            if 0 < getattr(self, name) < needed:
                raise ValueError(f"{name} must be 0 (as there are) or at least {needed}, got {getattr(self, name)}")

    @property
    def start_levels(self) -> int:
        """Chain of neurons at the start: the hidden layers and the outputs."""
        return len(self.hidden_sizes) + 1

    @property
    def levels(self) -> int:
        """Chain of neurons there is room for."""
        spare = self.start_levels if self.grow_op == "insert_edge" and not self.max_levels else 0
        return max(self.max_levels, self.start_levels) + spare

    @property
    def growth(self) -> GrowthConfig | None:
        """How the topology changes; None: it does not."""
        if self.grow_op == "off":
            return None
        names = {field.name for field in dataclasses.fields(self)}
        same = {f.name: getattr(self, f.name) for f in dataclasses.fields(GrowthConfig) if f.name in names}
        return GrowthConfig(**same | {"max_neurons": _UNLIMITED})


CELLS = {kind.name.lower(): kind for kind in Kind}
ACTIVATIONS = {activation.name.lower(): activation for activation in Activation}
