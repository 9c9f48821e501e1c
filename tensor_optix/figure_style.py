"""What pictures of runs have in common: colours, the colours of loop states, axes of hyperparameters, running means.

Imports matplotlib, without pyplot: no window, no global state.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from tensor_optix.core.types import LoopState

INK, MUTED, THIN, ACCENT, GOLD = "#22272e", "#6b7480", "#9aa7b8", "#1f5fa8", "#d08a00"
STATE_COLOURS = {
    LoopState.ACTIVE: "#a9d5b5",
    LoopState.COOLING: "#f2d98b",
    LoopState.DORMANT: "#c9b6d9",
    LoopState.WATCHDOG: "#a8c8ea",
}
STYLE = {
    "axes.edgecolor": "#c3c9d1",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
_MEAN_OF = 8  # values of a tuned hyperparameter


def running_mean(values: np.ndarray, log: bool) -> np.ndarray:
    """Of the newest eight values [n], or as many as there are; geometric on a logarithmic scale."""
    values = np.log(values) if log else values
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - _MEAN_OF, 0)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return np.exp(means) if log else means


def dress_track(axis: Axes, name: str, log: bool) -> None:
    """Scale, ticks and label of the axis of a hyperparameter, after it is drawn."""
    if log:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        if high > 5 * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
        else:  # a logarithmic locator would have a tick for each digit
            axis.yaxis.set_major_locator(MaxNLocator(3))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.yaxis.set_major_formatter(lambda value, _: tick_label(value))
    axis.set_ylabel(name.replace("_", "\n", 1), fontsize=8.5)
    axis.grid(axis="y", color="#eef0f3", lw=0.8)


def tick_label(value: float) -> str:
    """0.02, 0.001, 5e-4: two digits at most, without padded exponents."""
    if 0 < abs(value) < 9.5e-4:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"
