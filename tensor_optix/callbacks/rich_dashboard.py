"""A live panel of one run in the terminal: state, score, best, hyperparameters, events, speed.

It draws on standard error, so that standard output stays free for results. Where that is no terminal, plain lines take
its place: one at every change of state, and one every ten seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tensor_optix.callbacks._records import RecordCallback, changed
from tensor_optix.callbacks.progress import _ASCII_BARS, _BARS, _STATE_STYLES, _clock, _number, sparkline
from tensor_optix.core.types import EvalMetrics, LoopState
from tensor_optix.reporting import compact, number_format

_LOG = logging.getLogger(__name__)
_PLAIN_EVERY_S = 10.0
_SPEED_OVER = 64  # newest windows that the speed is measured over
_FRAME = 4  # columns that the panel's border and padding take
_COUNTED = {  # record's key -> what one and several are called
    "events/improvement": ("improvement", "improvements"),
    "events/plateau": ("plateau", "plateaus"),
    "events/convergence": ("convergence", "convergences"),
    "events/degradation": ("degradation", "degradations"),
}
_TOLD_AT_ONCE = {"events/plateau", "events/convergence", "events/degradation"}  # improvements would flood a log


class _Console(Console):
    """Falls silent when nobody reads any more, where Rich's own would exit the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class RichDashboardCallback(RecordCallback):
    """Shows a run while it goes on. Trouble in drawing is logged once and ends the display, never the run.

    Args:
        title: of the panel.
        history: evaluations in the line of scores; the newest of them that fit are drawn.
        refresh_per_second: drawings per second; 4 by default.
        show_hyperparams: show them; those that the last update changed are marked.
        transient: take the panel away when the run is over.
        refresh_rate: another name of `refresh_per_second`.
        console: the Rich console to draw on; standard error by default.

    Raises:
      ValueError: `history` or the rate is not positive, or both rates are given and differ.
    """

    def __init__(
        self,
        title: str = "tensor-optix",
        history: int = 100,
        refresh_per_second: float | None = None,
        show_hyperparams: bool = True,
        transient: bool = False,
        refresh_rate: float | None = None,
        console: Console | None = None,
    ) -> None:
        rates = {rate for rate in (refresh_per_second, refresh_rate) if rate is not None}
        if len(rates) > 1:
            raise ValueError(
                f"RichDashboardCallback got refresh_per_second={refresh_per_second} and refresh_rate={refresh_rate}, "
                "which mean the same: give one of them."
            )
        self._rate = float(rates.pop()) if rates else 4.0
        if history < 1 or not self._rate > 0:
            raise ValueError(
                f"RichDashboardCallback got history={history} and {self._rate:g} drawings per second, "
                "expected at least 1 and more than 0."
            )
        self._title, self._history, self._transient = title, history, transient
        self._show_hyperparams = show_hyperparams
        self._given_console = console
        self._console = console or _Console(stderr=True)
        self._live: Live | None = None
        self._lock = threading.Lock()  # the live display is drawn by a thread of its own
        self._begin("waiting")

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self._values: dict[str, float] = {}  # newest of every key of the record
        self._scores: deque[float] = deque(maxlen=self._history)
        self._best_window = 0
        self._counts: Counter[str] = Counter()
        self._moved: dict[str, bool] = {}  # those that the last update changed -> upwards
        self._ends: deque[float] = deque(maxlen=_SPEED_OVER)  # when windows ended
        self._began = time.monotonic()
        self._ended: float | None = None
        self._next_line_at = 0.0
        self._broken = False  # no more lines
        self._reported = False

    # -- what happens --------------------------------------------------------------------------------------

    def open(self) -> None:
        self.close()
        with self._lock:
            self._begin("running")
        self._guarded(self._start_drawing)

    def close(self) -> None:
        if self._ended is not None or self._phase == "waiting":
            return
        with self._lock:
            self._phase, self._ended = "finished", time.monotonic()
        live, self._live = self._live, None
        self._guarded(self._print_line if live is None else live.stop)

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        with self._lock:
            self._ends.append(time.monotonic())
        super().on_episode_end(episode_id, eval_metrics)
        if self._live is None and time.monotonic() >= self._next_line_at:
            self._guarded(self._print_line)

    def on_hyperparam_update(self, old_params: dict[str, Any], new_params: dict[str, Any]) -> None:
        with self._lock:
            self._moved = {name: after > before for name, (before, after) in changed(old_params, new_params).items()}
        super().on_hyperparam_update(old_params, new_params)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            self._values.update(values)
            if "score/primary" in values:
                self._scores.append(values["score/primary"])
            if "score/best" in values:
                self._best_window = step
            self._counts.update(key for key in values if key in _COUNTED)
        if self._live is None and _TOLD_AT_ONCE & values.keys():
            self._guarded(self._print_line)

    def state_dict(self) -> dict[str, Any]:
        with self._lock:
            shown = {"values": dict(self._values), "scores": list(self._scores), "counts": dict(self._counts)}
            return super().state_dict() | shown | {"best_window": self._best_window}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with self._lock:
            self._values = {key: float(value) for key, value in state["values"].items()}  # JSON has NaN as text
            self._scores.extend(map(float, state["scores"]))
            self._best_window = int(state["best_window"])
            self._counts = Counter(state["counts"])

    # -- how it looks --------------------------------------------------------------------------------------

    def render(self) -> RenderableType:
        """The panel as it stands."""
        with self._lock:
            shape = number_format([*self._scores, self._best])
            rows = Table.grid(padding=(0, 2))
            rows.add_column(style="dim", no_wrap=True)
            rows.add_column()
            rows.add_row("state", self._state_text())
            if self._scores:
                best = Text.assemble(
                    f"{self._scores[-1]:{shape}}   ",
                    ("best ", "dim"),
                    (_number(self._best, shape), "bold"),
                    (f" at window {self._best_window}", "dim"),
                )
                rows.add_row("score", best)
                room = max(self._console.width - _FRAME - len("events") - 2, 1)
                line = sparkline(np.asarray(list(self._scores)[-room:], np.float64), self._bars())
                rows.add_row("", Text(line, style="green" if self._ended is None else "dim", no_wrap=True))
            counts = self._count_text()
            if counts:
                rows.add_row("events", counts)
            parts: list[RenderableType] = [rows]
            hyperparams = self._hyperparam_texts() if self._show_hyperparams else []
            parts += [Columns(hyperparams, padding=(0, 3))] if hyperparams else []
            parts.append(Text("   ".join(self._speed()), style="dim"))
        return Panel(Group(*parts), title=Text(self._title, "bold"), title_align="left", border_style="dim")

    def line(self) -> str:
        """The panel as one line of plain text, for logs."""
        with self._lock:
            parts = [f"{self._title}: {self._phase}, {self._told_state.name.lower()}, window {self._shown_window()}"]
            if self._scores:
                shape = number_format([*self._scores, self._best])
                parts.append(f"score {self._scores[-1]:{shape}}, best {_number(self._best, shape)}")
            counts = self._count_text()
            return "; ".join([*parts, *([counts] if counts else []), ", ".join(self._speed())])

    @property
    def _best(self) -> float:
        return self._values.get("score/best", float("nan"))

    @property
    def _told_state(self) -> LoopState:
        return LoopState(int(self._values.get("loop/state", LoopState.ACTIVE)))

    def _state_text(self) -> Text:
        state = self._told_state
        text = Text.assemble((state.name.lower(), _STATE_STYLES[state]), f"   window {self._shown_window()}")
        return text if self._phase == "running" else text.append(f"   {self._phase}", "cyan")

    def _shown_window(self) -> str:
        return str(self._window) if self._window >= 0 else "-"

    def _count_text(self) -> str:
        """Counts of events that have happened: "12 improvements, 1 plateau"."""
        counted = ((self._counts[key], names) for key, names in _COUNTED.items())
        return ", ".join(f"{count} {names[count > 1]}" for count, names in counted if count)

    def _hyperparam_texts(self) -> list[Text]:
        up, down = ("↑", "↓") if self._is_unicode() else ("+", "-")
        texts = []
        for key, value in self._values.items():
            group, _, name = key.partition("/")
            if group != "hyperparams":
                continue
            text = Text.assemble((f"{name} ", "dim"), f"{value:.4g}")
            if name in self._moved:
                text.append(f" {up if self._moved[name] else down}", "yellow")
            texts.append(text)
        return texts

    def _speed(self) -> list[str]:
        now = time.monotonic() if self._ended is None else self._ended
        parts = []
        span = self._ends[-1] - self._ends[0] if self._ends else 0.0
        if span > 0:
            rate = (len(self._ends) - 1) / span
            parts.append(f"{compact(rate) if rate >= 10 else format(rate, '.2g')} windows/s")
        return [*parts, f"elapsed {_clock(now - self._began)}"]

    def _bars(self) -> str:
        return _BARS if self._is_unicode() else _ASCII_BARS

    def _is_unicode(self) -> bool:
        return self._console.encoding.lower().startswith("utf")

    # -- drawing -------------------------------------------------------------------------------------------

    def _start_drawing(self) -> None:
        if self._given_console is None:
            self._console = _Console(stderr=True)  # what standard error is now
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._safe_render,
                console=self._console,
                refresh_per_second=self._rate,
                transient=self._transient,
                redirect_stdout=False,
            )
            self._live.start()

    def _safe_render(self) -> RenderableType:
        try:
            return self.render()
        except Exception as error:
            self._report(error)
            return Text(f"{self._title}: the display failed ({type(error).__name__}); the run goes on", "dim")

    def _print_line(self) -> None:
        if self._broken:
            return
        self._next_line_at = time.monotonic() + _PLAIN_EVERY_S
        self._console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def _guarded(self, draw: Callable[[], None]) -> None:
        try:
            draw()
        except (Exception, SystemExit) as error:  # Rich asks for an exit when a pipe is closed
            self._broken = True
            self._report(error)

    def _report(self, error: BaseException) -> None:
        if not self._reported:
            self._reported = True
            _LOG.warning("the display '%s' failed: %s: %s; the run goes on", self._title, type(error).__name__, error)
