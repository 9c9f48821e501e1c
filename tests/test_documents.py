"""What README and notebooks show runs."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def block_with(words: str, language: str = "python") -> str:
    """README's first block of code with these words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return next(b for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if words in b)


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("notebook", sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebook_runs(notebook):
    names: dict = {}
    for cell in code_of(ROOT / "notebooks" / notebook):
        exec(compile(cell, notebook, "exec"), names)
    assert names["result"].members


def test_readme_has_its_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("run", "test"):
        block = re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)\n```", text, re.DOTALL)
        assert block is not None
        assert "\n" not in block[1]
        assert block[1].startswith("pip install")


def test_readme_environment_passes_the_checker():
    block = block_with("class Balance")
    names: dict = {}
    exec(block.replace("train(Balance(), seeds=4)", ""), names)
    assert "Balance" in names


def test_readme_call_accepts_its_arguments():
    """The call with every kind of setting is a valid plan (running it would take long)."""
    from tensor_optix.config import RunConfig
    from tensor_optix.plan import make_plan

    block = block_with("target_score")
    seen: dict = {}

    def train(env, **settings):
        seen.update(settings, env=env)

    exec(block, {"train": train})
    seen.pop("run_dir")
    plan = make_plan(RunConfig(**seen))
    assert len(plan.members) == 6


def test_readme_agent_learns_and_stops(tmp_path, monkeypatch):
    from tensor_optix import StopReason

    block = block_with("class Linear")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    result = names["optimizer"].result
    assert result.stop_reason == StopReason.CONVERGED
    assert result.best_snapshot.eval_metrics.primary_score > 400


def test_readme_torch_agent_runs(tmp_path, monkeypatch):
    block = block_with("TorchPPOAgent(")
    assert "window_size=512)" in block
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block.replace("window_size=512)", "window_size=512, max_episodes=3)"), names)
    assert names["optimizer"].result.windows == 3


@pytest.mark.slow
def test_readme_graph_learns_and_stops(tmp_path, monkeypatch):
    block = block_with("TopologyController(graph")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    result = names["optimizer"].result
    assert result.best_snapshot.eval_metrics.primary_score > 400
    assert not result.callback_failures


@pytest.mark.slow
def test_readme_population_of_graphs(tmp_path, monkeypatch):
    block = block_with("graphs = {")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    result = names["result"]
    assert len(result.members) == 64
    assert result.iqm > 450
    assert sum(member.score > 450 for member in result.members) > 48


def test_readme_host_file_is_valid(tmp_path):
    from tensor_optix import TrainConfig, load_config

    block = block_with("TorchPPOAgent", "yaml")
    (tmp_path / "config.yaml").write_text(block)
    config = load_config(tmp_path / "config.yaml")
    assert isinstance(config, TrainConfig)
    assert config.agent["learning_rate"] == 3e-4
