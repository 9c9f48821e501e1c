"""A live display of a compiled run in the terminal: members, scores, states, hyperparameters, speed, time left.

It draws on standard error, so that standard output stays free for results. Where that is no terminal, one plain line
every ten seconds takes its place. Rich is imported when a display is opened, not with this module.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from tensor_optix.core.types import Event, LoopState, StopReason
from tensor_optix.loop.events import ChunkReport
from tensor_optix.reporting import compact, duration, number_format

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

_MAX_ROWS = 16  # members shown one by one; more are summed up
_LINES_AROUND = 6  # of the display, besides the members' rows
_QUANTILES = {"best": 0.0, "top 25 %": 0.25, "median": 0.5, "low 25 %": 0.75, "worst": 1.0}  # name -> rank from above
_HISTORY = 20  # scores in a sparkline
_REFRESH_PER_SECOND = 4
_PLAIN_EVERY_S = 10.0
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-~=+*#"
_STATE_STYLES = {
    LoopState.ACTIVE: "green",
    LoopState.COOLING: "yellow",
    LoopState.DORMANT: "magenta",
    LoopState.WATCHDOG: "blue",
}
_STOP_STYLES = {
    StopReason.CONVERGED: "bold green",
    StopReason.TARGET: "bold green",
    StopReason.BUDGET: "cyan",
    StopReason.NON_FINITE: "bold red",
    StopReason.INTERRUPTED: "magenta",
    StopReason.EXHAUSTED: "cyan",
}


class MemberStatus:
    """The newest facts of every member, taken from chunk reports. Arrays of [n_members]; NaN where nothing is known."""

    def __init__(self, n_members: int) -> None:
        self.windows = np.zeros(n_members, np.int64)
        self.score = np.full(n_members, np.nan)
        self.best = np.full(n_members, np.nan)  # score of the policy last saved
        self.history = np.full((n_members, _HISTORY), np.nan)  # last scores, oldest first
        self.state = np.zeros(n_members, np.int32)
        self.interval = np.ones(n_members, np.int32)
        self.stop_reason = np.zeros(n_members, np.int32)
        self.rollbacks = np.zeros(n_members, np.int64)
        self.hyperparams: dict[str, np.ndarray] = {}  # newest of each member
        self.tuned: set[str] = set()  # names of those that have differed over time or between members
        self._first: dict[str, float] = {}  # name -> first value seen

    @property
    def running(self) -> np.ndarray:
        """[n_members] bool."""
        return self.stop_reason == StopReason.RUNNING

    def update(self, report: ChunkReport) -> None:
        """Take in a chunk; its lanes may come in any order."""
        lanes, last = _newest(report.active)
        members = np.asarray(report.member_ids)[lanes]
        self.windows[members] = report.windows()[last, lanes] + 1
        self.state[members] = report.state[last, lanes]
        self.interval[members] = report.interval[last, lanes]
        self.stop_reason[members] = report.stop_reason[last, lanes]
        self.rollbacks[members] += ((report.events & Event.ROLLBACK != 0) & report.active).sum(axis=0)[lanes]
        self._update_hyperparams(report, lanes, last)
        self._update_scores(report)

    def _update_hyperparams(self, report: ChunkReport, lanes: np.ndarray, last: np.ndarray) -> None:
        if not lanes.size:
            return
        members = np.asarray(report.member_ids)[lanes]
        for name, values in report.hyperparams.items():
            known = self.hyperparams.setdefault(name, np.full(len(self.windows), np.nan))
            known[members] = values[last, lanes]
            first = self._first.setdefault(name, float(values[last[0], lanes[0]]))
            if np.any((values != np.float32(first)) & report.active):
                self.tuned.add(name)

    def _update_scores(self, report: ChunkReport) -> None:
        ids = np.asarray(report.member_ids)
        evaluated = report.active & report.evaluated
        lanes, last = _newest(evaluated)
        self.score[ids[lanes]] = report.score[last, lanes]
        for lane in lanes.tolist():
            scores = report.score[evaluated[:, lane], lane][-_HISTORY:]
            line = self.history[ids[lane]]
            line[: -scores.size] = line[scores.size :].copy()
            line[-scores.size :] = scores
        lanes, last = _newest(evaluated & (report.events & Event.BEST != 0))
        self.best[ids[lanes]] = report.score[last, lanes]


class ProgressDisplay:
    """What the command line shows while a run goes on. Use as a context manager.

    Args:
        n_members: members of the run.
        seeds: [n_members] name of each member's row.
        env: the environment's name.
        algorithm: the algorithm's name.
        total_steps: budget of environment steps of each member, or None when it runs until it converges.
        console: the Rich console to draw on; standard error by default.
        quiet: show nothing at all.
        env_steps_per_window: environment steps that one window of one member takes.
    """

    def __init__(
        self,
        n_members: int,
        seeds: Sequence[int],
        env: str,
        algorithm: str,
        total_steps: int | None,
        console: Console | None = None,
        quiet: bool = False,
        *,
        env_steps_per_window: int,
    ) -> None:
        if n_members < 1 or len(seeds) != n_members:
            raise ValueError(
                f"ProgressDisplay got {n_members} members and {len(seeds)} seeds, expected as many of both."
            )
        self.status = MemberStatus(n_members)
        self._seeds = list(seeds)
        self._title = f"{env} {algorithm}"
        self._total_steps = total_steps
        self._steps_per_window = env_steps_per_window
        self._console = console
        self._quiet = quiet
        self._phase = "starting"
        self._steps_per_s = 0.0
        self._live: Live | None = None
        self._opened_at = 0.0
        self._next_line_at = 0.0
        self._is_open = False
        self._untold = False  # news since the last plain line
        self._lock = threading.Lock()  # the live display is drawn by a thread of its own

    def __enter__(self) -> ProgressDisplay:
        self._opened_at = time.monotonic()
        self._is_open = not self._quiet
        if self._quiet:
            return self
        from rich.console import Console
        from rich.live import Live

        if self._console is None:
            self._console = Console(stderr=True)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self.render,
                console=self._console,
                refresh_per_second=_REFRESH_PER_SECOND,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def resumed(self, windows: np.ndarray, stop_reasons: np.ndarray) -> None:
        """Where a resumed run stands before its first report: [M] windows and stop reasons."""
        self.status.windows[:] = windows
        self.status.stop_reason[:] = stop_reasons

    def phase(self, text: str) -> None:
        """Say what is going on: "compiling (first time: a few seconds)", "training", "final evaluation"."""
        self._phase = text
        if self._is_open and self._live is None:
            self._print_line()

    def update(self, report: ChunkReport, steps_per_s: float, elapsed_s: float) -> None:
        """Take in a chunk. Cheap: drawing happens in its own thread, four times a second.

        `steps_per_s` counts the environment steps of all members; `elapsed_s` is the time since the display opened
        as the driver measures it.
        """
        if not self._is_open:
            return
        with self._lock:
            self.status.update(report)
            self._steps_per_s = float(steps_per_s)
            self._opened_at = time.monotonic() - elapsed_s
        self._untold = True
        if self._live is None and time.monotonic() >= self._next_line_at:
            self._print_line()

    def close(self) -> None:
        """Draw the last state and let go of the terminal. Harmless when closed already."""
        if not self._is_open:
            return
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._untold:
            self._print_line()
        self._is_open = False

    def time_left(self) -> float | None:
        """Seconds until the running members have used up their budgets at the present speed; None if unknown."""
        if self._total_steps is None or self._steps_per_s <= 0 or not self.status.windows.any():
            return None
        left = np.maximum(self._total_steps - self.status.windows * self._steps_per_window, 0)
        return float(left[self.status.running].sum()) / self._steps_per_s

    def render(self) -> RenderableType:
        """The whole display as a Rich renderable."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            parts: list[RenderableType] = [
                Text.assemble((self._title, "bold"), "  ", (self._phase, "cyan"), "  ", self._counts())
            ]
            if self.status.windows.any():
                parts.append(self._table())
                ranges = [Text(text, style="dim") for text in self._hyperparam_ranges()]
                parts += [Columns(ranges, padding=(0, 3))] if ranges else []
            parts.append(Text(self._speed(), style="dim"))
            return Group(*parts)

    def _shown(self) -> list[tuple[str, int]]:
        """(name, member) of each row: all members, or quantiles by the score of the kept policy where they are many."""
        n = len(self._seeds)
        room = self._console.height - _LINES_AROUND if self._console and self._console.is_terminal else _MAX_ROWS
        if n <= max(min(room, _MAX_ROWS), len(_QUANTILES)):
            return [("", i) for i in range(n)]
        best = np.where(np.isnan(self.status.best), -np.inf, self.status.best)
        ranked = np.argsort(-best, kind="stable")
        return [(name, int(ranked[round(fraction * (n - 1))])) for name, fraction in _QUANTILES.items()]

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        status, shown = self.status, self._shown()
        bars = self._bars()
        shape = number_format([*status.score, *status.best])
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        if shown[0][0]:
            table.add_column("", style="dim", no_wrap=True)
        for name in ("seed", "score", "best"):
            table.add_column(name, justify="right")
        table.add_column("last scores", width=_HISTORY, no_wrap=True)
        table.add_column("state", width=11)
        for name in ("every", "steps"):
            table.add_column(name, justify="right")
        for name, i in shown:
            table.add_row(
                *([name] if name else []),
                str(self._seeds[i]),
                _number(status.score[i], shape),
                Text(_number(status.best[i], shape), style="bold"),
                Text(sparkline(status.history[i], bars), style="green" if status.running[i] else "dim"),
                self._state_text(i),
                str(status.interval[i]),
                compact(int(status.windows[i]) * self._steps_per_window),
            )
        return table

    def _state_text(self, member: int) -> Text:
        from rich.text import Text

        reason = StopReason(int(self.status.stop_reason[member]))
        if reason is not StopReason.RUNNING:
            return Text(reason.label, style=_STOP_STYLES[reason])
        state = LoopState(int(self.status.state[member]))
        return Text(state.name.lower(), style=_STATE_STYLES[state])

    def _counts(self) -> str:
        """How many members are in which state: "5 active, 2 cooling, 1 converged, 3 roll-backs"."""
        status = self.status
        counts = {s.name.lower(): int(((status.state == s) & status.running).sum()) for s in LoopState}
        counts |= {r.label: int((status.stop_reason == r).sum()) for r in StopReason if r is not StopReason.RUNNING}
        rollbacks = int(status.rollbacks.sum())
        counts["roll-back" if rollbacks == 1 else "roll-backs"] = rollbacks
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) if status.windows.any() else ""

    def _hyperparam_ranges(self) -> list[str]:
        """Median and range of the tuned ones over the running members (over all, once every one has stopped)."""
        chosen = self.status.running if self.status.running.any() else np.ones_like(self.status.running)
        tuned = {name: v for name, v in self.status.hyperparams.items() if name in self.status.tuned}
        return _range_texts(tuned, chosen)

    def _speed(self) -> str:
        steps = int(self.status.windows.sum()) * self._steps_per_window
        parts = [f"{compact(steps)} steps"] if steps else []
        parts += [f"{compact(self._steps_per_s)} steps/s"] if self._steps_per_s > 0 else []
        parts.append(f"elapsed {_clock(time.monotonic() - self._opened_at)}")
        left = self.time_left()
        if self._total_steps is None and self.status.running.any():
            parts.append("until it converges")
        elif left:
            parts.append(f"at most {_clock(left)} left")
        return "   ".join(parts)

    def _bars(self) -> str:
        encoding = (self._console.encoding if self._console else "utf-8").lower()
        return _BARS if encoding.startswith("utf") else _ASCII_BARS

    def _print_line(self) -> None:
        assert self._console is not None  # opened
        self._next_line_at = time.monotonic() + _PLAIN_EVERY_S
        self._untold = False
        self._console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """The display as one line of plain text, for logs."""
        parts = [f"{self._title}: {self._phase}"]
        known = self.status.best[~np.isnan(self.status.best)]
        if known.size:
            shape = number_format(known)
            low, middle, high = (format(value, shape) for value in np.quantile(known, [0.0, 0.5, 1.0]))
            parts.append(f"best evaluation {middle}" + (f" [{low} to {high}]" if len(self._seeds) > 1 else ""))
        counts = self._counts()
        return "; ".join([*parts, *([counts] if counts else []), ", ".join(self._speed().split("   "))])


def _newest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[K, M] -> the lanes where `mask` holds in any row, and the last such row of each."""
    lanes = np.flatnonzero(mask.any(axis=0))
    return lanes, mask.shape[0] - 1 - mask[::-1, lanes].argmax(axis=0)


def sparkline(values: np.ndarray, bars: str = _BARS) -> str:
    """One character per value ([n]), lowest to highest; a space where a value is missing, "×" where it is infinite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return " " * len(values)
    low, span = finite.min(), finite.max() - finite.min()
    drawn = []
    for value in values.tolist():
        if value != value:
            drawn.append(" ")
        elif not np.isfinite(value):
            drawn.append("×" if bars == _BARS else "x")
        else:
            level = (value - low) / span if span > 0 else 0.5
            drawn.append(bars[min(int(level * len(bars)), len(bars) - 1)])
    return "".join(drawn)


def _range_texts(hyperparams: Mapping[str, np.ndarray], chosen: np.ndarray) -> list[str]:
    texts = []
    for name, values in hyperparams.items():
        known = values[chosen & np.isfinite(values)]
        if known.size:
            middle = f"{name} {np.median(known):.3g}"
            spread = known.max() > known.min()
            texts.append(f"{middle} [{known.min():.3g} to {known.max():.3g}]" if spread else middle)
    return texts


def _number(value: float, shape: str) -> str:
    return format(value, shape) if np.isfinite(value) else "-"


def _clock(seconds: float) -> str:
    """Whole seconds: a ticking clock shows no fractions."""
    return f"{int(seconds)} s" if seconds < 60 else duration(seconds)
