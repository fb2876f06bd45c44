"""What `memlens plan --fit` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memlens.report.plan.text import card_text
from memlens.report.text import count, plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.catalogue.gpus import Gpu
    from memlens.events import Category
    from memlens.planning.fit import Fewest

__all__ = ["fit_lines"]

NAMED = 3
"""Categories that are named where no number of GPUs will do."""
SMALL = 0.05
"""Shares of the card below this are not named."""


def fit_lines(found: Sequence[Fewest], gpu: Gpu, shown: str) -> list[str]:
    """A line for each optimizer under each kind of sharding, and what each was tried on."""
    lines = [f"{card_text(gpu)}: the fewest on which {plain(shown)} fits", ""]
    titles = [_title(each) for each in found]
    widths = [max(map(len, titles)), max(len(plain(each.optimizer)) for each in found)]
    head = f"  {'sharding':<{widths[0]}}  {'optimizer':<{widths[1]}}  {'GPUs':>5}"
    lines.append(f"{head}  {'reserved each':>13}  {'headroom':>10}")
    for title, each in zip(titles, found, strict=True):
        start = f"  {title:<{widths[0]}}  {plain(each.optimizer):<{widths[1]}}"
        lines.append(f"{start}  {_answer(each, gpu)}")
    tried = sum(len(each.tries) for each in found)
    lines += ["", f"{count(tried, 'simulation')} of one rank; every rank has the batch of the job."]
    return lines


def _title(of: Fewest) -> str:
    return "as the job has it" if of.mode is None else of.mode.label


def _answer(of: Fewest, gpu: Gpu) -> str:
    if of.refused:
        return f"{'-':>5}  refused: {plain(of.refused)}"
    if of.failed:
        return f"{'-':>5}  failed: {plain(of.failed)}"
    if of.fewest is None or of.fewest.verdict is None:
        return f"{'-':>5}  does not fit on any number: {_stays(of.stays or {}, gpu)}"
    verdict = of.fewest.verdict
    text = f"{of.fewest.rung:>5}  {format_bytes(verdict.reserved_peak_bytes):>13}"
    if verdict.retries:
        return f"{text}  only just: the allocator has to give back what it has cached"
    return f"{text}  {format_bytes(verdict.headroom_bytes):>10}"


def _stays(categories: Mapping[Category, int], gpu: Gpu) -> str:
    """What is on every GPU, however many there are."""
    large = sorted(categories.items(), key=lambda each: -each[1])[:NAMED]
    named = [
        f"{category.value.replace('_', ' ')} {format_bytes(size)}"
        for category, size in large
        if size > SMALL * gpu.usable_bytes
    ]
    return f"each holds {', '.join(named)}" if named else "each holds too much"
