"""`train` from call to result, and everything that may interrupt it on the way."""

import json
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.config import ConfigError, from_mapping
from tensor_optix.core.types import Event, StopReason
from tensor_optix.envs.spaces import Box, Discrete
from tensor_optix.finished import evaluate_run, load_run
from tensor_optix.loop import session as session_module
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.run_dir import RunDir, RunDirError
from tensor_optix.plan import make_plan
from tensor_optix.training import resume, train
from tests.runs import SMALL, assert_same_bits, session_of

STEPS = 64  # of one window
WINDOWS = 16
EVALUATIONS = {"eval_every": 2 * STEPS, "eval_episodes": 4, "final_episodes": 4}


def run_of(env="CartPole-v1", **settings):
    """All of these share one compiled program where seeds x variants is two."""
    settings = {"seeds": 2, "total_steps": WINDOWS * STEPS, "config": SMALL, "progress": False} | EVALUATIONS | settings
    return train(env, **settings)


def checkpoint(path):
    """The state in the newest checkpoint."""
    run = RunDir.read(path)
    template = session_of(make_plan(from_mapping(run.manifest["config"])), start=False).template()
    return run.load_checkpoint(template).state


def assert_same_curves(a, b):
    for one, other in zip(a.members, b.members, strict=True):
        assert_same_bits(one.curve.columns(), other.curve.columns())


class Interrupt(LoopCallback):
    """What a person does with Ctrl-C, after `chunks` chunks."""

    def __init__(self, chunks):
        self.left = chunks

    def on_chunk(self, report):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


class Heard(LoopCallback):
    def __init__(self):
        self.hooks = []
        self.windows = 0

    def on_loop_start(self):
        self.hooks.append("start")

    def on_chunk(self, report):
        self.hooks.append("chunk")
        self.windows += int(report.active.sum())

    def on_loop_stop(self):
        self.hooks.append("stop")


class Broken(LoopCallback):
    def on_chunk(self, report):
        raise ValueError("my mistake")


@pytest.fixture
def short_chunks(monkeypatch):
    """One window at a time, so that an interruption falls where the test wants it."""
    monkeypatch.setattr(session_module, "CHUNK_SECONDS", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, kept."""
    heard = Heard()
    path = tmp_path_factory.mktemp("whole") / "run"
    return SimpleNamespace(result=run_of(run_dir=path, callbacks=[heard]), path=path, heard=heard)


class TestResult:
    def test_fields(self, whole):
        result = whole.result
        assert (result.env, result.algorithm, result.run_dir) == ("CartPole-v1", "ppo", str(whole.path))
        assert [(m.seed, m.variant) for m in result.members] == [(0, 0), (1, 0)]
        assert result.env_steps == 2 * WINDOWS * STEPS == sum(m.env_steps for m in result.members)
        assert 0 < result.run_s < result.wall_s
        assert 0 < result.compile_s < result.wall_s
        assert result.notes == []
        for member in result.members:
            assert (member.windows, member.stop_reason) == (WINDOWS, StopReason.BUDGET)
            assert member.returns.shape == (4,)
            assert member.score == member.returns.mean()
            assert member.evaluations == len(member.curve) == WINDOWS // 2
            np.testing.assert_array_equal(member.curve.env_steps, np.arange(2, WINDOWS + 1, 2) * STEPS)
        assert not np.array_equal(result.members[0].curve.score, result.members[1].curve.score)

    def test_callbacks_hear_everything_in_order(self, whole):
        hooks = whole.heard.hooks
        assert (hooks[0], hooks[-1], set(hooks[1:-1])) == ("start", "stop", {"chunk"})
        assert whole.heard.windows == 2 * WINDOWS

    def test_the_policy_is_the_best_members(self, whole):
        best = int(np.argmax(whole.result.scores))
        assert whole.result.best is whole.result.members[best]
        kept = checkpoint(whole.path)["members"].best[0]["actor"]
        assert_same_bits(whole.result.policy.params.actor, jax.tree.map(lambda x: np.asarray(x)[best], kept))
        assert whole.result.policy(np.zeros(4)).shape == ()
        assert whole.result.policy(np.zeros((3, 4))).shape == (3,)
        with pytest.raises(ValueError, match="observation has shape"):
            whole.result.policy(np.zeros(3))

    def test_members_are_seeds_times_variants(self, whole):
        usual = whole.result.config["hyperparams"]["gae_lambda"]  # not tuned: it stays as given
        result = run_of(seeds=1, variants=[{}, {"gae_lambda": 0.5}])
        assert [(m.seed, m.variant) for m in result.members] == [(0, 0), (0, 1)]
        assert [m.hyperparams["gae_lambda"] for m in result.members] == [pytest.approx(usual), pytest.approx(0.5)]
        assert_same_bits(result.members[0].curve.columns(), whole.result.members[0].curve.columns())
        assert not np.array_equal(result.members[0].curve.score, result.members[1].curve.score)


class TestRunDirectory:
    def test_contents(self, whole):
        assert {p.name for p in whole.path.iterdir()} >= {
            "manifest.json",
            "events.jsonl",
            "checkpoints",
            "policy",
            "result.json",
            "curves.npz",
        }
        manifest = json.loads((whole.path / "manifest.json").read_text())
        assert (manifest["status"], manifest["seeds"]) == ("finished", [0, 1])
        assert manifest["stop_reasons"] == {"0": "budget", "1": "budget"}
        assert manifest["config"] == json.loads(json.dumps(whole.result.config))
        assert RunDir.read(whole.path).checkpoint_steps() == [2 * WINDOWS]
        assert len(RunDir.read(whole.path).read_events()) >= sum(m.evaluations for m in whole.result.members)

    def test_load_run_gives_the_result_back(self, whole):
        loaded = load_run(whole.path)
        assert loaded.to_json() == whole.result.to_json()
        assert loaded.config == json.loads(json.dumps(whole.result.config))
        assert_same_curves(loaded, whole.result)
        assert_same_bits(loaded.policy.params, whole.result.policy.params)
        obs = np.random.default_rng(0).normal(size=(8, 4))
        np.testing.assert_array_equal(loaded.policy(obs), whole.result.policy(obs))

    def test_a_moved_run_loads(self, whole, tmp_path):
        moved = shutil.copytree(whole.path, tmp_path / "moved")
        loaded = load_run(moved)
        assert loaded.run_dir == str(moved)
        np.testing.assert_array_equal(loaded.scores, whole.result.scores)

    def test_evaluate_run(self, whole):
        facts = evaluate_run(whole.path, episodes=32, seed=3)
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts
        assert facts.keys() == {"env", "algorithm", "seed", "episodes", "score", "score_interval"}
        assert (facts["env"], facts["algorithm"], facts["episodes"]) == ("CartPole-v1", "ppo", 32)
        assert facts["seed"] == whole.result.best.seed
        low, high = facts["score_interval"]
        assert 1 <= low <= facts["score"] <= high <= 500
        assert evaluate_run(whole.path, episodes=32, seed=3) == facts
        assert evaluate_run(whole.path, episodes=32, seed=4)["score"] != facts["score"]
        with pytest.raises(ConfigError, match="episodes must be at least 1, got 0"):
            evaluate_run(whole.path, episodes=0)

    def test_no_run_there(self, tmp_path):
        for use in (load_run, evaluate_run, resume):
            with pytest.raises(RunDirError, match="no run at"):
                use(tmp_path / "nothing")
        assert list(tmp_path.iterdir()) == []

    def test_another_run_is_replaced_only_when_asked(self, whole, tmp_path):
        path = tmp_path / "run"
        run_of(run_dir=path, total_steps=2 * STEPS)
        before = (path / "manifest.json").read_bytes(), (path / "events.jsonl").read_bytes()
        with pytest.raises(RunDirError, match="holds another run"):
            run_of(run_dir=path)
        assert before == ((path / "manifest.json").read_bytes(), (path / "events.jsonl").read_bytes())
        run_of(run_dir=path, overwrite=True)
        assert_same_bits(checkpoint(path), checkpoint(whole.path))
        assert (path / "events.jsonl").read_bytes() == (whole.path / "events.jsonl").read_bytes()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (
                {"tune": "learning_rate"},
                "tune must be true, false or a list of hyperparameter names, got 'learning_rate'",
            ),
            (
                {"variants": {"gamma": 0.9}},
                "variants must be a list of mappings of hyperparameters, got {'gamma': 0.9}",
            ),
            ({"variants": [3]}, r"variants must be a list of mappings of hyperparameters, got \[3\]"),
            ({"seeds": 2.0}, "seeds must be whole numbers from 0 to"),
            ({"config": [8]}, r"config must be a mapping of names to values, got \[8\]"),
            ({"hyperparams": 3e-4}, "hyperparams must be a mapping of names to values, got 0.0003"),
            ({"algorithm": "reinforce"}, "unknown algorithm 'reinforce'; known: dqn"),
            ({"algorithm": "TorchPPO"}, "unknown algorithm 'TorchPPO'.*and TorchPPOAgent for the host driver"),
            ({"env": "LunarLander-v3"}, "'LunarLander-v3' is an environment of Gymnasium.*train on it with the host"),
        ],
    )
    def test_what_cannot_be_run_is_one_sentence(self, given, said):
        with pytest.raises(ConfigError, match=said):
            train(**{"env": "CartPole-v1", "progress": False, **given})

    def test_bad_input_writes_nothing(self, tmp_path):
        with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
            run_of(run_dir=tmp_path / "run", hyperparams={"learning_rat": 1e-3})
        assert list(tmp_path.iterdir()) == []


class TestResume:
    def test_an_interrupted_run_goes_on_to_the_same_bits(self, whole, tmp_path, short_chunks):
        path = tmp_path / "run"
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        saved = []

        class Look(LoopCallback):
            def on_chunk(self, report):
                saved.append(RunDir.read(path).checkpoint_steps()[-1:])

        first = run_of(run_dir=path, callbacks=[Look(), Interrupt(5)], save_every=0.0)
        assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
        assert saved == [[], [2], [4], [6], [8]]  # windows of both members, one chunk behind
        assert [m.windows for m in first.members] == [5, 5]
        assert {m.stop_reason for m in first.members} == {StopReason.INTERRUPTED}
        assert np.isfinite(first.scores).all()
        assert RunDir.read(path).manifest["status"] == "interrupted"

        heard = Heard()
        second = resume(path, callbacks=[Interrupt(4), heard], progress=False)
        assert [m.windows for m in second.members] == [9, 9]
        assert heard.windows == 8

        # What a killed run has logged since its last save happens again, and is not told twice.
        with (path / "events.jsonl").open("a") as file:
            file.write((path / "events.jsonl").read_text().splitlines()[-1] + '\n{"torn')
        third = resume(path, progress=False)
        assert {m.stop_reason for m in third.members} == {StopReason.BUDGET}
        assert RunDir.read(path).manifest["status"] == "finished"
        assert_same_bits(checkpoint(path), checkpoint(whole.path))
        assert_same_curves(third, whole.result)
        for one, other in zip(third.members, whole.result.members, strict=True):
            np.testing.assert_array_equal(one.returns, other.returns)
        assert (path / "events.jsonl").read_bytes() == (whole.path / "events.jsonl").read_bytes()

    @pytest.mark.slow
    def test_a_larger_budget_runs_on(self, whole, tmp_path):
        path = tmp_path / "run"
        run_of(run_dir=path, total_steps=6 * STEPS)  # ends where an evaluation was due anyway
        result = resume(path, total_steps=WINDOWS * STEPS, progress=False)
        for one, other in zip(result.members, whole.result.members, strict=True):
            columns, others = one.curve.columns(), other.curve.columns()
            assert columns.pop("events")[2] & ~others.pop("events")[2] == Event.STOPPED  # where the old budget ended
            assert_same_bits(columns, others)
        assert_same_bits(checkpoint(path)["members"].learner, checkpoint(whole.path)["members"].learner)
        manifest = RunDir.read(path).manifest
        assert (manifest["status"], manifest["config"]["total_steps"]) == ("finished", WINDOWS * STEPS)

    def test_a_finished_run_has_nothing_left_to_do(self, whole, tmp_path):
        path = shutil.copytree(whole.path, tmp_path / "copy")
        heard = Heard()
        again = resume(path, callbacks=[heard], progress=False)
        assert heard.hooks == ["start", "stop"]
        np.testing.assert_array_equal(again.scores, whole.result.scores)
        assert_same_curves(again, whole.result)
        assert "every member had stopped already (budget), so nothing was trained" in str(again)
        assert (again.compile_s, again.run_s, again.wall_s) == (
            whole.result.compile_s, whole.result.run_s, whole.result.wall_s
        )  # fmt: skip
        manifest = RunDir.read(path).manifest
        assert manifest == RunDir.read(whole.path).manifest

    def test_a_result_that_was_never_written_is_made(self, whole, tmp_path):
        path = shutil.copytree(whole.path, tmp_path / "copy")
        (path / "result.json").unlink()
        again = resume(path, progress=False)
        np.testing.assert_array_equal(again.scores, whole.result.scores)
        assert again.notes == []
        assert (path / "result.json").is_file()
        assert again.wall_s > whole.result.wall_s  # of both processes


class TestTroubleOnTheWay:
    def test_a_raising_callback_is_noted_and_the_run_goes_on(self, whole, short_chunks, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        heard = Heard()
        result = run_of(callbacks=[Broken(), heard])
        assert result.notes == ["callback Broken.on_chunk raised ValueError: my mistake"]
        assert heard.windows == 2 * WINDOWS
        assert_same_curves(result, whole.result)
        np.testing.assert_array_equal(result.scores, whole.result.scores)
        assert result.run_dir is None
        assert list(tmp_path.iterdir()) == []

    def test_a_failing_save_is_noted_once_and_the_run_goes_on(self, whole, tmp_path, monkeypatch, short_chunks, caplog):
        path, tries = tmp_path / "run", []

        def full(self, step, state, meta=None, files=None):
            tries.append(step)
            raise RunDirError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(RunDir, "save_checkpoint", full)
            result = run_of(run_dir=path, save_every=0.0)
        assert len(tries) == WINDOWS + 1
        assert result.notes == ["a checkpoint could not be saved: the disk is full"]
        assert caplog.text.count("the disk is full") == 1
        assert_same_curves(result, whole.result)
        assert load_run(path).notes == result.notes
        # A run that never saved is resumed from its beginning.
        assert_same_curves(resume(path, progress=False), whole.result)
        assert_same_bits(checkpoint(path), checkpoint(whole.path))

    def test_a_failing_result_is_noted(self, tmp_path, monkeypatch):
        def full(self, *args):
            raise RunDirError("the disk is full")

        monkeypatch.setattr(RunDir, "save_result", full)
        result = run_of(run_dir=tmp_path / "run", total_steps=2 * STEPS)
        assert result.notes == ["the result could not be saved: the disk is full"]
        assert RunDir.read(tmp_path / "run").checkpoint_steps() == [4]


class Guess:
    """A class of the user's own: four steps, a reward for the action that the observation shows."""

    default_params = None

    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params):
        return Discrete(2)

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "sign": jax.random.bernoulli(key)}
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        reward = (action == state["sign"]).astype(jnp.float32)
        state = {"time": state["time"] + 1, "sign": jax.random.bernoulli(key)}
        return self.observe(state), state, reward, jnp.bool_(False), {}

    def is_truncated(self, state, params):
        return state["time"] >= 4

    def observe(self, state):
        sign = 2.0 * state["sign"] - 1.0
        return jnp.stack([sign, -sign]).astype(jnp.float32)


def test_what_a_step_of_ones_own_lacks_names_the_checker():
    class Short(Guess):
        def step_env(self, key, state, action, params):
            return super().step_env(key, state, action, params)[:4]

    with pytest.raises(ValueError, match="not enough values") as raised:
        train(Short(), total_steps=64, config=SMALL, progress=False)
    assert any("check_environment(env)" in note for note in raised.value.__notes__)


@pytest.mark.slow
def test_a_users_own_class_trains_unregistered_and_is_resumed(tmp_path, short_chunks):
    path = tmp_path / "run"
    settings = {"seeds": 1, "total_steps": 40 * STEPS, "hyperparams": {"learning_rate": 1e-2}, "stop": False}
    first = run_of(Guess, run_dir=path, callbacks=[Interrupt(3)], **settings)
    assert (first.env, first.members[0].windows) == ("Guess", 3)
    with pytest.raises(ConfigError, match="unknown environment 'Guess'"):
        resume(path, progress=False)
    result = resume(path, env=Guess, progress=False)
    assert result.members[0].windows == 40
    assert result.members[0].score == 4.0
    assert result.policy(np.float32([[1, -1], [-1, 1]])).tolist() == [1, 0]
    assert evaluate_run(path, episodes=8, env=Guess())["score"] == 4.0
