"""What a comparison says to people in a terminal."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from tests.support.fake_comparison import COMPARISONS, SIX, failed, make_comparison

from memlens.comparing.capacity import Capacity
from memlens.comparing.outputs.names import share_width, wrap_name
from memlens.comparing.outputs.table import print_comparison
from memlens.comparing.results import Comparison
from memlens.palette import series_of
from memlens.report.text import plain
from memlens.units import format_bytes

MIB = 1 << 20


def text_of(
    comparison: Comparison,
    *,
    width: int = 100,
    colour: bool = False,
    rollup: bool = False,
    capacities: tuple[Capacity, ...] = (),
) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    print_comparison(comparison, console, rollup=rollup, capacities=capacities)
    return stream.getvalue()


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def section(text: str, title: str) -> list[str]:
    """The lines below a heading, up to the next one."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if re.match(rf"{title} ─", line))
    end = next((at for at in range(start, len(lines)) if not lines[at].strip()), len(lines))
    return lines[start + 1 : end]


def test_all_of_it() -> None:
    """Letter by letter: what people and their scripts see."""
    limit = Capacity("small card", 150 * MIB)
    lines = [line.rstrip() for line in text_of(SIX, capacities=(limit,)).splitlines()]
    assert lines == GOLDEN.splitlines()


@pytest.mark.parametrize("rollup", [False, True])
@pytest.mark.parametrize("width", [40, 80, 100, 140])
@pytest.mark.parametrize("name", COMPARISONS)
def test_nothing_is_cut_or_dropped(name: str, width: int, rollup: bool) -> None:
    comparison = COMPARISONS[name]
    limits = (Capacity("RTX 4090", 24 * 10**9), Capacity("", 100 * MIB))
    text = text_of(comparison, width=width, rollup=rollup, capacities=limits)
    assert "\x1b" not in text
    assert max(cell_len(line) for line in text.splitlines()) <= width
    # An ellipsis would be rich's, of a cell that is too narrow.
    assert "…" not in text
    for result in comparison.results:
        if result.peak is not None:
            assert format_bytes(result.peak.allocated_bytes) in text
        else:
            assert squeezed(plain(f"{result.status.value}: {result.reason}")) in squeezed(text)
        for note in result.notes:
            assert squeezed(plain(note)) in squeezed(text)
        # Broken into lines where it must be, but with no letter lost.
        assert plain(result.name)[:8].split(":")[0] in text


@pytest.mark.parametrize("rollup", [False, True])
@pytest.mark.parametrize("name", ["ok only", "six", "every category", "huge", "tiny", "unicode"])
def test_the_categories_are_those_at_the_peak(name: str, rollup: bool) -> None:
    comparison = COMPARISONS[name]
    ran = [result.peak for result in comparison.results if result.peak]
    title = "At the peak, by published name" if rollup else "At the peak, by category"
    rows = {
        match[1].strip(): re.split(r" {2,}", match[2].strip())
        for line in section(text_of(comparison, rollup=rollup), title)
        if (match := re.match(r"^.  ((?:\w+ ?)+?)  +(.*)$", line))
    }
    for series in series_of(rollup):
        amounts = [series.amount(peak.categories) for peak in ran]
        if not any(amounts):
            assert series.label not in rows
            continue
        assert rows[series.label] == [format_bytes(each) if each else "-" for each in amounts]
    totals = [peak.allocated_bytes for peak in ran]
    assert rows["total"] == [format_bytes(each) if each else "-" for each in totals]


def test_variants_become_rows_when_they_are_many() -> None:
    comparison = COMPARISONS["twenty"]
    text = text_of(comparison, rollup=True)
    lines = section(text, "At the peak, by published name")
    (row,) = [line for line in lines if line.startswith("variant-07 ")]
    peak = comparison.result("variant-07").peak
    assert peak is not None
    amounts = [each.amount(peak.categories) for each in series_of(rollup=True)]
    assert re.split(r" {2,}", row) == [
        "variant-07",
        *(format_bytes(size) for size in [*amounts, sum(amounts)]),
    ]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_table_that_is_cut_has_all_its_columns(width: int) -> None:
    """Seven categories of twenty variants: more than a line holds."""
    comparison = COMPARISONS["twenty"]
    lines = section(text_of(comparison, width=width), "At the peak, by category")
    cells = [
        cell
        for line in lines
        if line.startswith("variant-07 ")
        for cell in re.split(r" {2,}", line.strip())[1:]
    ]
    peak = comparison.result("variant-07").peak
    assert peak is not None
    amounts = [each.amount(peak.categories) for each in series_of(rollup=False)]
    assert cells == [format_bytes(size) for size in [*filter(None, amounts), sum(amounts)]]


def test_bars_have_one_scale() -> None:
    lines = section(text_of(COMPARISONS["ok only"]), "Peak memory")
    bars = [match[0] for line in lines if (match := re.search(r"(?<= )[woagit]{6,}", line))]
    peaks = [each.peak.allocated_bytes for each in COMPARISONS["ok only"].results if each.peak]
    length = len(bars[0])
    # Half a letter is lost or won where a bar ends within one.
    assert [len(bar) for bar in bars] == [
        pytest.approx(length * each / max(peaks), abs=0.51) for each in peaks
    ]


def test_colours_change_nothing_but_the_bars() -> None:
    def words(text: str) -> list[str]:
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        return re.findall(r"[A-Za-z_.]{2,}|\d[\d.,]*", re.sub(r"\b[woagixt]{4,}\b", "", text))

    plain_text, coloured = (text_of(SIX, colour=colour) for colour in (False, True))
    assert "\x1b[" in coloured
    assert words(plain_text) == words(coloured)


def test_what_fits_and_what_does_not() -> None:
    limits = (Capacity("card", 140 * MIB), Capacity("", 1 << 30))
    assert section(text_of(COMPARISONS["ok only"], capacities=limits), "Capacity") == [
        "card (140.00 MiB)",
        "  fit        adamw8bit",
        "  too large  adamw (+32.00 MiB), adamw-r (+5.50 MiB)",
        "1.00 GiB",
        "  fit        adamw, adamw-r, adamw8bit",
        "by what was allocated; an allocator's slack and a device's context come on top",
    ]


def test_no_differences_without_a_baseline() -> None:
    text = text_of(COMPARISONS["baseline failed"])
    assert "the baseline adamw has no peak, so differences are not known" in text
    assert "%" not in text
    assert " × " not in text


def test_when_nothing_came_to_its_end() -> None:
    text = text_of(COMPARISONS["all failed"], capacities=(Capacity("card", MIB),))
    for title in ("At the peak", "Time and loss", "Capacity"):
        assert title not in text
    assert section(text, "Failed or refused")[-2:] == [
        "muon  failed: exit code 1",
        "lion  failed: no reason is known",
    ]


@given(st.text(max_size=80), st.integers(min_value=2, max_value=40))
def test_a_name_loses_no_letter_when_it_is_broken(name: str, width: int) -> None:
    name = plain(name)
    lines = wrap_name(name, width)
    assert squeezed("".join(lines)) == squeezed(name)
    assert max(map(cell_len, lines)) <= width


def test_a_name_is_broken_between_its_options() -> None:
    name = "galore-adamw8bit:rank=64,update_proj_gap=50+no-retain-grad"
    assert wrap_name(name, 58) == [name]
    assert wrap_name(name, 36) == [
        "galore-adamw8bit:rank=64,",
        "update_proj_gap=50+no-retain-grad",
    ]
    assert wrap_name(name, 12)[:3] == ["galore-", "adamw8bit:", "rank=64,"]


def test_the_longest_name_gets_the_room() -> None:
    assert share_width(["a", "b" * 20], least=5, room=30) == [5, 20]
    assert share_width(["a", "b" * 20], least=5, room=22) == [5, 17]
    assert share_width(["a", "b"], least=5, room=4) == [5, 5]


def test_one_variant_is_not_compared_with_itself() -> None:
    text = text_of(COMPARISONS["alone"])
    assert "1 variant ·" in text
    assert "%" not in text


def test_reasons_are_not_taken_for_markup() -> None:
    text = text_of(make_comparison(failed("a", 'pip install "memlens[torchao]" :smile:')))
    assert 'a  failed: pip install "memlens[torchao]" :smile:' in text


GOLDEN = """\
train.py --lr 1e-3   6 variants · cpu · torch 2.13.0+cpu

Peak memory ────────────────────────────────────────────────────────────────────────────────────────
variant                                  peak                                 change
adamw                              172.00 MiB  wwwwooooooooaaaaaaaaaaaat    baseline
adamw-r                            145.50 MiB  wwwwooooooooaaaaaaaat      -26.50 MiB  -15.4 %
adamw8bit *                        132.70 MiB  wwwwooaaaaaaaaaaaaa        -39.30 MiB  -22.8 %
galore-adamw8bit:rank=64,          142.45 MiB  wwwwoaaaaaaaaaaaaxxxt      -29.55 MiB  -17.2 %
update_proj_gap=50+no-retain-grad
muon                                   failed                                      -
adamw4bit                             refused                                      -
w weight   o optimizer state   g gradient   a activation   i input   x optimizer temporary
t temporary
* from an earlier call; --fresh runs it again

At the peak, by category ───────────────────────────────────────────────────────────────────────────
                                                                    galore-adamw8bit:rank=64,
   category                  adamw     adamw-r   adamw8bit  update_proj_gap=50+no-retain-grad
w  weight                26.50 MiB   26.50 MiB   26.50 MiB                          26.50 MiB
o  optimizer state       53.00 MiB   53.00 MiB   13.70 MiB                           5.70 MiB
g  gradient               1.00 MiB    1.00 MiB    1.00 MiB                         256.00 KiB
a  activation            86.50 MiB   60.00 MiB   86.50 MiB                          86.50 MiB
i  input                  4.10 KiB    4.10 KiB    4.10 KiB                           4.10 KiB
x  optimizer temporary           -           -           -                          18.50 MiB
t  temporary              5.00 MiB    5.00 MiB    5.00 MiB                           5.00 MiB
   total                172.00 MiB  145.50 MiB  132.70 MiB                         142.45 MiB

Time and loss ──────────────────────────────────────────────────────────────────────────────────────
variant                    step time   ratio  steps  final loss    change  peak in
adamw                       250.0 ms  1.00 ×      3      8.0000  baseline  step 1, backward
adamw-r                     262.5 ms  1.05 ×      3      8.0000         =  step 1, backward
adamw8bit                   310.0 ms  1.24 ×      3      8.0012   +0.0012  step 1, backward
galore-adamw8bit:rank=64,   500.0 ms  2.00 ×      3      9.1250   +1.1250  step 1, backward
update_proj_gap=50+
no-retain-grad
step time: median without the first, recorded by memlens all the while

Capacity ───────────────────────────────────────────────────────────────────────────────────────────
small card (150.00 MiB)
  fit        adamw-r, adamw8bit, galore-adamw8bit:rank=64,update_proj_gap=50+no-retain-grad
  too large  adamw (+22.00 MiB)
by what was allocated; an allocator's slack and a device's context come on top

Failed or refused ──────────────────────────────────────────────────────────────────────────────────
muon  failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total
    capacity of 23.65 GiB of which 91.56 MiB is free.
adamw4bit  refused: torchao is needed to run adamw4bit; install it with: pip install
    "memlens[torchao]"

Notes ──────────────────────────────────────────────────────────────────────────────────────────────
adamw8bit  12 of 75 parameters are smaller than 4,096 elements; their state is not quantised
"""
