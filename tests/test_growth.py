"""What is kept of graphs that grow: exactly the graphs, in few enough frames, over interruptions, and to look at."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from tensor_optix import resume, train
from tensor_optix.cli import main
from tensor_optix.curves import pack_curves
from tensor_optix.growth import MOST_FRAMES, Growth
from tensor_optix.results import TrainResult
from tests.chunk_stories import make_result
from tests.neuroevo.graphs import CLAMP, SOFTPLUS, packed, random_oracle

CONFIG = {
    "n_envs": 4, "n_steps": 16, "n_epochs": 1, "n_minibatches": 2, "hidden_sizes": [2], "max_neurons": 6,
    "grow_op": "split_neuron", "grow_trigger": "plateau", "min_score_buffer": 4, "grow_cooldown": 0,
    "maturation_window": 1,
}  # fmt: skip
RUN = {
    "algorithm": "graph_ppo", "config": CONFIG, "eval_every": 64, "eval_episodes": 2, "final_episodes": 4,
    "stop": False, "tune": False, "progress": False,
}  # fmt: skip


@pytest.mark.parametrize("capacity", [CLAMP, SOFTPLUS])
def test_graphs_come_back_as_they_were(capacity):
    graphs = [packed(*random_oracle(seed), capacity)[0] for seed in range(4)]
    growth = Growth(graphs[0].capacity, 2)
    for i, graph in enumerate(graphs):
        growth.observe(i % 2, 100 * i, graph)
    again = Growth.from_arrays({"other": np.zeros(3), **growth.to_arrays()})
    assert again.capacity == growth.capacity
    for member in (0, 1):
        for graph, saved in zip(graphs[member::2], again.graphs(member), strict=True):
            jax.tree.map(np.testing.assert_array_equal, saved, graph)
    assert [frame.env_steps for frame in again.frames[1]] == [100, 300]


def test_what_has_not_changed_is_kept_once_and_the_last_always():
    graph, other = (packed(*random_oracle(seed), CLAMP)[0] for seed in (0, 1))
    heavier = graph.replace(weights=graph.weights.replace(edges=2 * graph.weights.edges))
    growth = Growth(graph.capacity, 1)
    for steps, seen in ((10, graph), (20, heavier), (30, other), (40, other)):
        growth.observe(0, steps, seen)
    assert [frame.env_steps for frame in growth.frames[0]] == [10, 30]
    growth.observe(0, 40, other, last=True)
    growth.observe(0, 40, other, last=True)
    assert [frame.env_steps for frame in growth.frames[0]] == [10, 30, 40]


def test_there_are_never_too_many_frames_and_the_ends_stay():
    graphs = [packed(*random_oracle(seed), CLAMP)[0] for seed in (0, 1)]
    growth = Growth(graphs[0].capacity, 1)
    for steps in range(1, 201):
        growth.observe(0, steps, graphs[steps % 2])
        assert len(growth.frames[0]) <= MOST_FRAMES
    times = [frame.env_steps for frame in growth.frames[0]]
    assert (times[0], times[-1]) == (1, 200)
    assert max(np.diff(times)) <= 40  # no long stretch is without any


def test_results_without_growth_say_so():
    result = make_result([10])
    assert TrainResult.from_payload(*result.to_payload()).growth is None
    with pytest.raises(ValueError, match="networks do not grow"):
        result.plot_growth()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a run of two seeds, 12 windows at first and then 40."""
    folder = tmp_path_factory.mktemp("growth") / "run"
    train("CartPole-v1", seeds=2, total_steps=12 * 64, run_dir=folder, **RUN)
    return folder


@pytest.fixture(scope="module")
def result(folder):
    return resume(folder, total_steps=40 * 64, progress=False)


@pytest.mark.slow
def test_a_run_keeps_how_its_graphs_grew(folder, result):
    for member in (0, 1):
        counts = result.growth.neurons(member)
        assert counts[0] == 4 + 3 + 2
        assert max(counts) <= 4 + 3 + 6
        assert len(set(counts)) >= 3
        assert result.growth.frames[member][0].env_steps <= 64
        assert result.growth.frames[member][-1].env_steps == 40 * 64
        curve = result.members[member].curve
        assert curve.losses["neurons"][0] == counts[0]
        assert set(curve.losses["neurons"].astype(int)) <= set(range(4 + 3 + 2, 4 + 3 + 6 + 1))
    ends = sorted(result.growth.neurons(member)[-1] for member in (0, 1))
    assert f"graphs of 9 neurons at the start, {ends[0]}" in str(result)


@pytest.mark.slow
def test_a_member_that_is_not_there_is_refused(result):
    with pytest.raises(ValueError, match="member must be one of 0 to 1 that has run, got 2"):
        result.plot_growth(member=2)


@pytest.mark.slow
def test_saved_and_read_again(result, tmp_path):
    again = TrainResult.load(result.save(tmp_path))
    assert again.growth.neurons(1) == result.growth.neurons(1)
    one, other = (pack_curves([member.curve for member in x.members]) for x in (again, result))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


@pytest.mark.slow
def test_plot_draws_the_run_the_graph_and_its_growth(folder, result, capfd):
    assert main(["plot", str(folder)]) == 0
    names = capfd.readouterr().out.split()
    assert names == [str(folder / name) for name in ("curves.png", "graph.png", "growth.png", "growth.gif")]
    best = result.members.index(result.best)
    with Image.open(folder / "growth.gif") as animation:
        assert animation.n_frames == len(result.growth.frames[best])
    panels = [axis.get_ylabel() for axis in result.plot().axes]
    assert panels == ["score", "neurons", "edges", "state"]
