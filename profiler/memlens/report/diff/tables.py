"""The tables of `memlens diff` in a terminal. Each function makes one, from a diff of two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from rich.table import Column, Table
from rich.text import Text

from memlens.analysis.change import Change, total
from memlens.report.groups import Group, pattern
from memlens.report.tables import MANY_STEPS, NARROW, make_table
from memlens.report.text import count, frame_text, plain, shorten
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.analysis.diff import ModuleChange, StepChange
    from memlens.analysis.sites import SiteChange
    from memlens.events import Category
    from memlens.palette import Series
    from memlens.report.ink import Ink

__all__ = [
    "alike_modules",
    "alike_sites",
    "categories_table",
    "modules_table",
    "of_series",
    "percent",
    "sites_table",
    "steps_table",
]

T = TypeVar("T")

_HEADERS = ("A", "B", "B - A", "of A")
"""Of the columns that every table has."""

_FIRST, _LAST = 3, 3
"""Of many steps, so many are shown at both ends."""


def categories_table(
    categories: Mapping[Category, Change], series: Sequence[Series], ink: Ink, *, width: int
) -> Table:
    """Bytes per category in both runs; the bars are the sizes of the differences."""
    changes = [(each, of_series(each, categories)) for each in series]
    shown = [(each, change) for each, change in changes if change.a_bytes or change.b_bytes]
    whole = total(change for _, change in shown)
    rows = [_numbers(change) for change in (*(change for _, change in shown), whole)]
    label_width = max([len("category"), *(len(each.label) for each, _ in shown)])
    bar_width = max(4, min(40, width - 3 - (label_width + 2) - _width(rows) - 2))
    table = make_table(
        Column("", width=1),
        Column("category", no_wrap=True),
        *_number_columns(),
        Column("", width=bar_width),
    )
    full = max((abs(change.difference_bytes) for _, change in shown), default=0)
    for (each, change), numbers in zip(shown, rows[:-1], strict=True):
        bar = ink.bar([abs(change.difference_bytes)], full, bar_width, [each])
        table.add_row(ink.swatch(each), each.label, *numbers, bar)
    table.add_row("", "total", *rows[-1], "", style="bold")
    return table


def steps_table(steps: Sequence[StepChange]) -> Table:
    """The peak of every step; of many, the first and last and the one that differs most."""
    table = make_table(_right("step"), *_number_columns())
    shown = _steps_to_show(steps)
    skipped = 0
    for step in steps:
        if step.step not in shown:
            skipped += 1
            continue
        if skipped:
            table.add_row("", Text(f"… {count(skipped, 'step')}", style="dim"))
            skipped = 0
        size = step.size
        if size:
            table.add_row(str(step.step), *_numbers(size))
        else:
            only = "A" if step.b_bytes is None else "B"
            table.add_row(
                str(step.step),
                *(_amount(each) for each in (step.a_bytes, step.b_bytes)),
                Text(f"only in {only}", style="dim"),
            )
    return table


def _steps_to_show(steps: Sequence[StepChange]) -> set[int]:
    if len(steps) <= MANY_STEPS:
        return {step.step for step in steps}
    most = max(steps, key=lambda step: abs(step.size.difference_bytes) if step.size else -1)
    # Where one run ends and the other goes on is worth a row, too.
    edges = [
        second for first, second in pairwise(steps) if (first.size is None) != (second.size is None)
    ]
    return {step.step for step in (*steps[:_FIRST], most, *edges[:2], *steps[-_LAST:])}


def modules_table(
    groups: Sequence[Group[ModuleChange]], series: Sequence[Series], ink: Ink, *, width: int
) -> Table:
    """What the modules of each group hold together; the bars say in which categories they differ."""
    names = [plain(group.name(group.first.module)) or "(no module)" for group in groups]
    rows = [_numbers(_together(group, group.first.size), width) for group in groups]
    # Names first: the bar takes what they leave, and if that is little, they are cut.
    room = width - (5 + 2) - _width(rows) - (2 + 2)
    classes = [_classes(group.first) for group in groups]
    name_width = max(8, min(max(map(len, [*names, *classes])), room - 6))
    bar_width = max(4, min(40, room - name_width))
    table = make_table(
        _right(""),
        Column("module", no_wrap=True),
        *_number_columns(width),
        Column("", width=bar_width),
    )
    amounts = [
        [
            group.count * abs(of_series(each, group.first.categories).difference_bytes)
            for each in series
        ]
        for group in groups
    ]
    full = max(map(sum, amounts))
    cells = zip(groups, names, classes, rows, amounts, strict=True)
    for group, name, changed, numbers, parts in cells:
        known = Text(shorten(name, name_width), style="" if group.first.module else "dim")
        if changed:
            known.append(f"\n{shorten(changed, name_width)}", style="dim")
        table.add_row(
            _times(group.count),
            known,
            *numbers,
            ink.bar(parts, full, bar_width, series),
        )
    return table


def _classes(module: ModuleChange) -> str:
    """How a module's class has changed; empty if it has not."""
    a_class, b_class = module.a_class_name, module.b_class_name
    return plain(f"{a_class} → {b_class}") if a_class and b_class and a_class != b_class else ""


def sites_table(
    groups: Sequence[Group[SiteChange]], series: Sequence[Series], ink: Ink, *, width: int
) -> Table:
    """What each allocation site holds, in how many blocks, and which line it is."""
    of_category = {member: each for each in series for member in each.members}
    blocks = [_blocks(group) for group in groups]
    rows = [_numbers(_together(group, group.first.size), width) for group in groups]
    room = max(16, width - _width(rows) - (max(6, *map(len, blocks)) + 2) - 3 - 2)
    table = make_table(
        *_number_columns(width),
        _right("blocks"),
        Column("", width=1),
        Column("what it is, where it was made", no_wrap=True),
    )
    for group, numbers, number in zip(groups, rows, blocks, strict=True):
        category = of_category[group.first.category]
        function, place = _where(group)
        text = Text(category.label)
        if function:
            text.append(f" in {shorten(function, max(8, room - len(text) - 4))}")
        text.append(f"\n{shorten(place, room)}", style="dim")
        table.add_row(*numbers, number, ink.swatch(category), text)
    return table


def _blocks(group: Group[SiteChange]) -> str:
    a_blocks, b_blocks = group.count * group.first.a_blocks, group.count * group.first.b_blocks
    return f"{a_blocks:,}" if a_blocks == b_blocks else f"{a_blocks:,} → {b_blocks:,}"


def _where(group: Group[SiteChange]) -> tuple[str, str]:
    """Function, and file and line; without a stack no function, but what else is known."""
    site = group.first
    frame = site.b_frame or site.a_frame
    if frame is None:
        name, module = plain(group.name(site.name)), plain(group.name(site.module))
        return "", name or (f"in {module}" if module else "(no stack, no name, no module)")
    function = plain(frame.function)
    place = frame_text(frame).removesuffix(f" {function}")
    if site.a_frame and site.b_frame and site.a_frame.line != site.b_frame.line:
        place += f" (in A: {site.a_frame.line})"
    return function, place


def alike_modules(modules: Iterable[ModuleChange]) -> list[Group[ModuleChange]]:
    """Modules of sibling layers that hold the same in A and the same in B, and do differ."""
    return _alike(
        (each for each in modules if each.differs),
        lambda each: each.size,
        lambda each: (
            pattern(each.module),
            each.a_class_name,
            each.b_class_name,
            tuple(each.categories.items()),
        ),
    )


def alike_sites(sites: Iterable[SiteChange]) -> list[Group[SiteChange]]:
    """Sites that differ; those without a stack put together if they are alike but for the layer."""
    return _alike(
        (each for each in sites if each.differs),
        lambda each: each.size,
        lambda each: (
            each.category,
            each.a_frame,
            each.b_frame,
            pattern(each.name),
            pattern(each.module),
            each.size,
            each.a_blocks,
            each.b_blocks,
        ),
    )


def _alike(
    changes: Iterable[T], size: Callable[[T], Change], key: Callable[[T], object]
) -> list[Group[T]]:
    found: dict[object, list[T]] = {}
    for change in changes:
        found.setdefault(key(change), []).append(change)
    groups = [
        Group(members[0], len(members), size(members[0]).difference_bytes)
        for members in found.values()
    ]
    return sorted(groups, key=lambda group: -abs(group.total_bytes))


def of_series(series: Series, categories: Mapping[Category, Change]) -> Change:
    """What a series holds in both runs; a missing category counts as 0."""
    return total(categories[member] for member in series.members if member in categories)


def percent(change: Change) -> Text:
    """The difference in per cent of A, with its sign."""
    share = change.difference_percent
    if share is None:
        return Text("only in B")
    if share == 0:
        return Text("=", style="dim")
    if not change.b_bytes:
        return Text("only in A")
    return Text(f"{'+' if share > 0 else '-'}{_share(abs(share))} %")


def _share(share: float) -> str:
    if share < 0.1:
        return "<0.1"
    return f"{share:.1f}" if share < 1000 else f"{share:,.0f}"


def _together(group: Group[T], each: Change) -> Change:
    return Change(group.count * each.a_bytes, group.count * each.b_bytes)


def _numbers(change: Change, width: int = NARROW) -> list[Text]:
    """The cells of the number columns."""
    difference = change.difference_bytes
    cells = [
        _amount(change.a_bytes),
        _amount(change.b_bytes),
        Text(format_bytes(difference, signed=True)) if difference else Text("=", style="dim"),
        percent(change),
    ]
    return cells[: len(_headers(width))]


def _number_columns(width: int = NARROW) -> list[Column]:
    return [_right(header) for header in _headers(width)]


def _headers(width: int) -> tuple[str, ...]:
    # Where there is little room, names say more than per cent.
    return _HEADERS if width >= NARROW else _HEADERS[:3]


def _width(rows: Sequence[Sequence[Text]]) -> int:
    """What the number columns take, the gaps behind them included."""
    return sum(
        2 + max(len(header), *(len(row[at]) for row in rows))
        for at, header in enumerate(_HEADERS[: len(rows[0])])
    )


def _right(header: str) -> Column:
    return Column(header, justify="right", no_wrap=True)


def _amount(amount_bytes: int | None) -> Text:
    return Text(format_bytes(amount_bytes)) if amount_bytes else Text("-", style="dim")


def _times(number: int) -> Text:
    return Text(f"{number} ×" if number > 1 else "", style="dim")
