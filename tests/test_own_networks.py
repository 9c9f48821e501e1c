"""Networks of the user's own in an algorithm's places: trained, saved, resumed, and refused with a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix import train
from tensor_optix.config import ConfigError, RunConfig
from tensor_optix.finished import evaluate_run, load_run
from tensor_optix.plan import make_plan
from tensor_optix.training import resume
from tests.laws.test_algorithms import SMALL


class Own(nnx.Module):
    """A network with a layer of an odd width, so that one can tell it from the library's."""

    def __init__(self, n_in, n_out, rngs):
        self.first, self.last = nnx.Linear(n_in, 13, rngs=rngs), nnx.Linear(13, n_out, rngs=rngs)

    def __call__(self, *inputs):
        return self.last(nnx.tanh(self.first(jnp.concatenate(inputs, axis=-1))))


def make(n_in, n_out):
    return lambda rngs: Own(n_in, n_out, rngs)


CASES = {
    "ppo": ("CartPole-v1", {"actor": make(4, 2), "critic": make(4, 1)}),
    "dqn": ("CartPole-v1", {"q_network": make(4, 2)}),
    "sac": ("Pendulum-v1", {"actor": make(3, 2), "critic": make(4, 1)}),
    "td3": ("Pendulum-v1", {"actor": make(3, 1), "critic": make(4, 1)}),
}


def plan_of(name, networks=None, **settings):
    env = CASES.get(name, ("CartPole-v1",))[0]
    return make_plan(RunConfig(env=env, algorithm=name, config=dict(SMALL[name]), **settings), networks=networks)


@pytest.mark.parametrize("name", CASES)
def test_every_place_is_filled(name):
    plan = plan_of(name, CASES[name][1])
    algorithm = plan.program.algorithm
    assert set(algorithm.places()) == set(CASES[name][1])
    hyper = {k: jnp.float32(v) for k, v in algorithm.hyperparams().items()}
    learner = jax.eval_shape(algorithm.init, jax.random.key(0), hyper)
    after, stats = jax.eval_shape(algorithm.window, learner, hyper, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, learner)
    own, library = (
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(a.init, jax.random.key(0), hyper).params))
        for a in (algorithm, plan_of(name).program.algorithm)
    )
    assert own != library
    assert all(x.shape == () for x in jax.tree.leaves(stats))


def test_places_that_are_left_keep_the_librarys_networks():
    plan = plan_of("ppo", {"actor": make(4, 2)})
    params = plan.program.algorithm.init_params(*jax.random.split(jax.random.key(0)))
    assert params["actor"]["first"]["kernel"].shape == (4, 13)
    assert "first" not in params["critic"]


def test_members_start_with_weights_of_their_own_and_may_flatten():
    """A module that keeps one batch axis and flattens the rest is called with one, whatever the algorithm has."""

    class Flat(Own):
        def __call__(self, x):
            return super().__call__(x.reshape(x.shape[0], -1))

    plan = plan_of("ppo", {"actor": lambda rngs: Flat(4, 2, rngs), "critic": lambda rngs: Flat(4, 1, rngs)})
    algorithm = plan.program.algorithm
    hyper = {k: jnp.float32(v) for k, v in algorithm.hyperparams().items()}
    learners = [jax.jit(algorithm.init)(jax.random.key(i), hyper) for i in range(2)]
    first, second = (learner.params["actor"]["first"]["kernel"] for learner in learners)
    assert not np.array_equal(first, second)
    assert jax.eval_shape(algorithm.window, learners[0], hyper, jax.random.key(0))[1].finite.shape == ()
    obs = jax.random.normal(jax.random.key(2), (3, 5, 4))
    values = algorithm.values(learners[0].params, obs)
    np.testing.assert_allclose(values[1, 2], algorithm.values(learners[0].params, obs[1, 2]), rtol=1e-6)


def run(tmp_path, **changes):
    settings = {"total_steps": 640, "eval_every": 128, "eval_episodes": 2, "final_episodes": 2, "tune": False}
    return train(
        "CartPole-v1",
        "ppo",
        seeds=2,
        config=SMALL["ppo"],
        networks=CASES["ppo"][1],
        run_dir=tmp_path / "run",
        progress=False,
        stop=False,
        **settings | changes,
    )


@pytest.mark.slow
def test_a_run_with_them_is_kept_resumed_and_evaluated(tmp_path):
    networks = CASES["ppo"][1]
    result = run(tmp_path)
    obs = np.ones((3, 4), np.float32)
    before = result.policy(obs)
    assert result.policy.arrays()["actor/first/kernel"].shape == (4, 13)
    again = load_run(tmp_path / "run", networks=networks)
    np.testing.assert_array_equal(again.policy(obs), before)
    assert np.isfinite(evaluate_run(tmp_path / "run", episodes=2, networks=networks)["score"])
    with pytest.raises(ConfigError, match="networks of your own for actor, critic, got some for nothing"):
        resume(tmp_path / "run", total_steps=1280, progress=False)
    with pytest.raises(ConfigError, match="got some for actor: give the same again"):
        load_run(tmp_path / "run", networks={"actor": networks["actor"]})
    longer = resume(tmp_path / "run", total_steps=1280, progress=False, networks=networks)
    assert longer.members[0].env_steps == 1280


class With(Own):
    def __init__(self, layer, n_in, n_out, rngs):
        super().__init__(n_in, n_out, rngs)
        self.layer = layer(rngs)


@pytest.mark.parametrize(
    ("networks", "sentence"),
    [
        ({"policy": make(4, 2)}, "no place for a network 'policy'; places of this algorithm: actor, critic"),
        ({"actor": Own(4, 2, nnx.Rngs(0))}, "must be a function of nnx.Rngs that makes an nnx.Module, got Own"),
        ({"actor": make(5, 2)}, r"cannot be called with \[2, 4\]: .*dot_general"),
        ({"actor": nnx.Linear}, "cannot be made by calling it with nnx.Rngs: .*missing"),
        ({"actor": lambda rngs: 3}, "it made a int, no nnx.Module"),
        (
            {"actor": lambda rngs: nnx.Linear(4, 2, param_dtype=jnp.bfloat16, rngs=rngs)},
            "of bfloat16: parameters must be float32",
        ),
        ({"actor": make(4, 3)}, r"turns \[2, 4\] into \[2, 3\], expected \[2, 2\]: give its last layer 2 outputs"),
        (
            {"critic": lambda rngs: With(lambda rngs: nnx.Dropout(0.1, rngs=rngs), 4, 1, rngs)},
            "which is no nnx.Param: leave out what keeps a state",
        ),
        (
            {"critic": lambda rngs: With(lambda rngs: nnx.BatchNorm(4, rngs=rngs), 4, 1, rngs)},
            "which is no nnx.Param: leave out what keeps a state",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(networks, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan_of("ppo", networks)


@pytest.mark.parametrize("name", ["rainbow", "recurrent_ppo"])
def test_algorithms_whose_network_is_their_own(name):
    with pytest.raises(ConfigError, match="places of this algorithm: none"):
        plan_of(name, {"actor": make(4, 2)})
