"""The tables of a comparison in a terminal: peaks, categories, time and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from memlens.comparing.outputs.names import share_width, wrap_name
from memlens.comparing.results import Status
from memlens.report.tables import make_table
from memlens.report.text import plain
from memlens.units import format_bytes, format_duration_ns

if TYPE_CHECKING:
    from memlens.comparing.results import Comparison, PeakResult, Result
    from memlens.palette import Series
    from memlens.report.ink import Ink

__all__ = [
    "BYTES_WIDTH",
    "GAP",
    "NARROW",
    "REUSED_MARK",
    "SHORT_NAME",
    "Ran",
    "categories_grids",
    "name_cell",
    "names_width",
    "peaks_grid",
    "right",
    "rows_grids",
    "steps_grid",
]

REUSED_MARK = "*"

GAP = 2
"""Spaces between two columns."""
BYTES_WIDTH = len("1023.99 MiB")
NAME_LINES = 4
"""A name may take so many lines before a table takes another form."""
SHORT_NAME = 20
"""Names are not broken into shorter lines than this, where a table can be cut instead."""
NARROW = 64
"""Below this width, the least important columns are left out."""
WIDE = 96
"""From this width on, tables also say what the report of a single run says."""

_STATUS_STYLE = {Status.FAILED: "red", Status.REFUSED: "yellow"}

Ran = Sequence[tuple["Result", "PeakResult"]]


def peaks_grid(comparison: Comparison, series: Sequence[Series], ink: Ink, *, width: int) -> Table:
    """Every variant: its peak as a number and as a stacked bar, and the way from the baseline."""
    wide = width >= NARROW
    numbers = BYTES_WIDTH + GAP + len("+100.0 %") + GAP
    numbers += (GAP + BYTES_WIDTH + 1) if wide else 0
    names = [_shown(result) for result in comparison.results]
    name_width = names_width(names, max(12, (width - numbers) * 11 // 20))
    bar_width = min(60, width - numbers - name_width - 2 * GAP)
    table = make_table(
        Column("variant", no_wrap=True),
        right("peak"),
        *([Column("", width=bar_width)] if bar_width >= 6 else []),
        *([right("change")] if wide else []),
        right("" if wide else "change"),
    )
    full = max((r.peak.allocated_bytes for r in comparison.results if r.peak), default=0)
    for result, name in zip(comparison.results, names, strict=True):
        peak, difference = result.peak, comparison.difference(result)
        is_baseline = result.name == comparison.baseline
        size, bar = Text(result.status.value, style=_STATUS_STYLE.get(result.status, "")), Text()
        if peak is not None:
            size = Text(format_bytes(peak.allocated_bytes))
            amounts = [each.amount(peak.categories) for each in series]
            bar = ink.bar(amounts, full, bar_width, series)
        change = _change(difference.peak_bytes) if difference else _unknown()
        percent = _percent(difference.peak_percent) if difference else Text()
        if is_baseline and peak is not None:
            change, percent = (Text("baseline"), Text()) if wide else (Text(), Text("baseline"))
        table.add_row(
            name_cell(name, name_width),
            size,
            *([bar] if bar_width >= 6 else []),
            *([change] if wide else []),
            percent,
            style="bold" if is_baseline else "",
        )
    return table


def categories_grids(ran: Ran, series: Sequence[Series], ink: Ink, *, width: int) -> list[Table]:
    """What each peak is made of: variants as columns while they fit, otherwise as rows.

    Rows that are still too long are cut into several tables.
    """
    names = [plain(result.name) for result, _ in ran]
    label_width = max(len("total"), *(len(each.label) for each in series))
    room = width - 1 - GAP - label_width - GAP * len(ran)
    widths = share_width(names, BYTES_WIDTH, room)
    heads = [wrap_name(name, each) for name, each in zip(names, widths, strict=True)]
    if sum(widths) <= room and max(map(len, heads)) <= NAME_LINES:
        return [_variants_as_columns(ran, heads, series, ink)]
    return rows_grids([peak for _, peak in ran], names, series, width=width)


def _variants_as_columns(
    ran: Ran, heads: Sequence[list[str]], series: Sequence[Series], ink: Ink
) -> Table:
    table = make_table(
        Column("", width=1),
        Column("category", no_wrap=True),
        *(right("\n".join(head)) for head in heads),
    )
    for each in series:
        amounts = [each.amount(peak.categories) for _, peak in ran]
        table.add_row(ink.swatch(each), each.label, *map(_bytes, amounts))
    totals = [_bytes(peak.allocated_bytes) for _, peak in ran]
    table.add_row("", "total", *totals, style="bold")
    return table


def rows_grids(
    peaks: Sequence[PeakResult],
    names: Sequence[str],
    series: Sequence[Series],
    *,
    width: int,
    head: str = "variant",
) -> list[Table]:
    """What peaks are made of, a row for each; in several tables where columns do not fit into one."""
    columns: list[tuple[str, list[Text]]] = [
        (each.label.replace(" ", "\n"), [_bytes(each.amount(peak.categories)) for peak in peaks])
        for each in series
    ]
    columns.append(("total", [_bytes(peak.allocated_bytes) for peak in peaks]))
    taken = [
        GAP + max(len(text) for text in (*title.split("\n"), *map(str, cells)))
        for title, cells in columns
    ]
    if width - sum(taken) >= SHORT_NAME:
        return [_rows(names, names_width(names, width - sum(taken)), columns, head)]
    name_width = names_width(names, max(SHORT_NAME, width // 3))
    per_table = max(1, (width - name_width) // max(taken))
    # As many columns in each, so that the last one is no shorter than the others.
    size = -(-len(columns) // -(-len(columns) // per_table))
    return [
        _rows(names, name_width, columns[start : start + size], head)
        for start in range(0, len(columns), size)
    ]


def _rows(
    names: Sequence[str], name_width: int, columns: Sequence[tuple[str, list[Text]]], head: str
) -> Table:
    table = make_table(
        Column(head, no_wrap=True, width=name_width), *(right(title) for title, _ in columns)
    )
    for at, name in enumerate(names):
        table.add_row(name_cell(name, name_width), *(cells[at] for _, cells in columns))
    return table


def steps_grid(comparison: Comparison, ran: Ran, *, width: int) -> Table:
    """Time of a step, loss, and when the peak was."""
    names = [plain(result.name) for result, _ in ran]
    wide, widest = width >= NARROW, width >= WIDE
    where = [plain(f"step {peak.step}, {peak.phase}") for _, peak in ran]
    columns = [right("step time"), right("final loss")]
    numbers = 10 + 10
    if wide:
        columns = [right(each) for each in ("step time", "ratio", "steps", "final loss", "change")]
        numbers += 7 + 6 + 10
    if widest:
        columns.append(Column("peak in", no_wrap=True))
        numbers += max(map(len, where))
    name_width = names_width(names, max(12, width - numbers - GAP * len(columns)))
    table = make_table(Column("variant", no_wrap=True), *columns)
    for (result, _), name, when in zip(ran, names, where, strict=True):
        difference = comparison.difference(result)
        is_baseline = result.name == comparison.baseline
        time = result.step_time_ns
        cells = [_known(time and format_duration_ns(time)), _known(_loss(result.final_loss))]
        if wide:
            ratio = difference.step_time_ratio if difference else None
            change = difference.final_loss if difference else None
            cells.insert(1, _known(ratio and f"{ratio:.2f} ×"))
            cells.insert(2, Text(str(result.steps)))
            cells.append(_known(_loss_change(change) if not is_baseline else "baseline"))
        if widest:
            cells.append(Text(when))
        table.add_row(name_cell(name, name_width), *cells, style="bold" if is_baseline else "")
    return table


def _shown(result: Result) -> str:
    return plain(result.name) + (f" {REUSED_MARK}" if result.reused else "")


def names_width(names: Sequence[str], at_most: int) -> int:
    """As wide as the longest name, or less, so that long ones take several lines."""
    return min(max(len("variant"), *map(cell_len, names)), at_most)


def name_cell(name: str, width: int) -> Text:
    """A name, broken into lines."""
    return Text("\n".join(wrap_name(name, width)))


def right(header: str) -> Column:
    """A column of numbers."""
    return Column(header, justify="right", no_wrap=True)


def _unknown() -> Text:
    return Text("-", style="dim")


def _known(text: object) -> Text:
    return Text(str(text)) if text else _unknown()


def _bytes(amount: int) -> Text:
    return Text(format_bytes(amount)) if amount else _unknown()


def _change(amount: int) -> Text:
    return Text(format_bytes(amount, signed=True) if amount else "=")


def _percent(percent: float) -> Text:
    if percent == 0:
        return Text()
    return Text("<0.1 %" if abs(percent) < 0.05 else f"{percent:+.1f} %")


def _loss(loss: float | None) -> str | None:
    # Losses of a training are around 1; others, also those that have diverged, are told by digits.
    if loss is None:
        return None
    return f"{loss:.4f}" if 0.01 <= abs(loss) < 100_000 else f"{loss:.4g}"


def _loss_change(change: float | None) -> str | None:
    if change is None:
        return None
    if change == 0:
        return "="
    return f"{change:+.4f}" if 0.001 <= abs(change) < 100_000 else f"{change:+.2g}"
