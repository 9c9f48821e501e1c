"""Results: summaries, report, JSON, files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import trim_mean

from tensor_optix.core.types import StopReason
from tensor_optix.curves import Curve
from tensor_optix.reporting import compact, duration, megabytes, number_format
from tensor_optix.results import MemberResult, TrainResult
from tests.chunk_stories import ENV_STEPS_PER_WINDOW, make_result


def with_score(result: TrainResult, member: int, score: float) -> TrainResult:
    result.members[member].score = score
    result.members[member].score_interval = (score, score)
    return result


def test_a_member_is_summed_up() -> None:
    member = make_result([30, 12]).members[1]
    assert member.score == pytest.approx(member.returns.mean())
    assert member.score_interval[0] < member.score < member.score_interval[1]
    assert (member.windows, member.env_steps) == (12, 12 * ENV_STEPS_PER_WINDOW)
    assert member.evaluations == len(member.curve)
    assert member.stop_reason is StopReason.CONVERGED
    assert set(member.hyperparams) == {"lr"}


def test_iqm_is_over_runs_not_over_episodes() -> None:
    result = make_result([5] * 8)
    result.members[0].returns = np.concatenate([result.members[0].returns, np.full(10_000, 1e6)])
    assert result.iqm == pytest.approx(trim_mean(result.scores, 0.25))
    low, high = result.iqm_interval
    assert low < result.iqm < high


def test_one_seed_takes_its_interval_from_its_episodes_and_says_so() -> None:
    result = make_result([10])
    assert result.iqm_interval == result.members[0].score_interval
    assert "says nothing about other seeds" in result.report()
    assert "says nothing" not in make_result([10, 10]).report()


def test_variants_are_strata_where_each_has_two_seeds() -> None:
    result = make_result([5] * 6)
    for i, member in enumerate(result.members):
        member.score, member.variant = float(i // 3), i // 3
    assert result.iqm_interval == (0.5, 0.5)
    for i, member in enumerate(result.members):
        member.variant = i
    low, high = result.iqm_interval
    assert low < high


def test_a_member_without_a_score_is_left_out_and_reported() -> None:
    result = with_score(make_result([5] * 4), 2, float("nan"))
    assert result.iqm == pytest.approx(np.nanmean(result.scores))
    assert "1 member without a score left out" in result.report()
    assert result.best.seed == 3
    everyone = TrainResult("env", "ppo", [with_score(make_result([5]), 0, np.nan).members[0]], 1, 1.0, 1.0, 1.0)
    assert np.isnan(everyone.iqm)
    assert everyone.best.seed == 0
    assert "-" in everyone.report()


def test_representations_are_one_line() -> None:
    result = make_result([5, 5])
    assert repr(result) == f"TrainResult(CartPole-v1, ppo, 2 members, IQM {result.iqm:.4g})"
    assert "Curve(" in repr(result.best)
    assert "array" not in repr(result.best)


def test_best_needs_a_member() -> None:
    with pytest.raises(ValueError, match="no members"):
        _ = TrainResult("env", "ppo", [], 0, 0.0, 0.0, 0.0).best


def test_report_tells_scores_reasons_times_and_place() -> None:
    result = make_result([30, 12, 20], run_dir="runs/one", notes=["seed 1 rolled back twice"])
    result.members[1].stop_reason = StopReason.NON_FINITE
    text = str(result)
    assert text.splitlines()[0] == "CartPole-v1, ppo, 3 seeds"
    assert text.count(StopReason.CONVERGED.describe()) == 1
    assert text.count(StopReason.NON_FINITE.describe()) == 1
    assert "converged (2)" in text
    assert "compile 3.2 s, run 2.0 s (6.2k steps at 3.1k steps/s), wall 6.5 s" in text
    assert "run: runs/one" in text
    assert "note: seed 1 rolled back twice" in text
    rows = [line for line in text.splitlines() if "[" in line]
    assert len(rows) == 4
    assert len({line.index("]") for line in rows}) == 1
    assert "variant" not in text


def test_report_of_many_seeds_is_short() -> None:
    text = make_result([4] * 64).report()
    assert len(text.splitlines()) < 25
    assert "... 54 between" in text
    rows = [line.split()[0] for line in text.splitlines() if "[" in line]
    assert rows[0] == "63"
    assert rows[-2:] == ["0", "IQM"]


def test_report_names_variants_where_there_are_several() -> None:
    result = make_result([4] * 4)
    for i, member in enumerate(result.members):
        member.variant = i % 2
    assert "4 members (2 variants)" in result.report()
    assert "variant" in result.report().splitlines()[2]


def test_json_has_exactly_the_promised_keys_and_is_strict() -> None:
    result = with_score(make_result([6, 6], run_dir="runs/x"), 0, float("nan"))
    payload = result.to_json()
    assert list(payload) == [
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
    assert list(payload["seeds"][0]) == ["seed", "score", "score_interval", "stop_reason", "env_steps", "windows"]
    assert payload["seeds"][0]["score"] is None
    assert payload["seeds"][1]["stop_reason"] == "converged"
    assert payload["env_steps_per_s"] == pytest.approx(1200 / 2.0)
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload


def test_saved_results_come_back_whole(tmp_path: Path) -> None:
    config = {"n_envs": np.int64(8), "lr": np.float32(0.5), "sizes": (64, 64), "path": Path("x"), "flag": True}
    result = make_result([30, 12, 3], run_dir="runs/x", notes=["a"], config=config, log_hyperparams=("lr",))
    with_score(result, 1, float("nan"))
    result.members[2].curve = Curve.empty(["lr"])
    result.members[2].returns = np.zeros(0)
    result.policy = print
    loaded = TrainResult.load(result.save(tmp_path / "deep" / "run"))
    assert str(loaded) == str(result)
    assert loaded.to_json() == result.to_json()
    assert loaded.config == {"n_envs": 8, "lr": 0.5, "sizes": [64, 64], "path": "x", "flag": True}
    assert loaded.policy is None
    assert loaded.log_hyperparams == ("lr",)
    for first, second in zip(result.members, loaded.members, strict=True):
        assert second.hyperparams == first.hyperparams
        assert second.evaluations == first.evaluations
        assert np.array_equal(second.returns, first.returns)
        for name, column in first.curve.columns().items():
            assert np.array_equal(second.curve.columns()[name], column, equal_nan=True)
    assert sorted(path.name for path in (tmp_path / "deep" / "run").iterdir()) == ["result.json", "result.npz"]


def test_a_result_without_members_can_be_saved(tmp_path: Path) -> None:
    empty = TrainResult("env", "ppo", [], 0, 0.0, 0.0, 0.0)
    assert TrainResult.load(empty.save(tmp_path)).members == []
    assert "0 seeds" in empty.report()


def test_loading_what_is_not_there_or_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no result\.json and no result\.npz"):
        TrainResult.load(tmp_path)
    with pytest.raises(ValueError, match="format is 99, expected 1"):
        TrainResult.from_payload({"format": 99}, {})


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    result = make_result([3])
    result.save(tmp_path)
    np.savez(tmp_path / "result.npz", returns=np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        TrainResult.load(tmp_path)


def test_html_escapes_and_carries_the_figure() -> None:
    page = make_result([8, 8], env="<b>&")._repr_html_()
    assert "&lt;b&gt;&amp;" in page
    assert "data:image/png;base64," in page
    assert page.count("<tr>") == 4


def test_numbers_are_written_for_people() -> None:
    assert [compact(n) for n in (0, 950, 51_234, 999_700, 1_024_000, 3.4e9)] == [
        "0",
        "950",
        "51.2k",
        "1M",
        "1.02M",
        "3.4G",
    ]
    assert [duration(s) for s in (0.42, 7.31, 125, 3725)] == ["0.42 s", "7.3 s", "2:05", "1:02:05"]
    assert format(493.43, number_format([493.43, 12.0])) == "493.4"
    assert format(-1523.7, number_format([-1523.7])) == "-1524"
    assert format(0.91, number_format([0.91])) == "0.910"
    assert format(1e-7, number_format([1e-7])) == "1.000e-07"


def test_members_of_a_result_are_plain_records() -> None:
    member = MemberResult(0, 0, 1.0, (1.0, 1.0), np.ones(1), StopReason.BUDGET, 10, 1, 0, {}, Curve.empty())
    text = TrainResult("env", "dqn", [member], 10, 0.1, 0.0, 0.2).report()
    assert "budget" in text
    assert "0 steps/s" in text


def test_importing_results_loads_no_matplotlib() -> None:
    code = "import sys, tensor_optix.results; print({'matplotlib', 'IPython'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert out.stdout.strip() == "set()"


def test_memory_in_words():
    assert [megabytes(n) for n in (300_000, 42_000_000, 1_630_000_000)] == ["0.3 MB", "42 MB", "1.6 GB"]
