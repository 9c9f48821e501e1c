"""Brains of several graphs: what they compute, what reaches their weights, and what survives the regions' edits."""

import copy
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo import (
    GRUNeuron,
    NeuronGraph,
    TrainableLSTMNeuron,
    brain_network,
    insert_neuron_on_edge,
    merge_neurons,
    prune_neuron,
    split_neuron,
)
from tensor_optix.neuroevo.brain_network import BrainNetwork
from tensor_optix.neuroevo.graph import brain as pure
from tensor_optix.neuroevo.graph.arrays import Activation, fresh_memory
from tensor_optix.neuroevo.graph.forward import step
from tests.neuroevo.faces import face_of
from tests.neuroevo.graphs import MODES, observations, random_oracle
from tests.neuroevo.oracle import Oracle, softplus

CLAMP, SOFTPLUS = MODES
NAMES = ("a", "b", "c")


class BrainOracle(Oracle):
    """All regions' neurons under (region, name). An input is a linear neuron whose bias is its observation."""

    def __init__(self, regions, outputs):
        super().__init__(False, 3)
        self.regions = regions
        for region, oracle in regions.items():
            for name, neuron in copy.deepcopy(oracle.neurons).items():
                neuron.role = "hidden"
                self.neurons[region, name] = neuron
            self.edges |= {((region, u), (region, v), d): raw for (u, v, d), raw in oracle.edges.items()}
        self.output_ids = [(region, name) for region in outputs for name in regions[region].output_ids]

    def weight(self, edge):
        source, target, _ = edge
        sign = self.neurons[source].cell_type
        if source[0] == target[0] and self.regions[source[0]].softplus_mode and sign:
            return sign * softplus(self.edges[edge])
        return self.edges[edge]

    def step(self, obs, remembered=None, through_delays=True):
        for region, oracle in self.regions.items():
            for name, x in zip(oracle.input_ids, obs.get(region, np.zeros(2)), strict=True):
                self.neurons[region, name].bias = float(x)
        return super().step([])


def random_brain(seed, outputs=("c", "a"), **kinds):
    """Three regions of both forms of Dale's law, all joined with all: without delay onwards, with delays 1 to 3."""
    rng = np.random.default_rng(seed)
    capacities = [MODES[i % 2] for i in rng.permutation(3)]
    oracles = {
        name: random_oracle(10 * seed + i, capacity, inputs=2, outputs=2, hidden=3, **kinds)[0]
        for i, (name, capacity) in enumerate(zip(NAMES, capacities, strict=True))
    }
    brain, whole = BrainNetwork(output_regions=list(outputs)), BrainOracle(oracles, outputs)
    for name, oracle in oracles.items():
        brain.add_region(name, roomy(face_of(oracle, rng)))
    order = list(rng.permutation(NAMES))
    for src in NAMES:
        for dst in NAMES:
            for _ in range(0 if src == dst else 8):
                u, v = (list(oracles[name].neurons)[rng.integers(7)] for name in (src, dst))
                delay = int(rng.integers(0 if order.index(src) < order.index(dst) else 1, 4))
                edge = (src, u), (dst, v), delay
                if edge not in whole.edges:
                    whole.edges[edge] = float(np.float32(rng.normal(0, 0.5)))
                    brain.add_inter_region_edge(src, u, dst, v, whole.edges[edge], delay, edge_id=edge)
    return brain, whole


def roomy(graph):
    """With room that all graphs of these tests fit into, so that they share programs."""
    graph.make_room(delays=4, levels=4, gated=True, activations=tuple(Activation))
    return graph


def seen(seed, steps, regions=NAMES):
    """What the regions see, a dictionary a step."""
    obs = observations(seed, steps, 2 * len(regions))
    return [{name: x[2 * i : 2 * i + 2] for i, name in enumerate(regions)} for x in obs]


def run(brain, obs):
    return np.stack([brain(x) for x in obs])


def chain(*regions, mode="clamp", neuron=None, **options):
    """Regions of two inputs, two hidden and two outputs, with weights and feedback but no pathways.

    All give outputs if nothing else is said.
    """
    brain = BrainNetwork(**{"output_regions": list(regions)} | options)
    for i, name in enumerate(regions):
        graph, rng = NeuronGraph(mode), np.random.default_rng(i)
        for role in ("input", "hidden", "output"):
            for k in range(2):
                described = neuron if role == "hidden" else None
                graph.add_neuron(role, "tanh" if role == "hidden" else "linear", f"{role[0]}{k}", neuron=described)
        for k in range(2):
            for j in range(2):
                graph.add_edge(f"i{j}", f"h{k}", rng.normal())
                graph.add_edge(f"h{j}", f"o{k}", rng.normal())
                graph.add_edge(f"h{j}", f"h{k}", rng.normal() / 2, delay=2)
        if neuron is None:
            graph.make_room(delays=4, levels=4)
        else:
            roomy(graph)
        brain.add_region(name, graph)
    return brain


# What it computes


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_an_episode_is_the_oracles(seed):
    """Pathways of all delays to and from neurons of all kinds and roles; regions see something or nothing."""
    brain, oracle = random_brain(seed)
    assert {edge.delay for edge in brain.all_inter_region_edges()} == {0, 1, 2, 3}
    assert {brain.get_region(e.dst_region).dale_mode for e in brain.all_inter_region_edges()} == {"clamp", "softplus"}
    for obs in seen(seed, 6) + seen(seed, 3, ["b"]):
        out, values = oracle.step(obs)
        np.testing.assert_allclose(brain(obs), out, rtol=1e-5, atol=5e-6)
        for (name, neuron), x in values.items():
            region = brain.get_region(name)
            assert region.values[region.slot_of(neuron)] == pytest.approx(x, rel=1e-5, abs=5e-6)


def test_acting_and_learning_are_one_forward():
    """forward step by step, and the pure scan over a batch of one and the same."""
    brain, _ = random_brain(0)
    obs = seen(1, 5)
    run(brain, obs[:2])
    batch = jnp.stack([brain.observation(x) for x in obs])[:, None].repeat(2, axis=1)
    memory = jax.tree.map(lambda x: jnp.stack([x, x]), brain.memory)

    @jax.jit
    def scan(graph, memory, batch):
        def one(memory, x):
            out, memory, _ = step(graph, memory, x)
            return memory, out

        return jax.lax.scan(one, memory, batch)

    end, outs = scan(brain_network._whole(brain.arrays), memory, batch)
    expected = run(brain, obs)
    for i in range(2):
        np.testing.assert_allclose(outs[:, i], expected, rtol=1e-5, atol=1e-6)
    layout = brain.arrays.layout
    for region, part in zip(brain.regions.values(), pure.divided(layout, end), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-5, atol=1e-6), region.memory, part)


def test_an_edge_without_delay_brings_the_value_of_this_step_whatever_the_order_of_adding():
    """Through chains that leave no level unused."""
    for names in ("xyz", "zyx"):
        brain = BrainNetwork(output_regions=["z"])
        for name in names:
            graph = NeuronGraph()
            for role, neuron in (("input", "i"), ("hidden", "h"), ("output", "o")):
                graph.add_neuron(role, "linear", neuron)
            graph.add_edge("i", "h", 2.0)
            graph.add_edge("h", "o", 1.0)
            assert graph.arrays.capacity.levels == 2
            brain.add_region(name, graph)
        brain.add_inter_region_edge("x", "o", "y", "i", 1.0, delay=0)
        brain.add_inter_region_edge("y", "o", "z", "i", 3.0, delay=0)
        brain.add_inter_region_edge("x", "i", "z", "o", 0.5, delay=2)
        assert [brain({"x": [x], "z": [10.0]}).tolist() for x in (1.0, 2.0, 3.0)] == [[44.0], [68.0], [92.5]]
        assert brain.execution_order() == [*"xyz"]


def test_what_reaches_an_input_is_added_to_its_observation_and_remembered_with_it():
    brain = chain("a", "b")
    b = brain.get_region("b")
    b.add_edge("i0", "o1", 1.0, delay=1)
    b.get_neuron("i0").bias.data = 9.0  # inputs have none
    brain.add_inter_region_edge("a", "i1", "b", "i0", 0.5, delay=1)
    outs = [run(brain, [{"a": [0, 4], "b": x}, {"b": y}]) for x, y in (([1, 0], [2, 0]), ([1, 0], [2.5, 0]))]
    brain.remove_inter_region_edge("i0")
    brain.reset_state()
    outs.append(run(brain, [{"b": [1, 0]}, {"b": [4, 0]}]))
    np.testing.assert_allclose(outs[0][:, 2:], outs[2][:, 2:], rtol=1e-6)
    assert np.abs(outs[0] - outs[1])[1, 2:].max() > 1e-2
    assert float(b.values[b.slot_of("i0")]) == 4.0
    assert b.get_neuron("i0").get_delayed(1) == 4.0


def test_weights_of_zero_change_nothing():
    brain = chain("a", "b")
    obs = seen(2, 6, ["a", "b"])
    expected = run(brain, obs)
    brain.reset_state()
    brain.add_pathway("a", "b", 8, delay=0)
    brain.add_pathway("b", "a", 8, delay=3)
    np.testing.assert_allclose(run(brain, obs), expected, rtol=1e-6)


def test_pathways_that_are_not_there_do_nothing():
    """Whatever their padding holds."""
    brain = chain("a", "b")
    brain.add_pathway("a", "b", 3, weight_init=1.0)
    arrays = brain.arrays
    assert arrays.pathways.there.tolist() == [True] * 3 + [False]
    garbage = jax.tree.map(lambda x: x.at[3].set(2) if x.dtype != bool else x, arrays.pathways)
    garbage = arrays.replace(pathways=garbage)
    jax.tree.map(np.testing.assert_array_equal, brain_network._whole(garbage), brain_network._whole(arrays))


def test_brains_are_stacked_and_mapped_over():
    brain, _ = random_brain(0)
    arrays = brain.arrays
    other = jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, arrays)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), arrays, other)
    wholes = jax.jit(jax.vmap(pure.whole))(stacked)
    for i, one in enumerate((arrays, other)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x[i], y, rtol=1e-6), wholes, brain_network._whole(one))  # noqa: B023
    assert [len(at) for at in pure.places(arrays)] == [region.capacity.neurons for region in arrays.regions]
    assert len(np.unique(np.concatenate(pure.places(arrays)))) == sum(r.capacity.neurons for r in arrays.regions)


def test_outputs_come_in_the_order_of_their_regions():
    brain = chain("a", "b", "c", output_regions=["c", "without", "a"])
    brain.add_region("without", NeuronGraph())
    out = brain({"a": [1.0, 2.0], "c": [1.0, 2.0]})
    for name, place in (("c", slice(0, 2)), ("without", slice(2, 2)), ("a", slice(2, 4))):
        assert brain.output_slices[name] == place
        region = brain.get_region(name)
        assert out[place].tolist() == [region.get_neuron(neuron).value for neuron in region.output_ids]
    assert len(set(out.tolist())) == 4


def test_by_default_outputs_are_of_the_regions_that_no_pathway_leaves():
    brain = chain("a", "b", "c", output_regions=None)
    assert brain.output_regions == ["a", "b", "c"]
    brain.add_pathway("a", "b", 2)
    edge = brain.add_inter_region_edge("c", "h0", "b", "h0")
    assert brain.output_regions == ["b"]
    prune_neuron(brain.get_region("c"), "h0")
    assert brain.all_inter_region_edges() == brain.get_pathway("p0")
    assert brain.output_regions == ["b"]  # what a region's growth removes does not change what the brain gives
    edge = brain.add_inter_region_edge("c", "h1", "b", "h0")
    brain.remove_inter_region_edge(edge)
    assert brain.output_regions == ["b", "c"]
    brain.add_pathway("b", "a", 2)
    brain.add_pathway("c", "a", 2)
    assert brain.output_regions == ["c"]  # the last where all are left


def test_the_same_kind_comes_out():
    torch = pytest.importorskip("torch")
    brain = chain("a", "b")
    kinds = [np.array([1, 2]), [1.0, 2.0], jnp.array([1.0, 2.0]), torch.tensor([1.0, 2.0], requires_grad=True)]
    outs = []
    for obs in kinds:
        brain.reset_state()
        outs.append(brain({"a": obs, "b": [0.0, 1.0]}))
    assert [type(out).__module__.split(".")[0] for out in outs] == ["numpy", "numpy", "jaxlib", "torch"]
    for out in outs:
        np.testing.assert_array_equal(np.asarray(out), outs[0])
    brain.reset_state()
    assert isinstance(brain({}), np.ndarray)


# What reaches its weights


def test_edges_between_regions_have_gradients_from_the_start():
    """Where nothing but them leads to the outputs, and their weights are 0."""
    brain = BrainNetwork()
    for name in "ab":
        graph = NeuronGraph()
        graph.add_neuron("input", neuron_id="i")
        graph.add_neuron("output", "linear", "o")
        graph.add_edge("i", "o", 3.0)
        brain.add_region(name, graph)
    brain.add_inter_region_edge("a", "o", "b", "i", delay=0)
    brain.add_inter_region_edge("a", "i", "b", "o", delay=0)
    arrays, obs = brain.arrays, brain.observation({"a": [2.0]})

    def out(weights):
        graph = pure.whole(pure.with_weights(arrays, weights))
        return step(graph, brain.memory, obs)[0].sum()

    brain.set_gradients(jax.jit(jax.grad(out))(pure.weights_of(arrays)))
    assert [brain.parameter("edge", edge).grad for edge in ("i0", "i1")] == [2 * 3 * 3, 2]
    assert brain.get_region("b").parameter("bias", "o").grad == 1


@pytest.mark.slow
def test_gradients_are_those_of_the_oracles_differences():
    """Of all edges between regions, and of edges and biases in all regions; through delays and trainable cells."""
    brain, oracle = random_brain(3, kinds=("point", "trainable_gru", "trainable_lstm"))
    obs = seen(3, 5)
    arrays, vectors = brain.arrays, np.stack([brain.observation(x) for x in obs])

    def loss(weights):
        graph = pure.whole(pure.with_weights(arrays, weights))

        def one(memory, x):
            out, memory, _ = step(graph, memory, x, through_delays=True)
            return memory, jnp.sin(out).sum()

        return jax.lax.scan(one, fresh_memory(graph.capacity), vectors)[1].sum()

    brain.set_gradients(jax.jit(jax.grad(loss))(pure.weights_of(arrays)))

    def difference(change):
        totals = []
        for eps in (1e-4, -1e-4):
            other = oracle.copy()
            change(other, eps)
            totals.append(sum(np.sin(other.step(x)[0]).sum() for x in obs))
        return (totals[0] - totals[1]) / 2e-4

    got, expected = [], []
    for edge in brain.all_inter_region_edges():
        key = edge.edge_id

        def change(other, eps):
            other.edges[key] += eps  # noqa: B023

        got.append(float(brain.parameter("edge", key).grad))
        expected.append(difference(change))
    assert np.mean(np.abs(got) > 1e-3) > 0.6
    for name, region in brain.regions.items():
        for handle in region.parameters()[2::3]:
            if handle.field == "gates" or handle.key in region.input_ids:
                continue

            def change(other, eps):
                if handle.field == "bias":  # noqa: B023
                    other.neurons[name, handle.key].bias += eps  # noqa: B023
                else:
                    u, v, d = handle.key  # noqa: B023
                    other.edges[(name, u), (name, v), d] += eps  # noqa: B023

            got.append(float(handle.grad))
            expected.append(difference(change))
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4)


def test_parameters_are_the_regions_and_the_edges_between_them():
    brain = chain("a", "b")
    brain.add_pathway("a", "b", 2, delay=0)
    handles = brain.parameters()
    assert handles[:-2] == brain.get_region("a").parameters() + brain.get_region("b").parameters()
    assert [handle.name for handle in handles[-2:]] == ["edge:i0", "edge:i1"]
    before = brain({"a": [1.0, 2.0]})
    handles[-1].data = 2.0
    assert brain.all_inter_region_edges()[1].weight == 2.0
    assert (brain({"a": [1.0, 2.0]}) != before).any()
    brain.remove_inter_region_edge("i1")
    with pytest.raises(ValueError, match="no edge 'i1' between regions"):
        handles[-1].data  # noqa: B018


def test_weights_come_back():
    brain, _ = random_brain(2)
    arrays = brain.arrays
    run(brain, seen(0, 2))
    memory = jax.tree.map(lambda x: x * 2, brain.memory)
    other = jax.tree.map(lambda x: x * 0.5 if x.dtype == jnp.float32 else x, arrays)
    brain.set_arrays(other, memory)
    jax.tree.map(np.testing.assert_array_equal, brain.arrays, other)
    jax.tree.map(np.testing.assert_array_equal, brain.memory, memory)
    assert brain.arrays is brain.arrays
    edge = brain.all_inter_region_edges()[0]
    assert np.float32(edge.weight) == other.pathways.weight[0]
    brain.remove_inter_region_edge(edge.edge_id)
    with pytest.raises(ValueError, match="other neurons, edges or pathways"):
        brain.set_arrays(other)
    brain.get_region("a").make_room(hidden=9)
    with pytest.raises(ValueError, match="take `arrays` anew"):
        brain.set_arrays(other)


def test_dales_law_holds_between_regions_too():
    brain = BrainNetwork()
    for name, mode in (("a", "clamp"), ("b", "softplus")):
        graph = NeuronGraph(mode)
        for sign in ("excitatory", "inhibitory", "any"):
            graph.add_neuron("output", "linear", sign, cell_type=sign)
        graph.add_edge("inhibitory", "any", -0.5, delay=1)
        brain.add_region(name, graph)
    brain.get_region("a").add_edge("inhibitory", "excitatory", 0.5, edge_id="wrong")
    for src, dst in ("ab", "ba"):
        for sign in ("excitatory", "inhibitory", "any"):
            for weight, target in ((0.5, "any"), (-0.5, "excitatory")):
                brain.add_inter_region_edge(src, sign, dst, target, weight)
    brain.enforce_dale()
    weights = {(e.src_neuron, e.dst_neuron): e.weight for e in brain.all_inter_region_edges()}
    assert weights == {
        ("excitatory", "any"): 0.5, ("excitatory", "excitatory"): 0.0, ("inhibitory", "any"): 0.0,
        ("inhibitory", "excitatory"): -0.5, ("any", "any"): 0.5, ("any", "excitatory"): -0.5,
    }  # fmt: skip
    for region in brain.regions.values():
        assert region.effective_weight("e0") == pytest.approx(-0.5)
    assert brain.get_region("a").effective_weight("wrong") == 0.0


# Growing regions


def heavy(neuron=None, mode="clamp"):
    """Two regions joined in both ways, so that every hidden neuron of `a` has edges from `b` and to it."""
    brain = chain("a", "b", neuron=neuron, mode=mode)
    rng = np.random.default_rng(5)
    for h in ("h0", "h1"):
        for delay in range(4):
            brain.add_inter_region_edge("a", h, "b", "i0", rng.normal(), delay)
            brain.add_inter_region_edge("a", h, "b", "h1", rng.normal(), delay)
            brain.add_inter_region_edge("b", "h0", "a", h, rng.normal(), max(delay, 1) if delay != 1 else 4)
    return brain


@pytest.mark.parametrize(
    ("neuron", "mode"),
    [
        (TrainableLSTMNeuron(), "clamp"),
        pytest.param(TrainableLSTMNeuron(), "softplus", marks=pytest.mark.slow),
        pytest.param(GRUNeuron(), "softplus", marks=pytest.mark.slow),
        pytest.param(None, "clamp", marks=pytest.mark.slow),
    ],
)
def test_growing_in_the_middle_of_an_episode_changes_nothing(neuron, mode):
    obs = seen(4, 9, ["a", "b"])
    expected = run(heavy(neuron, mode), obs)
    brain = heavy(neuron, mode)
    a, b = brain.regions.values()
    outs = []
    for t, x in enumerate(obs):
        if t == 2:
            insert_neuron_on_edge(a, a.all_edges()[2].edge_id)  # of delay 2
        if t == 3:
            split_neuron(a, "h0", "twin", share=0.7)
            assert sum("twin" in (e.src_neuron, e.dst_neuron) for e in brain.all_inter_region_edges()) == 12
        if t == 4:
            split_neuron(b, "h0")  # a source of edges to the twin
        if t == 5:
            for _ in range(10):
                a.add_neuron()
            brain.add_region("late", NeuronGraph())
        if t == 6:
            merge_neurons(a, "h0", "twin")
        outs.append(brain(x))
    np.testing.assert_allclose(outs, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(axis=0).min() > 1e-2
    assert len([e for e in brain.all_inter_region_edges() if e.src_neuron == "h0" and e.src_region == "a"]) == 8


def test_a_split_shares_what_leaves_and_copies_what_comes():
    brain = chain("a", "b")
    out = brain.add_inter_region_edge("a", "h0", "b", "h0", 1.0)
    into = brain.add_inter_region_edge("b", "h0", "a", "h0", 0.5)
    pathway = brain.add_pathway("a", "b", 8, delay=2, weight_init=2.0)
    version = brain.version
    split_neuron(brain.get_region("a"), "h0", "twin", share=0.75)
    assert brain.version > version
    edges = {(e.src_neuron, e.dst_neuron, e.delay): e for e in brain.all_inter_region_edges()}
    assert edges["h0", "h0", 1].weight in (0.75, 0.5)
    assert [e.weight for e in brain.all_inter_region_edges() if e.edge_id in (out, into)] == [0.75, 0.5]
    assert edges["twin", "h0", 1].weight == 0.25
    assert edges["h0", "twin", 1].weight == 0.5
    assert edges["twin", "i0", 2].weight == 0.5
    assert len(brain.get_pathway(pathway)) == 10
    merge_neurons(brain.get_region("a"), "h0", "twin")
    edges = brain.all_inter_region_edges()
    assert [(e.edge_id, e.weight) for e in edges if e.edge_id in (out, into)] == [(out, 1.0), (into, 0.5)]
    assert [e.weight for e in brain.get_pathway(pathway)] == [2.0] * 8


def test_a_merge_takes_over_edges_that_are_not_parallel():
    brain = chain("a", "b")
    brain.add_inter_region_edge("a", "h0", "b", "h0", 1.0)
    brain.add_inter_region_edge("a", "h1", "b", "h0", 2.0)
    brain.add_inter_region_edge("a", "h1", "b", "h0", 3.0, delay=2)
    brain.add_inter_region_edge("b", "h0", "a", "h0", 4.0)
    brain.add_inter_region_edge("b", "h0", "a", "h1", 5.0)
    brain.add_inter_region_edge("b", "h1", "a", "h1", 6.0)
    merge_neurons(brain.get_region("a"), "h0", "h1")
    edges = {(e.src_region, e.src_neuron, e.dst_neuron, e.delay): e.weight for e in brain.all_inter_region_edges()}
    assert edges == {
        ("a", "h0", "h0", 1): 3.0, ("a", "h0", "h0", 2): 3.0, ("b", "h0", "h0", 1): 4.0, ("b", "h1", "h0", 1): 6.0,
    }  # fmt: skip


@pytest.mark.parametrize("redistribute", [True, False])
def test_edges_of_what_is_pruned_go(redistribute):
    brain = chain("a", "b")
    kept = brain.add_inter_region_edge("a", "h1", "b", "h0", 1.0)
    brain.add_inter_region_edge("a", "h0", "b", "h0", 1.0)
    brain.add_inter_region_edge("b", "h0", "a", "h0", 1.0)
    expected = chain("a", "b")
    run(brain, seen(0, 2, ["a"]))
    prune_neuron(brain.get_region("a"), "h0", redistribute)
    prune_neuron(expected.get_region("a"), "h0", redistribute)
    assert [e.edge_id for e in brain.all_inter_region_edges()] == [kept]
    brain.reset_state()
    obs = seen(0, 3, ["a"])
    np.testing.assert_allclose(run(brain, obs)[:, :2], run(expected, obs)[:, :2], rtol=1e-6)
    brain.get_region("b").remove_neuron("h0")
    assert brain.all_inter_region_edges() == []
    assert brain.summary()["inter_region_edges"] == 0


@pytest.mark.slow
def test_another_graph_in_a_region_keeps_the_edges_it_can():
    brain = chain("a", "b")
    brain.add_inter_region_edge("a", "h0", "b", "h0", 1.0, delay=7)
    state = brain.get_region("a").state_dict()
    assert brain.arrays.layout.capacity.delays == 8
    prune_neuron(brain.get_region("a"), "h1")
    brain.get_region("a").add_neuron(neuron_id="new")
    brain.add_inter_region_edge("a", "new", "b", "h0", 1.0)
    brain.get_region("a").load_state_dict(state)
    assert [e.src_neuron for e in brain.all_inter_region_edges()] == ["h0"]
    other = chain("a", "b")
    other.add_inter_region_edge("a", "h0", "b", "h0", 1.0, delay=7)
    obs = seen(0, 9, ["a"])
    np.testing.assert_allclose(run(brain, obs), run(other, obs), rtol=1e-6)


def test_regions_are_given_their_share_of_a_step():
    brain, _ = random_brain(0)
    run(brain, seen(0, 3))
    memory, arrays = brain.memory, brain.arrays
    before = [region.memory for region in brain.regions.values()]

    class Listener:
        heard = 0

        def record(self):
            self.heard += 1

    listener = Listener()
    brain.get_region("b").subscribe(listener)
    obs = np.stack([brain.observation(x) for x in seen(1, 2)])
    memories = jax.tree.map(lambda x: jnp.stack([x, x]), memory)
    _, _, values = jax.jit(step)(brain.whole, memories, obs)
    brain.saw(values, memories)
    assert listener.heard == 1
    for region, at, own in zip(brain.regions.values(), pure.places(arrays), before, strict=True):
        got, past = region.last_step
        np.testing.assert_array_equal(got, values[:, at])
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y), past, own)
    brain(seen(1, 1)[0])
    assert listener.heard == 2
    np.testing.assert_allclose(
        brain.get_region("b").last_step[0], values[0, pure.places(arrays)[1]], rtol=1e-5, atol=1e-6
    )


# Names, errors


def test_a_circle_of_regions_without_delay_is_refused_by_name():
    brain = chain("a", "b", "c")
    brain.add_pathway("a", "b", 1, delay=0)
    brain.add_inter_region_edge("b", "h0", "c", "i0", delay=0)
    for refused in (
        lambda: brain.add_pathway("c", "a", delay=0),
        lambda: brain.add_inter_region_edge("c", "o0", "a", "i0", 1.0, 0),
    ):
        with pytest.raises(
            ValueError, match="in a circle, and 'c' -> 'a' -> 'b' -> 'c' would: give one of the pathways"
        ):
            refused()
    brain.add_pathway("c", "a", delay=1)
    assert brain.execution_order() == ["a", "b", "c"]
    for edge in [e for e in brain.all_inter_region_edges() if e.delay == 0 and e.src_region == "a"]:
        brain.remove_inter_region_edge(edge.edge_id)
    brain.add_pathway("c", "a", delay=0)
    assert brain.execution_order() == ["b", "c", "a"]


def test_what_pathways_join():
    brain = chain("a", "b", seed=3)
    assert brain.add_pathway("a", "b", 5) == "p0"
    edges = brain.get_pathway("p0")
    assert [(e.edge_id, e.weight, e.delay, e.pathway_id) for e in edges] == [(f"i{k}", 0.0, 1, "p0") for k in range(5)]
    assert len({e.ends for e in edges}) == 5
    assert {e.src_neuron for e in edges} <= {"h0", "h1", "o0", "o1"}
    assert {e.dst_neuron for e in edges} <= {"i0", "i1"}
    same, other = (chain("a", "b", seed=seed) for seed in (3, 4))
    for brain_ in (same, other):
        brain_.add_pathway("a", "b", 5)
    assert same.get_pathway("p0") == edges != other.get_pathway("p0")
    blind, inputs = NeuronGraph(), NeuronGraph()
    for role, ends in (("hidden", blind), ("output", blind), ("input", inputs)):
        ends.add_neuron(role, neuron_id=role)
    brain.add_region("blind", blind)
    brain.add_region("inputs", inputs)
    brain.add_pathway("inputs", "blind", 2, pathway_id="mine")
    assert {(e.src_neuron, e.dst_neuron) for e in brain.get_pathway("mine")} == {
        ("input", "hidden"),
        ("input", "output"),
    }
    brain.add_pathway("a", "b", 3)
    assert len({e.ends for e in brain.all_inter_region_edges()}) == 10


def test_fewer_pairs_than_asked_for_are_all_taken(caplog):
    brain = chain("a", "b")
    with caplog.at_level(logging.WARNING):
        brain.add_pathway("a", "b", 8)
        assert not caplog.records
        brain.add_pathway("a", "b", 5)
        brain.add_pathway("b", "a", 9)
    assert len(brain.all_inter_region_edges()) == 16
    assert len(caplog.records) == 2
    assert "'p2' from 'b' to 'a' gets 8 connections of the 9 asked for" in caplog.text


def test_ids_are_given_once():
    brain = chain("a", "b")
    brain.add_inter_region_edge("a", "h0", "b", "h0", edge_id="i1")
    assert brain.add_inter_region_edge("a", "h1", "b", "h0") == "i2"
    brain.remove_inter_region_edge("i2")
    brain.remove_inter_region_edge("i2")
    assert brain.add_inter_region_edge("a", "h1", "b", "h0") == "i3"
    with pytest.raises(ValueError, match="'i2' is or was an id"):
        brain.add_inter_region_edge("a", "h1", "b", "h1", edge_id="i2")
    brain.add_pathway("a", "b", 1, pathway_id="p")
    with pytest.raises(ValueError, match="'p' is or was an id"):
        brain.add_pathway("a", "b", 1, pathway_id="p")


def test_errors_say_what_is_wrong():
    brain = chain("a", "b")
    graph = brain.get_region("a")
    brain.add_inter_region_edge("a", "h0", "b", "h0", delay=2)
    for call, error, message in (
        (lambda: brain.add_region("a", NeuronGraph()), ValueError, "region 'a' already"),
        (lambda: brain.add_region("x", graph), ValueError, "is the region 'a' already"),
        (lambda: brain.add_region("x", None), TypeError, "NeuronGraph, got None"),
        (lambda: brain.get_region("x"), ValueError, "no region 'x': there are 'a', 'b'"),
        (lambda: brain.add_pathway("a", "x"), ValueError, "no region 'x'"),
        (lambda: brain.add_pathway("a", "a"), ValueError, "within the region 'a'"),
        (lambda: brain.add_pathway("a", "b", 0), ValueError, "n_connections must be at least 1, got 0"),
        (lambda: brain.add_pathway("a", "b", delay=-1), ValueError, "delay must be at least 0, got -1"),
        (lambda: brain.add_pathway("a", "b", weight_init=np.nan), ValueError, "weights must be finite, got nan"),
        (lambda: brain.add_inter_region_edge("a", "x", "b", "h0"), ValueError, "no neuron 'x' in the region 'a'"),
        (lambda: brain.add_inter_region_edge("a", "h0", "b", "h0", 1.0, 2), ValueError, "with delay 2 already.*'i0'"),
        (lambda: brain.get_pathway("x"), ValueError, "no pathway 'x': there are none"),
        (lambda: brain({"x": [1.0]}), ValueError, "no region 'x'"),
        (lambda: brain({"a": [1.0]}), ValueError, r"obs dim of the region 'a' must be 2, .* got the shape \[1\]"),
        (lambda: brain({"a": np.zeros((3, 2))}), ValueError, r"obs dim: .* not a batch, got the shape \[3, 4\]"),
        (lambda: brain([1.0, 2.0]), TypeError, "must be a dict of regions"),
        (lambda: jax.jit(brain)({"a": jnp.zeros(2)}), TypeError, r"forward\.step"),
        (lambda: BrainNetwork(output_regions=["a", "a"]), ValueError, "once each"),
        (lambda: BrainNetwork()({}), ValueError, "no regions: give it some with add_region"),
        (lambda: pure.pathways([1, 1], [2, 2], [0, 0], [1, 1]), ValueError, "from place 1 to place 2 with delay 0"),
        (lambda: brain.load_state_dict({}), ValueError, "lacks format"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    motor = chain("a", output_regions=["motor"])
    with pytest.raises(ValueError, match="no region 'motor'"):
        motor({"a": [1, 2]})


# Copies, programs


@pytest.mark.parametrize("fresh", [True, False])
def test_a_state_comes_back_in_the_middle_of_an_episode(fresh):
    brain, _ = random_brain(0)
    brain.add_pathway("a", "b", 2, weight_init=0.1)
    run(brain, seen(0, 3))
    state = copy.deepcopy(brain.state_dict())
    expected = run(brain, seen(1, 4))
    if fresh:
        other = BrainNetwork()
    else:
        other = brain
        a = other.get_region("a")
        split_neuron(a, a.hidden_ids[0])
        other.get_region("b").remove_neuron(other.get_region("b").hidden_ids[0])
        other.add_inter_region_edge("a", a.hidden_ids[0], "b", other.get_region("b").hidden_ids[0], 1.0, delay=9)
    other.load_state_dict(state)
    np.testing.assert_allclose(run(other, seen(1, 4)), expected, rtol=1e-5, atol=1e-6)
    assert other.output_regions == ["c", "a"]
    with pytest.raises(ValueError, match="is or was an id"):
        other.add_pathway("a", "b", pathway_id="p0")
    neuron = other.get_region("a").hidden_ids[0]
    there = [e for e in other.all_inter_region_edges() if (e.src_region, e.src_neuron) == ("a", neuron)]
    split_neuron(other.get_region("a"), neuron)  # still follows
    after = [e for e in other.all_inter_region_edges() if e.src_region == "a" and e.delay < 9]
    assert there
    assert len(after) > len([e for e in state["edges"] if e["src_region"] == "a"])


def test_a_state_of_another_brain_is_refused_and_changes_nothing():
    brain = chain("a", "b")
    brain.add_pathway("a", "b", 2)
    before = brain.state_dict()
    other = chain("a")
    with pytest.raises(ValueError, match=r"lacks the regions \['b'\]"):
        brain.load_state_dict(other.state_dict())
    other = chain("a", "b", mode="softplus")
    with pytest.raises(ValueError, match="region 'a' is in clamp, the state's in softplus"):
        brain.load_state_dict(other.state_dict())
    wrong = brain.state_dict()
    wrong["edges"][0]["src_neuron"] = "gone"
    with pytest.raises(ValueError, match="gone"):
        brain.load_state_dict(wrong)
    assert str(brain.state_dict()) == str(before)


def test_a_copy_is_one_of_its_own():
    brain = heavy()
    obs = seen(0, 6, ["a", "b"])
    run(brain, obs[:2])
    other = copy.deepcopy(brain)
    edges = brain.all_inter_region_edges()
    split_neuron(other.get_region("a"), "h0", share=0.9)
    prune_neuron(other.get_region("a"), "h1")
    assert brain.all_inter_region_edges() == edges != other.all_inter_region_edges()
    third = copy.deepcopy(brain)
    expected = run(brain, obs[2:])
    np.testing.assert_allclose(run(third, obs[2:]), expected, rtol=1e-6)
    split_neuron(third.get_region("a"), "h0")
    assert len(third.all_inter_region_edges()) > len(edges)
    alone = copy.deepcopy(brain.get_region("a"))
    region, fourth = copy.deepcopy([brain.get_region("a"), brain])
    assert fourth.get_region("a") is region
    for graph in (alone, region):
        split_neuron(graph, "h0")
    assert brain.all_inter_region_edges() == edges
    assert len(fourth.all_inter_region_edges()) > len(edges)


def test_changed_weights_do_not_compile_anew():
    brain = chain("a", "b")
    brain.add_pathway("a", "b", 3)
    brain.add_pathway("b", "a", 3)
    brain({"a": [1, 2]})
    programs = brain_network._forward, brain_network._whole
    before = [program._cache_size() for program in programs]
    brain.set_arrays(jax.tree.map(lambda x: x * 2 if x.dtype == jnp.float32 else x, brain.arrays))
    brain.get_region("a").get_neuron("h0").bias.data = 0.5
    brain.parameter("edge", "i2").data = 1.0
    brain({"a": [1, 2]})
    brain.remove_inter_region_edge("i0")
    brain.add_pathway("b", "a", 3)
    brain.get_region("a").add_edge("h0", "h1", 0.5)
    split_neuron(brain.get_region("a"), "h1")
    brain({"b": [1, 2]})
    assert [program._cache_size() for program in programs] == before


# As documented


def test_summary():
    brain = chain("a", "b", name="mine")
    brain.add_pathway("a", "b", 3)
    inside = {"n_neurons": 6, "n_edges": 12}
    assert brain.summary() == {"inter_region_edges": 3, "regions": {"a": inside, "b": inside}}
    assert brain.region_names == ["a", "b"]
    assert list(brain.regions) == ["a", "b"]
    assert brain.name == "mine"
    assert repr(brain) == "BrainNetwork('mine': 'a', 'b'; 3 edges between them)"


def test_three_regions_as_documented():
    brain = BrainNetwork()
    for name in ("sensory", "memory", "executive"):
        brain.add_region(name, chain("x").get_region("x"))
    brain.add_pathway("sensory", "memory", n_connections=8, delay=1)
    brain.add_pathway("memory", "executive", n_connections=8, delay=0)
    assert brain.output_regions == ["executive"]
    assert brain({"sensory": [1.0, 2.0]}).shape == (2,)
