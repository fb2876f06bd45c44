"""The list of what was alive: a click in the timeline, then sorting, filtering, searching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.browser import settle

import memlens
from memlens.capture import RankCapture

pytestmark = pytest.mark.slow

Show = Callable[[str], Any]
PAGE = 100


@pytest.fixture(scope="module")
def rank(logdir: Path) -> RankCapture:
    return memlens.load(logdir / "baseline").rank(0)


def sizes(page: Any) -> list[int]:
    settle(page)
    found: list[int] = page.eval_on_selector_all(
        ".alive td.size", "cells => cells.map(cell => Number(cell.dataset.bytes))"
    )
    return found


def column(page: Any, number: int) -> list[str]:
    settle(page)
    found: list[str] = page.eval_on_selector_all(
        f".alive tr[data-row] td:nth-child({number})", "cells => cells.map(cell => cell.innerText)"
    )
    return found


def listed_after(page: Any, act: Callable[[], None]) -> None:
    """Wait until another list is shown."""
    before = page.inner_html(".alive tbody")
    act()
    page.wait_for_function(
        "before => document.querySelector('.alive tbody').innerHTML !== before", arg=before
    )
    settle(page)


def test_the_peak_is_listed_first(show: Show, rank: RankCapture) -> None:
    page = show("run=baseline")
    alive = rank.allocations_at(top=None)
    assert sizes(page) == [block.size_bytes for block in alive[:PAGE]]
    assert f"{len(alive):,} blocks" in page.inner_text("[aria-label='What was alive'] .window-text")


def test_a_click_lists_what_was_alive_then(show: Show, rank: RankCapture) -> None:
    page = show("run=baseline")
    box = page.locator(".u-over").bounding_box()
    listed_after(page, lambda: page.mouse.click(box["x"] + 0.63 * box["width"], box["y"] + 60))
    time = int(page.evaluate("new URLSearchParams(location.hash.slice(1)).get('at')"))
    alive = rank.allocations_at(int(rank.blocks.time_ns[0]) + time, top=None)
    assert sizes(page) == [block.size_bytes for block in alive[:PAGE]]
    seen = sizes(page)
    while page.locator(".pages button:last-child:not([disabled])").count():
        listed_after(page, lambda: page.click(".pages button:last-child"))
        seen += sizes(page)
    assert sorted(seen) == sorted(block.size_bytes for block in alive)
    assert sum(seen) == sum(rank.categories_at(int(rank.blocks.time_ns[0]) + time).values())
    listed_after(page, lambda: page.click(".buttons button:has-text('Peak')"))
    assert "at the peak" in page.inner_text("[aria-label='What was alive'] h2")


def test_sorting(show: Show, rank: RankCapture) -> None:
    page = show("run=baseline")
    alive = rank.allocations_at(top=None)
    listed_after(page, lambda: page.click("th[data-sort=name] button"))
    names = sorted(block.name for block in alive)
    assert [text if text != "–" else "" for text in column(page, 3)] == names[:PAGE]
    listed_after(page, lambda: page.click("th[data-sort=name] button"))
    assert column(page, 3) == names[::-1][:PAGE]
    assert page.get_attribute("th[data-sort=name]", "aria-sort") == "descending"
    listed_after(page, lambda: page.click("th[data-sort=size] button"))
    listed_after(page, lambda: page.click("th[data-sort=size] button"))
    assert sizes(page) == sorted(block.size_bytes for block in alive)[:PAGE]


def test_filtering_by_selector_and_by_legend(show: Show, rank: RankCapture) -> None:
    page = show("run=baseline")
    held = rank.peak().categories
    listed_after(page, lambda: page.select_option("select[aria-label=Category]", "optimizer_state"))
    assert set(column(page, 2)) == {"optimizer state"}
    listed_after(page, lambda: page.click(".legend-row[data-category=weight]"))
    assert set(column(page, 2)) == {"weight"}
    weight = next(size for key, size in held.items() if key.value == "weight")
    assert f"{weight / 2**20:.2f} MiB" in page.inner_text(".table-count")
    listed_after(page, lambda: page.click(".legend-row[data-category=weight]"))
    assert len(set(column(page, 2))) > 1


def test_searching(show: Show, rank: RankCapture) -> None:
    page = show("run=baseline")
    wanted = "layers.3."
    listed_after(page, lambda: page.fill("input.search", wanted.upper()))
    page.wait_for_function("document.querySelector('.table-count').innerText.includes('of')")
    alive = rank.allocations_at(top=None)
    matching = [block for block in alive if wanted in block.name or wanted in block.module]
    assert f"of {len(matching):,} blocks" in page.inner_text(".table-count")
    page.fill("input.search", "no such thing")
    page.wait_for_selector("text=Nothing that was alive matches the filter")


def test_a_row_opens_and_tells_its_stack(show: Show, rank: RankCapture) -> None:
    page = show("run=baseline")
    block = rank.allocations_at(top=1)[0]
    page.click(".alive tr[data-row] .expand")
    frames = page.eval_on_selector_all(".stack li", "lines => lines.map(line => line.innerText)")
    assert frames == [
        f"{frame.function} {frame.file}:{frame.line}" for frame in reversed(block.stack)
    ]
    assert f"{block.size_bytes:,} bytes" in page.inner_text(".block-details")
    page.keyboard.press("Enter")  # the button keeps the focus
    assert page.locator(".block-details").count() == 0
