"""RLOptimizer and Optimizer: what a user of the host driver calls."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix import BatchPipeline, Optimizer, RLOptimizer, RunDirError, optimal_window_size
from tensor_optix.core.types import EvalMetrics, HyperparamSet, LoopState, StopReason
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.run_dir import RunDir
from tests.host_parts import Forecaster, Plain, Source, Stream, window_of

ROOT = Path(__file__).parent.parent


def optimizer(tmp_path, agent=None, **settings) -> RLOptimizer:
    settings.setdefault("pipeline", Source())
    return RLOptimizer(agent=agent or Plain(), checkpoint_dir=tmp_path / "runs", **settings)


class Tuned(Plain):
    """Names bounds of its own."""

    default_param_bounds = {"rate": (1e-4, 1e-1), "absent": (0.0, 1.0)}  # noqa: RUF012
    default_log_params = {"rate"}  # noqa: RUF012


class TestBeforeTheRun:
    def test_everything_can_be_asked(self, tmp_path):
        opt = optimizer(tmp_path)
        assert (opt.state, opt.best_snapshot, opt.result, opt.registry) == (LoopState.ACTIVE, None, None, None)
        assert opt.run_dir is None
        assert opt.scheduler is opt._scheduler
        assert not (tmp_path / "runs").exists()

    def test_stop_is_heeded(self, tmp_path):
        opt = optimizer(tmp_path)
        opt.stop()
        result = opt.run()
        assert (result.stop_reason, result.windows) == (StopReason.INTERRUPTED, 0)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({}, "either agent or agent_factory"),
            ({"agent": Plain()}, "either pipeline or pipeline_factory"),
            ({"agent": Plain(), "agent_factory": Plain, "pipeline": Source()}, "either agent or agent_factory"),
        ],
    )
    def test_what_is_missing_is_named(self, arguments, said):
        with pytest.raises(TypeError, match=said):
            RLOptimizer(**arguments)

    @pytest.mark.parametrize("name", ["max_episodes", "max_snapshots"])
    def test_bad_numbers(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            optimizer(tmp_path, **{name: 0})
        with pytest.raises(ValueError, match="dormant_threshold is 1"):
            optimizer(tmp_path, dormant_threshold=1)

    def test_trials_need_factories(self, tmp_path):
        with pytest.raises(TypeError, match="give agent_factory and pipeline_factory"):
            optimizer(tmp_path, param_space={"rate": ("float", 0, 1)})


class TestSettings:
    def test_the_default_rule_is_the_measured_one(self, tmp_path):
        config = optimizer(tmp_path).scheduler.config
        assert (config.dormant_threshold, config.max_interval, config.min_degradation_drop) == (28, 1, 1e-4)

    def test_each_reaches_the_scheduler(self, tmp_path):
        config = optimizer(
            tmp_path, base_interval=2, backoff_factor=3.0, max_interval_episodes=50, plateau_threshold=6,
            dormant_threshold=11, degradation_threshold=0.9, min_degradation_drop=0.5, noise_k=1.0, score_window=15,
            trend_window=9, min_episodes_before_dormant=7, min_episodes_before_degradation=8,
            min_consecutive_degradations=4,
        ).scheduler.config  # fmt: skip
        assert (config.base_interval, config.backoff_factor, config.max_interval) == (2, 3.0, 50)
        assert (config.plateau_threshold, config.dormant_threshold) == (6, 11)
        assert config.degradation_share == pytest.approx(0.1)
        assert (config.min_degradation_drop, config.noise_k, config.score_window, config.trend_window) == (
            0.5,
            1,
            15,
            9,
        )
        assert (config.min_evaluations_before_dormant, config.min_evaluations_before_degradation) == (7, 8)
        assert config.min_consecutive_degradations == 4

    def test_what_the_agents_class_wants(self, tmp_path):
        class Slow(Plain):
            default_min_episodes_before_dormant = 60
            is_on_policy = False

        config = optimizer(tmp_path, Slow()).scheduler.config
        assert config.min_evaluations_before_dormant == 60
        assert not config.detect_degradation
        assert (
            optimizer(tmp_path, Slow(), min_episodes_before_dormant=3).scheduler.config.min_evaluations_before_dormant
            == 3
        )

    def test_spsa_within_the_agents_bounds_is_the_default_tuner(self, tmp_path):
        agent = Tuned(rate=1e-2, other=1)
        opt = optimizer(tmp_path, agent, max_episodes=30, checkpoint_score_fn=lambda a: a.params["rate"])
        opt.run()
        assert opt.optimizer.space.names == ("rate",)
        rates = {seen["rate"] for seen in agent.seen}
        assert len(rates) > 2
        assert all(1e-4 <= rate <= 1e-1 for rate in rates)
        assert {seen["other"] for seen in agent.seen} == {1}

    def test_a_value_outside_the_agents_bounds_is_the_users_choice(self, tmp_path):
        agent = Tuned(rate=0.5)
        opt = optimizer(tmp_path, agent, max_episodes=1)
        opt.run()
        assert dict(opt.optimizer.space.entries)["rate"].high == 0.5

    def test_of_several_bounds_those_the_class_says_are_tuned(self, tmp_path):
        class Few(Tuned):
            default_param_bounds = {"rate": (1e-4, 1e-1), "other": (0.0, 1.0)}  # noqa: RUF012
            default_tuned = ("other",)

        opt = optimizer(tmp_path, Few(rate=1e-2, other=0.5), max_episodes=1)
        opt.run()
        assert opt.optimizer.space.names == ("other",)

    @pytest.mark.parametrize(("agent", "count"), [(Plain, 1), (Tuned, 0)])
    def test_an_agent_without_bounds_is_told_once_what_its_author_can_do(self, tmp_path, caplog, agent, count):
        with caplog.at_level("WARNING"):
            optimizer(tmp_path, agent=agent(rate=0.01), max_episodes=2).run()
        said = [record.getMessage() for record in caplog.records if "no hyperparameter is tuned" in record.getMessage()]
        assert len(said) == count
        assert all(
            text.startswith("Plain names no default_param_bounds, so no hyperparameter is tuned;") for text in said
        )

    def test_an_agent_from_a_factory_is_asked_too(self, tmp_path):
        class Slow(Plain):
            default_min_episodes_before_dormant = 60
            is_on_policy = False

        opt = RLOptimizer(agent_factory=Slow, pipeline=Source(), checkpoint_dir=tmp_path, max_episodes=1)
        opt.run()
        assert opt.scheduler.config.min_evaluations_before_dormant == 60
        assert not opt.scheduler.config.detect_degradation

    def test_a_second_run_is_not_stopped_by_the_firsts_stop(self, tmp_path):
        opt = optimizer(tmp_path, max_episodes=3)
        opt.stop()
        assert opt.run().windows == 0
        assert opt.run().windows == 3

    def test_what_is_no_list_of_callbacks_or_no_pipeline(self, tmp_path):
        with pytest.raises(TypeError, match="callbacks must be a list"):
            optimizer(tmp_path, callbacks=LoopCallback())
        with pytest.raises(TypeError, match=r"whole number of windows, got 2\.5"):
            optimizer(tmp_path, max_episodes=2.5)
        with pytest.raises(TypeError, match="wrap an environment in BatchPipeline"):
            optimizer(tmp_path, pipeline=gym.make("CartPole-v1")).run()


class TestRun:
    def test_a_forecaster_stops_by_itself_and_the_best_is_in_place(self, tmp_path):
        agent = Forecaster()
        opt = optimizer(tmp_path, agent, pipeline=Stream(agent))
        result = opt.run()
        assert result.stop_reason == StopReason.CONVERGED
        assert opt.state == LoopState.DORMANT
        assert np.allclose(agent.coefficients, [1.2, -0.5], atol=0.15)
        assert opt.best_snapshot.weights_path.startswith(str(opt.run_dir))
        assert result is opt.result
        assert result.seconds["total"] > result.seconds["collect"] > 0

    def test_every_run_has_a_directory_of_its_own(self, tmp_path):
        first, second = optimizer(tmp_path, max_episodes=2), optimizer(tmp_path, max_episodes=2)
        first.run()
        second.run()
        assert first.run_dir != second.run_dir
        assert first.run_dir.parent == second.run_dir.parent == tmp_path / "runs"
        manifest = RunDir.read(first.run_dir).manifest
        assert (manifest["status"], manifest["stop_reasons"], manifest["windows"]) == ("finished", {"0": "budget"}, 2)
        assert manifest["config"]["driver"] == "host"

    def test_events_are_written(self, tmp_path):
        scores = iter([1.0, 3.0, 2.0])
        opt = optimizer(tmp_path, max_episodes=3, checkpoint_score_fn=lambda a: next(scores))
        opt.run()
        events = RunDir.read(opt.run_dir).read_events()
        assert [(e["window"], e["event"]) for e in events] == [
            (0, "evaluation"), (0, "best"), (1, "evaluation"), (1, "best"), (2, "evaluation"),
        ]  # fmt: skip
        assert [e["score"] for e in events if e["event"] == "evaluation"] == [1.0, 3.0, 2.0]

    def test_factories(self, tmp_path):
        made = []
        opt = RLOptimizer(
            agent_factory=lambda params: made.append(params) or Plain(), pipeline_factory=Source,
            val_pipeline_factory=lambda: Source(), checkpoint_dir=tmp_path, max_episodes=2,
        )  # fmt: skip
        assert opt.agent is None
        result = opt.run()
        assert made == [{}]
        assert result.windows == 2
        assert result.history[0].metrics["val_score"] == 1.0

    def test_a_callback_can_stop_it_and_be_added_late(self, tmp_path):
        opt = optimizer(tmp_path)
        told = []

        class Late(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                told.append(episode_id)
                if episode_id == 6:
                    opt.stop()

        class First(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                if episode_id == 2:
                    opt.add_callback(Late())

        opt.add_callback(First())
        assert opt.run().stop_reason == StopReason.INTERRUPTED
        assert told[-1] == 6

    def test_verbose_lines(self, tmp_path, capsys):
        log = tmp_path / "loop.log"
        optimizer(
            tmp_path, max_episodes=2, verbose=True, verbose_log_file=str(log), checkpoint_score_fn=lambda a: -67.23
        ).run()
        printed = capsys.readouterr().out
        assert printed == log.read_text()
        assert "  [loop] ep=   0  raw=   -67.2  smoothed=   -67.2  state=ACTIVE  interval=1  <- best" in printed
        assert len(printed.splitlines()) == 2

    def test_a_dormant_that_a_callback_handles_goes_on(self, tmp_path):
        opt = optimizer(tmp_path, checkpoint_score_fn=lambda a: 5.0, max_episodes=200)
        dormant = []

        class Handles(LoopCallback):
            def on_dormant(self, episode_id):
                dormant.append(episode_id)
                if len(dormant) < 3:
                    opt.keep_going()

        opt.add_callback(Handles())
        assert opt.run().stop_reason == StopReason.CONVERGED
        assert len(dormant) == 3


class TestDiagnostics:
    def test_an_intervention_reaches_the_brain_and_is_told(self, tmp_path):
        class Wild(Tuned):
            def learn(self, episode_data):
                super().learn(episode_data)
                return {"approx_kl": 1.0 if len(self.seen) == 8 else 0.0}

            default_param_bounds = {"learning_rate": (1e-5, 1e-1)}  # noqa: RUF012
            default_log_params = {"learning_rate"}  # noqa: RUF012

        updates = []

        class Watch(LoopCallback):
            def on_hyperparam_update(self, old_params, new_params):
                updates.append((old_params["learning_rate"], new_params["learning_rate"]))

        agent = Wild(learning_rate=1e-2)
        # evaluations are rare: between them nothing but the rule may move the learning rate
        opt = optimizer(
            tmp_path, agent, base_interval=12, max_interval_episodes=12, max_episodes=11, callbacks=[Watch()],
            diagnostics=True,
        )  # fmt: skip
        opt.run()
        rates = [seen["learning_rate"] for seen in agent.seen]
        assert rates[8:] == pytest.approx([rates[7] / 2] * 3)
        assert updates[-1] == pytest.approx((rates[7], rates[7] / 2))
        assert [f.rule for f in opt.diagnostics.firings] == ["high-kl"]

    def test_they_watch_when_they_are_asked_to(self, tmp_path):
        assert optimizer(tmp_path).diagnostics is None
        assert optimizer(tmp_path, diag_target_kl=0.1).diagnostics.target_kl == 0.1
        assert optimizer(tmp_path, diagnostics=True).diagnostics.target_kl == 0.02
        assert optimizer(tmp_path, diagnostics=False, diag_target_kl=0.1).diagnostics is None


class Noisy(Plain):
    """Weights that depend on its own generator and on every hyperparameter it was given."""

    default_param_bounds = {"rate": (0.0, 1.0)}  # noqa: RUF012

    def __init__(self, **params):
        super().__init__(**params)
        self.rng = np.random.default_rng(5)

    def learn(self, episode_data):
        self.weight = 0.9 * self.weight + self.rng.normal() * self.params["rate"] + episode_data.rewards[0]

    def save_state(self, path):
        with open(path, "w") as file:
            json.dump({"weight": self.weight, "rng": self.rng.bit_generator.state, "params": self.params}, file)

    def load_state(self, path):
        with open(path) as file:
            state = json.load(file)
        self.weight, self.params, self.rng.bit_generator.state = state["weight"], state["params"], state["rng"]


class Counting(Source):
    """A source that goes on where it was."""

    def __init__(self):
        super().__init__(lambda i: window_of([np.sin(i), 1.0], ends=(1,), episode_id=i))

    def state_dict(self):
        return {"collected": self.collected}

    def load_state_dict(self, state):
        self.collected = state["collected"]


class TestResume:
    def run(self, tmp_path, count, **settings):
        agent = Noisy(rate=0.3)
        opt = optimizer(
            tmp_path, agent, pipeline=Counting(), max_episodes=count, rollback_on_degradation=True,
            checkpoint_score_fn=lambda a: a.weight, **settings,
        )  # fmt: skip
        return agent, opt, opt.run()

    @pytest.mark.parametrize("first", [1, 7, 40])
    def test_n_and_n_more_are_2n(self, tmp_path, first):
        agent, _, whole = self.run(tmp_path, 60)
        _, before, _ = self.run(tmp_path, first)
        other, after, parts = self.run(tmp_path, 60, resume_from=before.run_dir)
        assert after.run_dir == before.run_dir
        assert [m.primary_score for m in parts.history] == [m.primary_score for m in whole.history]
        assert other.weight == agent.weight
        assert other.params == agent.params
        assert (parts.windows, parts.stop_reason) == (whole.windows, whole.stop_reason)
        events = [(e["event"], e.get("window"), e.get("score")) for e in RunDir.read(after.run_dir).read_events()]
        assert [e for e in events if e[0] == "evaluation"] == [
            ("evaluation", i, m.primary_score) for i, m in enumerate(whole.history)
        ]

    @pytest.mark.parametrize("first", [4, 5])
    def test_a_last_window_judged_only_because_it_was_the_last_leaves_no_trace(self, tmp_path, first):
        def run(count, **settings):
            agent = Noisy(rate=0.3)
            source = Counting()
            source.window = lambda i: window_of([np.sin(i), 1.0], ends=(1,) if i % 3 == 0 else (), episode_id=i)
            opt = optimizer(tmp_path, agent, pipeline=source, max_episodes=count, base_interval=2, **settings)
            return agent, opt, opt.run()

        agent, _, whole = run(20)
        _, before, part = run(first)
        assert part.history[-1].episode_id == first - 1
        other, _, again = run(20, resume_from=before.run_dir)
        assert [(m.episode_id, m.primary_score) for m in again.history] == [
            (m.episode_id, m.primary_score) for m in whole.history
        ]
        assert other.weight == agent.weight
        assert run(20, resume_from=before.run_dir)[2].windows == 20  # nothing is left to do

    def test_a_run_that_was_killed_goes_on_from_its_last_save(self, tmp_path):
        code = (
            "import os, sys, pathlib\n"
            "from tests.test_optimizer import LoopCallback, TestResume\n"
            "class Kill(LoopCallback):\n"
            "    def on_episode_end(self, episode_id, eval_metrics):\n"
            "        if episode_id == 9: os._exit(9)\n"
            "TestResume().run(pathlib.Path(sys.argv[1]), 30, callbacks=[Kill()], save_every=0.0)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=120, check=False)
        assert done.returncode == 9
        (left,) = (tmp_path / "runs").iterdir()
        agent, _, whole = self.run(tmp_path / "other", 30)
        other, _, parts = self.run(tmp_path, 30, resume_from=left)
        assert [m.primary_score for m in parts.history] == [m.primary_score for m in whole.history]
        assert other.weight == agent.weight

    def test_without_a_checkpoint_it_begins_anew(self, tmp_path):
        _, before, _ = self.run(tmp_path, 3)
        for step in (before.run_dir / "checkpoints").iterdir():
            for file in sorted(step.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            step.rmdir()
        _, _, result = self.run(tmp_path, 5, resume_from=before.run_dir)
        assert len(result.history) == 5

    def test_an_interrupt_while_it_is_put_back_costs_nothing(self, tmp_path):
        _, before, _ = self.run(tmp_path, 6)

        class Interrupted(Noisy):
            def load_state(self, path):
                raise KeyboardInterrupt

        optimizer(tmp_path, Interrupted(rate=0.3), pipeline=Counting(), resume_from=before.run_dir).run()
        _, _, whole = self.run(tmp_path, 12)
        _, _, parts = self.run(tmp_path, 12, resume_from=before.run_dir)
        assert [m.primary_score for m in parts.history] == [m.primary_score for m in whole.history]

    def test_policies_saved_after_the_checkpoint_are_not_this_runs(self, tmp_path):
        def grown(windows, **settings):
            agent = Plain()
            opt = optimizer(
                tmp_path, agent, max_episodes=windows, max_snapshots=2, checkpoint_score_fn=lambda a: a.weight,
                save_every=1e9, **settings,
            )  # fmt: skip
            return agent, opt, opt.run()

        _, before, _ = grown(3)  # its checkpoint is of window 3
        agent = Plain()
        agent.weight = 3.0
        for weight in range(4, 20):  # as if it had gone on, and was killed before its next checkpoint
            agent.weight = float(weight)
            before.registry.save(agent, EvalMetrics(agent.weight, {}, weight), HyperparamSet({}))
        before.registry.protected.clear()
        other, after, result = grown(5, resume_from=before.run_dir)
        assert [m.primary_score for m in result.history] == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert after.registry.best.eval_metrics.primary_score == 5.0
        assert other.weight == 5.0

    def test_what_a_checkpoint_names_is_kept(self, tmp_path):
        _, opt, _ = self.run(tmp_path, 12, save_every=0.0)
        assert opt.registry.protected >= opt._controller.snapshots_in_use != set()

    def test_a_run_at_a_cap_saves_ever_more_rarely(self, tmp_path):
        saved = []

        class Saves(Plain):
            def save_weights(self, path):
                saved.append(self.weight)
                super().save_weights(path)

            def save_state(self, path):
                Plain.save_weights(self, path)

        optimizer(tmp_path, Saves(), max_episodes=20, checkpoint_score_fn=lambda a: 500.0, diagnostics=False,
                  min_episodes_before_dormant=99).run()  # fmt: skip
        assert saved == [0.0, 1.0, 2.0, 3.0, 5.0, 9.0, 17.0]  # the beginning, the best, ties 1, 2, 4, 8, 16

    def test_a_budget_below_what_is_done_is_refused(self, tmp_path):
        _, before, _ = self.run(tmp_path, 6)
        with pytest.raises(ValueError, match="max_episodes=4 is not more than the 6 windows"):
            self.run(tmp_path, 4, resume_from=before.run_dir)
        assert RunDir.read(before.run_dir).manifest["status"] == "failed"
        assert self.run(tmp_path, 8, resume_from=before.run_dir)[2].windows == 8

    def test_another_directory_is_refused(self, tmp_path):
        with pytest.raises(RunDirError, match="nowhere"):
            self.run(tmp_path, 3, resume_from=tmp_path / "nowhere")

    def test_a_second_process_is_refused(self, tmp_path):
        _, before, _ = self.run(tmp_path, 3)
        with RunDir.open(before.run_dir), pytest.raises(RunDirError, match=r"lock|process"):
            self.run(tmp_path, 5, resume_from=before.run_dir)

    def test_damaged_newest_checkpoint_falls_back_and_says_so(self, tmp_path):
        _, before, _ = self.run(tmp_path, 6, save_every=0.0)
        steps = sorted((before.run_dir / "checkpoints").iterdir(), key=lambda p: int(p.name))
        assert len(steps) == 2
        (steps[-1] / "files" / "agent").write_text("{}")
        _, _, result = self.run(tmp_path, 12, resume_from=before.run_dir)
        assert any("agent" in note for note in result.notes)
        assert result.windows == 12


class TestSignals:
    def test_ctrl_c_ends_after_the_window_and_can_be_resumed(self, tmp_path):
        agent = Noisy(rate=0.3)
        source = Counting()
        window = source.window

        def slow(i):
            if i == 3:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            return window(i)

        source.window = slow
        opt = optimizer(tmp_path, agent, pipeline=source, max_episodes=50, checkpoint_score_fn=lambda a: a.weight)
        result = opt.run()
        assert (result.stop_reason, result.windows) == (StopReason.INTERRUPTED, 4)
        manifest = RunDir.read(opt.run_dir).manifest
        assert manifest["status"] == "interrupted"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        again = optimizer(
            tmp_path, Noisy(rate=0.3), pipeline=Counting(), max_episodes=8, resume_from=opt.run_dir,
            checkpoint_score_fn=lambda a: a.weight,
        ).run()  # fmt: skip
        straight = optimizer(
            tmp_path, Noisy(rate=0.3), pipeline=Counting(), max_episodes=8, checkpoint_score_fn=lambda a: a.weight
        ).run()
        assert [m.primary_score for m in again.history] == [m.primary_score for m in straight.history]

    def test_a_source_that_waits_for_ever_is_not_waited_for(self, tmp_path):
        class Silent(Source):
            def episodes(self):
                yield self.window(0)
                time.sleep(60)
                yield self.window(1)

        opt = optimizer(tmp_path, pipeline=Silent(), checkpoint_score_fn=lambda a: 1.0)

        def interrupt():
            while opt._controller is None or opt._controller.brain.window < 1:
                time.sleep(0.01)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=interrupt, daemon=True).start()
        began = time.perf_counter()
        result = opt.run()
        assert time.perf_counter() - began < 10
        assert (result.stop_reason, result.windows) == (StopReason.INTERRUPTED, 1)
        assert RunDir.read(opt.run_dir).checkpoint_steps() == [1]


class TestOptimizer:
    def test_one_line(self, tmp_path):
        env = gym.make("CartPole-v1")
        opt = Optimizer(Plain(), env, checkpoint_dir=tmp_path, max_episodes=1)
        assert isinstance(opt.pipeline, BatchPipeline)
        assert opt.pipeline.window_size == 1000  # two episodes of 500 for an agent of unknown kind
        assert opt.run().windows == 1

    @pytest.mark.parametrize("env", ["CartPole-v1", lambda: gym.make("CartPole-v1"), gym.make("CartPole-v1")])
    def test_several_environments(self, tmp_path, env):
        opt = Optimizer(Plain(), env, n_envs=4, window_size=64, checkpoint_dir=tmp_path, max_episodes=2)
        assert (opt.pipeline.n_envs, opt.pipeline.window_size) == (4, 16)
        assert opt.run().windows == 2

    @pytest.mark.parametrize("n_envs", [1, 2])
    def test_a_class_makes_environments(self, tmp_path, n_envs):
        from gymnasium.envs.classic_control import CartPoleEnv

        opt = Optimizer(Plain(), CartPoleEnv, n_envs, window_size=64, checkpoint_dir=tmp_path, max_episodes=2)
        assert opt.run().windows == 2

    def test_settings_pass_through(self, tmp_path):
        opt = Optimizer(Plain(), "CartPole-v1", checkpoint_dir=tmp_path, dormant_threshold=9, window_size=20)
        assert opt.scheduler.config.dormant_threshold == 9

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(TypeError, match="env must be a Gymnasium environment, its id or a function"):
            Optimizer(Plain(), 3)
        with pytest.raises(ValueError, match="n_envs must be at least 1"):
            Optimizer(Plain(), "CartPole-v1", n_envs=0)


def test_optimal_window_size():
    env = gym.make("CartPole-v1")
    assert optimal_window_size(env, "PPO") == 2000
    assert optimal_window_size(env, "TorchRecurrentPPOAgent") == 2000
    assert optimal_window_size(env, "SAC") == 512
    assert optimal_window_size(env) == 1000
    assert optimal_window_size(env, "PPO", max_steps=700) == 700
    unlimited = gym.make("CartPole-v1").unwrapped
    unlimited.spec = None
    assert optimal_window_size(unlimited, "PPO", min_steps=1) == pytest.approx(4 * 22, abs=60)  # random episodes
    with pytest.raises(ValueError, match="1 <= min <= max"):
        optimal_window_size(env, min_steps=0)
