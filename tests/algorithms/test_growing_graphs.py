"""Graphs that change while they learn, inside the driver: each member its own, one program, exact resume."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tensor_optix import envs
from tensor_optix.algorithms.graph_ppo import GraphPPO
from tensor_optix.algorithms.graph_ppo_config import GraphPPOConfig
from tensor_optix.config import ConfigError
from tensor_optix.core.types import Event, StopReason
from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import Role
from tests.runs import assert_same_bits, plan_of, run_windows, session_of

# Grows at every evaluation from the fifth on: no signal is asked for much.
CONFIG = {
    "n_envs": 4, "n_steps": 16, "n_epochs": 2, "n_minibatches": 2, "hidden_sizes": [3], "max_neurons": 12,
    "max_delay": 2, "max_levels": 8, "feedback": 1, "sequence_length": 4, "grow_op": "add_edge",
    "min_score_buffer": 4, "grow_cooldown": 0, "maturation_window": 2, "grow_grad_threshold": 0.0,
    "merge_check_interval": 1000,
}  # fmt: skip


def growing(**changes):
    settings = {"seeds": 3, "stop": False, "eval_every": 64, "eval_episodes": 2, "total_steps": 64 * 60} | changes
    return session_of(plan_of(algorithm="graph_ppo", config=CONFIG, **settings))


def begun(config):
    """Algorithm, hyperparameters and a learner, outside a run."""
    algorithm = GraphPPO(envs.make("CartPole-v1"), GraphPPOConfig(**config))
    hyper = {name: jnp.float32(value) for name, value in algorithm.hyperparams().items()}
    learner = jax.jit(algorithm.init)(jax.random.key(0), hyper)
    return algorithm, hyper, learner


def edges(session):
    return np.asarray(session.state()["members"].learner.topology.edges).sum(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def grown():
    """A session, and its edges after each window; nothing is compiled after the first."""
    session, sizes = growing(), []
    for i in range(40):
        with contextlib.nullcontext() if i < 2 else jax.no_tracing():
            run_windows(session, 1)
        sizes.append(edges(session))
    return session, np.stack(sizes)


@pytest.mark.slow
def test_members_grow_apart(grown):
    session, sizes = grown
    assert (sizes[1] == 4 * 3 + 3 * 3 + 3 * 3).all()
    assert (sizes[-1] > sizes[0]).any()
    learner = session.state()["members"].learner
    topology = learner.topology
    assert np.asarray(topology.edges != topology.edges[:1]).any(axis=(1, 2, 3)).tolist() == [False, True, True]
    counts = np.asarray(learner.growing.growth.counts)
    assert (sizes[-1] - sizes[0] == counts[:, 0] - counts[:, 1]).all()  # grown, less pruned
    policies, episodes = session.final()
    assert np.isfinite(episodes.returns).all()
    assert (np.asarray(policies.topology.edges).sum(axis=(1, 2, 3)) <= sizes.max(axis=0)).all()


@pytest.mark.slow
def test_resume_in_the_middle_is_exact(grown):
    first = growing()
    run_windows(first, 20)
    second = growing()
    second.load(first.state())
    run_windows(second, 20)
    assert_same_bits(second.state(), grown[0].state())


@pytest.mark.slow
def test_a_member_does_not_depend_on_its_neighbours(grown):
    alone = growing(seeds=[1])
    run_windows(alone, 40)
    assert_same_bits(alone.state()["members"], jax.tree.map(lambda x: x[1:2], grown[0].state()["members"]))


@pytest.mark.parametrize(
    ("law", "op"),
    [("off", "split_neuron"), pytest.param("clamp", "split_neuron", marks=pytest.mark.slow),
     ("softplus", "insert_edge")],
)  # fmt: skip
def test_after_growing_the_policy_is_the_same_and_what_is_new_learns(law, op):
    config = CONFIG | {"hidden_sizes": (3,), "grow_op": op, "dale": law}
    algorithm, hyper, learner = begun(config)
    window, evaluated = jax.jit(algorithm.window), jax.jit(algorithm.evaluated)
    for i in range(30):
        learner, _ = window(learner, hyper, jax.random.key(i))
        before = learner
        learner, grew = evaluated(learner, jnp.float32(np.sin(i / 2)), jax.random.key(100 + i))
        if grew:
            break
    assert grew
    act = jax.jit(lambda learner: algorithm._sequences(*_window(algorithm, learner, hyper)).rows.log_prob)
    np.testing.assert_allclose(act(before), act(learner), atol=1e-6)
    fresh = np.asarray(learner.topology.role != before.topology.role)
    assert fresh.sum() == 1
    unravel = ravel_pytree(learner.params)[1]
    mu, old = unravel(learner.opt.mu), unravel(before.opt.mu)
    new_edges = np.asarray(learner.topology.edges & ~before.topology.edges)
    assert (np.asarray(mu["edges"])[new_edges] == 0).all()
    untouched = np.asarray(learner.params["edges"] == before.params["edges"]) & np.asarray(before.topology.edges)
    np.testing.assert_array_equal(np.asarray(mu["edges"])[untouched], np.asarray(old["edges"])[untouched])
    after, _ = window(learner, hyper, jax.random.key(7))
    changed = np.asarray(after.params["edges"] != learner.params["edges"])
    assert changed[new_edges].mean() > 0.5
    _assert_lawful(algorithm.graph_of(after.params, after.topology), law)


def _assert_lawful(graph, law):
    """Every weight has the sign of the neuron that it leaves, and every hidden neuron has one."""
    hidden, types = (np.asarray(x) for x in (graph.topology.role == Role.HIDDEN, graph.topology.cell_type))
    assert (types[hidden] != 0).all() == (law != "off")
    assert (np.asarray(dale.effective(graph)) * types[None, None] >= 0).all()


def test_the_first_steps_of_what_is_new_are_no_larger_than_the_others():
    """Adam's first step is the learning rate, whatever the gradient; with a count of all weights it would triple."""
    config = CONFIG | {"hidden_sizes": (3,), "grow_op": "split_neuron", "grow_trigger": "plateau"}
    config |= {"n_epochs": 1, "n_minibatches": 1}
    algorithm, hyper, learner = begun(config)
    window, evaluated = jax.jit(algorithm.window), jax.jit(algorithm.evaluated)
    for i in range(30):
        learner, _ = window(learner, hyper, jax.random.key(i))
    grew = False
    while not grew:
        before = learner
        learner, grew = evaluated(learner, jnp.float32(0.0), jax.random.key(100))
    after, _ = window(learner, hyper, jax.random.key(7))
    new = np.asarray(learner.topology.edges & ~before.topology.edges)
    moved = np.abs(np.asarray(after.params["edges"] - learner.params["edges"]))[new]
    rate = float(hyper["learning_rate"])
    assert moved.max() < 1.01 * rate
    assert moved.max() > 0.9 * rate


def _window(algorithm, learner, hyper):
    after, trace, _ = algorithm._collect(learner, jax.random.key(5))
    return learner, after, trace, trace.rollout.reward, hyper


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grow_op": "double"}, "grow_op must be off, insert_edge, split_neuron, add_edge"),
        ({"max_neurons": 0, "grow_op": "split_neuron"}, "needs room for more hidden neurons than 3: set max_neurons"),
        ({"grow_op": "add_edge", "max_delay": 0, "feedback": 0}, "give them room with max_delay"),
        ({"min_score_buffer": 1}, "min_score_buffer must be a whole number from 4"),
        ({"grow_op": "insert_edge", "max_neurons": 9, "max_levels": 2}, "longer than the 2 neurons of the start"),
    ],
)
def test_what_cannot_grow_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        plan_of(algorithm="graph_ppo", config=CONFIG | changes)


def test_edges_take_neurons_for_as_long_as_there_is_room():
    config = CONFIG | {"hidden_sizes": (3,), "max_neurons": 8, "max_levels": 0}
    config |= {"maturation_window": 1000, "grow_op": "insert_edge", "grow_trigger": "plateau"}
    algorithm, _, learner = begun(config)
    assert algorithm.capacity.levels == 4
    evaluated = jax.jit(algorithm.evaluated)
    for i in range(60):
        learner, _ = evaluated(learner, jnp.float32(0.0), jax.random.key(i))
    assert (np.asarray(learner.topology.role) == Role.HIDDEN).sum() == 8


@pytest.mark.slow
def test_a_member_that_grows_where_it_had_just_converged_does_not_say_that_it_stopped():
    """Growth falls on the evaluation that ends its patience: DORMANT, then on with a fresh one."""
    config = CONFIG | {
        "grow_op": "split_neuron", "grow_trigger": "plateau", "min_score_buffer": 28, "grow_cooldown": 27,
        "maturation_window": 1000,
    }  # fmt: skip
    settings = {"seeds": 2, "eval_every": 64, "eval_episodes": 2, "total_steps": 64 * 200}
    still = {"learning_rate": 1e-7}
    session = session_of(plan_of(algorithm="graph_ppo", config=config, hyperparams=still, **settings))
    (report,) = run_windows(session, 32)
    events = np.asarray(report.events)
    dormant, stopped = (events & int(Event.DORMANT)) > 0, (events & int(Event.STOPPED)) > 0
    goes_on = np.asarray(report.stop_reason) == StopReason.RUNNING
    assert (dormant & goes_on).any()
    assert not (stopped & goes_on).any()
    assert (np.asarray(session.state()["members"].learner.growing.growth.counts)[:, 0] > 0).all()
