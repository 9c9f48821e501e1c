"""What tells one search from another."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tensor_optix import envs
from tensor_optix.envs.exploration import DeepSea
from tensor_optix.trials.facts import difference, env_facts, name_of, policy_fact
from tests.runs import SMALL, plan_of


class Slippery:
    """Wraps an environment; what is plain in it tells it from another, and what is no value does not."""

    def __init__(self, inner, chance=0.1, **other):
        self.inner, self.chance = inner, chance
        vars(self).update(other)
        for name in ("default_params", "reset_env", "step_env", "is_truncated", "observation_space", "action_space"):
            setattr(type(self), name, property(lambda self, name=name: getattr(self.inner, name)))

    @functools.cached_property
    def looked_at(self):
        return 1.0


def facts_of(env):
    facts = env_facts(plan_of(env_object=env))
    return json.loads(json.dumps(facts, allow_nan=False))


def cartpole(length):
    made = envs.make("CartPole-v1")
    return envs.make("CartPole-v1", made.params.replace(max_steps_in_episode=length))


class TestEnvironments:
    @pytest.mark.parametrize(
        ("one", "other", "said"),
        [
            (cartpole(100), cartpole(200), "env.params.max_steps_in_episode 100, got 200"),
            (DeepSea(4), DeepSea(5), "env.object.depth 4, got 5"),
            (Slippery(DeepSea(4)), Slippery(DeepSea(4), 0.2), "env.object.chance 0.1, got 0.2"),
            (Slippery(DeepSea(4)), Slippery(DeepSea(5)), "env.object.inner.depth 4, got 5"),
            (Slippery(DeepSea(4)), DeepSea(4), "env.object.class Slippery, got DeepSea"),
            (Slippery(DeepSea(4), size=float("inf")), Slippery(DeepSea(4)), "env.object.size inf, got nothing"),
            (Slippery(DeepSea(4), rule=max), Slippery(DeepSea(4), rule=min), "env.object.rule max, got min"),
            (Slippery(DeepSea(4), at=(1, [2])), Slippery(DeepSea(4), at=(1, [3])), r"env.object.at [1, [2]], got"),
        ],
    )
    def test_they_differ(self, one, other, said):
        assert difference("env", facts_of(one), facts_of(other)).startswith(said)

    @pytest.mark.parametrize("make", [lambda: cartpole(100), lambda: DeepSea(4), lambda: Slippery(DeepSea(4), at=[1])])
    def test_two_that_were_made_alike_do_not(self, make):
        assert facts_of(make()) == facts_of(make())

    def test_what_is_kept_for_later_and_what_is_no_value_do_not_count(self):
        one, other = (Slippery(DeepSea(4), rng=np.random.default_rng(i), key=jax.random.key(0)) for i in range(2))
        assert one.looked_at == 1.0
        assert facts_of(one) == facts_of(other)
        one.outer = one  # looking at it ends
        assert facts_of(one)["object"]["outer"]["class"] == "Slippery"


def test_a_policy_is_told_by_its_parameters_not_by_their_values():
    def with_actor(width):
        def build(rngs):
            return nnx.Sequential(nnx.Linear(4, width, rngs=rngs), nnx.tanh, nnx.Linear(width, 2, rngs=rngs))

        return policy_fact(plan_with({"actor": build}))

    def plan_with(networks):
        from tensor_optix.config import RunConfig
        from tensor_optix.plan import make_plan

        return make_plan(RunConfig(env="CartPole-v1", total_steps=64, config=SMALL), None, networks)

    assert with_actor(8) == with_actor(8)
    assert len({with_actor(8), with_actor(16), policy_fact(plan_with({}))}) == 3


def test_differences_in_words():
    assert difference("x", {"a": [1, 2.0]}, {"a": [1, 2.0]}) is None
    assert difference("x", {"a": 1, "b": {"c": None}}, {"a": 1, "b": {"c": 2}}) == "x.b.c None, got 2"
    assert difference("x", {"a": 1}, {"b": 1}) == "x.a 1, got nothing"
    assert difference("x", {}, {"b": None}) == "x.b nothing, got None"
    assert difference("x", [1], [2]) == "x [1], got [2]"


def test_names_of_functions():
    class Called:
        def __call__(self):
            pass

    assert name_of(len) == "len"
    assert name_of(functools.partial(functools.partial(cartpole, 1))) == "cartpole"
    assert name_of(Called()) == name_of(Called)
