"""Graph PPO: acting and learning are one forward pass; what it remembers, keeps and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs, train
from tensor_optix.algorithms.graph_ppo import GraphPPO
from tensor_optix.algorithms.graph_ppo_config import GraphPPOConfig
from tensor_optix.config import ConfigError
from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import Role, count_edges, count_neurons
from tensor_optix.neuroevo.graph.forward import step
from tests.runs import assert_same_bits, plan_of, run_windows, session_of

SMALL = {"n_envs": 4, "n_steps": 32, "n_epochs": 2, "n_minibatches": 2, "hidden_sizes": (6,)}
MEMORIES = {
    "none": {},
    "delays": {"feedback": 2},
    "gru": {"cell": "gru"},
    "trainable lstm": {"cell": "trainable_lstm", "feedback": 1, "sequence_length": 8},
    "delays through time": {"feedback": 2, "sequence_length": 8},
    "dale": {"feedback": 1, "dale": "clamp"},
    "dale softplus": {"hidden_sizes": (5, 4), "dale": "softplus"},
}


def made(env="CartPole-v1", **changes):
    algorithm = GraphPPO(envs.make(env), GraphPPOConfig(**(SMALL | changes)))
    hyper = {name: jnp.float32(value) for name, value in algorithm.hyperparams().items()}
    return algorithm, hyper, jax.jit(algorithm.init)(jax.random.key(0), hyper)


EVERY_DAY = {("none", "CartPole-v1"), ("delays through time", "CartPole-v1")}
CASES = [(memory, env) for memory in MEMORIES for env in ("CartPole-v1", "Pendulum-v1")]


@pytest.mark.parametrize(
    ("memory", "env"), [pytest.param(*case, marks=() if case in EVERY_DAY else pytest.mark.slow) for case in CASES]
)
def test_before_the_first_update_every_ratio_is_one(memory, env):
    algorithm, hyper, learner = made(env, **MEMORIES[memory])
    # A long way from a uniform policy, and episodes that end in the middle of sequences.
    learner = learner.replace(params={**learner.params, "edges": learner.params["edges"] * 20})
    learner, _ = jax.jit(algorithm.window)(learner, hyper, jax.random.key(1))
    still = hyper | {"learning_rate": jnp.float32(0.0)}
    after, trace, _ = jax.jit(algorithm._collect)(learner, jax.random.key(2))
    if env == "CartPole-v1":
        assert (trace.rollout.terminated | trace.rollout.truncated).any()
    sequences = algorithm._sequences(learner, after, trace, trace.rollout.reward, still)
    _, losses = jax.jit(algorithm._loss)(learner.params, learner.topology, sequences, still)
    assert abs(float(losses["approx_kl"])) < 1e-8  # rounding of 128 ratios; one that is off by 1e-3 makes 5e-7
    graph = algorithm.graph_of(learner.params, learner.topology)
    out, _, _ = step(graph, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trace.memory),
                     trace.rollout.obs.reshape(-1, algorithm.env.obs_shape[0]))  # fmt: skip
    np.testing.assert_allclose(out[:, -1], trace.value.reshape(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_acting_alone_is_what_training_did(memory):
    algorithm, _, learner = made(**MEMORIES[memory])
    _, trace, _ = jax.jit(algorithm._collect)(learner, jax.random.key(2))
    policy, carry = algorithm.policy(learner), algorithm.initial_carry()
    done = np.asarray(trace.rollout.terminated | trace.rollout.truncated)[:, 0]
    act = jax.jit(algorithm.act, static_argnums=4)
    for t in range(12):
        np.testing.assert_allclose(
            jax.tree.leaves(carry)[0] if jax.tree.leaves(carry) else 0.0,
            jax.tree.leaves(trace.memory)[0][t, 0] if jax.tree.leaves(carry) else 0.0,
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip
        _, carry = act(policy, trace.rollout.obs[t, 0], carry, jax.random.key(0), True)
        if done[t]:
            carry = algorithm.initial_carry()


def test_off_is_what_yaml_makes_of_it():
    plan = plan_of(algorithm="graph_ppo", config={"dale": False, "grow_op": False})
    assert (plan.program.algorithm.config.dale, plan.program.algorithm.config.grow_op) == ("off", "off")


@pytest.mark.parametrize("law", ["clamp", "softplus"])
def test_every_neuron_keeps_its_sign(law):
    algorithm, hyper, learner = made(dale=law, hidden_sizes=(10, 5), feedback=1)
    assert count_neurons(learner.topology) == 4 + 3 + 15
    first = algorithm.graph_of(learner.params, learner.topology)
    np.testing.assert_array_equal(first.topology.cell_type[7:], [1] * 8 + [-1] * 2 + [1] * 4 + [-1])
    for i in range(3):
        learner, _ = jax.jit(algorithm.window)(learner, hyper | {"learning_rate": jnp.float32(0.1)}, jax.random.key(i))
        graph = algorithm.graph_of(learner.params, learner.topology)
        signed = np.asarray(dale.effective(graph)) * np.asarray(graph.topology.cell_type)[None, None]
        assert (signed >= 0).all()
        moved = np.asarray(dale.effective(graph) != dale.effective(first))[np.asarray(graph.topology.edges)]
        assert moved.mean() > 0.9


def test_only_what_is_there_learns():
    algorithm, hyper, learner = made(max_neurons=20, max_delay=3, feedback=1)
    after, _ = jax.jit(algorithm.window)(learner, hyper, jax.random.key(1))
    edges = np.asarray(learner.topology.edges)
    assert (np.asarray(after.params["edges"])[~edges] == 0).all()
    assert (np.asarray(after.params["edges"])[edges] != np.asarray(learner.params["edges"])[edges]).mean() > 0.9
    absent = np.asarray(learner.topology.role) == Role.ABSENT
    assert absent.sum() == 14
    assert (np.asarray(after.params["bias"])[absent] == 0).all()
    assert count_neurons(learner.topology) == 4 + 3 + 6
    assert count_edges(learner.topology) == 4 * 6 + 6 * 3 + 6 * 6


@pytest.mark.slow
def test_room_changes_nothing():
    small, hyper, learner = made(feedback=1)
    large, _, padded = made(feedback=1, max_neurons=20, max_delay=3, max_levels=4)
    n = small.capacity.neurons
    params = {
        "edges": jnp.zeros_like(padded.params["edges"]).at[:2, :n, :n].set(learner.params["edges"]),
        "bias": jnp.zeros_like(padded.params["bias"]).at[:n].set(learner.params["bias"]),
    }
    padded = padded.replace(params=params)
    one, stats = jax.jit(small.window)(learner, hyper, jax.random.key(1))
    other, same = jax.jit(large.window)(padded, hyper, jax.random.key(1))
    np.testing.assert_allclose(other.params["edges"][:2, :n, :n], one.params["edges"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(same.losses["value_loss"], stats.losses["value_loss"], rtol=1e-4)


@pytest.mark.slow
def test_gradients_reach_through_delays_only_where_they_are_let():
    grads = {}
    for through in (False, True):
        algorithm, hyper, learner = made(feedback=1, sequence_length=8, through_delays=through)
        after, trace, _ = jax.jit(algorithm._collect)(learner, jax.random.key(2))
        sequences = algorithm._sequences(learner, after, trace, trace.rollout.reward, hyper)
        loss = jax.jit(jax.grad(lambda p: algorithm._loss(p, learner.topology, sequences, hyper)[0]))  # noqa: B023
        grads[through] = loss(learner.params)["edges"]
    assert not np.allclose(grads[False], grads[True], rtol=1e-3)
    np.testing.assert_allclose(grads[False][0, 4:7], grads[True][0, 4:7], rtol=1e-4, atol=1e-7)  # the outputs' own


def test_a_roll_back_brings_the_topology_back():
    algorithm, _, learner = made(max_neurons=8)
    snapshot = algorithm.snapshot(learner)
    edges = learner.topology.edges.at[0, :, 0].set(False)
    changed = learner.replace(topology=learner.topology.replace(edges=edges))
    assert_same_bits(algorithm.restore(changed, snapshot).topology, learner.topology)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["none", "trainable lstm"])
def test_it_runs_and_resumes_in_the_driver(memory):
    config = SMALL | {"hidden_sizes": [6]} | MEMORIES[memory]
    plan = plan_of(algorithm="graph_ppo", config=config, eval_every=256)
    whole = session_of(plan)
    run_windows(whole, 6)
    first = session_of(plan)
    run_windows(first, 3)
    second = session_of(plan, start=False)
    second.load(first.state())
    run_windows(second, 3)
    assert_same_bits(second.state(), whole.state())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"cell": "gru_cell"}, "cell must be one of point, gru, lstm"),
        ({"hidden_sizes": []}, "name a layer of neurons"),
        ({"max_neurons": 3, "hidden_sizes": [8]}, r"max_neurons must be 0 \(as there are\) or at least 8"),
        ({"feedback": 3, "max_delay": 2}, r"max_delay must be 0 .* at least 3, got 2"),
        ({"sequence_length": 7}, "sequence_length must divide n_steps"),
        ({"activation": "swish"}, "activation must be one of"),
    ],
)
def test_what_cannot_be_is_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        plan_of(algorithm="graph_ppo", config=config)


def test_images_are_refused():
    with pytest.raises(ConfigError, match=r"takes vectors, and Breakout-MinAtar shows \[10, 10, 4\]"):
        plan_of(algorithm="graph_ppo", env="Breakout-MinAtar", config={})


@pytest.mark.slow
def test_it_learns_and_remembers():
    result = train("CartPole-v1", "graph_ppo", seeds=3, total_steps=100_000, progress=False)
    assert np.median(result.scores) > 475
    result = train("MaskedCartPole-v1", "graph_ppo", seeds=3, total_steps=400_000, progress=False)
    assert np.median(result.scores) > 300  # without a memory 44
