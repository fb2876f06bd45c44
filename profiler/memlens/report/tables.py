"""The tables of the terminal report. Each function makes one, from a view of a rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from memlens.events import Category, Certainty, WeightKind
from memlens.report.text import count, frame_text, plain, shorten, user_frames
from memlens.units import format_bytes, format_duration_ns

if TYPE_CHECKING:
    from memlens.answers import Allocation, Frame, ModuleUsage, Step
    from memlens.palette import Series
    from memlens.report.groups import Group
    from memlens.report.ink import Ink
    from memlens.report.view import RankView

__all__ = [
    "allocations_table",
    "categories_table",
    "growth_table",
    "make_table",
    "modules_table",
    "steps_table",
    "weight_kinds_line",
]

MANY_STEPS = 12
"""Up to here, every step has a row."""

NARROW = 96
"""Below this width, tables leave out what is also said elsewhere."""

STACK_FRAMES = 3

INFERRED_MARK = "~"


def categories_table(
    view: RankView, series: Sequence[Series], ink: Ink, *, width: int, moment_name: str
) -> Table:
    """Bytes per category at the moment, and in the last step, which shows the steady state."""
    last = view.steps[-1] if view.steps else None
    total = view.moment.allocated_bytes
    shown = [
        each
        for each in series
        if each.amount(view.moment.categories)
        or (last and (each.amount(last.categories) or each.amount(last.end_categories)))
        or Category.UNKNOWN in each.members
    ]
    steady: list[tuple[str, Mapping[Category, int]]] = []
    if last:
        steady.append((f"step {last.step} peak", last.categories))
        if width >= NARROW:
            steady.append((f"step {last.step} end", last.end_categories))
    label_width = max(len(each.label) for each in shown)
    numbers = sum(max(11, len(header)) + 2 for header, _ in [(moment_name, None), *steady])
    bar_width = max(4, min(40, width - (3 + label_width + 2 + numbers + 9 + 10 + 2)))
    table = make_table(
        Column("", width=1),
        Column("category", no_wrap=True),
        _right(moment_name),
        _right("share"),
        Column("", width=bar_width),
        *(_right(header) for header, _ in steady),
        _right("inferred"),
    )
    largest = max(each.amount(view.moment.categories) for each in shown)
    for each in shown:
        amount = each.amount(view.moment.categories)
        table.add_row(
            ink.swatch(each),
            each.label,
            _bytes(amount),
            _percent(amount, total),
            ink.bar([amount], largest, bar_width, [each]),
            *(_bytes(each.amount(categories)) for _, categories in steady),
            _percent(each.amount(view.inferred_bytes), amount),
        )
    table.add_row(
        "",
        "total",
        _bytes(total),
        "",
        "",
        *(_bytes(sum(categories.values())) for _, categories in steady),
        _percent(sum(view.inferred_bytes.values()), total),
        style="bold",
    )
    return table


def weight_kinds_line(view: RankView) -> Text | None:
    """What the weights consist of; None where they merely train, next to buffers, or are not told."""
    kinds = view.weight_kinds
    plain_kinds = {WeightKind.BUFFER, WeightKind.UNKNOWN}
    if sum(size > 0 for kind, size in kinds.items() if kind not in plain_kinds) < 2:
        return None
    parts = [f"{kind.value} {format_bytes(size)}" for kind, size in kinds.items() if size]
    return Text("weight: " + ", ".join(parts))


def steps_table(view: RankView, series: Sequence[Series], ink: Ink, *, width: int) -> Table:
    """Peak and end of every step; the first, highest and last ones when there are many."""
    bar_width = max(8, min(60, width - 62))
    table = make_table(
        _right("step"),
        _right("time"),
        _right("peak"),
        Column("", width=bar_width),
        _right("end"),
        _right("change of end"),
    )
    full = max(step.peak_bytes for step in view.steps)
    shown = _steps_to_show(view.steps)
    skipped = 0
    previous: Step | None = None
    for step in view.steps:
        change = step.end_bytes - previous.end_bytes if previous else None
        previous = step
        if step.step not in shown:
            skipped += 1
            continue
        if skipped:
            table.add_row("", "", "", Text(f"… {count(skipped, 'step')}", style="dim"), "", "")
            skipped = 0
        table.add_row(
            str(step.step),
            format_duration_ns(step.end_ns - step.start_ns),
            _bytes(step.peak_bytes),
            ink.bar([each.amount(step.categories) for each in series], full, bar_width, series),
            _bytes(step.end_bytes),
            "" if change is None else "=" if change == 0 else format_bytes(change, signed=True),
            style="bold" if step.step == view.peak.step else "",
        )
    return table


def _steps_to_show(steps: tuple[Step, ...]) -> set[int]:
    if len(steps) <= MANY_STEPS:
        return {step.step for step in steps}
    top = max(steps, key=lambda step: step.peak_bytes)
    return {step.step for step in (*steps[:3], top, *steps[-3:])}


def modules_table(
    view: RankView,
    groups: Sequence[Group[ModuleUsage]],
    series: Sequence[Series],
    ink: Ink,
    *,
    width: int,
) -> Table:
    """What the modules of each group hold together at the moment, as a stacked bar."""
    wide = width >= NARROW
    names = [plain(group.name(group.first.module)) or "(no module)" for group in groups]
    class_names = [shorten(plain(group.first.class_name), 18) for group in groups]
    # Names first: the bar takes what they leave, and if that is little, they are cut.
    numbers = (5 + 2) + (11 + 2) + (7 + 2) + (max(map(len, class_names)) + 2 if wide else 0)
    bar_width = min(48, max(16, width - numbers - max(map(len, names)) - 2))
    name_width = width - numbers - bar_width - 2
    table = make_table(
        _right(""),
        Column("module", no_wrap=True),
        *([Column("class", no_wrap=True)] if wide else []),
        _right("total"),
        _right("share"),
        Column("", width=bar_width),
    )
    full = max(group.total_bytes for group in groups)
    for group, name, class_name in zip(groups, names, class_names, strict=True):
        amounts = [group.count * each.amount(group.first.categories) for each in series]
        table.add_row(
            _times(group.count),
            Text(shorten(name, name_width), style="" if group.first.module else "dim"),
            *([Text(class_name, style="dim")] if wide else []),
            _bytes(group.total_bytes),
            _percent(group.total_bytes, view.moment.allocated_bytes),
            ink.bar(amounts, full, bar_width, series),
        )
    return table


def allocations_table(
    groups: Sequence[Group[Allocation]], series: Sequence[Series], ink: Ink, *, width: int
) -> Table:
    """The largest blocks, with what they are and the lines of code that made them."""
    of_category = {member: each for each in series for member in each.members}
    names = [
        of_category[group.first.category].label
        + (INFERRED_MARK if group.first.certainty is Certainty.INFERRED else "")
        for group in groups
    ]
    room = width - (5 + 2) - (11 + 2) - (1 + 2) - (max(map(len, names)) + 2)
    table = make_table(
        _right(""),
        _right("total"),
        Column("", width=1),
        Column("category", no_wrap=True),
        Column("what it is, when and where it was made", no_wrap=True),
    )
    for group, category in zip(groups, names, strict=True):
        block = group.first
        when = (
            "before recording began"
            if block.preexisting
            else f"step {block.step}, {block.phase.value}"
        )
        if group.count > 1:
            when = f"{format_bytes(group.each_bytes)} each, {when}"
        table.add_row(
            _times(group.count),
            _bytes(group.total_bytes),
            ink.swatch(of_category[block.category]),
            category,
            _what(
                group.name(block.name),
                group.name(block.module),
                when,
                block.stack,
                room,
                held=_held(group, room),
            ),
        )
    return table


def _held(group: Group[Allocation], room: int) -> str:
    """Of blocks that several tensors share: how many, the first of them and the last."""
    parts = group.first.parts
    if not parts:
        return ""
    # The block's name has said already which state of its parameters this is.
    said = re.match(r"\S+ of ", group.first.name)
    first, last = (
        plain(group.name(part.name.removeprefix(said[0] if said else "")))
        for part in (parts[0], parts[-1])
    )
    text = f"{count(len(parts), 'part')}: {first}"
    if len(parts) == 1:
        return shorten(text, room)
    line = f"{text} … {last}"
    return (
        line if len(line) <= room else f"{shorten(text, room - 2)} …\n… {shorten(last, room - 2)}"
    )


def _times(number: int) -> Text:
    return Text(f"{number} ×" if number > 1 else "", style="dim")


def _what(
    name: str, module: str, when: str, stack: tuple[Frame, ...], room: int, held: str = ""
) -> Text:
    """What a block is; below it what it holds and, dim, when it was made and where."""
    known = plain(name) or (f"in {plain(module)}" if module else "(no name, no module)")
    text = Text(shorten(known, room))
    if held:
        text.append(f"\n{held}")
    frames = [frame_text(frame) for frame in user_frames(stack, STACK_FRAMES)]
    # One line if when and the innermost frame fit into it, otherwise two; and as many of the
    # callers as there is room for then.
    line = ", at ".join(part for part in (when, *frames[:1]) if part)
    if frames and len(line) > room:
        text.append(f"\n{shorten(when, room)}", style="dim")
        line = f"at {frames[0]}"
    for caller in frames[1:]:
        if len(line) + 3 + len(caller) > room:
            break
        line += f" < {caller}"
    if line:
        text.append(f"\n{shorten(line, room)}", style="dim")
    return text


def growth_table(view: RankView, series: Sequence[Series], *, width: int) -> Table:
    """Groups of blocks that get more with every step."""
    labels = {member: each.label for each in series for member in each.members}
    table = make_table(
        _right("per step"),
        _right("first"),
        _right("last"),
        _right("steps"),
        Column("category", no_wrap=True),
        Column("what it is, where it is made", no_wrap=True),
    )
    label_width = max(len(labels[group.category]) for group in view.growth)
    room = max(20, width - 3 * 13 - 7 - (label_width + 2))
    for group in view.growth:
        what = _what(group.name, group.module, "", group.stack, room)
        table.add_row(
            Text(format_bytes(group.bytes_per_step, signed=True), style="bold"),
            _bytes(group.first_bytes),
            _bytes(group.last_bytes),
            str(group.steps),
            labels[group.category],
            what,
        )
    return table


def make_table(*columns: Column) -> Table:
    """A table in the look of this report: no lines, the header dim."""
    return Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")


def _right(header: str) -> Column:
    return Column(header, justify="right", no_wrap=True)


def _bytes(amount: int) -> Text:
    return Text(format_bytes(amount)) if amount else Text("-", style="dim")


def _percent(part: int, whole: int) -> Text:
    if whole <= 0 or part == 0:
        return Text("-", style="dim")
    share = 100 * part / whole
    return Text("<0.1 %" if share < 0.1 else f"{share:.1f} %")
