"""Allocated memory over time as a stacked area, as a PNG.

Draws on a figure of its own and not through pyplot, so a program that exports from a notebook finds
its current figure and backend as they were.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from memlens.errors import MissingDependencyError
from memlens.palette import CATEGORY_SERIES
from memlens.report.text import plain
from memlens.report.ticks import stride
from memlens.units import format_bytes

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ImportError as error:
    raise MissingDependencyError("matplotlib", "draw the timeline", "tensorboard") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from memlens.report.view import RankView

__all__ = ["timeline_png"]

INK = "#333333"
FAINT = "#BBBBBB"
STEP_LABELS = 16


def timeline_png(view: RankView) -> bytes:
    """Draw the whole run of one rank, with its steps and its peak."""
    timeline, peak = view.timeline, view.peak
    seconds = (timeline.time_ns - view.start_ns) / 1e9
    bands = [
        (series, sum(timeline.categories[member] for member in series.members))
        for series in CATEGORY_SERIES
        if any(timeline.categories[member].any() for member in series.members)
    ]
    unit_name, unit = _unit(peak.allocated_bytes)

    figure = Figure(figsize=(12, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.stackplot(
        seconds,
        *[amount / unit for _, amount in bands],
        labels=[series.label for series, _ in bands],
        colors=[series.colour for series, _ in bands],
        step="post",
        linewidth=0,
    )
    axes.set_xlim(0, max(float(seconds[-1]), 1e-9))
    axes.set_ylim(0, peak.allocated_bytes / unit * 1.14)
    axes.set_xlabel("seconds since the first event", color=INK)
    axes.set_ylabel(f"allocated, {unit_name}", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _mark_steps(axes, view)
    _mark_peak(axes, view, unit)
    axes.set_title(
        f"Rank {view.rank.rank}, {plain(view.rank.device)}", loc="left", color=INK, parse_math=False
    )
    # Topmost band first, as in the picture.
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _unit(size_bytes: int) -> tuple[str, int]:
    for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        # From two of a unit on, so that an axis reads 1,500 MiB and not 1.46484 GiB.
        if size_bytes >= 2 << power:
            return name, 1 << power
    return "B", 1


def _mark_steps(axes: Axes, view: RankView) -> None:
    starts = sorted(view.timeline.step_start_ns.items())
    each = stride(len(starts) / STEP_LABELS)
    shown = [(step, (when - view.start_ns) / 1e9) for step, when in starts if step % each == 0]
    for step, at in shown:
        axes.axvline(at, color=FAINT, linewidth=0.6, zorder=0)
        axes.annotate(
            f"step {step}" if step == shown[0][0] else str(step),
            (max(at, 0.0), 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="#777777",
        )


def _mark_peak(axes: Axes, view: RankView, unit: int) -> None:
    peak = view.peak
    at, height = (peak.time_ns - view.start_ns) / 1e9, peak.allocated_bytes / unit
    late = at > (int(view.timeline.time_ns[-1]) - view.start_ns) / 1e9 / 2
    axes.plot([at], [height], marker="o", markersize=4, color=INK, clip_on=False)
    axes.annotate(
        f"peak {format_bytes(peak.allocated_bytes)}, step {peak.step}, {peak.phase.value}",
        (at, height),
        xytext=(-6 if late else 6, 6),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=9,
        fontweight="bold",
        color=INK,
        # Readable across the lines of steps.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
