"""The picture of a graph: every neuron and every edge is in it."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

from tensor_optix.neuroevo.graph.drawing import draw, graph_figure, growth_figure
from tests.neuroevo.graphs import CLAMP, packed, random_oracle


@pytest.mark.parametrize("seed", [0, 1])
def test_all_is_drawn(seed):
    graph, _ = packed(*random_oracle(seed), CLAMP)
    axis = Figure().subplots()
    draw(graph, axis, legend=False)
    edges, there = np.asarray(graph.topology.edges), np.asarray(graph.topology.role != 0)
    straight = [line for line in axis.lines if len(line.get_xdata()) == 2]
    assert len(straight) == edges[0].sum()
    assert len(axis.patches) == edges[1:].sum()
    assert len(axis.lines) - len(straight) == there.sum()
    places = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axis.lines[len(straight) :]}
    assert len(places) == there.sum()  # none hides another
    colours = {matplotlib.colors.to_hex(line.get_color()) for line in straight}
    signs = np.sign(np.asarray(graph.weights.edges)[0][edges[0]])
    assert len(colours) == len({bool(sign >= 0) for sign in signs})


def test_figures(tmp_path):
    graph, _ = packed(*random_oracle(0), CLAMP)
    graph_figure(graph).savefig(tmp_path / "graph.png")
    growth_figure([graph, graph], ["before", "after"]).savefig(tmp_path / "growth.png")
    with pytest.raises(ValueError, match="one title for each graph"):
        growth_figure([graph], [])
