"""A run for TensorBoard: scalars, a row of hyperparameters, tables and pictures.

    OUT/
      all-ranks/   the run as a whole: hparams row, highest peak, how the ranks compare, a picture
      rank-0/      step_peak_MiB/*         per step, at the step's peak, one curve per category
                   step_end_MiB/*          per step, at its end
                   step_peak_rollup_MiB/*  the five published names, at the step's peak
                   timeline/allocated      a stacked area picture
                   tables/*                categories, modules, allocations, growth
      rank-1/      ...

Scalars are float32 in the file, as in all TensorBoard scalars, so they are exact to about 1 part in
16 million; the tables carry whole bytes. Their wall time is when it happened in the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.errors import CaptureError
from memlens.events import Category
from memlens.exporters.pictures.export import draw_run
from memlens.exporters.pictures.timeline import timeline_png
from memlens.exporters.tensorboard import markdown
from memlens.exporters.tensorboard.tfevents import EventFile
from memlens.palette import CATEGORY_SERIES, ROLLUP_SERIES, Series
from memlens.report.all_ranks import AllRanks, view_ranks
from memlens.report.view import (
    RankView,
    ReportOptions,
    choose_ranks,
    command_line,
    view_rank,
)

if TYPE_CHECKING:
    from memlens.capture import Capture, RankCapture

__all__ = ["export"]

MIB = 1 << 20


def export(capture: Capture, folder: Path) -> None:
    """Write a capture as TensorBoard event files into an empty folder.

    Raises:
        MissingDependencyError: tensorboard or matplotlib is not installed.
        CaptureError: no rank can be read.
    """
    ranks = choose_ranks(capture, None)
    for rank in ranks:
        try:
            view = view_rank(rank, ReportOptions())
        except CaptureError:  # the others are worth having; a table of the run names this one
            continue
        with EventFile(folder / _run_name(rank, ranks), capture.info.created_ns) as file:
            _write_rank(file, view)
        rank.release()
    with EventFile(folder / "all-ranks", capture.info.created_ns) as file:
        _write_run(file, view_ranks(capture, None))


def _run_name(rank: RankCapture, ranks: tuple[RankCapture, ...]) -> str:
    """`rank-0`; with the device, when a rank has several."""
    if sum(other.rank == rank.rank for other in ranks) == 1:
        return f"rank-{rank.rank}"
    return f"rank-{rank.rank}-" + re.sub(r"[^A-Za-z0-9]+", "-", rank.device)


def _write_rank(file: EventFile, view: RankView) -> None:
    series = _series_in_use(view)
    for step in view.steps:
        at_peak, at_end = step.categories, step.end_categories
        _write_bands(file, "step_peak_MiB", series, at_peak, step.step, step.peak_ns)
        _write_bands(file, "step_end_MiB", series, at_end, step.step, step.end_ns)
        _write_bands(file, "step_peak_rollup_MiB", ROLLUP_SERIES, at_peak, step.step, step.peak_ns)
    peak = view.peak
    if len(view.timeline.time_ns):
        file.image(
            "timeline/allocated",
            timeline_png(view.rank, view.timeline, peak),
            peak.step,
            peak.time_ns,
        )
    for name, text in markdown.rank_tables(view).items():
        file.text(f"tables/{name}", text, peak.step, peak.time_ns)


def _series_in_use(view: RankView) -> list[Series]:
    """Without the categories that are zero in every step: empty charts hide the others."""
    return [
        series
        for series in CATEGORY_SERIES
        if Category.UNKNOWN in series.members
        or any(
            series.amount(step.categories) or series.amount(step.end_categories)
            for step in view.steps
        )
    ]


def _write_bands(
    file: EventFile,
    group: str,
    series: list[Series] | tuple[Series, ...],
    categories: Mapping[Category, int],
    step: int,
    time_ns: int,
) -> None:
    file.scalar(f"{group}/total", sum(categories.values()) / MIB, step, time_ns)
    for each in series:
        file.scalar(f"{group}/{each.key}", each.amount(categories) / MIB, step, time_ns)


def _write_run(file: EventFile, ranks: AllRanks) -> None:
    info, peaks = ranks.capture.info, ranks.summaries
    highest = max(peaks, key=lambda each: each.peak_bytes)
    lowest = min(peaks, key=lambda each: each.peak_bytes)
    time_ns = highest.peak.time_ns
    # Every category, also the ones at zero: the columns of two runs have to match.
    metrics = {
        "run_peak_MiB/total": highest.peak_bytes,
        "run_peak_MiB/spread_over_ranks": highest.peak_bytes - lowest.peak_bytes,
        **{
            f"run_peak_MiB/{series.key}": series.amount(highest.peak.categories)
            for series in CATEGORY_SERIES
        },
    }
    file.hparams(
        {
            "run": info.name,
            "command": command_line(info),
            "source": info.source,
            "world_size": info.world_size,
            "torch": info.torch_version or "not known",
            "memlens": info.memlens_version,
        },
        list(metrics),
        time_ns,
    )
    for tag, size_bytes in metrics.items():
        file.scalar(tag, size_bytes / MIB, 0, time_ns)
    file.image("peak and timeline", draw_run(ranks, "png"), 0, time_ns)
    file.text("tables/run", markdown.run_table(ranks.capture, ranks.warnings), 0, time_ns)
    file.text("tables/ranks", markdown.ranks_table(peaks), 0, time_ns)
