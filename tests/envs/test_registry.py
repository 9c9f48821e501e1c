"""Every way to name an environment, and what importing gymnax costs."""

import subprocess
import sys
import urllib.error

import gymnax
import jax
import pytest

from tensor_optix import envs
from tensor_optix.envs import exploration, goal_tasks, memory, registry
from tensor_optix.envs.probes import DelayedReward, TimeLimit

# Fetches its data from the network when it is made.
ONLINE = "MNISTBandit-bsuite"
IDS = [env_id for env_id in gymnax.registered_envs if env_id != ONLINE]

OWN = [*memory.IDS, *goal_tasks.IDS, *exploration.IDS]


def run(env, key, n=3, steps=20):
    def one(state, key):
        key_action, key_step = jax.random.split(key)
        return env.step(key_step, state, env.sample_action(key_action, n))

    key_reset, key_steps = jax.random.split(key)
    state, obs = env.reset(key_reset, n)
    _, out = jax.lax.scan(one, state, jax.random.split(key_steps, steps))
    return obs, out


def test_gymnax_has_the_ids_we_know():
    assert len(gymnax.registered_envs) >= 26
    assert envs.list_environments() == [*gymnax.registered_envs, *OWN]


@pytest.mark.parametrize("env_id", IDS)
def test_every_gymnax_environment_traces(env_id):
    env = envs.make(env_id)
    obs, out = jax.eval_shape(lambda key: run(env, key), jax.random.key(0))
    assert obs.shape == (3, *env.obs_shape)
    assert out.obs.shape == out.final_obs.shape == (20, 3, *env.obs_shape)
    assert obs.dtype == out.obs.dtype == env.obs_dtype
    assert env.max_episode_steps is not None


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_every_gymnax_environment_runs(env_id):
    env = envs.make(env_id)
    _, out = jax.jit(lambda key: run(env, key))(jax.random.key(0))
    assert jax.numpy.isfinite(out.obs.astype(jax.numpy.float32)).all()


def test_missing_data_is_said(monkeypatch):
    def offline(env_id, **_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(gymnax, "make", offline)
    with pytest.raises(ValueError, match=r"needs a data file that could not be fetched \(.*no network"):
        envs.make(ONLINE)


def test_unknown_ids_get_a_suggestion_and_the_list():
    with pytest.raises(ValueError, match=r"unknown environment 'Cartpole-v1'; did you mean CartPole-v1.*Pendulum-v1"):
        envs.make("Cartpole-v1")


def test_instances_classes_and_paths():
    path = "tensor_optix.envs.probes:DelayedReward"
    for given in (DelayedReward(), DelayedReward, path):
        assert envs.make(given).name == "DelayedReward"
    assert envs.make(path) == envs.make(DelayedReward)
    made = envs.make(TimeLimit)
    assert envs.make(made) is made


@pytest.mark.parametrize("path", ["no_such_module:Env", "tensor_optix.envs.probes:NoSuchClass", ":x"])
def test_a_wrong_path_says_what_is_expected(path):
    with pytest.raises(ValueError, match=r"cannot load environment .*expected package.module:ClassName"):
        envs.make(path)


def test_not_an_environment():
    with pytest.raises(ValueError, match="lacks reset, step, observation_space, action_space"):
        envs.make(object())
    with pytest.raises(ValueError, match="pass the class DelayedReward"):
        envs.make(DelayedReward(), size=3)
    with pytest.raises(ValueError, match="is made already"):
        envs.make(envs.make(DelayedReward), size=3)


def test_environments_of_gymnasium_are_named_as_such():
    gymnasium = pytest.importorskip("gymnasium")
    with pytest.raises(
        ValueError, match=r"of Gymnasium.*Optimizer\(make_agent\('LunarLander-v3'\), 'LunarLander-v3'\)"
    ):
        envs.make("LunarLander-v3")
    with pytest.raises(ValueError, match=r"is an environment of Gymnasium.*Optimizer\(make_agent\(env\), make_env\)"):
        envs.make(gymnasium.make("CartPole-v1"))


def test_constructor_arguments_reach_gymnax():
    assert envs.make("DeepSea-bsuite", size=5).obs_shape == (25,)
    assert envs.make("DeepSea-bsuite", size=5) != envs.make("DeepSea-bsuite")


def test_new_parameters_for_a_made_environment():
    env = envs.make("CartPole-v1")
    shorter = envs.make(env, env.params.replace(max_steps_in_episode=7))
    assert shorter.max_episode_steps == 7
    assert shorter == envs.make("CartPole-v1", env.params.replace(max_steps_in_episode=7))


def test_make_works_while_something_is_traced():
    def inside(key):
        return envs.make("Pendulum-v1").reset(key, 2)[1]

    assert jax.jit(inside)(jax.random.key(0)).shape == (2, 3)


def test_ids_are_resolved_once_per_registration(monkeypatch):
    monkeypatch.setattr(registry.gymnax(), "registered_envs", ["OnlyThis-v0"])
    assert envs.list_environments() == ["OnlyThis-v0", *OWN]


SCRIPT = """
import sys
{before}
from tensor_optix import envs
assert not any(name.startswith("gymnax") for name in sys.modules)
env = envs.make("CartPole-v1")
loaded = [m for m in ("matplotlib", "seaborn", "pandas", "scipy.stats") if m in sys.modules]
assert loaded == {loaded}, loaded
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib import colors
assert plt.figure().__class__.__module__ == "matplotlib.figure"
assert sns.color_palette("husl", 3) and colors.to_rgb("red") and matplotlib.__version__
assert type(plt).__name__ == type(sns).__name__ == "module"
import jax
pong = envs.make("Pong-misc")
state, _ = pong.reset(jax.random.key(0), 1)
state = jax.tree.map(lambda x: x[0], state.env)
with jax.numpy_dtype_promotion("standard"):
    pong.env.render(state, pong.params)  # gymnax's own drawing, through what it imported
assert plt.gcf().axes
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "loaded"),
    [("", []), ("import matplotlib", ["matplotlib"])],
    ids=["nothing loaded", "matplotlib loaded"],
)
def test_drawing_packages_are_left_out_and_still_work(before, loaded):
    script = SCRIPT.format(before=before, loaded=loaded)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
