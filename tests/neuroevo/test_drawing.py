"""The picture of a graph: every neuron and every edge is in it, and each stays where it is while the graph grows."""

import jax
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tensor_optix.neuroevo.graph import edits
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Kind, Role
from tensor_optix.neuroevo.graph.drawing import draw, graph_figure, growth_animation, growth_figure, stable_places
from tensor_optix.neuroevo.graph.wiring import layered
from tests.neuroevo.graphs import CLAMP, packed, random_oracle


def plain(inputs=3, outputs=2, hidden=8, sizes=(3,)):
    capacity = Capacity(inputs, outputs, hidden, delays=1, levels=6)
    gains = [1.0] * outputs
    return layered(capacity, sizes, Activation.TANH, Kind.POINT, 0, gains, jax.random.key(0))


@pytest.fixture(scope="module")
def grown():
    """A graph, with a relay on an edge, with a split neuron, and without the neuron that was there first."""
    graph = plain()
    first = graph.capacity.first_hidden
    relay = jax.jit(edits.insert)(graph, 0, first, 0).graph
    two = jax.jit(edits.split)(relay, first + 1).graph
    return [graph, relay, two, jax.jit(edits.prune_neuron)(two, first).graph]


def neurons_of(axis):
    """Places of the markers."""
    dots = [line for line in axis.lines if len(line.get_xdata()) == 1]
    return [(float(dot.get_xdata()[0]), float(dot.get_ydata()[0])) for dot in dots]


def labels_of(axis):
    """Text -> place, and the side on which it stands."""
    return {text.get_text(): (tuple(map(float, text.xy)), text.get_ha()) for text in axis.texts}


@pytest.mark.parametrize("seed", [0, 1])
def test_all_is_drawn(seed):
    graph, _ = packed(*random_oracle(seed), CLAMP)
    axis = Figure().subplots()
    draw(graph, axis, legend=False)
    edges, there = np.asarray(graph.topology.edges), np.asarray(graph.topology.role != 0)
    straight = [line for line in axis.lines if len(line.get_xdata()) == 2]
    assert len(straight) == edges[0].sum()
    assert len(axis.patches) == edges[1:].sum()
    places = neurons_of(axis)
    assert len(places) == there.sum()
    assert len(set(places)) == len(places)  # none hides another
    colours = {matplotlib.colors.to_hex(line.get_color()) for line in straight}
    signs = np.sign(np.asarray(graph.weights.edges)[0][edges[0]])
    assert len(colours) == len({bool(sign >= 0) for sign in signs})


class TestLabels:
    def test_numbers_of_those_that_there_are(self):
        graph, _ = packed(*random_oracle(0), CLAMP)  # not every slot holds a neuron
        axis = Figure().subplots()
        draw(graph, axis)
        role, inputs = np.asarray(graph.topology.role), graph.capacity.inputs
        places = stable_places([graph])
        expected = {(places[int(i)], str(i), "right") for i in np.flatnonzero(role == Role.INPUT)}
        expected |= {(places[int(i)], str(i - inputs), "left") for i in np.flatnonzero(role == Role.OUTPUT)}
        assert {(text.xy, text.get_text(), text.get_ha()) for text in axis.texts} == expected

    def test_names(self):
        axis = Figure().subplots()
        draw(plain(), axis, input_names=["x", "v", "angle"], output_names=["left", "right"])
        labels = labels_of(axis)
        places = stable_places([plain()])
        assert labels["angle"] == (places[2], "right")
        assert labels["right"] == (places[4], "left")
        assert len(labels) == 5

    @pytest.mark.parametrize(("inputs", "shown"), [(12, 14), (13, 2)])
    def test_only_where_they_are_few(self, inputs, shown):
        axis = Figure().subplots()
        draw(plain(inputs), axis, input_names=[f"i{i}" for i in range(inputs)])
        assert len(axis.texts) == shown

    @pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
    def test_names_must_be_as_many(self, names):
        with pytest.raises(ValueError, match=f"output_names must name every output, 2 of them, got {len(names)}"):
            draw(plain(), Figure().subplots(), output_names=names)


class TestGrowth:
    def test_neurons_keep_their_places(self, grown):
        figure = growth_figure(grown, ["", "", "", "last"])
        places = stable_places(grown)
        assert len(set(places.values())) == len(places)
        assert stable_places(grown[::-1]) == places
        for axis, graph in zip(figure.axes, grown, strict=True):
            there = np.flatnonzero(np.asarray(graph.topology.role))
            assert sorted(neurons_of(axis)) == sorted(places[int(slot)] for slot in there)
        assert figure.axes[0].get_title(loc="left") == "8 neurons, 15 edges"
        assert figure.axes[3].get_title(loc="left") == "last"

    def test_weights_keep_their_scale(self):
        graph = plain()
        place = (0, graph.capacity.first_hidden, 0)
        heavier = graph.replace(weights=graph.weights.replace(edges=graph.weights.edges.at[place].set(10.0)))
        axes = growth_figure([graph, heavier], ["", ""]).axes
        widths = [{line.get_linewidth() for line in axis.lines if len(line.get_xdata()) == 2} for axis in axes]
        assert max(widths[0]) < 1.0 < 2.0 < max(widths[1])
        assert len(widths[0] - widths[1]) == len(widths[1] - widths[0]) == 1  # of the one that has changed

    def test_who_comes_deeper_stands_deeper(self, grown):
        places = stable_places(grown)
        first = grown[0].capacity.first_hidden
        assert places[0][0] < places[first + 3][0] < places[first][0] < places[3][0]  # the relay is before `first`
        assert places[3][0] == places[4][0]

    def test_outputs_stand_alone(self):
        for seed in range(4):
            graph, _ = packed(*random_oracle(seed), CLAMP)
            role, places = np.asarray(graph.topology.role), stable_places([graph])
            columns: dict = {True: set(), False: set()}
            for slot, (x, _) in places.items():
                columns[bool(role[slot] == Role.OUTPUT)].add(x)
            assert columns[True] == {max(columns[False]) + 1}

    def test_animation(self, grown, tmp_path):
        graphs = [*grown, grown[0]]
        growth_animation(graphs, tmp_path / "growth.gif", frames_per_second=4.0)
        with Image.open(tmp_path / "growth.gif") as picture:
            assert picture.n_frames == len(graphs)
            frames = []
            for i in range(len(graphs)):
                picture.seek(i)
                assert picture.info["duration"] == 250
                frames.append(np.asarray(picture.convert("RGB"), np.float32).mean(axis=2))
        assert all((frame != frames[0]).any() for frame in frames[1:-1])
        np.testing.assert_array_equal(frames[0], frames[-1])  # nothing is left of those between

    def test_what_cannot_be_drawn_is_refused(self, grown, tmp_path):
        with pytest.raises(ValueError, match="one title for each graph"):
            growth_figure(grown, [])
        with pytest.raises(ValueError, match="one title for each graph"):
            growth_animation([], tmp_path / "growth.gif")
        with pytest.raises(ValueError, match="the same inputs and outputs"):
            growth_figure([plain(), plain(outputs=3)], ["", ""])
        with pytest.raises(ValueError, match="frames_per_second"):
            growth_animation(grown, tmp_path / "growth.gif", frames_per_second=100.0)
        assert not list(tmp_path.iterdir())


def test_figures(tmp_path):
    graph, _ = packed(*random_oracle(0), CLAMP)
    graph_figure(graph).savefig(tmp_path / "graph.png")
    growth_figure([graph, graph], ["before", "after"]).savefig(tmp_path / "growth.png")
    assert graph_figure(graph)._repr_png_().startswith(b"\x89PNG")
