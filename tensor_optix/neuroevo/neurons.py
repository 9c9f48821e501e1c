"""Neurons by class: descriptions to hand to a graph, neurons of their own, or views of a graph's neurons."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.array_kinds import unwrapped
from tensor_optix.neuroevo.graph import cells
from tensor_optix.neuroevo.graph.arrays import N_GATES, Activation, Capacity, CellType, Kind
from tensor_optix.neuroevo.parameters import Owner, Parameter

ACTIVATIONS = {code.name.lower(): code for code in Activation}
CELL_TYPES = {code.name.lower(): code for code in CellType}
SILENT = 1e-8  # activity that a neuron is granted, so that weights tell silent ones apart
_ANY_NEURON = Capacity(inputs=1, outputs=1, hidden=0, gated=True)


def checked(what: str, name: Any, known: dict[str, Any]) -> Any:
    """What `name` stands for, or a ValueError with the names there are."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def counted(what: str, number: Any, least: int) -> int:
    """A whole number, or an error that says which it should have been."""
    try:
        value = operator.index(number)
    except TypeError:
        raise TypeError(f"{what} must be a whole number, got {number!r}") from None
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")
    return value


def n_gates(kind: Kind) -> int:
    """How many of a neuron's gates are used."""
    return {Kind.POINT: 0, Kind.GRU: 9, Kind.TRAINABLE_GRU: 9}.get(kind, N_GATES)


class OwnState:
    """What a neuron without a graph is and remembers."""

    def __init__(self, neuron_id: Hashable, drawn: bool, **fields: Any) -> None:
        self.neuron_id = neuron_id
        self.drawn = drawn  # the gates were not given: a graph draws its own
        self.fields = fields
        self.handles: dict[str, Parameter] = {}

    handed = None

    def read(self, field: str, key: Hashable) -> Any:
        return self.fields[field]

    def weight_in(self, weights: Any, field: str, key: Hashable) -> Any:
        raise NotImplementedError  # nothing is handed over

    def write(self, field: str, key: Hashable, value: Any) -> None:
        if field == "max_delay":
            self.fields["past"] = np.pad(self.fields["past"], (0, value - len(self.fields["past"])))
        self.fields[field] = value
        self.drawn = self.drawn and field != "gates"

    def parameter(self, field: str, key: Hashable) -> Parameter:
        return self.handles.setdefault(field, Parameter(self, field, self.neuron_id))


class Neuron:
    """A point neuron: value = activation(x + bias).

    Its own: `step` and `push_history` run it. From `NeuronGraph.get_neuron`: a view of the graph's neuron, whose
    history is the graph's; the graph's `forward` runs it and `step` only answers.

    Args:
        activation: linear, relu, tanh, sigmoid or elu.
        neuron_id: the id in the graph it is handed to; None: the graph's choice.
        max_delay: steps of history kept, at least 1.
        cell_type: excitatory, inhibitory or any: the sign of what leaves it.

    Raises:
        ValueError: an argument is none of these.
    """

    kind: ClassVar[Kind] = Kind.POINT
    is_recurrent: ClassVar[bool] = False  # gradients flow back through its memory
    _owner: Owner
    _key: Hashable
    _train_state: tuple[Any, Any]  # h and c of the sequence that is learned from

    def __init__(
        self, activation: str = "tanh", neuron_id: Hashable = None, max_delay: int = 1, cell_type: str = "any"
    ) -> None:
        self._begin(activation, neuron_id, max_delay, cell_type)

    def _begin(self, activation: str, neuron_id: Hashable, max_delay: int, cell_type: str) -> None:
        checked("activation", activation, ACTIVATIONS)
        checked("cell_type", cell_type, CELL_TYPES)
        zero, steps = np.float32(0.0), counted("max_delay", max_delay, 1)
        fields = {"activation": activation, "cell_type": cell_type, "max_delay": steps, "bias": zero}
        fields |= {"past": np.zeros(steps, np.float32), "h": zero, "cell": zero, "value": zero}
        fields["gates"] = cells.fresh_gates(self.kind, 1.0)[: n_gates(self.kind)]
        self._attach(OwnState(neuron_id, True, **fields), None)

    def _attach(self, owner: Owner, key: Hashable) -> None:
        self._owner, self._key = owner, key
        self.reset_train_state()

    @classmethod
    def of(cls, owner: Owner, key: Hashable) -> Neuron:
        """The view of the neuron `key` of `owner`."""
        view = cls.__new__(cls)
        view._attach(owner, key)
        return view

    # What it is

    @property
    def neuron_id(self) -> Hashable:
        return self._owner.neuron_id if isinstance(self._owner, OwnState) else self._key

    @property
    def wanted_id(self) -> Hashable:
        """The id for the graph it is handed to; None of a view, whose id is taken."""
        return self._owner.neuron_id if isinstance(self._owner, OwnState) else None

    @property
    def activation(self) -> str:
        return self._read("activation")

    @property
    def cell_type(self) -> str:
        return self._read("cell_type")

    @property
    def max_delay(self) -> int:
        """Steps of history kept."""
        return self._read("max_delay")

    @property
    def value(self) -> float:
        """Of the newest step; 0 before the first."""
        return float(self._read("value"))

    @property
    def bias(self) -> Parameter:
        return self._owner.parameter("bias", self._key)

    @property
    def gates(self) -> Parameter | None:
        """[9] or [12], see `tensor_optix.neuroevo.graph.cells`; None of a point neuron."""
        return self._owner.parameter("gates", self._key) if n_gates(self.kind) else None

    @property
    def gates_given(self) -> np.ndarray | None:
        """[12] float32, the gates to start from; None where a graph is to draw them."""
        if not n_gates(self.kind) or (isinstance(self._owner, OwnState) and self._owner.drawn):
            return None
        gates = self._read("gates")
        return np.pad(gates, (0, N_GATES - len(gates)))

    def importance(self, incident_weights: float) -> float:
        """The sum of |weight| over all edges to and from it, times how active it is: |value| + 1e-8."""
        return float(incident_weights) * (abs(self.value) + SILENT)

    def can_merge_with(self, other: Any) -> bool:
        """The same class, activation and cell type."""
        return type(self) is type(other) and self.activation == other.activation and self.cell_type == other.cell_type

    def make_relay(self) -> Neuron:
        """A linear neuron, for an edge of this one: it hands on what it gets, exactly."""
        return Neuron("linear", max_delay=self.max_delay)

    def split_copy(self) -> Neuron:
        """One of its own that is the same in everything but the id: parameters and memory, too."""
        fields = ("activation", "cell_type", "max_delay", "bias", "past", "h", "cell", "value", "gates")
        return type(self).of(OwnState(None, False, **{field: self._read(field) for field in fields}), None)

    # What it does

    def step(self, x: Any) -> Any:
        """The value that the sum of all inputs `x` makes; it becomes the newest. The bias is added here.

        x: a number or an array of one (NumPy, JAX or PyTorch); the value is of the same kind and shape.
        """
        array, back = self._input(x)
        h, c = (jnp.asarray(self._read(field), jnp.float32) for field in ("h", "cell"))
        value, cell = self._cell(array, h, c)
        if isinstance(self._owner, OwnState):
            for field, new in (("value", value), ("h", value), ("cell", cell)):
                self._owner.write(field, None, np.float32(new))
        return back(value.reshape(np.shape(x)))

    __call__ = step

    def recurrent_step(self, x: Any) -> Any:
        """`step` on a memory of its own, of the sequence that is learned from; JAX differentiates through it.

        `reset_train_state` starts a sequence.
        """
        array, back = self._input(x)
        self._train_state = self._cell(array, *self._train_state)
        return back(self._train_state[0].reshape(np.shape(x)))

    def reset_train_state(self) -> None:
        """A sequence to learn from starts: `recurrent_step` remembers nothing."""
        self._train_state = (np.float32(0.0), np.float32(0.0))

    def reset_state(self) -> None:
        """An episode starts: no history, no memory."""
        self._write("past", np.zeros(self.max_delay, np.float32))
        for field in ("h", "cell", "value"):
            self._write(field, np.float32(0.0))

    # What it was

    def get_delayed(self, delay: int) -> float:
        """The value `delay` steps ago; 0: the newest. 0.0 beyond what is kept."""
        steps = counted("delay", delay, 0)
        if steps == 0:
            return self.value
        return float(self._read("past")[steps - 1]) if steps <= self.max_delay else 0.0

    def push_history(self) -> None:
        """The step is over: its value is the newest of the past."""
        past = self._read("past")
        self._write("past", np.concatenate([[np.float32(self.value)], past[:-1]]).astype(np.float32))

    def expand_history(self, max_delay: int) -> None:
        """Keeps at least so many steps."""
        steps = counted("max_delay", max_delay, 1)
        if steps > self.max_delay:
            self._write("max_delay", steps)

    def init_history_from_buffer(self, buffer: Sequence[Any]) -> None:
        """The past is `buffer`, numbers from the newest to the oldest, as far as it is kept; 0 behind its end."""
        newest = np.array([float(x) for x in buffer[: self.max_delay]], np.float32)
        self._write("past", np.pad(newest, (0, self.max_delay - len(newest))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.neuron_id!r}, {self.activation}, {self.cell_type})"

    def _read(self, field: str) -> Any:
        return self._owner.read(field, self._key)

    def _write(self, field: str, value: Any) -> None:
        self._owner.write(field, self._key, value)

    def _input(self, x: Any) -> tuple[jax.Array, Any]:
        array, back = unwrapped(x)
        if array.size != 1:
            raise ValueError(f"a neuron takes one number a step, the sum of its inputs, got {array.size}")
        return jnp.asarray(array).reshape(()), float if isinstance(x, int | float) else back

    def _cell(self, x: jax.Array, h: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        gates = self._read("gates")
        code = ACTIVATIONS[self.activation]
        padded = np.pad(gates, (0, N_GATES - len(gates)))
        return _stepped(np.int8(self.kind), np.int8(code), self._read("bias"), padded, x, h, c)


class _Gated(Neuron):
    """A cell with a scalar memory; the equations are in `tensor_optix.neuroevo.graph.cells`.

    Its gates start with a small random weight of the candidate's input, drawn by the graph it is handed to; before, and
    without a graph, that weight is 0.1.

    Args:
        neuron_id, max_delay, cell_type: as for `Neuron`.
    """

    def __init__(self, neuron_id: Hashable = None, max_delay: int = 1, cell_type: str = "any") -> None:
        self._begin("linear", neuron_id, max_delay, cell_type)


class GRUNeuron(_Gated):
    """A scalar gated recurrent unit (Cho et al. 2014); no gradient flows back through its memory."""

    kind = Kind.GRU


class LSTMNeuron(_Gated):
    """A scalar long short-term memory (Hochreiter & Schmidhuber 1997); no gradient flows back through its memory."""

    kind = Kind.LSTM


class TrainableGRUNeuron(_Gated):
    """A `GRUNeuron` with gradients through time."""

    kind = Kind.TRAINABLE_GRU
    is_recurrent = True


class TrainableLSTMNeuron(_Gated):
    """An `LSTMNeuron` with gradients through time."""

    kind = Kind.TRAINABLE_LSTM
    is_recurrent = True


CLASSES: dict[Kind, type[Neuron]] = {
    cls.kind: cls for cls in (Neuron, GRUNeuron, LSTMNeuron, TrainableGRUNeuron, TrainableLSTMNeuron)
}


@jax.jit
def _stepped(
    kind: jax.Array, activation: jax.Array, bias: jax.Array, gates: jax.Array, x: jax.Array, h: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Value and memory of one neuron; all [] but for gates [12]."""
    x = (x + bias)[None]
    value = cells.activate(_ANY_NEURON, activation[None], x)
    gated, cell, is_gated = cells.gated(kind[None], gates[None], x, h[None], c[None])
    return jnp.where(is_gated, gated, value)[0], cell[0]
