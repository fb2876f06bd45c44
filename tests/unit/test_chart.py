"""Pictures made of characters: what is drawn is what was there."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from memlens.answers import Timeline
from memlens.events import Category
from memlens.palette import CATEGORY_SERIES
from memlens.report.chart import area_chart, legend, sample
from memlens.report.ink import Cell, Ink, cells
from memlens.report.ticks import stride

LETTERS = Ink(colour=False, blocks=False)
COLOURS = Ink(colour=True, blocks=True)


def timeline_of(*entries: tuple[int, int, int]) -> Timeline:
    """Entries are (time, weight bytes, activation bytes)."""
    times, weights, activations = (
        np.array(column, np.int64) for column in zip(*entries, strict=True)
    )
    zero = np.zeros_like(times)
    categories = dict.fromkeys(Category, zero)
    categories |= {Category.WEIGHT: weights, Category.ACTIVATION: activations}
    return Timeline(times, weights + activations, categories, {0: int(times[0])})


entries = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 1000), st.integers(0, 1000)), min_size=1
).map(lambda rows: sorted(rows, key=lambda row: row[0]))


@given(entries, st.integers(1, 40))
def test_the_peak_is_in_the_picture(rows: list[tuple[int, int, int]], columns: int) -> None:
    timeline = timeline_of(*rows)
    indices = sample(timeline, columns, rows[0][0], rows[-1][0])
    assert len(indices) == columns
    assert max(timeline.allocated_bytes[indices]) == timeline.allocated_bytes.max()


@given(entries, st.integers(1, 40))
def test_a_column_shows_the_highest_level_of_its_time(
    rows: list[tuple[int, int, int]], columns: int
) -> None:
    """Checked against the definition, entry by entry."""
    timeline = timeline_of(*rows)
    start, end = 0, 60
    edges = np.linspace(start, end, columns + 1)
    for column, index in enumerate(sample(timeline, columns, start, end)):
        begin, finish = edges[column], edges[column + 1]
        last = column == columns - 1
        holding = [
            at
            for at, when in enumerate(timeline.time_ns)
            if begin <= when < finish
            or (last and when == finish)
            # What began earlier, and nothing took its place before the column begins.
            or (when < begin and (at + 1 == len(rows) or timeline.time_ns[at + 1] > begin))
        ]
        levels = [int(timeline.allocated_bytes[at]) for at in holding]
        shown = 0 if index < 0 else int(timeline.allocated_bytes[index])
        assert shown == max(levels, default=0)


def test_nothing_is_drawn_before_the_first_event() -> None:
    assert sample(timeline_of((50, 1, 1)), 4, 0, 100) == [-1, -1, 0, 0]


@given(st.lists(st.integers(0, 10**12), max_size=11), st.integers(1, 60), st.integers(0, 10**12))
def test_a_stack_is_as_high_as_its_sum(amounts: list[int], length: int, room: int) -> None:
    full = sum(amounts) + room
    line = cells(amounts, full, length)
    assert len(line) == length
    filled = sum(
        8 if cell.lower is not None and cell.upper is not None else cell.eighths
        for cell in line
        if cell.lower is not None
    )
    expected = 8 * length * sum(amounts) / full if full else 0
    # Rounding of the edge; and where three bands meet, the smallest leaves its share to the others.
    assert abs(filled - expected) <= 4.5


def test_bands_lie_in_order_and_two_share_a_cell() -> None:
    assert cells([12, 4], 32, 4) == [
        Cell(0, None, 8),
        Cell(0, 1, 4),
        Cell(None, None, 8),
        Cell(None, None, 8),
    ]


def test_of_three_bands_in_one_cell_the_smallest_yields() -> None:
    assert cells([3, 1, 4], 8, 1) == [Cell(0, 2, 3)]


def test_an_amount_of_nothing_fills_nothing() -> None:
    assert cells([0, 0], 0, 3) == [Cell(None, None, 8)] * 3


def test_the_area_in_letters() -> None:
    timeline = timeline_of((0, 4, 0), (50, 4, 4), (75, 4, 2))
    picture = area_chart(
        timeline, CATEGORY_SERIES, LETTERS,
        width=28, rows=4, start_ns=0, end_ns=100, marker_ns=50,
    )  # fmt: skip
    assert [line.rstrip() for line in picture.plain.splitlines()] == [
        "                    v peak",
        "       8 B |        aaaa",
        "           |        aaaaaaaa",
        "       4 B |wwwwwwwwwwwwwwww",
        "           |wwwwwwwwwwwwwwww",
        "       0 B ++---------------",
        "            step 0",
    ]


def test_the_area_in_colours() -> None:
    timeline = timeline_of((0, 3, 5))
    picture = area_chart(timeline, CATEGORY_SERIES, COLOURS, width=13, rows=1, start_ns=0, end_ns=1)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=40)
    with console.capture() as captured:
        console.print(picture)
    weight, activation = CATEGORY_SERIES[0].colour, CATEGORY_SERIES[4].colour

    def numbers(colour: str) -> str:
        return ";".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))

    # Three eighths of the cell in front, the rest behind.
    assert f"\x1b[38;2;{numbers(weight)};48;2;{numbers(activation)}m▃\x1b[0m" in captured.get()


@pytest.mark.parametrize("steps", [1, 7, 40, 1000])
def test_step_numbers_never_run_into_each_other(steps: int) -> None:
    timeline = timeline_of((0, 1, 0), (1000 * steps, 1, 0))
    timeline.step_start_ns.update({step: 1000 * step for step in range(steps)})
    picture = area_chart(
        timeline, CATEGORY_SERIES, LETTERS, width=80, rows=3, start_ns=0, end_ns=1000 * steps
    )
    word, step_0, *numbers = picture.plain.splitlines()[-1].split()
    assert (word, step_0) == ("step", "0")
    found = [int(number) for number in numbers]
    assert found == sorted(set(found))
    assert all(number < steps for number in found)
    assert len({b - a for a, b in pairwise(found)}) <= 1
    assert bool(found) == (steps > 1)


@pytest.mark.parametrize(
    ("system", "no_color", "colour"),
    [
        (None, False, False),
        ("standard", False, False),
        ("256", False, True),
        ("truecolor", False, True),
        ("truecolor", True, False),
    ],
)
def test_letters_where_colours_would_not_do(
    system: Literal["standard", "256", "truecolor"] | None, no_color: bool, colour: bool
) -> None:
    console = Console(
        file=io.StringIO(), force_terminal=True, color_system=system, no_color=no_color
    )
    assert Ink.of(console) == Ink(colour=colour, blocks=True)


@pytest.mark.parametrize(
    ("at_least", "number"), [(0, 1), (1, 1), (1.1, 2), (3, 5), (5.5, 10), (11, 20), (501, 1000)]
)
def test_stride(at_least: float, number: int) -> None:
    assert stride(at_least) == number


def test_a_bar_is_as_long_as_its_amount_and_never_nothing() -> None:
    series = CATEGORY_SERIES[:2]
    assert LETTERS.bar([50, 25], 100, 8, series).plain == "wwwwmm"
    assert COLOURS.bar([50, 25], 100, 8, series).plain == "━━━━━━"
    assert LETTERS.bar([1, 0], 10**9, 8, series).plain == "."
    assert LETTERS.bar([0, 0], 10**9, 8, series).plain == ""


def test_a_sparkline_keeps_a_single_high_step() -> None:
    amounts = [4] * 99 + [8]
    assert COLOURS.sparkline(amounts, 10, "").plain == "▄" * 9 + "█"
    assert COLOURS.sparkline([0, 8], 10, "").plain == " █"
    assert COLOURS.sparkline([], 10, "").plain == ""


def test_the_legend_breaks_between_entries_only() -> None:
    lines = legend(CATEGORY_SERIES, LETTERS, 40).plain.splitlines()
    assert max(map(len, lines)) <= 40
    assert sorted("   ".join(lines).split("   ")) == sorted(
        f"{each.letter} {each.label}" for each in CATEGORY_SERIES
    )
