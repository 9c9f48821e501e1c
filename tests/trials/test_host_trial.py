"""One trial: what is in force in it, what it makes and tears down, whose score counts."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import gymnasium
import pytest

from tensor_optix import BatchPipeline, LoopCallback, RNDPipeline, make_agent
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.types import HyperparamSet
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.optimizers.spsa import SPSAOptimizer
from tensor_optix.orchestrator import TrialOrchestrator
from tensor_optix.trials import owner
from tensor_optix.trials.factories import made_agent
from tests.host_parts import Plain
from tests.trials import parts
from tests.trials.parts import SPACE, STEPS, Guess, Hill, score_of

AT_ONCE = {"evaluator": EpisodeEvaluator(min_episodes=1)}  # a score after every window


class Tunable(Plain):
    """The default tuner would move what is searched, and `other`."""

    default_param_bounds: ClassVar = {"x": (0.0, 1.0), "other": (1.0, 2.0)}
    made: ClassVar[list] = []

    def __init__(self, x):
        super().__init__(x=x, other=1.5)
        self.proposed = x
        self.made.append(self)


@pytest.fixture(autouse=True)
def nobody_made():
    Tunable.made.clear()


def search(agent=lambda params: Tunable(**params), pipeline=Hill, **settings):
    settings = {"n_trials": 3, "trial_episodes": 6, "rloptimizer_kwargs": AT_ONCE} | settings
    return TrialOrchestrator(agent, pipeline, settings.pop("space", SPACE), **settings)


def in_force(name):
    return [{seen[name] for seen in agent.seen} for agent in Tunable.made]


class Own(BaseOptimizer):
    """A tuner of the user's own, which moves one name."""

    def __init__(self, name):
        self.name, self.heard = name, []

    def suggest(self, current, history):
        self.heard.append(history[-1].primary_score)
        return HyperparamSet({**current.params, self.name: current.params[self.name] * 0.9})


class TestWhatIsProposedIsInForce:
    def test_nothing_is_tuned_unless_it_is_asked_for(self):
        found = search()
        found.run()
        assert in_force("x") == [{trial.params["x"]} for trial in found.study.trials]
        assert in_force("other") == [{1.5}] * 3
        assert [trial.value for trial in found.study.trials] == pytest.approx(
            [score_of(trial.params["x"]) for trial in found.study.trials]
        )

    def test_a_tuner_that_is_asked_for_leaves_what_is_searched_alone(self):
        tuner = SPSAOptimizer({"x": (0.45, 0.55), "other": (1.0, 2.0)})
        found = search(rloptimizer_kwargs=AT_ONCE | {"optimizer": tuner})
        found.run()
        assert in_force("x") == [{trial.params["x"]} for trial in found.study.trials]
        assert all(len(values) > 1 for values in in_force("other"))
        assert tuner.space.names == ("other", "x")  # the trials have copies

    def test_where_nothing_is_left_of_it_nothing_is_tuned(self):
        found = search(rloptimizer_kwargs=AT_ONCE | {"optimizer": SPSAOptimizer({"x": (0.45, 0.55)})})
        found.run()
        assert in_force("x") == [{trial.params["x"]} for trial in found.study.trials]

    def test_a_tuner_of_ones_own_may_tune_the_rest(self):
        own = Own("other")
        found = search(rloptimizer_kwargs=AT_ONCE | {"optimizer": own})
        found.run()
        assert in_force("x") == [{trial.params["x"]} for trial in found.study.trials]
        assert all(len(values) > 1 for values in in_force("other"))
        assert own.heard == []

    def test_and_is_refused_where_it_tunes_what_is_searched(self):
        with pytest.raises(RuntimeError, match="Own tunes 'x', which the trials search: let it leave that alone"):
            search(rloptimizer_kwargs=AT_ONCE | {"optimizer": Own("x")}).run()


class TestMinimising:
    def test_the_target_is_what_the_score_must_fall_to(self):
        def windows(target):
            found = search(
                n_trials=1,
                trial_episodes=8,
                direction="minimize",
                checkpoint_score_fn=lambda agent: 10.0 - agent.weight,
                rloptimizer_kwargs=AT_ONCE | {"target_score": target, "convergence_patience": 1},
            )
            found.run()
            return found.study.trials[0].user_attrs["windows"]

        assert windows(5.0) == 5
        assert windows(-90.0) == 8  # out of reach

    def test_a_search_waits_for_as_many_episodes_as_it_does_to_maximise(self):
        heard = {"maximize": [], "minimize": []}

        class Hear(LoopCallback):
            def __init__(self, direction):
                self.direction = direction

            def on_episode_end(self, episode_id, eval_metrics):
                heard[self.direction].append(eval_metrics is not None)

        for direction in heard:
            settings = {"callbacks": [Hear(direction)]}
            search(n_trials=1, trial_episodes=12, direction=direction, rloptimizer_kwargs=settings).run()
        assert heard["minimize"] == heard["maximize"]
        assert heard["minimize"].count(True) == 2  # after ten windows, and the last


class TestScoreSource:
    @pytest.mark.parametrize(
        ("settings", "source"),
        [
            ({}, "training"),
            ({"rloptimizer_kwargs": {}}, "training"),
            ({"val_pipeline_factory": Hill}, "validation"),
            ({"checkpoint_score_fn": score_of}, "checkpoint_score_fn score_of"),
            ({"rloptimizer_kwargs": {"checkpoint_score_fn": score_of}}, "checkpoint_score_fn score_of"),
            ({"checkpoint_score_fn": score_of, "val_pipeline_factory": Hill}, "checkpoint_score_fn score_of"),
            ({"rloptimizer_kwargs": {"evaluator": EpisodeEvaluator(score_of)}}, "training, by score_of"),
        ],
    )
    def test_in_words(self, settings, source):
        assert search(**settings).trial.score_source == source

    def test_a_study_with_another_is_refused(self, tmp_path):
        kept = {"storage": tmp_path / "s.journal", "study_name": "s", "n_trials": 1, "trial_episodes": 1}
        search(checkpoint_score_fn=lambda agent: 1000.0, **kept).run()
        kept["n_trials"] = 2
        with pytest.raises(ValueError, match=r"begun with score checkpoint_score_fn .*<lambda>, got training"):
            search(**kept).run()
        with pytest.raises(ValueError, match=r"begun with score .*, got validation"):
            search(val_pipeline_factory=Hill, **kept).run()


class Tracked(Hill):
    """Counts what is made and closed."""

    made: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.made.append(self)


class TestTornDown:
    @pytest.fixture(autouse=True)
    def nothing_made(self):
        Tracked.made.clear()

    @pytest.mark.parametrize("what", ["agent", "validation", "both sources", "nothing"])
    def test_what_was_made_is_closed_once_whatever_fails(self, what):
        def broken(params):
            raise RuntimeError("no such file")

        settings = {
            "agent": {"agent": parts.broken_agent},
            "validation": {"val_pipeline_factory": broken},
            "both sources": {"agent": lambda params: 3, "val_pipeline_factory": Tracked},
            "nothing": {"val_pipeline_factory": Tracked},
        }[what]
        found = search(pipeline=Tracked, n_trials=2, trial_episodes=1, **settings)
        if what == "nothing":
            found.run()
        else:
            with pytest.raises(RuntimeError):
                found.run()
        assert len(Tracked.made) == (4 if what in ("nothing", "both sources") else 2)
        assert [source.closed for source in Tracked.made] == [1] * len(Tracked.made)

    def test_an_agent_is_torn_down_where_the_validation_source_is_not_made(self):
        ended = []

        class Ending(Tunable):
            def teardown(self):
                ended.append(self)

        def broken(params):
            raise RuntimeError("no such file")

        with pytest.raises(RuntimeError):
            search(lambda params: Ending(**params), n_trials=1, val_pipeline_factory=broken).run()
        assert ended == Tunable.made

    def test_a_source_that_was_never_set_up_may_fail_to_close(self, caplog):
        class Unready(Hill):
            def teardown(self):
                raise AttributeError("no thread")

        with pytest.raises(RuntimeError, match="no such optimiser"):
            search(parts.broken_agent, Unready, n_trials=1).run()
        assert "Unready cannot be torn down: AttributeError: no thread" in caplog.text

    def test_what_looking_for_bounds_takes(self):
        class Bounded(Guess):
            default_param_bounds: ClassVar = {"x": (0, 1)}

        assert search(lambda: Bounded(x=0.5), Tracked, space=None).space.names == ("x",)
        with pytest.raises(ValueError, match="makes no agent"):
            search(parts.broken_agent, Tracked, space=None)
        assert [source.closed for source in Tracked.made] == [1, 1]


def test_whole_numbers_are_proposed_where_value_and_bounds_are_whole():
    class Bounded(Guess):
        default_param_bounds: ClassVar = {
            "n_epochs": (1, 10), "width": (8, 64), "x": (0, 1), "share": (0.5, 2.5), "flag": (0, 1),
        }  # fmt: skip
        default_log_params: ClassVar = ("width",)

    found = search(lambda params=None: Bounded(**({"n_epochs": 4, "width": 32, "x": 0.5, "share": 1} | (params or {}))),
                   space=None, n_trials=2)  # fmt: skip
    assert found.space.facts() == {
        "n_epochs": ["int", 1, 10],
        "width": ["log_int", 8, 64],
        "x": ["float", 0.0, 1.0],
        "share": ["float", 0.5, 2.5],
    }
    found.run()
    assert type(found.best_params["n_epochs"]) is type(found.best_params["width"]) is int


class TestEnvironmentOfAPipeline:
    def test_it_may_be_wrapped(self):
        inner = BatchPipeline(gymnasium.make("CartPole-v1"), window_size=8)
        for pipeline in (inner, RNDPipeline(inner, 4), RNDPipeline(RNDPipeline(inner, 4), 4)):
            agent = made_agent(make_agent, {"learning_rate": 1e-3}, pipeline)
            assert agent.get_hyperparams().params["learning_rate"] == 1e-3
        inner.teardown()

    def test_there_may_be_none(self):
        with pytest.raises(TypeError, match="make_agent needs an environment to fit, and Hill has none"):
            made_agent(make_agent, {}, Hill())


class TestFiles:
    def test_a_trial_keeps_policies_and_no_checkpoint(self, tmp_path):
        found = search(n_trials=1, checkpoint_dir=tmp_path, rloptimizer_kwargs=AT_ONCE | {"save_every": 0.0})
        found.run()
        (run,) = found._directory_of(0).iterdir()
        assert list((run / "checkpoints").iterdir()) == []
        assert CheckpointRegistry(run / "snapshots").best.eval_metrics.primary_score == found.best_score
        assert Path(found.best_weights_path).exists()

    def test_directories_of_killed_searches_are_removed_by_the_next(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        code = (
            "import os, tempfile; from tensor_optix.trials.temporary import temporary_directory\n"
            f"tempfile.tempdir = {str(tmp_path)!r}; print(temporary_directory(), flush=True); os._exit(9)"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
        dead = Path(shown.strip())
        (dead / "trial-00000").mkdir()
        host = owner.mark().split("/")[0]
        others = [
            tmp_path / dead.name.replace(f"-{host}-", f"-elsewhere{host}-"),  # of a machine that we cannot ask
            tmp_path / "tensor-optix-trials-8ade9q8f",  # of nobody that we know
            tmp_path / "notes",
        ]
        for other in others:
            other.mkdir()
        assert dead.is_dir()
        found = search(n_trials=1)
        found.run()
        assert not dead.exists()
        assert all(other.is_dir() for other in others)
        again = search(n_trials=1)
        again.run()
        assert found.run_ckpt_dir.is_dir()  # its owner is alive
        assert found.run_ckpt_dir.parent == tmp_path


def test_callbacks_are_shared_and_hear_of_every_trial():
    class Count(LoopCallback):
        windows = 0

        def on_episode_end(self, episode_id, eval_metrics):
            self.windows += 1

    given = Count()
    search(n_trials=2, trial_episodes=3, rloptimizer_kwargs={"callbacks": [given]}).run()
    assert given.windows == 6


def test_a_seed_is_a_whole_number():
    for seed in ("a", -1, 1.5):
        with pytest.raises(ValueError, match="seed must be a whole number of at least 0"):
            search(seed=seed)


def test_windows_are_those_that_were_asked_for():
    """The source is what the trial made, whatever wraps it."""
    found = search(n_trials=1, trial_episodes=2)
    found.run()
    assert found.study.trials[0].user_attrs["env_steps"] == 2 * STEPS
