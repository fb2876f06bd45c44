"""What a simulated comparison says of a card: what is reserved, and whether that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from memlens.comparing.outputs.grids import NARROW, Ran, name_cell, names_width, right
from memlens.report.plan.text import card_text, shortage_lines
from memlens.report.tables import make_table
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.comparing.results import Comparison, Result

__all__ = ["cards_grid", "shortages"]

_NUMBER = 11
_GAP = 2


def cards_grid(comparison: Comparison, ran: Ran, *, width: int) -> Table:
    """Every variant that ran: reserved at most, how far that is from the baseline, and the verdict."""
    names = [plain(result.name) for result, _ in ran]
    wide = width >= NARROW
    columns = [right("reserved"), *([right("change")] if wide else [])]
    if comparison.verdicts:
        columns.append(Column("fits", no_wrap=True))
    if wide:
        columns.append(Column("peak in", no_wrap=True))
    room = width - (_NUMBER + _GAP) * len(columns) - _GAP * 4
    at_most = names_width(names, max(12, room))
    table = make_table(Column("variant", no_wrap=True), *columns)
    base = comparison.result(comparison.baseline).reserved_peak_bytes
    for (result, peak), name in zip(ran, names, strict=True):
        reserved = result.reserved_peak_bytes
        cells = [Text("-" if reserved is None else format_bytes(reserved))]
        if wide:
            cells.append(_change(comparison, result, base))
        if comparison.verdicts:
            cells.append(_fits(comparison, result))
        if wide:
            cells.append(Text(plain(f"step {peak.step}, {peak.phase}")))
        style = "bold" if result.name == comparison.baseline else ""
        table.add_row(name_cell(name, at_most), *cells, style=style)
    return table


def shortages(comparison: Comparison) -> list[str]:
    """Where each variant that does not fit runs out."""
    lines: list[str] = []
    for name, verdict in comparison.verdicts.items():
        if not lines:
            lines.append(card_text(verdict.gpu))
        if verdict.shortage is not None:
            where, *more = shortage_lines(verdict.shortage)
            lines += [f"{plain(name)}: {where[:1].lower()}{where[1:]}", *more]
    return lines


def _change(comparison: Comparison, result: Result, base: int | None) -> Text:
    if result.name == comparison.baseline:
        return Text("baseline")
    if base is None or result.reserved_peak_bytes is None:
        return Text("-")
    change = result.reserved_peak_bytes - base
    return Text(format_bytes(change, signed=True) if change else "=")


def _fits(comparison: Comparison, result: Result) -> Text:
    verdict = comparison.verdicts.get(result.name)
    if verdict is None:
        return Text("-")
    if verdict.fits:
        return Text("only just" if verdict.retries else "yes")
    return Text("no", style="red")
