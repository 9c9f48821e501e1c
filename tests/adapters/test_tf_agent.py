"""TensorFlow agents: the generic one's losses, and what all of them save, load, average, perturb and let go of."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tensor_optix.adapters.tensorflow.tf_agent import TFAgent  # noqa: E402
from tensor_optix.adapters.tensorflow.tf_evaluator import TFEvaluator  # noqa: E402
from tensor_optix.algorithms.tf_ppo import TFPPOAgent  # noqa: E402
from tensor_optix.core.types import EvalMetrics, HyperparamSet  # noqa: E402
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry  # noqa: E402
from tensor_optix.loop.host import LoopController  # noqa: E402
from tensor_optix.pipeline import BatchPipeline  # noqa: E402
from tests.tf_parts import agent_of, assert_same, differ, everything, network, window  # noqa: E402

KINDS = ("generic", "discrete", "gaussian")


def weights(agent):
    return [w.copy() for net in agent._networks.values() for w in net.get_weights()]


# -- the generic agent -----------------------------------------------------------------------------------------


def gradient_by_hand(model, obs, actions, weight):
    """Of -mean(log p(a) w), for one linear layer: float64."""
    kernel, bias = (w.astype(np.float64) for w in model.get_weights())
    logits = obs @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rows = (p - np.eye(2)[actions]) * weight[:, None] / len(obs)
    loss = -(np.log(p[np.arange(len(obs)), actions]) * weight).mean()
    return loss, [obs.T @ rows, rows.sum(0)]


@pytest.mark.parametrize("baseline", [None, "value"])
def test_reinforce_against_the_gradient_written_out(baseline):
    gamma, lr = 0.9, 0.1
    model = network(2, hidden=())
    params = {"gamma": gamma, "learning_rate": lr}
    agent = TFAgent(model, tf.keras.optimizers.SGD(0.5), HyperparamSet(params))
    values = np.random.default_rng(5).normal(size=12) if baseline else None
    data = window("generic", values=values, metadata={"segment_starts": [0, 7]}, final_obs=np.zeros((2, 3)))
    returns = np.zeros(12)
    for t in reversed(range(12)):
        goes_on = t not in (6, 11) and not data.terminated[t]
        returns[t] = data.rewards[t] + (gamma * returns[t + 1] if goes_on else 0.0)
    weight = returns - (values if baseline else 0.0)
    weight = (weight - weight.mean()) / weight.std()
    before = [w.astype(np.float64) for w in model.get_weights()]
    loss, grads = gradient_by_hand(model, data.observations.astype(np.float64), data.actions, weight)
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    agent.set_hyperparams(HyperparamSet({"max_grad_norm": 0.8 * norm}))
    result = agent.learn(data)
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for new, old, grad in zip(model.get_weights(), before, grads, strict=True):
        np.testing.assert_allclose(new, old - lr * grad * 0.8, rtol=1e-4, atol=1e-6)
    assert result["baseline_type"] == (baseline or "none")
    explained = 1 - np.var(returns - values) / np.var(returns) if baseline else 0.0
    assert result["explained_variance"] == pytest.approx(explained)


def test_a_loss_of_the_users_own():
    seen = []

    def loss(model, data):
        seen.append(data.length)
        return tf.reduce_mean(tf.square(model(tf.constant(data.observations)) - 3.0))

    agent = agent_of("generic", compute_loss_fn=loss)
    losses = [agent.learn(window("generic"))["loss"] for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    assert seen == [12] * 60
    broken = agent_of("generic", compute_loss_fn=lambda model, data: 1.0)
    with pytest.raises(TypeError, match="must give a scalar tensor, got"):
        broken.learn(window("generic"))
    constant = agent_of("generic", compute_loss_fn=lambda model, data: tf.constant(1.0))
    with pytest.raises(TypeError, match="does not depend on the model"):
        constant.learn(window("generic"))


def test_the_generic_agent_samples_and_has_defaults():
    agent = TFAgent(network(2), tf.keras.optimizers.Adam(0.004), HyperparamSet({"other": "kept"}))
    params = agent.get_hyperparams().params
    assert params == {"learning_rate": pytest.approx(0.004), "gamma": 0.99, "other": "kept"}
    obs = np.zeros((400, 3))
    actions = agent.act_batch(obs)
    assert set(actions) == {0, 1}
    assert (agent.act_batch_deterministic(obs) == agent.act_deterministic(obs[0])).all()
    share = agent.action_probs(obs[0])[1]
    assert actions.mean() == pytest.approx(share, abs=0.1)
    assert agent.learn(window("generic", n=0)) == {}


# -- saving ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """An agent of each kind that has learned from one window; tests leave it as they found it."""
    agents = {kind: agent_of(kind, normalizers=kind != "generic") for kind in KINDS}
    agents["gaussian"].set_action_bounds([-2, -3], [2, 5])
    for kind, agent in agents.items():
        agent.learn(window(kind))
    return agents


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back_into_a_fresh_agent(trained, kind, tmp_path):
    agent = trained[kind]
    agent.save_weights(str(tmp_path / "saved"))
    fresh = agent_of(kind, {"learning_rate": 0.5}, normalizers=kind != "generic", net_seed=9, seed=4)
    fresh.load_weights(str(tmp_path / "saved"))
    assert_same(everything(fresh), everything(agent))  # float32 comes back exact
    assert fresh.get_hyperparams().params == agent.get_hyperparams().params
    assert fresh.get_hyperparams().episode_id == 3
    obs = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_array_equal(fresh.act_batch_deterministic(obs), agent.act_batch_deterministic(obs))


def test_files_are_read_without_this_library(trained, tmp_path):
    import h5py
    from safetensors.numpy import load_file

    trained["discrete"].save_weights(str(tmp_path / "a"))
    kernel = trained["discrete"]._actor.get_weights()[0]
    with h5py.File(tmp_path / "a" / "actor.weights.h5") as file:
        np.testing.assert_array_equal(file["layers/dense/vars/0"][()], kernel)
    names = load_file(str(tmp_path / "a" / "optimizer.safetensors"))
    assert any("kernel_momentum" in name for name in names)
    record = json.loads((tmp_path / "a" / "agent.json").read_text())
    assert record["hyperparams"]["clip_ratio"] == 0.2
    other = network(2, 33)
    other.load_weights(str(tmp_path / "a" / "actor.weights.h5"))
    np.testing.assert_array_equal(other.get_weights()[0], kernel)


@pytest.mark.parametrize("kind", ["generic", "discrete", "gaussian"])
def test_an_agent_goes_on_bit_for_bit(kind, tmp_path):
    def learn(agent, numbers):
        for number in numbers:
            agent.learn(window(kind, n=20, seed=number))

    settings = {} if kind == "generic" else {"normalizers": True, "params": {"minibatch_size": 7}}
    agent = agent_of(kind, seed=1, **settings)
    learn(agent, (0, 1))
    agent.act(np.zeros(3))
    agent.save_state(str(tmp_path / "state"))
    learn(agent, (2, 3))
    fresh = agent_of(kind, seed=2, net_seed=5, **settings)
    fresh.load_state(str(tmp_path / "state"))
    learn(fresh, (2, 3))
    assert_same(everything(fresh), everything(agent))
    obs = np.random.default_rng(0).normal(size=(30, 3))
    np.testing.assert_array_equal(fresh.act_batch(obs), agent.act_batch(obs))


def test_a_wrong_network_is_refused_whole(trained, tmp_path):
    trained["discrete"].save_weights(str(tmp_path / "saved"))
    critic = network(1, hidden=(5,))  # the actor fits, the critic does not
    params = HyperparamSet({"gamma": 0.5})
    other = TFPPOAgent(network(2, 9), critic, tf.keras.optimizers.Adam(0.1), params)
    before = everything(other)
    with pytest.raises(ValueError, match=r"critic at .*kernel has shape \(3, 5\) here and \(3, 3\) there"):
        other.load_weights(str(tmp_path / "saved"))
    assert_same(everything(other), before)
    plain = agent_of("discrete", net_seed=9)
    before = everything(plain)
    with pytest.raises(ValueError, match=r"'obs_normalizer', 'reward_normalizer'.*this agent has"):
        plain.load_weights(str(tmp_path / "saved"))
    assert_same(everything(plain), before)
    momentum = agent_of("discrete", optimizer=tf.keras.optimizers.SGD(0.1), normalizers=True)
    with pytest.raises(ValueError, match=r"optimizer at .* is of another network: it has"):
        momentum.load_weights(str(tmp_path / "saved"))


@pytest.mark.parametrize("name", ["actor.weights.h5", "critic.weights.h5", "optimizer.safetensors", "agent.json"])
@pytest.mark.parametrize("harm", ["missing", "cut", "noise"])
def test_a_damaged_save_changes_nothing(trained, name, harm, tmp_path):
    agent = trained["discrete"]
    agent.save_weights(str(tmp_path))
    file = tmp_path / name
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if harm == "cut" else b"\0" * len(content))
    fresh = agent_of("discrete", normalizers=True, net_seed=9)
    before, params = everything(fresh), fresh.get_hyperparams().params
    with pytest.raises(FileNotFoundError if harm == "missing" else ValueError, match=name):
        fresh.load_weights(str(tmp_path))
    assert_same(everything(fresh), before)
    assert fresh.get_hyperparams().params == params


def test_weights_alone_are_no_state(trained, tmp_path):
    agent = trained["discrete"]
    agent.save_weights(str(tmp_path / "saved"))
    fresh = agent_of("discrete", normalizers=True, net_seed=9)
    before = everything(fresh)
    with pytest.raises(ValueError, match="holds weights without generators"):
        fresh.load_state(str(tmp_path / "saved"))
    assert_same(everything(fresh), before)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="choose another path"):
        agent.save_weights(str(tmp_path / "file"))


def test_a_rollback_brings_moments_and_normalisers_back(tmp_path):
    agent = agent_of("discrete", normalizers=True)
    registry = CheckpointRegistry(tmp_path)
    registry.save(agent, EvalMetrics(1.0, {}, 0), agent.get_hyperparams())  # the optimizer has made no step yet
    untouched = everything(agent)
    agent.learn(window("discrete"))
    assert differ(everything(agent), untouched)
    registry.load_best(agent)
    assert_same(everything(agent), untouched)


def test_average_and_perturb(tmp_path):
    agents = [agent_of("discrete", normalizers=True, net_seed=seed) for seed in (1, 2)]
    for i, agent in enumerate(agents):
        agent._obs_normalizer.update(np.full((4, 3), float(i)))
        agent.save_weights(str(tmp_path / str(i)))
    target = agent_of("discrete", normalizers=True, net_seed=3)
    target.average_weights([str(tmp_path / "0"), str(tmp_path / "1")])
    for mean, a, b in zip(weights(target), *map(weights, agents), strict=True):
        np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-6)
    assert (target._obs_normalizer.rms.mean == agents[0]._obs_normalizer.rms.mean).all()
    before = everything(target)
    with pytest.raises(FileNotFoundError, match="is missing"):
        target.average_weights([str(tmp_path / "0"), str(tmp_path / "2")])
    assert_same(everything(target), before)

    agent = agent_of("discrete", hidden=(64, 64))
    old, moments = weights(agent), [v.value.numpy() for v in agent._optimizer.variables]
    agent.perturb_weights(0.1)
    pairs = zip(weights(agent), old, strict=True)
    ratios = np.concatenate([new[w != 0] / w[w != 0] - 1 for new, w in pairs])
    assert abs(ratios.mean()) < 0.01
    assert ratios.std() == pytest.approx(0.1, rel=0.05)
    assert_same([v.value.numpy() for v in agent._optimizer.variables], moments)
    with pytest.raises(ValueError, match="noise_scale must be"):
        agent.perturb_weights(-1.0)


def test_teardown_twice():
    agent = agent_of("generic")
    agent.act(np.zeros(3))
    agent.teardown()
    agent.teardown()
    with pytest.raises(RuntimeError, match="torn down"):
        agent.act(np.zeros(3))


# -- construction ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    adam, params = tf.keras.optimizers.Adam(0.1), HyperparamSet({})
    with pytest.raises(ValueError, match=r"actor has no weights yet: begin it with"):
        TFPPOAgent(tf.keras.Sequential([tf.keras.layers.Dense(2)]), network(1), adam, params)
    with pytest.raises(TypeError, match=r"critic must be a tf.keras.Model, got function"):
        TFPPOAgent(network(2), lambda x: x, adam, params)
    with pytest.raises(TypeError, match=r"optimizer must be a tf.keras.optimizers.Optimizer"):
        TFPPOAgent(network(2), network(1), "adam", params)
    schedule = tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9))
    with pytest.raises(TypeError, match="learning rate must be a number"):
        TFPPOAgent(network(2), network(1), schedule, params)


def test_without_tensorflow_the_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r'pip install "tensor-optix\[tensorflow\]"'):
        TFAgent(None, None, HyperparamSet({}))


def test_an_embedding_of_discrete_observations_learns():
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input(()), layers.Embedding(5, 4), layers.Dense(2)])
    agent = TFAgent(model, tf.keras.optimizers.Adam(0.1), HyperparamSet({"max_grad_norm": 0.5}))
    obs = np.arange(10) % 4
    data = window("generic", 10, observations=obs, actions=obs % 2, rewards=[1.0] * 5 + [2.0] * 5, final_obs=None)
    before = model.get_weights()[0]
    assert np.isfinite(agent.learn(data)["loss"])
    moved = (model.get_weights()[0] != before).any(axis=1)
    assert moved.tolist() == [True] * 4 + [False]
    assert agent.act(2) in (0, 1)


def test_networks_may_share_layers_and_have_classes_of_their_own(tmp_path):
    class Net(tf.keras.Model):
        def __init__(self, torso, n):
            super().__init__()
            self.torso, self.head = torso, tf.keras.layers.Dense(n)

        def call(self, x, training=False):
            return self.head(self.torso(x))

    def make():
        torso = tf.keras.layers.Dense(4, activation="tanh")
        nets = [Net(torso, n) for n in (2, 1)]
        for net in nets:
            net(np.zeros((1, 3), np.float32))
        return TFPPOAgent(*nets, tf.keras.optimizers.Adam(0.01), HyperparamSet({"n_epochs": 1}))

    agent, other = make(), make()
    assert len(agent._variables) == 6
    agent.learn(window("discrete"))
    agent.save_weights(str(tmp_path))
    other.load_weights(str(tmp_path))
    assert_same(everything(other), everything(agent))


# -- the loop --------------------------------------------------------------------------------------------------


class Logging(TFPPOAgent):
    """Subclasses reach the networks and call `super().learn`."""

    loads = 0

    def load_weights(self, path):
        self.loads += 1
        super().load_weights(path)

    def learn(self, episode_data):
        diag = super().learn(episode_data)
        obs = tf.cast(episode_data.observations[:16], tf.float32)
        probs = tf.nn.softmax(self._actor(obs, training=False))
        diag["p_left"] = float(tf.reduce_mean(probs, axis=0)[0])
        diag["values"] = float(tf.reduce_mean(self._critic(obs)))
        return diag


def test_a_run_of_the_loop_with_rollbacks(tmp_path):
    agent = Logging(
        network(2, obs=4), network(1, obs=4), tf.keras.optimizers.Adam(0.01), HyperparamSet({"n_epochs": 2})
    )
    scores, told = iter([5.0, 7.0, np.nan, 6.0, 6.0]), []

    def score(agent):
        told.append(weights(agent))
        return next(scores)

    loop = LoopController(
        agent=agent,
        evaluator=TFEvaluator(),
        pipeline=BatchPipeline(gym.make("CartPole-v1"), agent, 32, seed=0),
        checkpoint_registry=CheckpointRegistry(tmp_path),
        checkpoint_score_fn=score,
        rollback_on_degradation=True,
        max_episodes=5,
    )
    result = loop.run()
    assert result.windows == 5
    assert result.notes == []
    assert len(result.history) == 5
    assert result.best_snapshot.eval_metrics.primary_score == 7.0
    assert agent.loads == 2  # after the NaN, and at the end
    assert_same(weights(agent), told[1])  # the best, not the newest


@pytest.mark.slow
@pytest.mark.parametrize("order", ["jax, tensorflow", "tensorflow, jax"])
def test_jax_and_tensorflow_live_in_one_process(order):
    code = (
        f"import {order}, numpy as np\n"
        "import jax.numpy as jnp\n"
        "print(float(jax.jit(lambda x: x @ x)(jnp.ones((3, 3)))[0, 0]))\n"
        "from tests.tf_parts import agent_of, window\n"
        "agent = agent_of('discrete')\n"
        "print(agent.learn(window('discrete'))['n_updates'])\n"
        "print(float(jax.jit(lambda x: x + 1)(jnp.zeros(()))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.split() == ["3.0", "10.0", "1.0"]
