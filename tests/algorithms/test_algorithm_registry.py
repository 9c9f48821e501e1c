"""The registry: every entry loads, and offers what the contract asks for."""

import dataclasses

import pytest

from tensor_optix import envs
from tensor_optix.algorithms import contract, registry
from tensor_optix.algorithms.presets import PRESETS, preset
from tensor_optix.config import RunConfig
from tensor_optix.plan import make_plan

ENVIRONMENTS = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1"}
CASES = [(name, kind) for name in registry.names() for kind in registry.get(name).action_kinds]


def test_names_are_sorted_and_ppo_is_one_of_them():
    assert registry.names() == sorted(set(registry.names()))
    assert "ppo" in registry.names()


def test_unknown_name():
    with pytest.raises(KeyError, match="nonsense"):
        registry.get("nonsense")


@pytest.mark.parametrize("name", registry.names())
def test_a_class_knows_its_name_and_its_config(name):
    cls = registry.get(name)
    assert cls.name == name
    assert cls.action_kinds
    assert set(cls.action_kinds) <= set(ENVIRONMENTS)
    for type_ in (cls, cls.config_type):
        assert dataclasses.is_dataclass(type_)
        assert type_.__dataclass_params__.frozen
    assert hash(cls.config_type()) == hash(cls.config_type())
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(cls.config_type))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_contract_is_offered(name, kind):
    algorithm = registry.get(name)(envs.make(ENVIRONMENTS[kind]))
    for member in (m for m in vars(contract.Algorithm) if not m.startswith("_")):
        assert hasattr(algorithm, member), member
    assert algorithm.steps_per_window >= 1
    assert set(algorithm.search_space().names) <= set(algorithm.hyperparams())


@pytest.mark.parametrize(("name", "env"), PRESETS)
def test_a_preset_can_be_run(name, env):
    plan = make_plan(RunConfig(env=env, algorithm=name, total_steps=1000))
    for field, value in preset(name, env).config.items():
        got = getattr(plan.program.algorithm.config, field)
        assert got == (tuple(value) if isinstance(value, list) else value)
    for field, value in preset(name, env).hyperparams.items():
        assert plan.members[0].hyper[field] == value
    for field, value in preset(name, env).run.items():
        assert getattr(plan.run, field) == value


def test_no_preset_is_an_empty_one():
    assert preset("ppo", "no such environment") == preset("nonsense", "CartPole-v1")
    assert not preset("ppo", "no such environment").config
