"""Host agents in JAX: the generic one's losses, and what all of them save, load, average and perturb."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tensor_optix.adapters.jax.flax_agent import FlaxAgent
from tensor_optix.adapters.jax.flax_evaluator import FlaxEvaluator
from tensor_optix.algorithms.flax_ppo import FlaxPPOAgent
from tensor_optix.algorithms.flax_ppo_continuous import FlaxGaussianPPOAgent
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.loop.host import LoopController
from tensor_optix.pipeline import BatchPipeline
from tests.runs import assert_same_bits

OBS, CHOICES = 3, 3


class Net(nnx.Module):
    def __init__(self, rngs, width=CHOICES):
        self.layer, self.out = nnx.Linear(OBS, 5, rngs=rngs), nnx.Linear(5, width, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.layer(x)))


def generic(optimizer=optax.adam, params=None, loss=None, seed=0, width=CHOICES):
    return FlaxAgent(Net(nnx.Rngs(seed), width), optimizer, HyperparamSet(params or {}), loss, seed=seed)


def normalizers():
    return {"reward_normalizer": RewardNormalizer(), "obs_normalizer": ObsNormalizer((OBS,))}


PPO_HYPER = {"n_epochs": 2, "minibatch_size": 8, "learning_rate": 0.01}
MAKE = {
    "generic": lambda seed=0: generic(seed=seed, params={"learning_rate": 0.01, "note": "kept", "count": 3}),
    "ppo": lambda seed=0: FlaxPPOAgent(
        OBS, CHOICES, HyperparamSet(dict(PPO_HYPER), 5), seed=seed, hidden_sizes=(4,), **normalizers()
    ),
    "gaussian": lambda seed=0: FlaxGaussianPPOAgent(
        OBS, 2, HyperparamSet(dict(PPO_HYPER), 5), seed=seed, hidden_sizes=(4,), **normalizers()
    ),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


def window(agent, rows=12, seed=0, **fields):
    rng = np.random.default_rng(seed)
    obs = 2.0 * rng.normal(size=(rows, OBS)).astype(np.float32) + 1.0
    gaussian = isinstance(agent, FlaxGaussianPPOAgent)
    fields = {
        "observations": obs,
        "actions": rng.normal(size=(rows, 2)) if gaussian else rng.integers(0, CHOICES, rows),
        "rewards": list(rng.normal(size=rows)),
        "terminated": [i % 5 == 4 for i in range(rows - 1)] + [True],
        "truncated": [False] * rows,
        "infos": [{}] * rows,
        "episode_id": 0,
    } | fields
    return EpisodeData(**fields)


def everything(agent):
    """Copies of all that makes an agent what it is."""
    parts = {name: part.state_dict() for name, part in agent._parts.items()}
    params = {name: value for name, value in agent.get_hyperparams().params.items() if not isinstance(value, str)}
    return jax.tree.map(np.array, (agent._params, agent._opt, parts, params))


OBSERVATIONS = np.random.default_rng(9).normal(size=(64, OBS)).astype(np.float32)

# -- files ---------------------------------------------------------------------------------------------------------


def test_loading_brings_everything_back(make, tmp_path):
    agent, other = make(), make(seed=1)
    agent.learn(window(agent))
    if hasattr(agent, "set_action_bounds"):
        agent.set_action_bounds([-np.inf, 0.1], [np.inf, 0.3])
    agent.save_weights(str(tmp_path / "w"))
    saved = everything(agent)
    other.learn(window(agent, seed=1))
    other.set_hyperparams(HyperparamSet({**other.get_hyperparams().params, "gamma": 0.5}))
    other.load_weights(str(tmp_path / "w"))
    assert_same_bits(everything(other), saved)
    assert other.get_hyperparams().params == agent.get_hyperparams().params
    assert other.get_hyperparams().episode_id == agent.get_hyperparams().episode_id
    np.testing.assert_array_equal(
        other.act_batch_deterministic(OBSERVATIONS), agent.act_batch_deterministic(OBSERVATIONS)
    )
    # A roll-back: the agent itself goes back, and goes on as it would have.
    agent.learn(window(agent, seed=2))
    assert not np.array_equal(jax.tree.leaves(agent._params)[0], jax.tree.leaves(saved[0])[0])
    agent.load_weights(str(tmp_path / "w"))
    assert_same_bits(everything(agent), saved)
    agent.save_weights(str(tmp_path / "w"))  # over its own
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w"]


def test_a_resumed_agent_goes_on_bit_for_bit(make, tmp_path):
    agent = make()
    windows = [window(agent, seed=i) for i in range(4)]
    for data in windows[:2]:
        agent.learn(data)
        agent.act_batch(OBSERVATIONS)
    agent.save_state(str(tmp_path / "s"))
    other = make(seed=7)
    other.load_state(str(tmp_path / "s"))
    for data in windows[2:]:
        assert agent.learn(data) == other.learn(data)
        np.testing.assert_array_equal(agent.act_batch(OBSERVATIONS), other.act_batch(OBSERVATIONS))
    assert_same_bits(everything(agent), everything(other))
    third = make()
    agent.save_weights(str(tmp_path / "w"))
    with pytest.raises(ValueError, match="written by save_weights, expected save_state"):
        third.load_state(str(tmp_path / "w"))


def test_weights_are_readable_without_this_library(make, tmp_path):
    from safetensors.numpy import load_file

    agent = make()
    agent.save_weights(str(tmp_path / "w"))
    arrays = load_file(tmp_path / "w" / "model.safetensors")
    assert sum(a.size for a in arrays.values()) == sum(leaf.size for leaf in jax.tree.leaves(agent._params))
    kernel = "layer/kernel" if isinstance(agent, FlaxAgent) else "actor/hidden/0/kernel"
    assert arrays[kernel].shape[0] == OBS
    record = json.loads((tmp_path / "w" / "agent.json").read_text())
    assert record["hyperparams"]["learning_rate"] == 0.01


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "agent.json"])
@pytest.mark.parametrize("harm", ["missing", "cut short", "rubbish"])
def test_a_broken_file_leaves_the_agent_as_it_was(make, tmp_path, name, harm):
    agent = make()
    agent.save_weights(str(tmp_path / "w"))
    agent.learn(window(agent))
    before, file = everything(agent), tmp_path / "w" / name
    {
        "missing": file.unlink,
        "cut short": lambda: file.write_bytes(file.read_bytes()[:-3]),
        "rubbish": lambda: file.write_bytes(b"\x00nothing"),
    }[harm]()
    with pytest.raises(RunDirError, match=name):
        agent.load_weights(str(tmp_path / "w"))
    assert_same_bits(everything(agent), before)


def test_another_network_is_refused_by_name_and_shapes(tmp_path):
    ppo = FlaxPPOAgent(OBS, CHOICES, HyperparamSet({}), hidden_sizes=(4,))
    ppo.save_weights(str(tmp_path / "w"))
    wider = FlaxPPOAgent(OBS, CHOICES, HyperparamSet({}), hidden_sizes=(6,))
    before = everything(wider)
    with pytest.raises(ValueError, match=r"actor/head/kernel is float32\[4, 3\], expected float32\[6, 3\]"):
        wider.load_weights(str(tmp_path / "w"))
    deeper = FlaxPPOAgent(OBS, CHOICES, HyperparamSet({}), hidden_sizes=(4, 3))
    with pytest.raises(ValueError, match=r"actor/head/kernel|lacks actor/hidden/1"):
        deeper.load_weights(str(tmp_path / "w"))
    deeper.save_weights(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"has actor/hidden/1/bias \[3\], which this agent has not"):
        ppo.load_weights(str(tmp_path / "d"))
    MAKE["ppo"]().save_weights(str(tmp_path / "n"))
    with pytest.raises(ValueError, match="the agent has none"):
        ppo.load_weights(str(tmp_path / "n"))
    with pytest.raises(ValueError):  # noqa: PT011
        wider.average_weights([str(tmp_path / "w"), str(tmp_path / "d")])
    assert_same_bits(everything(wider), before)


def test_a_directory_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds thesis"):
        MAKE["generic"]().save_weights(str(tmp_path))
    with pytest.raises(ValueError, match="is a file"):
        MAKE["generic"]().save_weights(str(tmp_path / "thesis.tex"))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_mean_of_saved_weights(make, tmp_path):
    paths, trees, parts = [], [], []
    for seed in range(3):
        agent = make(seed=seed)
        agent.learn(window(agent, seed=seed))
        agent.save_weights(str(tmp_path / str(seed)))
        paths.append(str(tmp_path / str(seed)))
        trees.append(jax.tree.leaves(agent._params))
        parts.append(everything(agent)[2])
    mean = make(seed=8)
    moments = everything(mean)[1]
    mean.average_weights(paths)
    for leaf, *leaves in zip(jax.tree.leaves(mean._params), *trees, strict=True):
        np.testing.assert_allclose(leaf, np.mean(leaves, axis=0), rtol=1e-6, atol=1e-7)
    assert_same_bits(everything(mean)[2], parts[0])
    assert_same_bits(everything(mean)[1], moments)
    with pytest.raises(ValueError, match="got no paths"):
        mean.average_weights([])


def test_noise_on_the_weights(make):
    agent, twin = make(), make()
    agent.learn(window(agent))
    before = everything(agent)
    agent.perturb_weights(0.1)
    after = everything(agent)
    old, new = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(x[0])]) for x in (before, after))
    change = (new[old != 0] / old[old != 0] - 1.0) / 0.1
    assert abs(change.mean()) < 5 / np.sqrt(change.size)
    assert abs(change.std() - 1.0) < 5 / np.sqrt(2 * change.size)
    assert_same_bits(after[1], before[1])
    twin.perturb_weights(0.0)
    assert_same_bits(everything(twin)[0], everything(make())[0])


def test_tearing_down_twice(make):
    agent = make()
    agent.teardown()
    agent.teardown()
    with pytest.raises(RuntimeError, match="torn down"):
        agent.act(np.zeros(OBS))


# -- the generic agent ---------------------------------------------------------------------------------------------


def naive_returns(data, gamma, segments=(0,)):
    result, ahead = np.zeros(data.length), 0.0
    for t in reversed(range(data.length)):
        if data.terminated[t] or data.truncated[t] or t + 1 in segments:
            ahead = 0.0
        ahead = result[t] = data.rewards[t] + gamma * ahead
    return result


def reference_loss(params, obs, actions, weights):
    hidden = jnp.tanh(obs @ params["layer"]["kernel"] + params["layer"]["bias"][None])
    logits = hidden @ params["out"]["kernel"] + params["out"]["bias"][None]
    chosen = jax.nn.log_softmax(logits)[jnp.arange(len(actions)), actions]
    return -jnp.mean(chosen * weights)


@pytest.mark.parametrize("baseline", [False, True])
def test_one_step_of_plain_gradient_descent(baseline):
    agent = generic(optax.sgd, {"learning_rate": 0.1, "gamma": 0.9})
    data = window(agent, truncated=[i == 6 for i in range(12)], metadata={"segment_starts": [0, 8]})
    returns = naive_returns(data, 0.9, segments=(8,))
    values = np.random.default_rng(3).normal(size=12) + 0.5 * returns
    if baseline:
        data.values = list(values)
    raw = returns - values if baseline else returns
    weights = (raw - raw.mean()) / raw.std()
    before = jax.tree.map(jnp.array, agent._params)
    args = jnp.asarray(data.observations), jnp.asarray(data.actions), jnp.asarray(weights, jnp.float32)
    loss, grads = jax.value_and_grad(reference_loss)(before, *args)
    result = agent.learn(data)
    np.testing.assert_allclose(result["loss"], loss, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    for new, old, grad in zip(*(jax.tree.leaves(t) for t in (agent._params, before, grads)), strict=True):
        np.testing.assert_allclose(new, old - 0.1 * grad, rtol=1e-5, atol=1e-7)
    assert result["baseline_type"] == ("value" if baseline else "none")
    expected = 1 - np.var(returns - values) / np.var(returns) if baseline else 0.0
    assert result["explained_variance"] == pytest.approx(expected)


def test_the_global_norm_is_limited():
    agent = generic(optax.sgd, {"learning_rate": 1.0, "max_grad_norm": 0.01})
    before = jax.tree.map(np.array, agent._params)
    assert agent.learn(window(agent))["grad_norm"] > 0.01
    step = jax.tree.map(lambda a, b: np.asarray(a) - b, agent._params, before)
    np.testing.assert_allclose(optax.tree.norm(step), 0.01, rtol=1e-3)


def test_a_loss_of_the_users_own():
    def loss_fn(model, data):
        return jnp.mean(jnp.square(model(jnp.asarray(data.observations)) - 1.0)) + 0.0 * len(data.infos)

    agent = generic(params={"learning_rate": 0.05}, loss=loss_fn)
    losses = [agent.learn(window(agent))["loss"] for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    bad = generic(loss=lambda model, data: model(jnp.asarray(data.observations)))
    with pytest.raises(ValueError, match=r"must return a scalar, got an array \[12, 3\]"):
        bad.learn(window(bad))


OPTIMIZERS = {
    "function": lambda: optax.adam,
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "built": lambda: optax.adam(0.01),
    "nnx": lambda: nnx.Optimizer(Net(nnx.Rngs(0)), optax.adam(0.01), wrt=nnx.Param),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_new_learning_rate_is_in_force_and_the_moments_stay(kind):
    """Adam's second step from the same moments is proportional to the learning rate."""
    steps = {}
    for rate in (0.01, 0.03):
        agent = generic(OPTIMIZERS[kind](), {"learning_rate": 0.01})
        agent.learn(window(agent))
        agent.set_hyperparams(HyperparamSet({"learning_rate": rate}))
        before = jax.tree.map(np.array, agent._params)
        agent.learn(window(agent, seed=1))
        steps[rate] = jax.tree.map(lambda a, b: np.asarray(a) - b, agent._params, before)
    for small, large in zip(jax.tree.leaves(steps[0.01]), jax.tree.leaves(steps[0.03]), strict=True):
        np.testing.assert_allclose(large, 3.0 * small, rtol=1e-3, atol=1e-6)
    by_function = generic(optax.adam, {"learning_rate": 0.01})
    for seed in range(2):
        by_function.learn(window(by_function, seed=seed))
    agent = generic(OPTIMIZERS[kind](), {"learning_rate": 0.01})
    for seed in range(2):
        agent.learn(window(agent, seed=seed))
    for a, b in zip(jax.tree.leaves(agent._params), jax.tree.leaves(by_function._params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_learning_rates_where_none_is_named():
    assert generic(optax.adam).get_hyperparams().params == {"learning_rate": 3e-4, "gamma": 0.99}
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=0.25)
    assert generic(injected).get_hyperparams().params["learning_rate"] == 0.25
    built = generic(optax.adam(0.01))
    assert "learning_rate" not in built.get_hyperparams().params
    with pytest.raises(ValueError, match="give the optimizer as a function, such as"):
        built.set_hyperparams(HyperparamSet({"learning_rate": 0.1}))


def test_an_optimizer_that_holds_the_parameters():
    agent = generic(optax.contrib.schedule_free_adamw(0.01), {"learning_rate": 0.01})
    for seed in range(2):
        assert np.isfinite(agent.learn(window(agent, seed=seed))["loss"])


def test_the_generic_agent_acts():
    agent, twin, other = generic(seed=0), generic(seed=0), generic(seed=1)
    first = agent.act_batch(OBSERVATIONS)
    np.testing.assert_array_equal(first, twin.act_batch(OBSERVATIONS))
    assert not np.array_equal(first, other.act_batch(OBSERVATIONS))
    logits = np.asarray(agent.model(OBSERVATIONS))
    np.testing.assert_array_equal(agent.act_batch_deterministic(OBSERVATIONS), logits.argmax(-1))
    assert agent.act_deterministic(OBSERVATIONS[0]) == logits[0].argmax()
    np.testing.assert_allclose(agent.action_probs(OBSERVATIONS[0]), jax.nn.softmax(logits[0]), rtol=1e-5)
    assert type(agent.act(OBSERVATIONS[0])) is int
    assert agent.act(np.full(OBS, np.nan)) == 0


def test_nothing_is_compiled_anew():
    agent = generic(params={"learning_rate": 0.01})
    agent.learn(window(agent, rows=16))
    for rows, params in ((16, {"learning_rate": 0.1}), (9, {"gamma": 0.5}), (12, {"max_grad_norm": 1.0})):
        agent.set_hyperparams(HyperparamSet(params))
        agent.learn(window(agent, rows=rows))
    assert agent._reinforce._cache_size() == 1


BAD = [
    (lambda: generic("adam"), TypeError, "optimizer must be an optax optimiser or a function"),
    (lambda: generic(params={"learning_rate": "3e-4"}), TypeError, "learning_rate must be a number, got '3e-4'"),
    (lambda: generic(params={"gamma": 1.1}), ValueError, "gamma must be from 0 to 1, got 1.1"),
    (lambda: generic(optax.adam(0.1), {"learning_rate": 0.0}), ValueError, "learning_rate 0 cannot be what"),
    (lambda: FlaxAgent(3, optax.adam, HyperparamSet({})), TypeError, "expected a flax.nnx.Module, got int"),
]


@pytest.mark.parametrize(("call", "error", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_bad_input_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_the_loop_runs(tmp_path):
    import gymnasium

    class Wide(Net):
        def __init__(self, rngs):
            self.layer, self.out = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    agent = FlaxAgent(Wide(nnx.Rngs(0)), optax.adam, HyperparamSet({}))
    result = LoopController(
        agent=agent,
        pipeline=BatchPipeline(gymnasium.make("CartPole-v1"), agent, 64),
        evaluator=FlaxEvaluator(),
        checkpoint_registry=CheckpointRegistry(tmp_path),
        max_episodes=3,
    ).run()
    assert result.windows == 3
    assert result.best_snapshot is not None


def test_the_evaluator_is_that_of_every_framework():
    assert FlaxEvaluator is EpisodeEvaluator
