"""A comparison for TensorBoard: a row of hyperparameters per variant, losses, and the chart.

    DIR/
      20250615-142640-compare-train/     one for every comparison; nothing is ever overwritten
        adamw/                           a run per variant: its row in the HParams tab
                                         peak_MiB        the peak
                                         peak_MiB/*      each category's part of it
                                         reserved_peak_MiB  what the allocator took, where it does
                                         step_time_ms    median of a step
                                         loss            at every backward
        adamw8bit/                       ...
        comparison/                      chart/*, the pictures; tables/*: status, reasons, notes

TensorBoard works out the columns of its HParams tab from all rows that it finds. So several
comparisons in one DIR stand in one table, whatever options their variants have, and a variant that
failed or was refused has a row with a status and no numbers. Of `loss`, that tab shows the last.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time_ns
from typing import TYPE_CHECKING

from memlens.catalogue.variant import parse_variant
from memlens.comparing.outputs.chart import chart_bytes
from memlens.comparing.results import Status
from memlens.errors import UsageError
from memlens.events import Category
from memlens.exporters.tensorboard.tfevents import EventFile
from memlens.report.text import markdown, plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.comparing.capacity import Capacity
    from memlens.comparing.results import Comparison, Result

__all__ = ["write_tensorboard"]

MIB = 1 << 20
COMPARISON = "comparison"
"""Name of the run that is none of the variants."""
LONGEST_NAME = 80


def write_tensorboard(
    comparison: Comparison, folder: Path, *, capacities: Sequence[Capacity] = ()
) -> str:
    """Write a comparison below a folder that TensorBoard watches, beside what is there already.

    Args:
        comparison: what to write.
        folder: for `tensorboard --logdir`; made if need be.
        capacities: dashed lines in the chart.

    Returns:
        The new folder, named after the time and the comparison.

    Raises:
        MissingDependencyError: tensorboard or matplotlib is not installed.
        UsageError: the folder cannot be written.
    """
    now_ns = time_ns()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written elsewhere and moved when complete: a server that watches never reads half of it.
        with TemporaryDirectory(prefix="memlens-") as temporary:
            _write(comparison, capacities, Path(temporary, "new"), now_ns)
            place = _new_place(folder, Path(comparison.folder).name or "compare")
            shutil.move(Path(temporary, "new"), place)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    return str(place)


def _write(
    comparison: Comparison, capacities: Sequence[Capacity], folder: Path, now_ns: int
) -> None:
    # The same for all variants, so that a zero is a zero; and no columns of nothing but zeros.
    categories = [
        category
        for category in Category
        if any(each.peak and each.peak.categories.get(category) for each in comparison.results)
    ]
    names = _run_names([result.name for result in comparison.results])
    for result, name in zip(comparison.results, names, strict=True):
        when_ns = now_ns if result.peak is None else result.peak.time_ns
        with EventFile(folder / name, when_ns) as file:
            _write_variant(file, comparison, result, categories, when_ns)
    with EventFile(folder / COMPARISON, now_ns) as file:
        _write_comparison(file, comparison, capacities, now_ns)


def _new_place(folder: Path, name: str) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{_safe(name)}"
    place, number = folder / stem, 1
    while place.exists():  # another comparison of this second
        number += 1
        place = folder / f"{stem}-{number}"
    return place


def _run_names(names: Sequence[str]) -> list[str]:
    """Names as those of folders, all different."""
    taken = {COMPARISON}
    found = []
    for name in names:
        stem, number = _safe(name), 1
        run = stem
        # Some file systems take capital and small letters for the same.
        while run.lower() in taken:
            number += 1
            run = f"{stem}-{number}"
        taken.add(run.lower())
        found.append(run)
    return found


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+=,-]+", "-", plain(name))[:LONGEST_NAME].strip(".-") or "variant"


def _write_variant(
    file: EventFile,
    comparison: Comparison,
    result: Result,
    categories: Sequence[Category],
    when_ns: int,
) -> None:
    file.hparams(
        _hyperparameters(comparison, result),
        None,
        when_ns,
        succeeded=result.status is Status.OK,
    )
    if result.peak is None:
        return
    file.scalar("peak_MiB", result.peak.allocated_bytes / MIB, 0, when_ns)
    for category in categories:
        size_bytes = result.peak.categories.get(category, 0)
        file.scalar(f"peak_MiB/{category.value}", size_bytes / MIB, 0, when_ns)
    if result.reserved_peak_bytes is not None:
        file.scalar("reserved_peak_MiB", result.reserved_peak_bytes / MIB, 0, when_ns)
    if result.step_time_ns is not None:
        file.scalar("step_time_ms", result.step_time_ns / 1e6, 0, when_ns)
    losses = result.losses or (() if result.final_loss is None else (result.final_loss,))
    for step, loss in enumerate(losses):
        file.scalar("loss", loss, step, when_ns)


def _hyperparameters(comparison: Comparison, result: Result) -> dict[str, str | float]:
    values: dict[str, str | float] = {
        "variant": plain(result.name),
        "status": result.status.value,
        "baseline": result.name == comparison.baseline,
        "optimizer": plain(result.name),
        "job": plain(comparison.job),
        "device": comparison.device,
        "torch": comparison.torch_version or "not known",
    }
    if result.sharding:
        values["sharding"] = result.sharding
    if result.reason:
        values["reason"] = plain(result.reason)
    try:
        variant = parse_variant(result.optimizer or result.name)
    except UsageError:  # the name of a callable
        return values
    if variant.row is not None:
        values["optimizer"] = variant.row.name
        values["no_retain_grad"] = variant.no_retain_grad
    for name, value in variant.options.items():
        if isinstance(value, (str, int, float)):
            values[f"option/{name}"] = value
    return values


def _write_comparison(
    file: EventFile, comparison: Comparison, capacities: Sequence[Capacity], now_ns: int
) -> None:
    for name, rollup in (("rollup", True), ("categories", False)):
        png = chart_bytes(comparison, "png", rollup=rollup, capacities=capacities)
        file.image(f"chart/{name}", png, 0, now_ns)
    file.text("tables/variants", _table(comparison), 0, now_ns)


def _table(comparison: Comparison) -> str:
    lines = [
        "| variant | status | peak | bytes | what to know |",
        "| :--- | :--- | ---: | ---: | :--- |",
    ]
    for result in comparison.results:
        size_bytes = result.peak.allocated_bytes if result.peak else None
        cells = (
            markdown(result.name),
            result.status.value,
            "" if size_bytes is None else format_bytes(size_bytes),
            "" if size_bytes is None else f"{size_bytes:,}",
            markdown("; ".join(filter(None, (result.reason, *result.notes)))),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
