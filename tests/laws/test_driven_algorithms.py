"""Laws of every algorithm of the registry inside the driver: exact resume, faults, lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.algorithms import registry
from tensor_optix.config import from_mapping
from tensor_optix.core.types import StopReason
from tensor_optix.envs.spaces import Box, Discrete
from tensor_optix.loop.run_dir import RunDir
from tensor_optix.plan import make_plan
from tensor_optix.training import resume, train
from tests.laws.test_algorithms import ENVIRONMENTS, SMALL
from tests.runs import assert_same_bits, session_of

QUICK = ("dqn",)  # what the others do beyond these, other tests show; all of them are run as slow ones
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in registry.names()]
WINDOWS = 6  # enough to fill the replays


def settings_of(name):
    kind = registry.get(name)
    algorithm_steps = SMALL[name]["n_envs"] * SMALL[name]["n_steps"]
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL[name].items()}
    return {
        "env": ENVIRONMENTS[kind.action_kinds[-1]], "algorithm": name, "seeds": 2, "stop": False, "progress": False,
        "config": config, "total_steps": WINDOWS * algorithm_steps, "eval_every": 2 * algorithm_steps,
        "eval_episodes": 2, "eval_max_steps": 20, "final_episodes": 2, "tune": True,
    }  # fmt: skip


def state_of(path):
    run = RunDir.read(path)
    template = session_of(make_plan(from_mapping(run.manifest["config"])), start=False).template()
    return run.load_checkpoint(template).state


OPTIONS = {"prioritized": True, "n_step": 1, "rnd": True}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(pytest.param(name, {}, marks=() if name in QUICK else pytest.mark.slow) for name in registry.names()),
        pytest.param("dqn", {"env": "BitFlip", "config": OPTIONS}, marks=pytest.mark.slow),
        pytest.param("sac", {"env": "PointReach", "config": OPTIONS}, marks=pytest.mark.slow),
        pytest.param("recurrent_ppo", {"config": {"rnd": True}}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "options" if value else "plain",
)
def test_n_and_n_windows_are_2n_to_the_bit(tmp_path, name, changes):
    settings = settings_of(name)
    settings |= changes | {"config": settings["config"] | changes.get("config", {})}
    train(**settings, run_dir=tmp_path / "whole")
    half = settings["total_steps"] // (WINDOWS // 2) * (WINDOWS // 3)  # also in the midst of the tuner's cycle
    train(**{**settings, "total_steps": half}, run_dir=tmp_path / "parts")
    resume(tmp_path / "parts", total_steps=settings["total_steps"], progress=False)
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert_same_bits(parts["members"].learner, whole["members"].learner)
    assert_same_bits(parts["members"].brain, whole["members"].brain)
    learner = whole["members"].learner
    if hasattr(learner, "replay"):
        assert int(learner.replay.size.min()) == learner.replay.end.shape[1] - 1  # full
        assert int(learner.updates.min()) > 0


class Poisoned:
    """One step an episode; the reward is NaN, always."""

    default_params = None
    continuous = False

    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)

    def reset_env(self, key, params):
        return jnp.zeros(2, jnp.float32), jnp.int32(0)

    def step_env(self, key, state, action, params):
        return jnp.ones(2, jnp.float32), state + 1, jnp.float32(jnp.nan), jnp.bool_(True), {}

    def is_truncated(self, state, params):
        return jnp.bool_(False)


class PoisonedContinuous(Poisoned):
    continuous = True


@pytest.mark.parametrize("name", NAMES)
def test_rewards_that_are_not_finite_end_a_run_with_finite_weights(name):
    settings = settings_of(name)
    discrete = registry.get(name).action_kinds[-1] == "discrete"
    result = train(**{**settings, "env": Poisoned if discrete else PoisonedContinuous, "seeds": 1})
    assert result.members[0].stop_reason == StopReason.NON_FINITE
    assert result.members[0].windows == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.policy.params))
