"""A `TrainResult` as text and as HTML; and how numbers are written for people."""

from __future__ import annotations

import base64
import html
import io
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensor_optix.core.types import StopReason

if TYPE_CHECKING:
    from tensor_optix.results import MemberResult, TrainResult

_MAX_ROWS = 16  # beyond that the report shows the best and the worst
_SHOWN_EACH_END = 5


def compact(count: float) -> str:
    """A count with at most four characters of number and a unit letter: 950, 51.2k, 1.02M, 3.4G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= 0.9995 * size:
            return f"{count / size:.3g}{unit}" if abs(count) < 999.5 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds as 0.42 s, 7.3 s, 2:05 or 1:02:05."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def megabytes(count: int) -> str:
    """Bytes in words: "0.3 MB", "42 MB", "1.6 GB"."""
    size, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{size:.1f} {unit}" if size < 10 else f"{size:.0f} {unit}"


def number_format(values: Sequence[float]) -> str:
    """A format that gives the largest of `values` about four significant digits, the same decimals for all."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    if largest == 0.0:
        return ".2f"
    exponent = math.floor(math.log10(largest))
    return f".{max(0, 3 - max(exponent, 0))}f" if -2 <= exponent < 7 else ".3e"


def text_report(result: TrainResult) -> str:
    """The report that `print(result)` shows: a table of members, the interquartile mean, times, why members stopped."""
    n = len(result.finalists)
    variants = len({member.variant // result.population for member in result.members})
    title = f"{result.env}, {result.algorithm}, {_plural(n, 'member' if variants > 1 else 'seed')}"
    header, rows, summary = _cells(result)
    if result.max_spawns:
        title += f", each with up to {_plural(result.max_spawns, 'variant')} of its best policy"
    elif result.population > 1:
        title += f", a population of {result.population} each"
    lines = [title + (f" ({variants} variants)" if variants > 1 else ""), "", *_aligned([header, *rows, summary])]
    lines += ["", *_remarks(result), _times(result), *_stop_sentences(result.members)]
    lines += [f"note: {note}" for note in result.notes]
    lines += [f"run: {result.run_dir}"] if result.run_dir else []
    return "\n".join(lines)


def html_report(result: TrainResult) -> str:
    """The report for notebooks: a table, and the figure as an embedded PNG where matplotlib is installed."""
    header, rows, summary = _cells(result)
    lines = [f"<p><b>{html.escape(result.env)}</b>, {html.escape(result.algorithm)}</p>", "<table>"]
    lines.append("<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>")
    for row in [*rows, summary]:
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    lines.append("</table>")
    below = [*_remarks(result), _times(result), *_stop_sentences(result.members), *result.notes]
    lines.append("<p>" + "<br>".join(html.escape(line) for line in below) + "</p>")
    if any(len(member.curve) for member in result.members):
        try:
            figure = result.plot()
        except ImportError:
            return "\n".join(lines)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110)
        code = base64.b64encode(png.getvalue()).decode("ascii")
        lines.append(f'<img alt="learning curves" style="max-width: 100%" src="data:image/png;base64,{code}">')
    return "\n".join(lines)


def _cells(result: TrainResult) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, one row per shown member, and the row of the interquartile mean, all of one length."""
    members = result.finalists
    with_variant = len({member.variant for member in result.members}) > 1
    shape = number_format([bound for member in members for bound in (member.score, *member.score_interval)])

    def row(name: str, variant: str, score: float, interval: tuple[float, float], *rest: str) -> list[str]:
        bounds = f"[{_number(interval[0], shape)}, {_number(interval[1], shape)}]"
        return [name, *([variant] if with_variant else []), _number(score, shape), bounds, *rest]

    def member_row(member: MemberResult) -> list[str]:
        stop = member.stop_reason.label
        steps = compact(member.env_steps)
        counts = (stop, steps, str(member.windows))
        return row(str(member.seed), str(member.variant), member.score, member.score_interval, *counts)

    variant = "variant" if result.population == 1 else "member"
    header = ["seed", *([variant] if with_variant else []), "score", "95 % interval", "stop", "steps", "windows"]
    if len(members) <= _MAX_ROWS:
        rows = [member_row(member) for member in members]
    else:
        ranked = sorted(members, key=lambda m: m.score if math.isfinite(m.score) else -math.inf, reverse=True)
        between = f"... {len(members) - 2 * _SHOWN_EACH_END} between"
        rows = [member_row(member) for member in ranked[:_SHOWN_EACH_END]]
        rows.append(["...", *([""] if with_variant else []), "", between, "", "", ""])
        rows += [member_row(member) for member in ranked[-_SHOWN_EACH_END:]]
    total_windows = str(sum(member.windows for member in result.members))
    return header, rows, row("IQM", "", result.iqm, result.iqm_interval, "", compact(result.env_steps), total_windows)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns to the right, words to the left, a rule above the last row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = rows[0].index("stop")
    lines = [
        "  ".join(c.ljust(w) if i == words else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [line.rstrip() for line in [lines[0], rule, *lines[1:-1], rule, lines[-1]]]


def _remarks(result: TrainResult) -> list[str]:
    """What must be known to read the interval."""
    scored = sum(math.isfinite(member.score) for member in result.finalists)
    remarks = []
    if result.max_spawns:
        made = 0 if result.lineage is None else int(result.lineage.copies.sum())
        remarks.append(
            f"each score is of the member with the best score in training; {_plural(made, 'variant')} spawned"
        )
        remarks += _ensembles(result)
    elif result.population > 1:
        copies = 0 if result.lineage is None else int(result.lineage.copies.sum())
        remarks.append(
            f"each score is of the one of {result.population} members with the best score in training; "
            f"{_plural(copies, 'copy', 'copies')} made"
        )
    remarks += _growth(result)
    if scored == 1:
        remarks.append("one seed: the interval resamples its episodes and says nothing about other seeds")
    if scored < len(result.finalists):
        remarks.append(f"{_plural(len(result.finalists) - scored, 'member')} without a score left out of the IQM")
    return remarks


def _growth(result: TrainResult) -> list[str]:
    """How large the graphs have become."""
    if result.growth is None:
        return []
    counts = [result.growth.neurons(member) for member in range(len(result.members))]
    ends = [([row[i] for row in counts if row]) for i in (0, -1)]
    first, last = (_span(values) for values in ends)
    return [f"graphs of {first} neurons at the start, {last} at the end, inputs and outputs included"]


def _span(values: Sequence[int]) -> str:
    """ "9", or "13 to 19 (median 17)"."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high} (median {statistics.median_low(values)})"


def _ensembles(result: TrainResult) -> list[str]:
    """How the policies of a seed do as one."""
    scores = [ensemble.score for ensemble in result.ensembles if math.isfinite(ensemble.score)]
    if not scores:
        return []
    shape = number_format(scores)
    listed = ", ".join(_number(score, shape) for score in scores[:_MAX_ROWS])
    more = f", and {len(scores) - _MAX_ROWS} more" if len(scores) > _MAX_ROWS else ""
    return [f"all policies of a seed as one (result.ensembles), other fresh episodes: {listed}{more}"]


def _times(result: TrainResult) -> str:
    rate = f"{compact(result.env_steps)} steps at {compact(result.env_steps_per_s)} steps/s"
    return (
        f"compile {duration(result.compile_s)}, run {duration(result.run_s)} ({rate}), wall {duration(result.wall_s)}"
    )


def _stop_sentences(members: Sequence[MemberResult]) -> list[str]:
    """One sentence per distinct stop reason."""
    lines = []
    for reason in StopReason:
        count = sum(member.stop_reason == reason for member in members)
        if count:
            lines.append(f"{reason.label} ({count}): {reason.describe()}")
    return lines


def _number(value: float, shape: str) -> str:
    return format(value, shape) if math.isfinite(value) else "-"


def _plural(count: int, noun: str, many: str = "") -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {many or noun + 's'}"
