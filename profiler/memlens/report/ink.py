"""Drawing with characters: bars and stacked columns, an eighth of a character fine.

A terminal cell shows two colours at most: a block character in one, on a background of the other.
Where three or more bands meet in one cell, the two largest share it. Without colours, each band is
drawn with its letter instead (see `memlens.palette`), so a picture stays readable in a pipe, a log
or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise, takewhile
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from memlens.palette import Series

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Cell", "Ink", "cells"]

EIGHTHS_UP = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Cell:
    """One character: `lower` fills `eighths` of it from below (or the left), `upper` the rest.

    Both are indices of series; None is empty space.
    """

    lower: int | None
    upper: int | None
    eighths: int


def cells(amounts: Sequence[int], full: int, length: int) -> list[Cell]:
    """Stack amounts along a line of characters.

    Args:
        amounts: bytes per series, in stacking order.
        full: the bytes that fill the whole line.
        length: of the line, in characters.
    """
    bands: list[tuple[int | None, int, int]] = []
    stacked, start = 0, 0
    for index, amount in enumerate(amounts):
        stacked += amount
        end = min(8 * length, round(8 * length * stacked / full)) if full > 0 else 0
        if end > start:
            bands.append((index, start, end))
            start = end
    bands.append((None, start, 8 * length))
    line = []
    for at in range(0, 8 * length, 8):
        inside = [
            (index, min(end, at + 8) - max(begin, at))
            for index, begin, end in bands
            if begin < at + 8 and end > at
        ]
        while len(inside) > 2:
            inside.remove(min(inside, key=lambda part: part[1]))
        lower, size = inside[0]
        if len(inside) == 1:
            line.append(Cell(lower, None, 8))
        else:
            upper, other = inside[1]
            line.append(Cell(lower, upper, round(8 * size / (size + other))))
    return line


@dataclass(frozen=True)
class Ink:
    """What the terminal can show."""

    colour: bool
    """At least 256 colours; with 16, several categories would look alike."""
    blocks: bool
    """The encoding has block characters."""

    @classmethod
    def of(cls, console: Console) -> Ink:
        """What this console can show."""
        colour = console.color_system in ("256", "truecolor") and not console.no_color
        return cls(colour=colour, blocks=console.encoding.lower().startswith("utf"))

    def swatch(self, series: Series) -> Text:
        """The sign of a series in a legend or table."""
        if self.colour:
            return Text("■" if self.blocks else "#", style=series.colour)
        return Text(series.letter)

    def bar(self, amounts: Sequence[int], full: int, length: int, series: Sequence[Series]) -> Text:
        """One or several amounts end to end, as a line of up to `length` characters."""
        text = Text()
        line = cells(amounts, full, length)
        inked = (cell.lower if cell.eighths >= 4 else cell.upper for cell in line)
        for larger, run in groupby(takewhile(lambda index: index is not None, inked)):
            if larger is None:
                break
            width = len(list(run))
            if self.colour:
                # A thin line keeps rows apart, where full blocks of equal rows melt into one.
                sign = "━" if self.blocks else "#"
                text.append(sign * width, style=_style(series[larger].colour, None))
            else:
                text.append(series[larger].letter * width)
        if not text and any(amounts):
            # A bar that is too short to draw still says "not nothing".
            text.append("╸" if self.blocks else ".", style="dim")
        return text

    def column(self, cell: Cell, series: Sequence[Series]) -> Text:
        """One cell of a stacked column as one character."""
        lower = None if cell.lower is None else series[cell.lower]
        upper = None if cell.upper is None else series[cell.upper]
        if not (self.colour and self.blocks):
            larger = lower if cell.eighths >= 4 else upper
            return Text(larger.letter if larger else " ")
        if cell.eighths == 8:
            # A coloured background has no hairline gaps between rows; full blocks often do.
            return Text(" ", style=_style(None, lower.colour if lower else None))
        return Text(
            EIGHTHS_UP[cell.eighths],
            style=_style(lower.colour if lower else None, upper.colour if upper else None),
        )

    def sparkline(self, amounts: Sequence[int], length: int, style: str) -> Text:
        """Amounts over time as a row of columns, from zero to the largest."""
        if not amounts or not self.blocks:
            return Text()
        columns = min(length, len(amounts))
        edges = [at * len(amounts) // columns for at in range(columns + 1)]
        # A bucket is as high as its highest amount: a single high step must not vanish.
        peaks = [max(amounts[a:b]) for a, b in pairwise(edges)]
        top = max(1, *peaks)
        return Text("".join(EIGHTHS_UP[round(8 * peak / top)] for peak in peaks), style=style)


@cache
def _style(front: str | None, back: str | None) -> Style:
    return Style(color=front, bgcolor=back)
