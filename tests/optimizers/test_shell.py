"""The host's face of every tuner."""

import importlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import optimizers
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.optimizers import TUNERS
from tests.optimizers.tuner_parts import call

NAMES = {"spsa": "SPSA", "momentum": "Momentum", "backoff": "Backoff", "pbt": "PBT", "adaptive": "Adaptive"}
FACES = {name: getattr(optimizers, f"{pure}Optimizer") for name, pure in NAMES.items()}
ALL = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


def metrics(score):
    return EvalMetrics(score, {}, 0)


def test_names_and_addresses():
    assert {name: cls.__name__ for name, cls in TUNERS.items()} == NAMES
    for name, face in FACES.items():
        assert face.pure is TUNERS[name]
        assert issubclass(face, BaseOptimizer)
        assert getattr(importlib.import_module(f"tensor_optix.optimizers.{name}_optimizer"), face.__name__) is face
    assert set(dir(optimizers)) >= {face.__name__ for face in FACES.values()}


@ALL
def test_keeps_types_bounds_and_what_is_not_tuned(face):
    optimizer = face({"lr": (1e-4, 1e-2), "epochs": (1, 10)}, log_params={"lr"}, seed=1)
    current = HyperparamSet({"lr": 1e-3, "epochs": 4, "other": "kept", "flag": True}, 3)
    tried = set()
    for i in range(24):
        current = optimizer.suggest(current, [metrics(float(np.sin(7.0 * i)))])
        assert type(current.params["epochs"]) is int
        assert type(current.params["lr"]) is float
        assert 1e-4 <= current.params["lr"] <= 1e-2
        assert 1 <= current.params["epochs"] <= 10
        tried.add(current.params["epochs"])
    assert len(tried) > 1
    assert current.params["other"] == "kept"
    assert current.params["flag"] is True
    assert current.episode_id == 3


@ALL
def test_matches_the_pure_one(face):
    optimizer = face({"x": (0.0, 1.0), "y": (0.0, 1.0)}, seed=5)
    tuner = optimizer.tuner
    state = tuner.init(optimizer.space, jnp.asarray([0.4, 0.6], jnp.float32), jax.random.key(5))
    current = optimizer.suggest(HyperparamSet({"x": 0.4, "y": 0.6}), [metrics(123.0)])  # before any suggestion
    for i in range(12):
        state, x = call(tuner, "suggest", state)
        np.testing.assert_allclose([current.params["x"], current.params["y"]], x, atol=1e-6)
        score = float(np.sin(i) + current.params["x"])
        state = call(tuner, "observe", state, jnp.float32(score), jnp.float32(0.0), jnp.bool_(True))
        current = optimizer.suggest(current, [metrics(score)])


@ALL
def test_recentres_on_a_roll_back_and_survives_nan(face):
    optimizer = face({"x": (0.0, 1.0)})
    current = optimizer.suggest(HyperparamSet({"x": 0.5}), [metrics(0.0)])
    for score in (1.0, float("nan"), float("inf"), 2.0):
        current = optimizer.suggest(current, [metrics(score)])
        assert np.isfinite(current.params["x"])
    optimizer.suggest(HyperparamSet({"x": 0.125}), [metrics(9.0)])
    assert float(optimizer.tuner.centre(optimizer._state)[0]) == pytest.approx(0.125)


@ALL
def test_says_once_that_there_is_nothing_to_tune(face, caplog):
    with caplog.at_level(logging.WARNING):
        optimizer = face()
        for _ in range(30):
            out = optimizer.suggest(HyperparamSet({"x": 1.0}), [metrics(0.0)])
            optimizer.on_plateau([metrics(0.0)])
            optimizer.on_improvement(metrics(0.0))
    assert out.params == {"x": 1.0}
    assert len(caplog.records) == 1
    assert face.__name__ in caplog.text
    assert not optimizer.is_probing


@ALL
def test_flags_and_bad_arguments_are_refused(face):
    with pytest.raises(TypeError, match="'normalize' is a flag, True"):
        face({"normalize": (0, 1)}).suggest(HyperparamSet({"normalize": True}), [])
    with pytest.raises(TypeError, match=f"{face.__name__} has no knob 'aplha'"):
        face({"x": (0, 1)}, aplha=0.1)
    with pytest.raises(TypeError, match="param_bounds must be a mapping"):
        face({...})
    with pytest.raises(ValueError, match="lack 'x'"):
        face({"x": (0, 1)}).suggest(HyperparamSet({"y": 1.0}), [])


@pytest.mark.parametrize(
    ("value", "said"), [(True, "a flag, True, with no values between"), ("x", "no number but 'x'")]
)
def test_a_run_says_what_cannot_be_tuned(tmp_path, value, said):
    from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
    from tensor_optix.loop.host import LoopController
    from tests.host_parts import Plain, Source

    optimizer = FACES["spsa"]({"odd": (0, 1)})
    with pytest.raises(TypeError, match=f"hyperparameter 'odd' is {said}; leave it out"):
        LoopController(Plain(odd=value), None, optimizer, Source(), CheckpointRegistry(tmp_path))


def loop_with(tmp_path, optimizer, **given):
    from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
    from tensor_optix.loop.host import LoopController
    from tests.host_parts import Plain, Source

    settings = {"max_episodes": 6} | given
    return LoopController(Plain(lr=0.5), None, optimizer, Source(), CheckpointRegistry(tmp_path), **settings)


def test_what_lies_outside_its_bounds_is_said(tmp_path, caplog):
    loop_with(tmp_path, FACES["spsa"]({"lr": (0.6, 1.0)}))
    assert "hyperparameter 'lr' is 0.5, outside its bounds [0.6, 1]: tuning begins at the nearer one" in caplog.text


def test_a_seed_of_its_own_counts_in_a_run_too(tmp_path):
    def tried(name, seed, **given):
        seen = []

        class Watch:
            def on_hyperparam_update(self, old, new):
                seen.append(new["lr"])

        loop_with(tmp_path / name, FACES["spsa"]({"lr": (0.0, 1.0)}, seed=seed), callbacks=[Watch()], **given).run()
        return seen

    runs = [tried(str(seed), seed, max_episodes=12) for seed in (0, 1, 2, 3)]
    assert tried("again", 2, max_episodes=12) == runs[2]
    assert len({tuple(run) for run in runs}) > 1


def test_a_tuner_with_a_rule_of_its_own_is_asked(tmp_path):
    asked = []

    class Mine(FACES["spsa"]):
        def suggest(self, current, history):
            asked.append(len(history))
            return super().suggest(current, history)

    class Wrapper(BaseOptimizer):
        """With an attribute that a loop might take for something else."""

        tuner = "mine"

        def suggest(self, current, history):
            return current

        on_improvement = on_plateau = lambda self, seen: None

    loop_with(tmp_path / "one", Mine({"lr": (0.0, 1.0)}), max_episodes=12).run()
    assert asked
    assert loop_with(tmp_path / "two", Wrapper()).run().windows == 6
