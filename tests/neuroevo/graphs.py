"""Random graphs for the oracle, and the way between its objects and the package's arrays."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Graph, Kind, Memory, Role, Topology, Weights
from tests.neuroevo.oracle import ACTIVATIONS, KINDS, Neuron, Oracle, softplus_inverse

CLAMP = Capacity(inputs=4, outputs=3, hidden=9, delays=3, levels=4, gated=True)
SOFTPLUS = Capacity(inputs=4, outputs=3, hidden=9, delays=3, levels=4, gated=True, softplus=True)
MODES = [CLAMP, SOFTPLUS]


def random_oracle(
    seed, capacity=CLAMP, *, inputs=3, outputs=2, hidden=5, density=0.3, kinds=KINDS, cell_types=(-1, 0, 1)
):
    """A graph with every sort of neuron and edge, and the slot of each neuron: names are not slots."""
    rng = np.random.default_rng([seed, capacity.softplus])
    oracle = Oracle(capacity.softplus, capacity.delays)
    names = [int(n) for n in rng.permutation(200)[: inputs + outputs + hidden]]
    roles = ["input"] * inputs + ["output"] * outputs + ["hidden"] * hidden
    for name, role in zip(names, roles, strict=True):
        point = role == "input"
        oracle.add(
            name,
            Neuron(
                role,
                "point" if point else str(rng.choice(kinds)),
                "linear" if point else str(rng.choice(ACTIVATIONS)),
                int(rng.choice(cell_types)),
                0.0 if point else float(rng.normal(0, 0.5)),
            ),
        )
        if oracle.neurons[name].kind != "point":
            gates = rng.normal(0, 0.7, 12)
            if oracle.neurons[name].kind.endswith("gru"):
                gates[9:] = 0.0
            oracle.neurons[name].gates = [float(x) for x in np.float32(gates)]
    tier = {
        n: rng.integers(1, capacity.levels + 1) if neuron.role != "input" else 0 for n, neuron in oracle.neurons.items()
    }
    for u in names:
        for v in names:
            for d in range(capacity.delays + 1):
                chance = 2 * density if d == 0 and 0 < tier[u] == tier[v] - 1 else density  # long chains, too
                if tier[v] == 0 or rng.random() > chance or (d == 0 and tier[u] >= tier[v]):
                    continue
                weight = rng.choice([-1, 1]) * rng.uniform(0.05, 0.9) / np.sqrt(density * len(names))
                sign = oracle.neurons[u].cell_type
                if sign:
                    weight = sign * abs(weight)
                softplus = capacity.softplus and sign
                oracle.edges[u, v, d] = float(np.float32(softplus_inverse(abs(weight)) if softplus else weight))
    for neuron in oracle.neurons.values():
        neuron.bias = float(np.float32(neuron.bias))
    return oracle, random_slots(rng, oracle, capacity)


def random_slots(rng, oracle, capacity):
    """A slot for each neuron: inputs are the first of theirs, others anywhere in theirs, outputs in their order."""
    hidden = [n for n, neuron in oracle.neurons.items() if neuron.role == "hidden"]
    places = rng.permutation(capacity.hidden)[: len(hidden)] + capacity.first_hidden
    outputs = np.sort(rng.permutation(capacity.outputs)[: len(oracle.output_ids)]) + capacity.inputs
    slots = {n: i for i, n in enumerate(oracle.input_ids)}
    slots |= {n: int(at) for n, at in zip(oracle.output_ids, outputs, strict=True)}
    return slots | {n: int(at) for n, at in zip(hidden, places, strict=True)}


def packed(oracle, slots, capacity):
    """The oracle's graph and what it remembers, as the package has them."""
    size, delays = capacity.neurons, capacity.delays
    role, kind, activation, cell_type = np.zeros((4, size), np.int8)
    edges = np.zeros((1 + delays, size, size), bool)
    raw = np.zeros(edges.shape, np.float32)
    bias, gates = np.zeros(size, np.float32), np.zeros((size, 12), np.float32)
    past, cell = np.zeros((delays, size), np.float32), np.zeros(size, np.float32)
    for n, neuron in oracle.neurons.items():
        at = slots[n]
        role[at] = Role[neuron.role.upper()]
        kind[at] = Kind[neuron.kind.upper()]
        activation[at] = Activation[neuron.activation.upper()]
        cell_type[at] = neuron.cell_type
        bias[at], gates[at] = neuron.bias, neuron.gates
        history = neuron.history[:delays]
        past[: len(history), at] = history
        cell[at] = neuron.cell
    for (u, v, d), weight in oracle.edges.items():
        edges[d, slots[v], slots[u]] = True
        raw[d, slots[v], slots[u]] = weight
    topology = Topology(*map(jnp.asarray, (role, kind, activation, cell_type, edges)))
    weights = Weights(jnp.asarray(raw), jnp.asarray(bias), jnp.asarray(gates))
    memory = Memory(jnp.asarray(past) if delays else (), jnp.asarray(cell) if capacity.gated else ())
    return Graph(topology, weights, capacity), memory


def observations(seed, steps, inputs):
    return np.random.default_rng([seed, 99]).normal(size=(steps, inputs)).astype(np.float32)


def placed(obs, oracle, slots, capacity):
    """Observations [..., inputs of the oracle] in the slots of a capacity; the rest holds garbage."""
    out = np.full((*obs.shape[:-1], capacity.inputs), 7.0, np.float32)
    for i, n in enumerate(oracle.input_ids):
        out[..., slots[n]] = obs[..., i]
    return out


def run_oracle(oracle, obs):
    """Values of all neurons over an episode: dictionaries, one a step."""
    return [oracle.step(x)[1] for x in obs]


def spread(values, slots, capacity):
    """Values by slot [steps, N]; 0 where nothing is."""
    out = np.zeros((len(values), capacity.neurons))
    for t, now in enumerate(values):
        for n, x in now.items():
            out[t, slots[n]] = x
    return out
