"""The picture of a graph: every neuron and every edge is in it, and each stays where it is while the graph grows."""

import itertools
import re
import time
from types import SimpleNamespace

import jax
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tensor_optix.neuroevo import NeuronGraph
from tensor_optix.neuroevo.graph import drawing, edits
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Kind, Role, empty, on_host
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


def graph_of(inputs, outputs, hidden, edges, types=()):
    """edges: (src, dst, delay, weight); types: (slot, cell type)."""
    delays = max([1, *(edge[2] for edge in edges)])
    graph = on_host(empty, Capacity(inputs, outputs, hidden, delays=delays, levels=1 + hidden + outputs))
    graph.topology.role[:] = [Role.INPUT] * inputs + [Role.OUTPUT] * outputs + [Role.HIDDEN] * hidden
    for slot, sign in types:
        graph.topology.cell_type[slot] = sign
    for src, dst, delay, weight in edges:
        graph.topology.edges[delay, dst, src] = True
        graph.weights.edges[delay, dst, src] = weight
    return graph


def deep(seed, delayed=0):
    """Three inputs, hidden layers of three, two and three, two outputs; edges also skip layers, some are delayed."""
    rng = np.random.default_rng(seed)
    layers = [[0, 1, 2], [5, 6, 7], [8, 9], [10, 11, 12], [3, 4]]
    edges = [(u, v, 0) for a in range(5) for b in range(a + 1, 5) for u in layers[a] for v in layers[b]]
    edges = [e for e in edges if rng.random() < 0.5]
    edges += [(5 + i, 8 + i, 0) for i in (0, 1)] + [(0, 5, 0), (1, 6, 0), (2, 7, 0), (8, 10, 0), (9, 11, 0), (8, 12, 0)]
    edges += [(int(rng.integers(13)), int(rng.integers(3, 13)), int(rng.integers(1, 3))) for _ in range(delayed)]
    return graph_of(3, 2, 8, [(*e, rng.normal()) for e in sorted(set(edges))])


def drawn(graph, **kwargs):
    """The axis of a figure that is laid out."""
    figure = graph_figure(graph, **kwargs)
    figure.draw_without_rendering()
    return figure.axes[0]


def in_pixels(artist):
    return artist.get_transform().transform(artist.get_path().vertices)


def artists_of(axis, ending=""):
    """(src, dst, delay) -> its line, or its head or number."""
    found = {}
    for artist in axis.get_children():
        match = re.fullmatch(r"_(\d+)-(\d+)-(\d+)" + ending, str(artist.get_label()))
        if match:
            found[tuple(map(int, match.groups()))] = artist
    return found


def ways_of(axis):
    """(src, dst, delay) -> points of its line in pixels, close to each other."""
    return {edge: dense(in_pixels(artist)) for edge, artist in artists_of(axis).items()}


def dense(line):
    steps = [np.linspace(a, b, max(int(np.hypot(*(b - a))), 2)) for a, b in itertools.pairwise(line)]
    return np.concatenate(steps)


def spots_of(axis, graph):
    """Slot -> pixels."""
    return {slot: axis.transData.transform(place) for slot, place in stable_places([graph]).items()}


def to_points(axis, pixels):
    return pixels * 72 / axis.figure.dpi


def nearest(axis, graph, edge, way):
    """Points from a line to the nearest neuron between its ends that is not its own."""
    spots = spots_of(axis, graph)
    low, high = sorted((spots[edge[0]][0], spots[edge[1]][0]))
    others = [spot for slot, spot in spots.items() if slot not in edge[:2] and low - 1 <= spot[0] <= high + 1]
    if low < high:
        others = [spot for spot in others if low + 1 < spot[0] < high - 1]
    return min((to_points(axis, np.hypot(*(way - spot).T).min()) for spot in others), default=np.inf)


def covered(axis, way, other):
    """Which share of a line lies under another, which is as wide as the widest."""
    far = np.sqrt(((way[::5, None] - other[None]) ** 2).sum(axis=2)).min(axis=1)
    return np.mean(to_points(axis, far) < 1.5)


def apart(axis, graph):
    """Points between lines where they pass a level, the least; two straight ones may cross there."""
    lines = [in_pixels(artist) for artist in artists_of(axis).values()]
    least = np.inf
    for level in {round(float(x), 3) for x, _ in spots_of(axis, graph).values()}:
        heights = []
        for line in (line if line[0, 0] < line[-1, 0] else line[::-1] for line in lines):
            if line[0, 0] + 15 < level < line[-1, 0] - 15:
                heights.append((np.interp(level, *line.T), len(line) == 2))
        pairs = itertools.combinations(heights, 2)
        least = min([least, *(abs(a - b) for (a, straight), (b, too) in pairs if not (straight and too))])
    return to_points(axis, least)


def boxes_of(artists):
    return [artist.get_window_extent() for artist in artists]


def neurons_of(axis):
    """Places of the markers."""
    dots = [line for line in axis.lines if re.fullmatch(r"_\d+", line.get_label())]
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
    lines = artists_of(axis)
    assert set(lines) == {(u, v, d) for d, v, u in np.argwhere(edges).tolist()}
    places = neurons_of(axis)
    assert len(places) == there.sum()
    assert len(set(places)) == len(places)  # none hides another
    for (u, v, d), line in lines.items():
        colour = line.get_color() if hasattr(line, "get_color") else line.get_edgecolor()
        blue = matplotlib.colors.to_rgb(colour)[2] > 0.5
        assert blue == (graph.weights.edges[d, v, u] >= 0)
        assert (line.get_linestyle() in ("-", "solid")) == (d == 0)


class TestLines:
    """Sizes in points: a marker's radius is 4.5, the widest line 2.5."""

    def test_an_edge_past_a_neuron_between_is_seen(self):
        graph = graph_of(1, 1, 1, [(0, 2, 0, 0.5), (2, 1, 0, 0.5), (0, 1, 0, -1.0)])
        axis = drawn(graph)
        ways = ways_of(axis)
        assert nearest(axis, graph, (0, 1, 0), ways[0, 1, 0]) > 9
        for edge in ((0, 2, 0), (2, 1, 0)):
            assert len(artists_of(axis)[edge].get_xdata()) == 2  # straight
            assert covered(axis, ways[edge], ways[0, 1, 0]) < 0.2
            assert covered(axis, ways[0, 1, 0], ways[edge]) < 0.1

    def test_more_levels_are_passed_in_wider_bows(self):
        chain = [(0, 2, 0, 1.0), (2, 3, 0, 1.0), (3, 4, 0, 1.0), (4, 1, 0, 1.0)]
        skips = [(0, 3, 0), (0, 4, 0), (0, 1, 0), (2, 1, 0)]
        graph = graph_of(1, 1, 3, [*chain, *((*edge, 0.5) for edge in skips)])
        axis = drawn(graph)
        ways = ways_of(axis)
        row = spots_of(axis, graph)[0][1]
        heights = [np.abs(ways[edge][:, 1] - row).max() for edge in skips]
        assert heights[0] < heights[1] < heights[2]
        assert all(nearest(axis, graph, edge, ways[edge]) > 8 for edge in skips)

    @pytest.mark.parametrize("delayed", [0, 12])
    @pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 29, 60))])
    def test_lines_pass_other_neurons_and_cover_no_line(self, seed, delayed):
        graph = deep(seed, delayed)
        axis = drawn(graph)
        ways = ways_of(axis)
        assert len(ways) == np.asarray(graph.topology.edges).sum()
        near = {edge: nearest(axis, graph, edge, way) for edge, way in ways.items() if edge[0] != edge[1]}
        assert min(near.values()) > 6, min(near, key=near.get)
        for edge, way in ways.items():
            for other, line in ways.items():
                assert edge == other or covered(axis, way, line) < 0.5, (edge, other)
        assert apart(axis, graph) > 4.5

    def test_in_a_panel_of_a_strip_too(self):
        graphs = [deep(seed) for seed in range(4)]
        figure = growth_figure(graphs, [""] * 4)
        figure.draw_without_rendering()
        places = stable_places(graphs)
        for axis in figure.axes:
            spots = {slot: axis.transData.transform(place) for slot, place in places.items()}
            for (src, dst, _), way in ways_of(axis).items():
                low, high = sorted((spots[src][0], spots[dst][0]))
                between = [spot for spot in spots.values() if low + 1 < spot[0] < high - 1]
                assert min((to_points(axis, np.hypot(*(way - at).T).min()) for at in between), default=9) > 4.5

    def test_within_a_level(self):
        """Outputs that lead to each other without delay, and neurons of one level joined by delays."""
        edges = [(0, v, 0, 1.0) for v in (4, 5, 6)] + [(v, v - 3, 0, 1.0) for v in (4, 5, 6)]
        edges += [(1, 2, 0, 1.0), (2, 3, 0, 1.0), (1, 3, 0, -1.0), (4, 6, 1, 1.0), (6, 4, 1, 1.0), (4, 6, 2, -1.0)]
        graph = graph_of(1, 3, 3, edges)
        axis = drawn(graph)
        ways, spots, heads = ways_of(axis), spots_of(axis, graph), artists_of(axis, "-head")
        within = [edge[:3] for edge in edges if spots[edge[0]][0] == spots[edge[1]][0]]
        assert len(within) == 6
        for edge in within:
            assert nearest(axis, graph, edge, ways[edge]) > 8
            assert edge in heads
            assert all(covered(axis, ways[edge], way) < 0.4 for other, way in ways.items() if other != edge)
        at = spots[1][0]
        assert all(ways[edge][:, 0].max() < at + 1 for edge in within if edge[0] < 4)  # labels are right of outputs

    def test_a_way_back_has_a_head(self):
        """Over a growth, an edge without delay can lead to where others led from."""
        graphs = [
            graph_of(1, 1, 2, [(0, a, 0, 1.0), (a, b, 0, 1.0), (b, 1, 0, 1.0)]) for a, b in ((2, 3), (3, 2), (2, 3))
        ]
        figure = growth_figure(graphs, ["", "", ""])
        figure.draw_without_rendering()
        assert stable_places(graphs)[2][0] == stable_places(graphs)[3][0]
        for axis, edge in zip(figure.axes, ((2, 3, 0), (3, 2, 0), (2, 3, 0)), strict=True):
            assert set(artists_of(axis, "-head")) == {edge}


class TestDelays:
    def test_heads_show_the_way(self):
        edges = [(0, 4, 0, 1.0), (0, 5, 0, 1.0), (4, 2, 0, 1.0), (5, 3, 0, 1.0), (1, 5, 0, 1.0)]
        delayed = [(4, 2, 1), (2, 4, 1), (4, 5, 1), (5, 4, 1), (0, 3, 2), (3, 4, 3), (5, 5, 2)]
        graph = graph_of(2, 2, 2, [*edges, *((*edge, -0.5) for edge in delayed)])
        axis = drawn(graph)
        heads, spots, ways = artists_of(axis, "-head"), spots_of(axis, graph), ways_of(axis)
        assert set(heads) == set(delayed)
        for (src, dst, delay), head in heads.items():
            tip, left, right, _ = to_points(axis, in_pixels(head))
            target = to_points(axis, spots[dst])
            far = np.hypot(*(tip - target))
            assert 5 < far < 7.5  # at the marker, not under it
            assert np.hypot(*((left + right) / 2 - target)) > far + 3  # and towards it
            if src != dst:
                assert np.hypot(*(tip - to_points(axis, spots[src]))) > 20
            if (dst, src, delay) in ways and src != dst:
                assert covered(axis, ways[src, dst, delay], ways[dst, src, delay]) < 0.2

    def test_each_delay_has_a_bow_of_its_own(self):
        edges = [(0, 2, 0, 1.0), (2, 1, 0, 1.0), *((u, v, d, 1.0) for u, v in ((2, 1), (1, 2)) for d in (1, 2, 3))]
        graph = graph_of(1, 1, 1, edges)
        axis = drawn(graph)
        ways, spots = ways_of(axis), spots_of(axis, graph)
        middle = (spots[1] + spots[2])[0] / 2
        heights = [way[np.abs(way[:, 0] - middle).argmin(), 1] for edge, way in ways.items() if 0 not in edge[:2]]
        assert len(heights) == 7
        assert to_points(axis, np.diff(np.sort(heights)).min()) > 12

    def test_loops_have_sizes_in_points(self):
        loops = [(2, 2, 1), (2, 2, 2), (2, 2, 3)]
        graph = graph_of(1, 1, 1, [(0, 2, 0, 1.0), (2, 1, 0, 1.0), *((*loop, 0.5) for loop in loops)])
        strip = growth_figure([graph] * 6, [""] * 6)
        strip.draw_without_rendering()
        for axis in (drawn(graph), strip.axes[0]):
            lines = [to_points(axis, in_pixels(artists_of(axis)[loop])) for loop in loops]
            widths = [np.ptp(line[:, 0]) for line in lines]
            np.testing.assert_allclose(widths, [15.0, 21.6, 26.88], rtol=0.02)
            heights = [np.ptp(line[:, 1]) for line in lines]
            assert all(0.6 < height / width < 1.1 for height, width in zip(heights, widths, strict=True))
            ways = ways_of(axis)
            assert max(covered(axis, ways[a], ways[b]) for a in loops for b in loops if a != b) < 0.3

    def test_numbers_of_long_ones(self):
        graph = graph_of(1, 1, 1, [(0, 2, 0, 1.0), (2, 1, 0, 1.0), (1, 2, 1, 1.0), (2, 2, 2, 1.0), (0, 1, 3, 1.0)])
        axis = drawn(graph)
        numbers = artists_of(axis, "-delay")
        assert {edge: text.get_text() for edge, text in numbers.items()} == {(2, 2, 2): "2", (0, 1, 3): "3"}
        for edge, text in numbers.items():  # on its line
            box = text.get_window_extent()
            middle = (box.min + box.max) / 2
            assert to_points(axis, np.hypot(*(ways_of(axis)[edge] - middle).T).min()) < 4
        assert "delayed (number: steps)" in [text.get_text() for text in axis.get_legend().get_texts()]

    def test_no_numbers_where_they_are_many(self):
        many = [(0, 2 + i, delay, 1.0) for i in range(5) for delay in range(2, 7)]
        axis = drawn(graph_of(1, 1, 5, [(2, 1, 0, 1.0), *many]))
        assert len(artists_of(axis, "-head")) == 25
        assert not artists_of(axis, "-delay")
        assert "delayed" in [text.get_text() for text in axis.get_legend().get_texts()]


class TestCellTypes:
    EDGES = ((0, 2, 0, 1.0), (0, 3, 0, 1.0), (2, 1, 0, 1.0), (3, 1, 0, -1.0))

    def legend_of(self, axis):
        return [text.get_text() for text in axis.get_legend().get_texts()]

    def test_signs_stand_in_neurons(self):
        graph = graph_of(1, 1, 3, [*self.EDGES, (0, 4, 0, 1.0)], types=[(2, 1), (3, -1)])
        axis = drawn(graph)
        places = stable_places([graph])
        signs = {line.get_label(): line for line in axis.lines if re.search("tory", line.get_label())}
        assert {name: line.get_marker() for name, line in signs.items()} == {"_2-excitatory": "+", "_3-inhibitory": "_"}
        for name, line in signs.items():
            assert (line.get_xdata()[0], line.get_ydata()[0]) == places[int(name[1])]
            assert line.get_zorder() > max(dot.get_zorder() for dot in axis.lines if dot.get_label() == name[:2])
        assert {"excitatory", "inhibitory"} < set(self.legend_of(axis))

    @pytest.mark.parametrize(("types", "shown"), [((), set()), (((3, -1),), {"inhibitory"})])
    def test_the_legend_has_those_that_occur(self, types, shown):
        axis = drawn(graph_of(1, 1, 2, self.EDGES, types=types))
        assert {"excitatory", "inhibitory"} & set(self.legend_of(axis)) == shown


class TestLabels:
    def test_numbers_of_those_that_there_are(self):
        graph, _ = packed(*random_oracle(0), CLAMP)  # not every slot holds a neuron
        axis = Figure().subplots()
        draw(graph, axis)
        role, inputs = np.asarray(graph.topology.role), graph.capacity.inputs
        places = stable_places([graph])
        expected = {(places[int(i)], str(i), "right") for i in np.flatnonzero(role == Role.INPUT)}
        expected |= {(places[int(i)], str(i - inputs), "left") for i in np.flatnonzero(role == Role.OUTPUT)}
        labels = [text for text in axis.texts if not text.get_label().endswith("-delay")]
        assert {(text.xy, text.get_text(), text.get_ha()) for text in labels} == expected

    def test_names(self):
        axis = Figure().subplots()
        draw(plain(), axis, input_names=["x", "v", "angle"], output_names=["left", "right"])
        labels = labels_of(axis)
        places = stable_places([plain()])
        assert labels["angle"] == (places[2], "right")
        assert labels["right"] == (places[4], "left")
        assert len(labels) == 5

    def test_beside_loops(self):
        axis = drawn(graph_of(1, 1, 0, [(0, 1, 0, 1.0), (1, 1, 1, 1.0), (1, 1, 4, 1.0)]), output_names=["force"])
        (box,) = boxes_of(text for text in axis.texts if text.get_text() == "force")
        assert not any(box.contains(*point) for way in ways_of(axis).values() for point in way)

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

    def test_the_strip_is_in_rows_that_fit_a_page(self, grown):
        titles = [f"{i}00,000 STEPS: 34 neurons, 512 edges, and more of it" for i in range(6)]
        titles[4] = "a-name-without-a-single-space-that-is-far-too-long-for-its-panel"
        figure = growth_figure((grown * 2)[:6], titles, input_names=["position", "angle of the pole", "speed"])
        figure.draw_without_rendering()
        assert figure.get_figwidth() < 11
        rows = {}
        for axis in figure.axes:
            rows.setdefault(axis.get_subplotspec().rowspan.start, []).append(axis)
        assert [len(row) for row in rows.values()] == [3, 3]
        boxes = boxes_of([axis._left_title for axis in figure.axes])
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        for axis, title in zip(figure.axes, titles, strict=True):
            assert "".join(axis.get_title(loc="left").split()) == "".join(title.split())  # all of it
        assert [len(growth_figure([grown[0]] * n, [""] * n).axes) for n in (1, 4, 5)] == [1, 4, 5]

    def test_the_strip_has_one_legend_below(self):
        typed = graph_of(1, 1, 1, [(0, 2, 0, 1.0), (2, 1, 0, 1.0)], types=[(2, -1)])
        delayed = graph_of(1, 1, 1, [(0, 2, 0, 1.0), (2, 1, 0, 1.0), (1, 2, 1, -1.0)])
        figure = growth_figure([typed, delayed], ["", ""])
        figure.draw_without_rendering()
        (legend,) = figure.legends
        shown = [text.get_text() for text in legend.get_texts()]
        assert shown == ["point", "inhibitory", "positive", "negative", "delayed"]  # of any of the graphs
        below = legend.get_window_extent()
        assert all(axis.get_legend() is None and axis.bbox.y0 >= below.y1 for axis in figure.axes)
        assert figure.bbox.x0 <= below.x0 < below.x1 <= figure.bbox.x1

    def test_nothing_is_under_the_legend_of_an_animation(self, tmp_path, monkeypatch):
        graphs, frames = [deep(seed, 8) for seed in range(3)], []

        def look(writer, **_):
            (axis,), (legend,) = writer.fig.axes, writer.fig.legends
            writer.fig.draw_without_rendering()
            below = legend.get_window_extent()
            lines = list(ways_of(axis).values())
            frames.append(min(line[:, 1].min() for line in lines) - below.y1)
            boxes = boxes_of([axis._left_title, *axis.texts])
            assert axis.bbox.y0 >= below.y1
            assert not any(box.overlaps(below) for box in boxes)
            edge = writer.fig.bbox
            assert all(edge.x0 <= box.x0 < box.x1 <= edge.x1 and box.y1 <= edge.y1 for box in [*boxes, below])
            assert all(axis.bbox.y0 <= line[:, 1].min() and line[:, 1].max() <= axis.bbox.y1 for line in lines)

        monkeypatch.setattr(drawing.PillowWriter, "grab_frame", look)
        monkeypatch.setattr(drawing.PillowWriter, "finish", lambda writer: None)
        growth_animation(graphs, tmp_path / "growth.gif", ["first\nof three", "", "a word " * 20])
        assert len(frames) == 3
        assert min(frames) > 0

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


def test_named_graphs_are_drawn_by_their_arrays(tmp_path):
    graph = NeuronGraph()
    for role, name in (("input", "x"), ("hidden", "h"), ("output", "y")):
        graph.add_neuron(role, neuron_id=name)
    for edge in (("x", "h", 0.5), ("h", "y", 0.5), ("x", "y", -1.0)):
        graph.add_edge(*edge)
    axis = drawn(graph, input_names=["x"], output_names=["y"])
    plain_axis = drawn(graph.arrays, input_names=["x"], output_names=["y"])
    assert set(ways_of(axis)) == set(ways_of(plain_axis)) == {(0, 2, 0), (2, 1, 0), (0, 1, 0)}
    assert stable_places([graph]) == stable_places([graph.arrays])
    assert len(growth_figure([graph, graph.arrays], ["", ""]).axes) == 2
    growth_animation([graph], tmp_path / "growth.gif")
    draw(NeuronGraph(), Figure().subplots())  # of nothing


def test_what_has_no_graph_is_refused():
    for what, name in ((SimpleNamespace(arrays=(1, 2)), "SimpleNamespace"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"has one as its `arrays` .* got a {name}"):
            graph_figure(what)


def test_many_edges_are_drawn_quickly(tmp_path):
    rng = np.random.default_rng(0)
    layers = [range(8), *(range(12 + 12 * i, 24 + 12 * i) for i in range(5)), range(8, 12)]
    pairs = [(u, v) for a in range(7) for b in range(a + 1, 7) for u in layers[a] for v in layers[b]]
    chosen = rng.permutation(len(pairs))[:1000]
    edges = [(*pairs[i], 0, rng.normal()) for i in chosen] + [(v, u, 1, rng.normal()) for u, v in pairs[-500:]]
    graph = graph_of(8, 4, 60, edges)
    start = time.process_time()
    figure = graph_figure(graph)
    figure.savefig(tmp_path / "graph.png")
    assert len(artists_of(figure.axes[0])) == 1500
    assert time.process_time() - start < 15  # 3 on one core
