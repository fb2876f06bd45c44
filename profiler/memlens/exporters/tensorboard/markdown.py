"""The tables of a report as markdown, as TensorBoard's text page shows it.

Every text that comes from the job is escaped (`memlens.report.text.markdown`): a module may be
called anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from memlens.palette import CATEGORY_SERIES, label
from memlens.report.groups import alike_allocations, alike_modules
from memlens.report.text import frame_text, user_frames
from memlens.report.text import markdown as escape
from memlens.report.view import command_line
from memlens.units import format_bytes, format_duration_ns

if TYPE_CHECKING:
    from memlens.across.summary import RankSummary
    from memlens.answers import Frame
    from memlens.capture import Capture
    from memlens.report.view import RankView

__all__ = ["rank_tables", "ranks_table", "run_table"]

STACK_FRAMES = 4
TOP = 25


def run_table(capture: Capture, warnings: Sequence[str]) -> str:
    """What is known about the run, and what to know before trusting its numbers."""
    info = capture.info
    rows = [
        ("run", escape(info.name)),
        ("command", escape(command_line(info))),
        ("source", escape(info.source)),
        ("world size", str(info.world_size)),
        ("torch", escape(info.torch_version or "not known")),
        ("memlens", escape(info.memlens_version)),
        *(("warning", escape(sentence)) for sentence in warnings),
    ]
    return _table(("", ""), ((f"**{name}**", value) for name, value in rows))


def ranks_table(ranks: Sequence[RankSummary]) -> str:
    """The peak of every rank, the highest first."""
    return _table(
        ("rank", "device", ">peak", ">bytes", "when"),
        (
            (
                str(each.rank),
                escape(each.device),
                format_bytes(each.peak_bytes),
                f"{each.peak_bytes:,}",
                f"step {each.peak.step}, {each.peak.phase.value}",
            )
            for each in sorted(ranks, key=lambda each: -each.peak_bytes)
        ),
    )


def rank_tables(view: RankView) -> dict[str, str]:
    """Every table about one rank, by name; without the ones that would be empty."""
    tables = {
        "1 categories at the peak": _categories(view),
        "2 top modules": _modules(view) if view.modules else "",
        "3 top allocations": _allocations(view) if view.allocations else "",
        "4 growth": _growth(view) if view.growth else "",
    }
    return {name: text for name, text in tables.items() if text}


def _categories(view: RankView) -> str:
    peak = view.peak
    last = view.steps[-1] if view.steps else None
    head = [f"{'>'}at the peak", ">bytes", ">share", ">inferred"]
    if last:
        head += [f">step {last.step} peak", f">step {last.step} end"]
    rows = []
    for series in CATEGORY_SERIES:
        amount = series.amount(peak.categories)
        row = [
            series.label,
            format_bytes(amount),
            f"{amount:,}",
            _percent(amount, peak.allocated_bytes),
            _percent(series.amount(view.inferred_bytes), amount),
        ]
        if last:
            row += [
                format_bytes(series.amount(last.categories)),
                format_bytes(series.amount(last.end_categories)),
            ]
        rows.append(row)
    total = ["**total**", f"**{format_bytes(peak.allocated_bytes)}**", f"{peak.allocated_bytes:,}"]
    total += ["", _percent(sum(view.inferred_bytes.values()), peak.allocated_bytes)]
    if last:
        total += [format_bytes(last.peak_bytes), format_bytes(last.end_bytes)]
    where = f" in {escape(peak.module)}" if peak.module else ""
    return (
        f"Peak {format_bytes(peak.allocated_bytes)}, step {peak.step}, {peak.phase.value}{where}, "
        f"{format_duration_ns(view.moment.elapsed_ns)} after the first event\n\n"
        + _table(("category", *head), [*rows, total])
    )


def _modules(view: RankView) -> str:
    return _table(
        (">alike", "module", "class", ">total", ">bytes each", "most of it"),
        (
            (
                str(group.count),
                escape(group.name(group.first.module)) or "(no module)",
                escape(group.first.class_name),
                format_bytes(group.total_bytes),
                f"{group.each_bytes:,}",
                ", ".join(
                    f"{label(category)} {format_bytes(group.count * amount)}"
                    for category, amount in sorted(
                        group.first.categories.items(), key=lambda item: -item[1]
                    )[:3]
                ),
            )
            for group in alike_modules(view.modules)[:TOP]
        ),
    )


def _allocations(view: RankView) -> str:
    return _table(
        (
            *(">alike", ">total", ">bytes each", "category", "certainty"),
            *("name", "module", "when", "made in"),
        ),
        (
            (
                str(group.count),
                format_bytes(group.total_bytes),
                f"{group.each_bytes:,}",
                label(group.first.category),
                group.first.certainty.value,
                escape(group.name(group.first.name)),
                escape(group.name(group.first.module)),
                "before recording"
                if group.first.preexisting
                else f"step {group.first.step}, {group.first.phase.value}",
                _stack(group.first.stack),
            )
            for group in alike_allocations(view.allocations)[:TOP]
        ),
    )


def _growth(view: RankView) -> str:
    return _table(
        (">per step", ">first", ">last", ">steps", "category", "name", "module", "made in"),
        (
            (
                format_bytes(group.bytes_per_step, signed=True),
                format_bytes(group.first_bytes),
                format_bytes(group.last_bytes),
                str(group.steps),
                label(group.category),
                escape(group.name),
                escape(group.module),
                _stack(group.stack),
            )
            for group in view.growth
        ),
    )


def _stack(stack: tuple[Frame, ...]) -> str:
    return " < ".join(escape(frame_text(frame)) for frame in user_frames(stack, STACK_FRAMES))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; a column whose head begins with `>` is aligned to the right."""
    lines = [
        [name.removeprefix(">") for name in head],
        ["---:" if name.startswith(">") else ":---" for name in head],
        *rows,
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
