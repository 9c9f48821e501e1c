"""Graphs of neurons once more, as objects and dictionaries in NumPy float64: slow, plain, nothing shared."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "elu")
KINDS = ("point", "gru", "lstm", "trainable_gru", "trainable_lstm")
ZERO = -14.0  # the raw weight that stands for 0 under softplus


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x)) if x > 0 else math.exp(x) / (1.0 + math.exp(x))


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def softplus_inverse(y):
    """x with softplus(x) = y > 0; bisection, because it needs no clever formula."""
    low, high = -60.0, y + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if softplus(middle) < y else (low, middle)
    return (low + high) / 2


def activate(name, x):
    if name == "linear":
        return x
    if name == "relu":
        return max(x, 0.0)
    if name == "tanh":
        return math.tanh(x)
    if name == "sigmoid":
        return sigmoid(x)
    if name == "elu":
        return x if x > 0 else math.expm1(x)
    raise ValueError(name)


@dataclass
class Neuron:
    role: str  # "input", "hidden", "output"
    kind: str = "point"
    activation: str = "linear"
    cell_type: int = 0  # the sign of what leaves it, 0: any
    bias: float = 0.0
    gates: list = field(default_factory=lambda: [0.0] * 12)
    history: list = field(default_factory=list)  # values of the steps before, newest first
    cell: float = 0.0

    def sort(self):
        return self.role, self.kind, self.activation, self.cell_type

    def ago(self, steps):
        """Its value so many steps before the step that is computed now."""
        return self.history[steps - 1] if steps <= len(self.history) else 0.0


class Impossible(Exception):
    """The edit cannot be made."""


class Oracle:
    """Neurons by id, raw weights by (source, destination, delay)."""

    def __init__(self, softplus_mode=False, longest=3):
        self.softplus_mode = softplus_mode
        self.longest = longest  # steps of history that are kept: no edge is longer
        self.neurons = {}
        self.edges = {}
        self.input_ids = []
        self.output_ids = []

    def copy(self):
        return copy.deepcopy(self)

    # Building

    def add(self, name, neuron):
        assert name not in self.neurons
        self.neurons[name] = neuron
        if neuron.role == "input":
            self.input_ids.append(name)
        if neuron.role == "output":
            self.output_ids.append(name)

    def new_name(self):
        return 1 + max(self.neurons)

    def drop(self, name):
        del self.neurons[name]
        self.edges = {e: raw for e, raw in self.edges.items() if name not in e[:2]}

    def weight(self, edge):
        """As it acts."""
        sign = self.neurons[edge[0]].cell_type
        if self.softplus_mode and sign:
            return sign * softplus(self.edges[edge])
        return self.edges[edge]

    def set_weight(self, edge, weight):
        """The raw weight that acts as `weight`, or as 0 if Dale's law forbids its sign."""
        sign = self.neurons[edge[0]].cell_type
        if sign and weight * sign <= 0:
            weight = 0.0
        if self.softplus_mode and sign:
            self.edges[edge] = softplus_inverse(abs(weight)) if weight else ZERO
        else:
            self.edges[edge] = weight

    def into(self, name):
        return [e for e in self.edges if e[1] == name]

    def out_of(self, name):
        return [e for e in self.edges if e[0] == name]

    def order(self):
        """Non-input neurons in an order that edges without delay respect (Kahn 1962)."""
        waiting, following = dict.fromkeys(self.neurons, 0), {n: [] for n in self.neurons}
        for u, v, d in self.edges:
            if d == 0:
                waiting[v] += 1
                following[u].append(v)
        ready = [n for n, count in waiting.items() if count == 0]
        order = []
        while ready:
            n = ready.pop()
            order.append(n)
            for v in following[n]:
                waiting[v] -= 1
                if waiting[v] == 0:
                    ready.append(v)
        if len(order) < len(self.neurons):
            raise Impossible("circle")
        return [n for n in order if self.neurons[n].role != "input"]

    def depth(self):
        """Neurons that are no inputs on the longest chain of edges without delay."""
        level = dict.fromkeys(self.neurons, 0)
        for n in self.order():
            level[n] = 1 + max((level[u] for u, _, d in self.into(n) if d == 0), default=0)
        return max(level.values())

    def leads_to(self, u, v):
        """Whether edges without delay do."""
        return u == v or any(self.leads_to(w, v) for _, w, d in self.out_of(u) if d == 0)

    # Running

    def step(self, obs, remembered=None, through_delays=True):
        """Outputs and all values. `remembered` is a second copy one may take what has no gradient from.

        With `remembered`, what the copy remembers takes the place of what this one does, but for the memories of
        trainable cells, and with `through_delays` for delayed edges: so differences of a loss see the same paths as
        its gradient.
        """
        other = remembered or self
        delayed = self if through_delays else other
        now = {n: float(x) for n, x in zip(self.input_ids, obs, strict=True)}
        cells, inputs = {}, {n: [] for n in self.neurons}
        for edge in self.edges:
            inputs[edge[1]].append(edge)
        for n in self.order():
            neuron = self.neurons[n]
            x = neuron.bias
            for u, _, d in inputs[n]:
                x += self.weight((u, n, d)) * (now[u] if d == 0 else delayed.neurons[u].ago(d))
            memory = (self if neuron.kind.startswith("trainable") else other).neurons[n]
            h, c = memory.ago(1), memory.cell
            if neuron.kind == "point":
                now[n] = activate(neuron.activation, x)
            elif neuron.kind.endswith("gru"):
                wz, uz, bz, wr, ur, br, wn, un, bn = neuron.gates[:9]
                z = sigmoid(wz * h + uz * x + bz)
                r = sigmoid(wr * h + ur * x + br)
                now[n] = (1 - z) * h + z * math.tanh(wn * r * h + un * x + bn)
            else:
                i, f, g, o = (w * h + u * x + b for w, u, b in zip(*[iter(neuron.gates)] * 3, strict=True))
                cells[n] = sigmoid(f) * c + sigmoid(i) * math.tanh(g)
                now[n] = sigmoid(o) * math.tanh(cells[n])
        for n, neuron in self.neurons.items():
            neuron.history = [now[n], *neuron.history][: self.longest]
            neuron.cell = cells.get(n, neuron.cell)
        return np.array([now[n] for n in self.output_ids]), now

    # Edits

    def insert_on_edge(self, edge):
        u, v, d = edge
        weight, source = self.weight(edge), self.neurons[u]
        lawful = any(neuron.cell_type for neuron in self.neurons.values())
        sign = 1.0
        if source.cell_type < 0 or (source.cell_type == 0 and lawful and weight < 0):
            sign = -1.0
        first = d // 2
        new = self.new_name()
        shifted = [sign * x for x in source.history[first:]]
        self.add(new, Neuron("hidden", history=shifted, cell_type=int(lawful)))
        del self.edges[edge]
        self.set_weight((u, new, first), sign)
        self.set_weight((new, v, d - first), weight / sign)
        return new

    def split(self, n, share=0.5):
        twin = self.new_name()
        self.add(twin, copy.deepcopy(self.neurons[n]))
        for u, _, d in self.into(n):
            self.edges[u, twin, d] = self.edges[u, n, d]
        for _, v, d in self.out_of(n):
            weight = self.weight((n, v, d))
            self.set_weight((n, v, d), share * weight)
            self.set_weight((twin, v, d), (1 - share) * weight)
        return twin

    def add_input(self):
        new = self.new_name()
        self.add(new, Neuron("input"))
        for v, neuron in self.neurons.items():
            if neuron.role != "input":
                self.set_weight((new, v, 0), 0.0)
        return new

    def add_free_edge(self, u, v, d, weight=0.0):
        if (u, v, d) in self.edges:
            raise Impossible("exists")
        self.edges[u, v, d] = 0.0
        self.set_weight((u, v, d), weight)
        self.order()

    def prune_edge(self, edge):
        del self.edges[edge]

    def prune_neuron(self, n, redistribute=True):
        if redistribute:
            totals = {}
            for u, _, d1 in self.into(n):
                for _, v, d2 in self.out_of(n):
                    product = self.weight((u, n, d1)) * self.weight((n, v, d2))
                    if n in (u, v) or abs(product) <= 1e-9:
                        continue
                    edge = (u, v, d1 + d2)
                    old = self.weight(edge) if edge in self.edges else 0.0
                    totals[edge] = totals.get(edge, old) + product
            if any(d > self.longest for _, _, d in totals):
                raise Impossible("longer than any edge may be")
            for edge, weight in totals.items():
                self.set_weight(edge, weight)
        self.drop(n)

    def merge(self, a, b):
        one, other = self.neurons[a], self.neurons[b]
        if a == b or one.sort() != other.sort():
            raise Impossible("not alike")
        if self.leads_to(a, b) or self.leads_to(b, a):
            raise Impossible("circle")
        for _, v, d in self.out_of(b):
            old = self.weight((a, v, d)) if (a, v, d) in self.edges else 0.0
            self.set_weight((a, v, d), old + self.weight((b, v, d)))
        for u, _, d in self.into(b):
            if u != b and (u, a, d) not in self.edges:
                self.edges[u, a, d] = self.edges[u, b, d]
        one.bias = (one.bias + other.bias) / 2
        self.drop(b)
