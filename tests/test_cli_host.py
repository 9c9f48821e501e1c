"""The command line with the host driver: train, resume, evaluate, validate, and every refusal."""

import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix import RLOptimizer
from tensor_optix.cli import main
from tensor_optix.loop.run_dir import RunDir
from tests.host_parts import Plain, Source
from tests.test_cli import refusal

pytest.importorskip("torch")

KEYS = [
    *("env", "algorithm", "driver", "stop_reason", "windows", "env_steps", "best_score", "run_dir", "wall_s"),
]
YAML = """
env: CartPole-v1
algorithm: TorchPPOAgent
window_size: 64
hidden_sizes: [8]
seed: 5
max_episodes: 2
agent: {learning_rate: 3e-4, n_epochs: 1}
"""


class Rewarded(gym.Env):
    """Two steps for an episode; the reward is 1, or 10 for action 1."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 10.0 if action == 1 else 1.0, self.t == 2, False, {}


gym.register("HostRewarded-v0", Rewarded)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(YAML)
    return tmp_path


def train(capfd, *args):
    """The JSON line of a run."""
    assert main(["train", *map(str, args), "--json", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return json.loads(out)


def events(facts):
    """What happened in a run, without the random names of its snapshots and the time."""
    lines = (RunDir.read(facts["run_dir"]).path / "events.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("snapshot", "time")} for line in lines]


class TestTrain:
    def test_a_file(self, here, capfd):
        assert main(["train", "small.yaml", "agent.gamma=0.9", "--json"]) == 0
        out, err = capfd.readouterr()
        *lines, last = out.splitlines()
        facts = json.loads(last)
        assert list(facts) == KEYS
        assert (facts["env"], facts["algorithm"], facts["driver"]) == ("CartPole-v1", "TorchPPOAgent", "host")
        assert (facts["stop_reason"], facts["windows"], facts["env_steps"]) == ("budget", 2, 128)
        assert facts["best_score"] > 5
        assert lines[0].startswith("the budget of environment steps was used up")
        assert lines[-1] == f"run: {facts['run_dir']}"
        assert "CartPole-v1 TorchPPOAgent: " in err  # the display
        manifest = RunDir.read(facts["run_dir"]).manifest
        assert (manifest["train_config"]["agent"]["gamma"], manifest["train_config"]["seed"]) == (0.9, 5)
        assert [p.name for p in (here / "runs").iterdir()] == ["CartPole-v1-TorchPPOAgent"]

    def test_a_run_is_drawn(self, here, capfd):
        facts = train(capfd, "small.yaml", "--plot", "made.svg", "--no-run-dir")
        assert facts["run_dir"] is None
        assert "CartPole-v1   TorchPPOAgent" in (here / "made.svg").read_text()
        facts = train(capfd, "small.yaml")
        assert main(["plot", facts["run_dir"]]) == 0
        assert capfd.readouterr().out == f"{facts['run_dir']}/curves.png\n"
        assert (Path(facts["run_dir"]) / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_an_environment_that_only_gymnasium_knows(self, here, capfd):
        settings = ["window_size=16", "hidden_sizes=[8]", "n_envs=2", "agent.n_epochs=1"]
        args = ["--driver", "host", "--framework", "torch", "--steps", "70", "--run-dir", "kept", "--seeds", "1"]
        facts = train(capfd, "HostRewarded-v0", *settings, *args)
        assert (facts["algorithm"], facts["windows"], facts["env_steps"]) == ("TorchPPOAgent", 3, 96)
        assert [p.parent.name for p in (here / "kept").glob("*/manifest.json")] == [facts["run_dir"].split("/")[-1]]

    def test_options_go_over_the_file_and_settings_over_options(self, here, capfd):
        facts = train(capfd, "small.yaml", "max_episodes=1", "--steps", "6400", "--target", "1", "--no-tune")
        assert facts["windows"] == 1
        config = RunDir.read(facts["run_dir"]).manifest["train_config"]
        assert (config["max_episodes"], config["target_score"], config["tune"]) == (1, 1, False)
        config = train(capfd, "small.yaml", "--steps", "60", "--no-stop", "-a", "ppo", "--framework", "torch")
        assert config["windows"] == 1
        assert RunDir.read(config["run_dir"]).manifest["train_config"]["stop"] is False

    def test_the_file_may_name_the_directory(self, here, capfd):
        facts = train(capfd, "small.yaml", "optimizer.checkpoint_dir=mine", "--steps", "9")
        assert facts["run_dir"].startswith("mine/")

    def test_nothing_is_kept_when_asked(self, here, capfd):
        facts = train(capfd, "small.yaml", "--no-run-dir")
        assert facts["run_dir"] is None
        assert [p.name for p in here.iterdir()] == ["small.yaml"]

    def test_the_same_seed_is_the_same_run(self, here, capfd):
        scores = [train(capfd, "small.yaml", f"seed={seed}")["best_score"] for seed in (3, 3, 4)]
        assert scores[0] == scores[1] != scores[2]


class TestAfterwards:
    def test_resume_goes_on_as_if_nothing_had_happened(self, here, capfd):
        whole = train(capfd, "small.yaml", "max_episodes=4")
        half = train(capfd, "small.yaml")
        assert main(["resume", half["run_dir"], "--steps", "256", "--json", "--quiet"]) == 0
        resumed = json.loads(capfd.readouterr().out)
        assert list(resumed) == KEYS
        assert (resumed["windows"], resumed["run_dir"]) == (4, half["run_dir"])
        assert events(whole) == events(resumed)
        assert resumed["best_score"] == whole["best_score"]
        assert RunDir.read(half["run_dir"]).manifest["train_config"]["max_episodes"] == 4
        assert "below the run's budget of 4" in refusal(capfd, "resume", half["run_dir"], "--steps", "64")

    def test_evaluate_takes_the_best_snapshot_and_its_likeliest_actions(self, here, capfd):
        settings = ["window_size=64", "hidden_sizes=[8]", "agent.learning_rate=0.005", "agent.n_epochs=2"]
        facts = train(capfd, "HostRewarded-v0", *settings, "max_episodes=2", "-a", "TorchPPOAgent", "--no-tune")
        assert main(["evaluate", facts["run_dir"], "--episodes", "40", "--json"]) == 0
        score = json.loads(capfd.readouterr().out)
        assert list(score) == ["env", "algorithm", "driver", "seed", "episodes", "score", "score_interval"]
        assert (score["score"], score["score_interval"], score["episodes"]) == (20.0, [20.0, 20.0], 40)
        assert facts["best_score"] < 20.0  # with exploration
        assert main(["evaluate", facts["run_dir"], "--episodes", "3"]) == 0
        assert "over 3 fresh episodes" in capfd.readouterr().out

    def test_runs_that_cannot_be_rebuilt(self, here, capfd):
        run = RLOptimizer(Plain(), Source(), checkpoint_dir="runs", max_episodes=1)
        run.run()
        for command in ("resume", "evaluate"):
            assert "was started from Python" in refusal(capfd, command, run.run_dir)
        assert f"'runs' holds runs and is none itself: name one of them, such as '{run.run_dir}'" in refusal(
            capfd, "resume", "runs"
        )
        assert main(["plot", str(run.run_dir), "-o", "host.png"]) == 0  # drawn it can be
        assert (here / "host.png").read_bytes().startswith(b"\x89PNG")

    def test_a_run_without_a_score(self, here, capfd):
        facts = train(capfd, "small.yaml", "window_size=2", "max_episodes=1")
        assert facts["best_score"] is None
        assert "no scored snapshot" in refusal(capfd, "evaluate", facts["run_dir"])

    def test_an_interrupt_can_be_resumed(self, here, capfd, monkeypatch):
        from tensor_optix.algorithms.torch_ppo import TorchPPOAgent

        learn, seen = TorchPPOAgent.learn, []

        def interrupted(self, data):
            seen.append(data)
            if len(seen) == 2:
                import signal

                signal.raise_signal(signal.SIGINT)
            return learn(self, data)

        monkeypatch.setattr(TorchPPOAgent, "learn", interrupted)
        assert main(["train", "small.yaml", "max_episodes=4", "--json", "--quiet"]) == 130
        facts = json.loads(capfd.readouterr().out)
        assert (facts["stop_reason"], facts["windows"]) == ("interrupted", 2)
        assert main(["resume", facts["run_dir"], "--json", "--quiet"]) == 0
        assert json.loads(capfd.readouterr().out)["windows"] == 4


class TestValidate:
    def test_prints_the_run_in_full(self, here, capfd):
        assert main(["validate", "small.yaml", "algorithm=ppo", "framework=torch"]) == 0
        settings = json.loads(capfd.readouterr().out)
        assert (settings["driver"], settings["algorithm"]) == ("host", "TorchPPOAgent")
        assert settings["agent"]["clip_ratio"] == 0.2
        assert [p.name for p in here.iterdir()] == ["small.yaml"]

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("env=Pendulum-v1", "needs discrete actions, and Pendulum-v1 has continuous ones: use TorchGaussianPPO"),
            ("env=FrozenLake-v1", "FrozenLake-v1 has observations of Discrete(16)"),
            ("optimizer.max_snapshots=1", "max_snapshots must be at least 2"),
        ],
    )
    def test_finds_what_only_the_environment_or_the_optimizer_can_tell(self, override, said, here, capfd):
        assert said in refusal(capfd, "validate", "small.yaml", override)


class TestRefusals:
    """Exit code 2, one line on standard error, nothing written."""

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["LunarLander-v3"], "the compiled driver has no environment 'LunarLander-v3', but Gymnasium has"),
            (["LunarLander-v3", "-a", "TorchSACAgent"], "unknown algorithm of the host driver 'TorchSACAgent'"),
            (["small.yaml", "-a", "TorchGaussianPPOAgent"], "has discrete ones: use TorchPPOAgent"),
            (["small.yaml", "--framework", "jax"], "TorchPPOAgent is an agent of framework 'torch'"),
            (["small.yaml", "--driver", "compiled"], "is of the host driver, and this run is of the compiled driver"),
            (["small.yaml", "--seeds", "8"], "the host driver trains one seed in a run, got --seeds 8"),
            (["small.yaml", "--seeds", "3,5"], "the host driver trains one seed in a run, got --seeds 3,5"),
            (["small.yaml", "--seeds", "x"], "--seeds must be a number of seeds"),
            (["small.yaml", "--steps", "0"], "--steps must be at least 1, got 0"),
            (["small.yaml", "--overwrite"], "--overwrite has nothing to replace"),
            (["small.yaml", "--plot", "a.doc"], "the file must end in one of .png, .svg, .pdf"),
            (["small.yaml", "max_episodes=", "--no-stop"], "set max_episodes"),
            (["small.yaml", "pipeline=LivePipeline"], "LivePipeline reads a source"),
            (["small.yaml", "env=Nothing-v0"], "Gymnasium cannot make environment 'Nothing-v0'"),
            (["small.yaml", "agent.gama=0.9"], "did you mean 'gamma'"),
            (["small.yaml", "total_steps=9"], "use max_episodes (windows) instead"),
        ],
    )
    def test_train(self, args, said, here, capfd):
        assert said in refusal(capfd, "train", *args)
        assert [p.name for p in here.iterdir()] == ["small.yaml"]

    def test_a_missing_framework(self, here, capfd, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        assert 'TorchPPOAgent needs PyTorch: pip install "tensor-optix[torch]"' in refusal(capfd, "train", "small.yaml")
        assert [p.name for p in here.iterdir()] == ["small.yaml"]

    def test_names_that_argparse_knows(self, here, capfd):
        for option in ("--driver", "--framework"):
            with pytest.raises(SystemExit) as caught:
                main(["train", "small.yaml", option, "hosts"])
            assert caught.value.code == 2
            assert "invalid choice: 'hosts'" in capfd.readouterr().err
