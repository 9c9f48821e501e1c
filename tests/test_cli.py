"""The command line: what it prints, what it leaves behind, and how it refuses."""

import json
import os
import subprocess
import sys

import jax
import pytest

from tensor_optix.cli import main
from tensor_optix.loop.run_dir import RunDir
from tests.runs import SMALL

KEYS = [
    "env",
    "algorithm",
    "seeds",
    "iqm",
    "iqm_interval",
    "env_steps",
    "env_steps_per_s",
    "compile_s",
    "run_s",
    "wall_s",
    "run_dir",
]
SEED_KEYS = ["seed", "score", "score_interval", "stop_reason", "env_steps", "windows"]
YAML = f"""
env: CartPole-v1
seeds: 2
total_steps: 1e3
eval_every: 128
eval_episodes: 4
final_episodes: 4
config: {json.dumps(SMALL)}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a YAML file and a finished run; commands are run in another, empty directory."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(YAML)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """`train --json` in a process of its own: what it printed."""
    command = [sys.executable, "-m", "tensor_optix", "train", str(folder / "small.yaml"), "hyperparams.gamma=0.96"]
    command += ["--json", "--run-dir", str(folder / "run"), "--cache-dir", jax.config.jax_compilation_cache_dir]
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capfd, *args):
    """The one line that a refused command says."""
    assert main([*map(str, args)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("tensor-optix: ")
    return err


class TestTrain:
    def test_the_last_line_is_one_json_object(self, trained, folder):
        assert trained.returncode == 0, trained.stderr
        lines = trained.stdout.splitlines()
        assert len(lines) > 1  # the report comes first
        facts = json.loads(lines[-1])
        assert list(facts) == KEYS
        assert [list(seed) for seed in facts["seeds"]] == [SEED_KEYS] * 2
        assert [seed["seed"] for seed in facts["seeds"]] == [0, 1]
        assert [seed["env_steps"] for seed in facts["seeds"]] == [1024, 1024]  # 1e3, in whole windows of 64
        assert {seed["stop_reason"] for seed in facts["seeds"]} == {"budget"}
        assert (facts["env"], facts["algorithm"], facts["env_steps"]) == ("CartPole-v1", "ppo", 2048)
        assert facts["run_dir"] == str(folder / "run")
        assert "Traceback" not in trained.stderr
        assert "Warning" not in trained.stderr  # of a backend that was up before it was prepared

    def test_file_overrides_and_options_come_together(self, trained, folder):
        settings = RunDir.read(folder / "run").manifest["config"]
        assert settings["hyperparams"]["gamma"] == 0.96
        assert settings["total_steps"] == 1000
        assert settings["config"]["n_steps"] == SMALL["n_steps"]

    def test_quiet_json_is_all_there_is_and_the_default_directory_is_under_runs(self, folder, here, capfd):
        assert main(["train", str(folder / "small.yaml"), "total_steps=9", "--steps", "640", "--json", "--quiet"]) == 0
        out, err = capfd.readouterr()
        facts = json.loads(out)
        assert facts["env_steps"] == 2 * 64  # the setting wins over the option: one window of each member
        assert err == ""
        (made,) = (here / "runs").iterdir()
        assert made.name.startswith("CartPole-v1-ppo-")
        assert [p.name for p in here.iterdir()] == ["runs"]

    def test_nothing_is_kept_when_asked(self, folder, here, capfd):
        args = ["--no-run-dir", "--seeds", "3,5", "--steps", "1e2", "--target", "-1", "--json", "--quiet"]
        assert main(["train", str(folder / "small.yaml"), *args, "--plot", "curves.svg"]) == 0
        facts = json.loads(capfd.readouterr().out)
        assert [seed["seed"] for seed in facts["seeds"]] == [3, 5]
        assert facts["run_dir"] is None
        assert [p.name for p in here.iterdir()] == ["curves.svg"]
        assert "<svg" in (here / "curves.svg").read_text()


class TestAfterwards:
    def test_evaluate(self, trained, folder, capfd):
        assert main(["evaluate", str(folder / "run"), "--episodes", "8", "--json"]) == 0
        facts = json.loads(capfd.readouterr().out)
        assert list(facts) == ["env", "algorithm", "seed", "episodes", "score", "score_interval"]
        assert facts["episodes"] == 8

    def test_evaluate_in_words(self, trained, folder, capfd):
        assert main(["evaluate", str(folder / "run"), "--episodes", "8"]) == 0
        assert "over 8 fresh episodes" in capfd.readouterr().out

    def test_plot(self, trained, folder, here, capfd):
        assert main(["plot", str(folder / "run"), "-o", "out.png"]) == 0
        assert capfd.readouterr().out == "out.png\n"
        assert (here / "out.png").read_bytes().startswith(b"\x89PNG")
        assert main(["plot", str(folder / "run")]) == 0
        assert (folder / "run" / "curves.png").stat().st_size > 0

    @pytest.mark.parametrize(
        ("output", "said"), [("x.doc", "-o x.doc: the file must end in"), ("no/x.png", "directory no")]
    )
    def test_what_cannot_be_drawn_into(self, output, said, trained, folder, here, capfd):
        assert said in refusal(capfd, "plot", folder / "run", "-o", output)
        assert list(here.iterdir()) == []

    def test_resume_with_a_larger_budget(self, trained, folder, capfd):
        assert main(["resume", str(folder / "run"), "--steps", "1280", "--json", "--quiet"]) == 0
        facts = json.loads(capfd.readouterr().out)
        assert list(facts) == KEYS
        assert [seed["windows"] for seed in facts["seeds"]] == [20, 20]

    def test_an_occupied_directory_is_refused(self, trained, folder, capfd):
        said = refusal(capfd, "train", folder / "small.yaml", "--run-dir", folder / "run")
        assert "holds another run" in said


class TestRefusals:
    """Exit code 2, one line on standard error, nothing written."""

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["CartPol-v1"], "did you mean CartPole-v1"),
            (["nothing_here:Env"], "cannot load environment"),
            (["CartPole-v1", "-a", "pppo"], "did you mean 'ppo'"),
            (["CartPole-v1", "hyperparams.learning_rat=1e-3"], "did you mean 'learning_rate'"),
            (["CartPole-v1", "hyperparams.gamma=2"], "gamma must lie in [0, 1], got 2"),
            (["CartPole-v1", "hyperparams.gamma=high"], "'gamma' must be a finite number"),
            (["CartPole-v1", "--seeds", "0"], "seeds must be at least 1, got 0"),
            (["CartPole-v1", "--seeds", "1,1"], "seeds must differ"),
            (["CartPole-v1", "--seeds", "many"], "--seeds must be a number of seeds"),
            (["CartPole-v1", "--steps", "0"], "total_steps must be a whole number of at least 1"),
            (["CartPole-v1", "--target", "nan"], "target_score must be a finite number"),
            (["CartPole-v1", "learning_rate"], "is not key=value"),
            (["CartPole-v1", "learning_rate=1e-3"], "a hyperparameter would be hyperparams.learning_rate"),
            (["CartPole-v1", "--plot", "no/such/run.png"], "there is no directory no/such; make it first"),
            (["CartPole-v1", "--plot", "run.doc"], "the file must end in one of .png, .svg, .pdf"),
            (["CartPole-v1", "stop=maybe"], "stop must be true or false"),
            (["hyperparams.gamma=0.9"], "expected an environment or a YAML file"),
            (["missing.yaml"], "cannot read missing.yaml"),
        ],
    )
    def test_train(self, args, said, here, capfd):
        assert said in refusal(capfd, "train", *args, "--run-dir", "run")
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("env: CartPole-v1\nhyperparam: {}\n", "unknown setting 'hyperparam'; did you mean 'hyperparams'"),
            ("env: [CartPole-v1\n", "is not YAML"),
            ("just words", "must hold a mapping of settings, got str"),
            ("seeds: 2\n", "no environment given"),
        ],
    )
    @pytest.mark.parametrize("command", ["train", "validate"])
    def test_files(self, command, text, said, here, capfd):
        (here / "own.yaml").write_text(text)
        assert said in refusal(capfd, command, "own.yaml")
        assert [p.name for p in here.iterdir()] == ["own.yaml"]

    @pytest.mark.parametrize("command", ["resume", "evaluate", "plot"])
    def test_no_run_there(self, command, here, capfd):
        assert "no run at 'nothing'" in refusal(capfd, command, "nothing")
        assert list(here.iterdir()) == []

    def test_in_a_process_of_its_own(self, here):
        command = [sys.executable, "-m", "tensor_optix", "train", "CartPole-v1", "--seeds", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "tensor-optix: seeds must be at least 1, got 0\n"
        assert list(here.iterdir()) == []


class TestLooking:
    def test_validate_prints_the_run_in_full(self, folder, here, capfd):
        assert main(["validate", str(folder / "small.yaml"), "seeds=3"]) == 0
        settings = json.loads(capfd.readouterr().out)
        assert settings["seeds"] == [0, 1, 2]
        assert settings["hyperparams"]["learning_rate"] > 0
        assert None not in [settings[name] for name in ("total_steps", "eval_every", "eval_max_steps")]
        assert list(here.iterdir()) == []

    def test_an_environment_beside_one(self, folder, here, capfd, monkeypatch):
        """In a module of the current directory."""
        (here / "beside_one.py").write_text("from tensor_optix.envs.memory import MaskedCartPole as Mine\n")
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(here))])
        assert main(["validate", str(folder / "small.yaml"), "env=beside_one:Mine"]) == 0
        assert json.loads(capfd.readouterr().out)["env"] == "beside_one:Mine"

    def test_doctor(self, capfd):
        code = main(["doctor", "--json"])
        facts = json.loads(capfd.readouterr().out)
        assert code == (1 if facts["problems"] else 0)
        assert facts["jax"] == jax.__version__
        assert facts["devices"] == jax.local_device_count()
        assert main(["doctor"]) == code
        assert f"jax {jax.__version__}" in " ".join(capfd.readouterr().out.split())
