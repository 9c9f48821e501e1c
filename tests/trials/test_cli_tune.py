"""`tensor-optix tune`: what it prints, what it leaves behind, and how it refuses."""

import json

import pytest

from tensor_optix.cli import main
from tests.runs import SMALL

SMALL_RUN = [f"config.{name}={json.dumps(value)}" for name, value in SMALL.items()]
SMALL_RUN += ["eval_every=128", "eval_episodes=4", "final_episodes=4", "space.gamma=[float, 0.9, 0.99]"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_search_its_report_and_its_continuation(here, capfd):
    command = ["tune", "CartPole-v1", *SMALL_RUN, "--steps", "320", "--batch", "2", "--run-dir", "kept"]
    assert main([*command, "--trials", "3", "--json"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["trial", "0"], ["trial", "1"], ["trial", "2"]]
    assert all("best" in line and "gamma=0.9" in line for line in lines[:3])
    assert lines[-2] == "kept in kept"
    facts = json.loads(lines[-1])
    assert facts["trials"] == {"complete": 3}
    assert 0.9 <= facts["best_params"]["gamma"] <= 0.99
    assert facts["hyperparams"]["gamma"] == pytest.approx(facts["best_params"]["gamma"])
    assert facts["env_steps"] == 3 * 320
    assert "Traceback" not in err
    assert [path.name for path in here.iterdir()] == ["kept"]
    assert (here / "kept" / "study.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((here / "kept" / "best.json").read_text())["best_params"] == facts["best_params"]

    assert main([*command, "--trials", "4", "--json", "--quiet", "--plot", "study.svg"]) == 0
    out, _ = capfd.readouterr()
    again = json.loads(out)
    assert again["trials"] == {"complete": 4}
    assert again["best_score"] >= facts["best_score"]
    assert "<svg" in (here / "study.svg").read_text()
    assert main(["evaluate", "kept/best", "--episodes", "4"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CartPole-v1", "gamma=3"], "unknown setting of tune 'gamma'"),
        (["CartPole-v1", "space=3"], "space must be set entry by entry"),
        (["CartPole-v1", "space.gamma=[0.9, 0.99]"], "begins with 0.9"),
        (["CartPole-v1", "--trials", "0"], "n_trials must be a whole number of at least 1"),
        (["CartPole-v1", "-a", "pppo"], "did you mean 'ppo'"),
        (["CartPole-v1", "--storage", "study.db"], "write sqlite:///study.db"),
        (["CartPole-v1", "--plot", "study.txt"], "must end in one of"),
        (["LunarLander-v3"], "the compiled driver has no environment"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(here, capfd, arguments, said):
    assert main(["tune", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert list(here.iterdir()) == []
