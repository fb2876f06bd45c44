"""Allocated memory over time as a stacked area, with steps and the peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memlens.palette import CATEGORY_SERIES
from memlens.report.figure import FAINT, GREY, INK, figure_bytes, make_figure
from memlens.report.text import plain
from memlens.report.ticks import stride
from memlens.units import format_bytes

# Behind memlens.report.figure, which says what to install where matplotlib is missing.
from matplotlib.patches import Patch  # isort: skip
from matplotlib.ticker import FuncFormatter, MaxNLocator  # isort: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from memlens.answers import Peak, Timeline
    from memlens.rank import RankCapture

__all__ = [
    "STEP_LABELS",
    "Reserved",
    "TimeUnit",
    "draw_timeline",
    "size_unit",
    "time_unit",
    "timeline_png",
]

Array = npt.NDArray[Any]
Reserved = tuple[Array, Array]
"""When what the allocator holds of the device changes, and to how many bytes."""

STEP_LABELS = 16
HEADROOM = 1.14
"""How much higher than the peak the axis is: the peak is named above it."""


@dataclass(frozen=True)
class TimeUnit:
    """In what an axis of time counts."""

    name: str
    ns: int


def timeline_png(rank: RankCapture, timeline: Timeline, peak: Peak) -> bytes:
    """The timeline of one rank with a legend, as a PNG."""

    def draw() -> Figure:
        figure = make_figure(4.4)
        axes = figure.subplots()
        draw_timeline(
            axes,
            timeline,
            peak,
            title=f"Rank {rank.rank}, {plain(rank.device)}",
            unit=size_unit(peak.allocated_bytes),
            time=time_unit(timeline),
        )
        # Topmost band first, as in the picture.
        bands = [
            Patch(facecolor=each.colour, label=each.label)
            for each in reversed(CATEGORY_SERIES)
            if any(timeline.categories[member].any() for member in each.members)
        ]
        figure.legend(handles=bands, loc="outside right center", frameon=False, labelcolor=INK)
        return figure

    return figure_bytes(draw, "png")


def draw_timeline(
    axes: Axes,
    timeline: Timeline,
    peak: Peak,
    *,
    title: str,
    unit: tuple[str, int],
    time: TimeUnit,
    reserved: Reserved | None = None,
    top_bytes: int | None = None,
    ends: float | None = None,
    step_labels: int = STEP_LABELS,
) -> None:
    """Draw a whole run of one rank, with its steps and its peak.

    Args:
        axes: where.
        timeline: thinned out, or not.
        peak: of the run.
        title: plain text.
        unit: of sizes; see `size_unit`.
        time: unit of time; see `time_unit`.
        reserved: a line above it; None: there is none.
        top_bytes: the highest of all that is drawn on equal axes; None: this peak.
        ends: where the axis of time ends, in its unit; None: with the timeline.
        step_labels: for how many there is room.
    """
    start_ns = int(timeline.time_ns[0]) if len(timeline.time_ns) else peak.time_ns
    when = (timeline.time_ns - start_ns) / time.ns
    unit_name, unit_bytes = unit
    end = ends if ends is not None else float(when[-1]) if len(when) else 0.0
    end = end or 1.0  # everything happened at one time, or nothing did
    bands = [
        (series, sum(timeline.categories[member] for member in series.members))
        for series in CATEGORY_SERIES
        if any(timeline.categories[member].any() for member in series.members)
    ]
    if bands:
        axes.stackplot(
            when,
            *[amount / unit_bytes for _, amount in bands],
            colors=[series.colour for series, _ in bands],
            step="post",
            linewidth=0,
        )
    axes.set_xlim(0, end)
    axes.set_ylim(0, (top_bytes or peak.allocated_bytes or 1) / unit_bytes * HEADROOM)
    axes.set_xlabel(f"{time.name} since the first event", color=INK)
    axes.set_ylabel(f"allocated, {unit_name}", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.tick_params(colors=INK, length=3)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side in ("left", "bottom"))
        axes.spines[side].set_color(FAINT)
    if reserved is not None:
        _draw_reserved(axes, reserved, start_ns, time, end, unit_bytes)
    _mark_steps(axes, timeline, start_ns, time, step_labels)
    if len(when):
        above = 0 if reserved is None else int(reserved[1].max(initial=0))
        _mark_peak(axes, peak, (peak.time_ns - start_ns) / time.ns, end, unit_bytes, above)
    axes.set_title(
        title if reserved is None else f"{title} (line: reserved)",
        loc="left",
        color=INK,
        fontsize=9.5,
        fontweight="bold",
        parse_math=False,
        pad=16,
    )


def size_unit(size_bytes: int) -> tuple[str, int]:
    """The unit of an axis that reaches this far: its name, and its bytes."""
    for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        # From two of a unit on, so that an axis reads 1,500 MiB and not 1.46484 GiB.
        if size_bytes >= 2 << power:
            return name, 1 << power
    return "B", 1


def time_unit(timeline: Timeline) -> TimeUnit:
    """The unit of an axis of time."""
    lasts_ns = int(timeline.time_ns[-1] - timeline.time_ns[0]) if len(timeline.time_ns) else 0
    for name, unit_ns in (
        ("hours", 3600 * 10**9),
        ("minutes", 60 * 10**9),
        ("seconds", 10**9),
        ("milliseconds", 10**6),
    ):
        if lasts_ns >= 2 * unit_ns:
            return TimeUnit(name, unit_ns)
    return TimeUnit("microseconds", 10**3)


def _draw_reserved(
    axes: Axes, reserved: Reserved, start_ns: int, time: TimeUnit, end: float, unit_bytes: int
) -> None:
    since_ns, size = reserved
    since = np.append((since_ns - start_ns) / time.ns, end)
    held = np.append(size, size[-1:]) / unit_bytes
    axes.step(since[: len(held)], held, where="post", color=INK, linewidth=0.9)


def _mark_steps(axes: Axes, timeline: Timeline, start_ns: int, time: TimeUnit, labels: int) -> None:
    starts = sorted(timeline.step_start_ns.items())
    each = stride(len(starts) / labels)
    shown = [(step, (when - start_ns) / time.ns) for step, when in starts if step % each == 0]
    for step, at in shown:
        axes.axvline(at, color=FAINT, linewidth=0.6, zorder=0)
        axes.annotate(
            f"step {step}" if step == shown[0][0] else str(step),
            (max(at, 0.0), 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),  # above the axes, where no label of a peak is
            textcoords="offset points",
            fontsize=8,
            color=GREY,
        )


def _mark_peak(
    axes: Axes, peak: Peak, at: float, end: float, unit_bytes: int, above_bytes: int
) -> None:
    """Name it above all that is drawn."""
    height = peak.allocated_bytes / unit_bytes
    late = at > end / 2
    axes.plot([at], [height], marker="o", markersize=4, color=INK, clip_on=False)
    axes.annotate(
        f"peak {format_bytes(peak.allocated_bytes)}, step {peak.step}, {peak.phase.value}",
        (at, max(height, above_bytes / unit_bytes)),
        xytext=(-6 if late else 6, 6),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=9,
        fontweight="bold",
        color=INK,
        # Readable across the lines of steps.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
