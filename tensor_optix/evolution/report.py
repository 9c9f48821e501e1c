"""What a run with a budget of spawns came to, in lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RULE = "━" * 54


def report_text(report: Mapping[str, Any]) -> str:
    """`PolicyManager.training_report` as text; what there is not is left out."""
    reason = report.get("reason") or (
        "Spawn budget exhausted" if report["budget_exhausted"] else "No further improvement"
    )
    limit = "" if report["max_spawns"] is None else f" / {report['max_spawns']}"
    rows = [
        ("Best score", _number(report["best_score"])),
        ("Val score", _number(report["best_val_score"])),
        ("Generalization", _number(report["best_generalization_gap"], "  (train − val)")),
        ("Spawns used", f"{report['spawn_count']}{limit}"),
        ("Pruned agents", str(report["prune_count"])),
        ("Ensemble size", str(report["ensemble_size"])),
        ("Regime", report["regime"]),
        ("Agents", "" if report["agents"] else "none"),
    ]
    lines = [_RULE, "  Training Complete", _line("Reason", reason), _RULE]
    lines += [_line(name, value) for name, value in rows if value is not None]
    for agent in report["agents"]:
        score = _number(agent["mean_score"])
        lines.append(
            f"    [{agent['index']}] weight={agent['weight']:.4f}" + ("" if score is None else f"  mean_score={score}")
        )
    return "\n".join([*lines, _RULE])


def _line(name: str, value: str) -> str:
    return f"  {name:<17}: {value}".rstrip()


def _number(value: float | None, unit: str = "") -> str | None:
    return None if value is None else f"{value:.4f}{unit}"
