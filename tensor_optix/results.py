"""What a run came to: scores with intervals, why each member stopped, curves, a report, a figure; save and load."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.core.types import StopReason
from tensor_optix.curves import Curve, CurveRecorder, best_hyperparams, pack_curves, unpack_curves
from tensor_optix.ensembles import EnsembleResult
from tensor_optix.growth import Growth
from tensor_optix.lineage import Lineage
from tensor_optix.reporting import html_report, text_report
from tensor_optix.statistics import bootstrap_interval, interquartile_mean, mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tensor_optix.policy import Policy

__all__ = ["Curve", "CurveRecorder", "EnsembleResult", "Lineage", "MemberResult", "TrainResult", "member_result"]

_FORMAT = 1  # version of the payload
_JSON, _ARRAYS = "result.json", "result.npz"


@dataclass(eq=False)
class MemberResult:
    """One member: its best policy's final score, and how it got there."""

    seed: int
    variant: int  # which hyperparameter variant; 0 where there is only one
    score: float  # mean of `returns`; NaN if the final evaluation did not take place
    score_interval: tuple[float, float]  # 95 % bootstrap percentile interval of that mean over its episodes
    returns: np.ndarray = field(repr=False)  # [episodes] float64, of fresh episodes with the best policy
    stop_reason: StopReason
    env_steps: int  # environment steps spent in training, evaluations not counted
    windows: int
    evaluations: int
    hyperparams: dict[str, float]  # those that the best policy was trained with when it was saved
    curve: Curve


def member_result(
    recorder: CurveRecorder, curve: Curve, member: int, returns: np.ndarray, *, seed: int, variant: int = 0
) -> MemberResult:
    """Sum up one member from what was recorded and the returns ([episodes]) of its final evaluation."""
    returns = np.asarray(returns, np.float64).ravel()
    windows = int(recorder.windows[member])
    return MemberResult(
        seed=seed,
        variant=variant,
        score=float(mean(returns)),
        score_interval=bootstrap_interval(returns),
        returns=returns,
        stop_reason=recorder.stop_reason(member),
        env_steps=windows * recorder.env_steps_per_window,
        windows=windows,
        evaluations=len(curve),
        hyperparams=best_hyperparams(curve),
        curve=curve,
    )


@dataclass(eq=False, repr=False)
class TrainResult:
    """A finished (or interrupted) run of one algorithm on one environment, for all members. Printing it reports it."""

    env: str
    algorithm: str
    members: list[MemberResult]
    env_steps: int  # of all members together
    compile_s: float  # seconds spent tracing and compiling
    run_s: float  # seconds spent in compiled training
    wall_s: float  # seconds from call to return
    run_dir: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    log_hyperparams: tuple[str, ...] = ()  # tuned on a logarithmic scale: drawn so
    policy: Policy | None = None  # the best member's; not saved here
    lineage: Lineage | None = None  # who copied whom, in a run of populations or of variants
    growth: Growth | None = None  # of the graphs, where they may grow
    ensembles: list[EnsembleResult] = field(default_factory=list)  # one a seed, where variants may be spawned
    ensemble: Policy | None = None  # the one of them with the highest score, as one policy; not saved here

    @property
    def max_spawns(self) -> int:
        """Variants that each seed might spawn."""
        return int(self.config.get("max_spawns", 0))

    @property
    def population(self) -> int:
        """Members of one population, or of a seed and its variants; 1: they learned alone."""
        return 1 + self.max_spawns if self.max_spawns else int(self.config.get("population", 1))

    @property
    def finalists(self) -> list[MemberResult]:
        """Those whose scores count: every member, or of a population the one with the best score in training.

        That one is chosen before its final episodes are played, so that its score is no maximum over members.
        """
        if self.population == 1:
            return self.members
        size = self.population
        groups = [self.members[i : i + size] for i in range(0, len(self.members), size)]
        return [max(group, key=_kept_score) for group in groups]

    @property
    def best(self) -> MemberResult:
        """The finalist with the highest finite score; the first one if none has one."""
        if not self.members:
            raise ValueError("this result holds no members, so none is the best.")
        return max(self.finalists, key=lambda m: m.score if math.isfinite(m.score) else -math.inf)

    @property
    def scores(self) -> np.ndarray:
        """[finalists] float64, each one's mean final return."""
        return np.asarray([member.score for member in self.finalists], np.float64)

    @property
    def iqm(self) -> float:
        """Interquartile mean of the finalists' scores; those without a finite one are left out, as the report says."""
        scores = self.scores
        return float(interquartile_mean(scores[np.isfinite(scores)]))

    @property
    def iqm_interval(self) -> tuple[float, float]:
        """95 % interval of `iqm`: 2000 bootstrap resamples of the members, within variants, from a fixed seed.

        One environment is one stratum; variants are strata too where each has at least two members. A single member
        gives the interval of its mean over episodes, which says nothing about other seeds.
        """
        scored = [member for member in self.finalists if math.isfinite(member.score)]
        if len(scored) == 1:
            return scored[0].score_interval
        variants = np.asarray([member.variant // self.population for member in scored])
        stratified = variants.size > 0 and np.unique(variants, return_counts=True)[1].min() >= 2
        return bootstrap_interval(
            np.asarray([member.score for member in scored]), interquartile_mean, variants if stratified else None
        )

    @property
    def env_steps_per_s(self) -> float:
        """Environment steps of all members per second of compiled training."""
        return self.env_steps / self.run_s if self.run_s > 0 else 0.0

    def report(self) -> str:
        """A short table of plain text."""
        return text_report(self)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        return f"TrainResult({self.env}, {self.algorithm}, {len(self.members)} members, IQM {self.iqm:.4g})"

    def _repr_html_(self) -> str:
        return html_report(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Learning curves, tuned hyperparameters and loop states over environment steps; written to `path` if given.

        Needs matplotlib: `pip install "tensor-optix[plot]"`.
        """
        try:
            from tensor_optix.figures import training_figure
        except ImportError as error:
            raise ImportError('plot() needs matplotlib: pip install "tensor-optix[plot]"') from error
        figure = training_figure(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def plot_growth(self, path: str | os.PathLike[str] | None = None, member: int | None = None) -> Figure | None:
        """How a member's graph came to be, side by side, or animated for a path that ends in .gif.

        Args:
          path: written to, if given.
          member: its place in `members`; None: the best one.

        Returns: the figure; None for an animation.

        Raises:
          ValueError: graphs did not grow in this run, or there is no such member.
          ImportError: matplotlib is missing: `pip install "tensor-optix[plot]"`.
        """
        if self.growth is None:
            raise ValueError(
                f"this run's networks do not grow, so there is no growth to draw (algorithm {self.algorithm!r}): train "
                'with "graph_ppo" and config={"grow_op": "split_neuron", "max_neurons": ...}'
            )
        return self.growth.plot(self.members.index(self.best) if member is None else member, path)

    def to_json(self) -> dict[str, Any]:
        """The result as strict JSON values (what `--json` prints): numbers without NaN, None where there is none."""
        rows = [
            {
                "seed": member.seed,
                "score": member.score,
                "score_interval": list(member.score_interval),
                "stop_reason": member.stop_reason.label,
                "env_steps": member.env_steps,
                "windows": member.windows,
            }
            for member in self.finalists
        ]
        payload = {
            "env": self.env,
            "algorithm": self.algorithm,
            "seeds": rows,
            "iqm": self.iqm,
            "iqm_interval": list(self.iqm_interval),
            "env_steps": self.env_steps,
            "env_steps_per_s": self.env_steps_per_s,
            "compile_s": self.compile_s,
            "run_s": self.run_s,
            "wall_s": self.wall_s,
            "run_dir": self.run_dir,
        }
        if self.ensembles:
            payload["ensembles"] = [ensemble.to_row() for ensemble in self.ensembles]
        return {name: _json_safe(value) for name, value in payload.items()}

    def to_payload(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON values and arrays that `from_payload` turns back into this result, the policy apart."""
        shared = ("env", "algorithm", "env_steps", "compile_s", "run_s", "wall_s", "run_dir", "config", "notes")
        own = ("seed", "variant", "score", "score_interval", "env_steps", "windows", "evaluations", "hyperparams")
        rows = [
            {name: getattr(m, name) for name in own} | {"stop_reason": m.stop_reason.label, "episodes": len(m.returns)}
            for m in self.members
        ]
        payload = {"format": _FORMAT} | {name: getattr(self, name) for name in shared}
        payload |= {"log_hyperparams": list(self.log_hyperparams), "members": rows}
        arrays = {f"curve/{name}": c for name, c in pack_curves([m.curve for m in self.members]).items()}
        arrays["returns"] = np.concatenate([np.zeros(0), *(m.returns for m in self.members)])
        payload["ensembles"] = [ensemble.to_row() for ensemble in self.ensembles]
        arrays["ensemble_returns"] = np.concatenate([np.zeros(0), *(e.returns for e in self.ensembles)])
        if self.lineage is not None:
            arrays |= {"lineage/window": self.lineage.window, "lineage/parents": self.lineage.parents}
        if self.growth is not None:
            arrays |= self.growth.to_arrays()
        return _json_safe(payload), arrays

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TrainResult:
        """Inverse of `to_payload`."""
        values = dict(payload)
        if values.pop("format", None) != _FORMAT:
            raise ValueError(
                f"result format is {payload.get('format')!r}, expected {_FORMAT}: saved by another version."
            )
        rows = values.pop("members")
        columns = {name.removeprefix("curve/"): a for name, a in arrays.items() if name.startswith("curve/")}
        curves = unpack_curves(columns, len(rows))
        returns = np.split(arrays["returns"], np.cumsum([row["episodes"] for row in rows]))
        members = [_member_from(row, r, c) for row, r, c in zip(rows, returns, curves, strict=False)]
        values |= {"members": members, "log_hyperparams": tuple(values["log_hyperparams"])}
        rows = values.pop("ensembles", [])
        if rows:
            returns = np.split(arrays["ensemble_returns"], np.cumsum([row["episodes"] for row in rows]))
            values["ensembles"] = [EnsembleResult.from_row(row, r) for row, r in zip(rows, returns, strict=False)]
        if "lineage/window" in arrays:
            values["lineage"] = Lineage(arrays["lineage/window"], arrays["lineage/parents"])
        values["growth"] = Growth.from_arrays(arrays)
        return cls(**values)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write `result.json` and `result.npz` into `directory` (made if missing), each replaced in one step."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        payload, arrays = self.to_payload()
        with open(folder / f".{_ARRAYS}.tmp", "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        with open(folder / f".{_JSON}.tmp", "w", encoding="utf-8") as text:
            json.dump(payload, text, indent=1, allow_nan=False)
        for name in (_ARRAYS, _JSON):
            os.replace(folder / f".{name}.tmp", folder / name)
        return folder

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> TrainResult:
        """Read what `save` wrote."""
        folder = Path(directory)
        missing = [name for name in (_JSON, _ARRAYS) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} holds no {' and no '.join(missing)}, expected a saved result.")
        payload = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            return cls.from_payload(payload, dict(arrays))


def _kept_score(member: MemberResult) -> float:
    """The score in training of the policy that the member kept."""
    kept = member.curve.best_so_far()
    return float(kept[-1]) if len(kept) and math.isfinite(kept[-1]) else -math.inf


def _member_from(row: Mapping[str, Any], returns: np.ndarray, curve: Curve) -> MemberResult:
    values = {name: value for name, value in row.items() if name != "episodes"}
    values["score"] = _float(row["score"])
    values["score_interval"] = (_float(row["score_interval"][0]), _float(row["score_interval"][1]))
    values["hyperparams"] = {name: _float(value) for name, value in row["hyperparams"].items()}
    values["stop_reason"] = next(reason for reason in StopReason if reason.label == row["stop_reason"])
    return MemberResult(returns=returns, curve=curve, **values)


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _json_safe(value: Any) -> Any:
    """Plain JSON values: NaN and infinity become None, arrays lists, what JSON does not know its text."""
    if isinstance(value, Mapping):
        return {str(name): _json_safe(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _json_safe(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_safe(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
