"""The trials of one process in batches of one compiled program, and the best of them as a run of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.core.types import StopReason
from tensor_optix.loop.session import MemberSpec
from tensor_optix.plan import Plan
from tensor_optix.trials.space import TrialSpace
from tensor_optix.trials.tuned import result_of_trial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tensor_optix.loop.events import ChunkReport
    from tensor_optix.results import MemberResult, TrainResult
    from tensor_optix.trials.batches import Batches
    from tensor_optix.trials.ledger import Ledger

_CLOSE = 1e-5  # relative difference of two scores that count as the same


class CompiledTrials:
    """The trials of one process, in batches of one compiled program."""

    def __init__(self, plan: Plan, space: TrialSpace, batch: int, block: int | None) -> None:
        self._plan, self._space, self._batch, self._block = plan, space, batch, block
        self._session: Batches | None = None  # compiled for the first batch
        self._best: tuple[int, float, TrainResult] | None = None  # trial number, score, the trial as a run
        self.interrupted = threading.Event()
        self.env_steps = 0

    @property
    def compile_s(self) -> float:
        return 0.0 if self._session is None else self._session.compile_s

    @property
    def run_s(self) -> float:
        return 0.0 if self._session is None else self._session.run_s

    def hyper(self, params: Mapping[str, Any]) -> dict[str, float]:
        """All hyperparameters of a trial."""
        return {**self._plan.members[0].hyper, **{name: float(value) for name, value in params.items()}}

    def kept(self, number: int) -> TrainResult | None:
        """The trial as a run, if it was the best one that ran here."""
        return self._best[2] if self._best is not None and self._best[0] == number else None

    def run(self, ledger: Ledger) -> None:
        """Batch after batch, until the ledger has no more or an interrupt."""
        while not self.interrupted.is_set():
            taken: list[tuple[int, dict[str, Any]]] = []
            while len(taken) < self._batch and (one := ledger.take()) is not None:
                taken.append(one)
            if not taken:
                return
            reports = partial(self._report, ledger, [number for number, _ in taken])
            ended = self._train([params for _, params in taken], reports)
            if ended is None:
                return  # the ledger gives them up
            for (number, params), (members, policy) in zip(taken, ended, strict=True):
                self._tell(ledger, number, params, members, policy)

    def again(self, trial: FrozenTrial) -> TrainResult:
        """A trial that ran elsewhere, trained again for its policy; without one if that was interrupted."""
        params = self._space.decoded(trial.params)
        ended = None if self.interrupted.is_set() else self._train([params], lambda report: ())
        if ended is None:
            return self._as_run(
                params,
                notes=[
                    f"trial {trial.number} ran in another process, and was not trained again for its policy: "
                    "interrupted; the same call does that"
                ],
            )
        ((members, policy),) = ended
        strays = strayed(trial, members)
        return self._as_run(params, members, policy, notes=[] if strays is None else [strays])

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _train(
        self, batch: Sequence[Mapping[str, Any]], judge: Callable[[ChunkReport], Sequence[int]]
    ) -> list[tuple[list[MemberResult], Any]] | None:
        """For each trial its members' results and its best policy; None if interrupted."""
        seeds = self._plan.run.seed_list()
        members = [MemberSpec(seed, 0, self.hyper(params)) for params in batch for seed in seeds]
        ended = self._compiled().run(members, lambda: not self.interrupted.is_set(), judge)
        if ended is None:
            return None
        results, policies, env_steps = ended
        self.env_steps += env_steps
        groups = [range(i, i + len(seeds)) for i in range(0, len(members), len(seeds))]
        return [([results[i] for i in group], _policy_of(self._plan, results, policies, group)) for group in groups]

    def _report(self, ledger: Ledger, numbers: Sequence[int], report: ChunkReport) -> list[int]:
        """Tell of the evaluations in a chunk; the members of trials that are pruned."""
        per_window, count = self._plan.program.algorithm.steps_per_window, len(self._plan.run.seed_list())
        lanes = np.argsort(report.member_ids)
        scored = report.active & report.evaluated
        ended: list[int] = []
        for k in range(len(scored)):
            for i, number in enumerate(numbers):
                members = range(i * count, (i + 1) * count)
                rows = lanes[list(members)]
                if not scored[k, rows].all():
                    continue
                step = int(report.windows()[k, rows[0]] + 1) * per_window
                if ledger.report(number, step, float(np.mean(report.score[k, rows], dtype=np.float64))):
                    ended += members
        return ended

    def _as_run(
        self,
        params: Mapping[str, Any],
        members: Sequence[MemberResult] = (),
        policy: Any = None,
        notes: Sequence[str] = (),
    ) -> TrainResult:
        return result_of_trial(self._plan, self.hyper(params), members, policy, notes)

    def _tell(
        self, ledger: Ledger, number: int, params: Mapping[str, Any], members: list[MemberResult], policy: Any
    ) -> None:
        from optuna.trial import TrialState

        from tensor_optix.trials.ledger import Outcome

        if any(member.stop_reason == StopReason.PRUNED for member in members):
            steps = sum(member.env_steps for member in members)
            ledger.finish(number, Outcome(TrialState.PRUNED, facts={"env_steps": steps}))
            return
        score = float(np.mean([member.score for member in members]))
        facts: dict[str, Any] = {"env_steps": sum(member.env_steps for member in members)}
        if np.isfinite(score):
            facts["scores"] = [member.score for member in members]  # by seed
        if np.isfinite(score) and (self._best is None or score > self._best[1]):
            self._best = number, score, self._as_run(params, members, policy)
        ledger.finish(number, Outcome(TrialState.COMPLETE, score=score, facts=facts))

    def _compiled(self) -> Batches:
        import jax

        from tensor_optix.loop.session import default_block
        from tensor_optix.trials.batches import Batches

        if self._session is None:
            hyper = self._plan.members[0].hyper
            members = [MemberSpec(seed, 0, hyper) for seed in self._plan.run.seed_list() for _ in range(self._batch)]
            self._session = Batches(
                self._plan.program,
                members,
                devices=jax.local_devices(),
                block=self._block or default_block(jax.default_backend()),
                max_windows=self._plan.max_windows,
                final_episodes=self._plan.run.final_episodes,
            )
            self._session.compile()
        return self._session


def strayed(trial: FrozenTrial, members: Sequence[MemberResult]) -> str | None:
    """In words, where members that repeat a trial scored otherwise than the study says; None if nowhere."""
    curves = [dict(zip(m.curve.env_steps.tolist(), m.curve.score.tolist(), strict=True)) for m in members]
    told, final = trial.intermediate_values, float(np.mean([member.score for member in members]))
    now = {step: float(np.mean([curve.get(step, np.nan) for curve in curves])) for step in sorted(told)}
    step = next((step for step, score in now.items() if not _same(score, told[step])), None)
    if step is None and _same(final, float(trial.value or 0.0)):
        return None
    where = "" if step is None else f"after {step:,} steps it scored {now[step]:.4g}, the study says {told[step]:.4g}; "
    return (
        f"trial {trial.number} was trained again for its policy and went another way: {where}the policy scores "
        f"{final:.4g}, the study says {trial.value:.4g}. The environment, the networks, versions or the machine differ"
    )


def _same(a: float, b: float) -> bool:
    return bool(np.isclose(a, b, rtol=_CLOSE, atol=0.0, equal_nan=True))


def _policy_of(plan: Plan, results: Sequence[MemberResult], policies: Any, group: range) -> Any:
    """The policy of the group's best member; that of the first where none has a finite score."""
    import jax

    from tensor_optix.policy import Policy

    scores = np.nan_to_num([results[i].score for i in group], nan=-np.inf)
    best = group[int(np.argmax(scores))]
    return Policy(plan.program.algorithm, jax.tree.map(lambda x: np.asarray(x)[best], policies))
