"""The timeline in a real browser: what is shown, and what mouse and keys do to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.browser import settle
from tests.support.memory_tab import MemoryTab

import memlens

pytestmark = pytest.mark.slow

Show = Callable[[str], Any]


def span(page: Any) -> tuple[int, int]:
    """The window that is drawn."""
    low, _, high = page.get_attribute(".view-timeline", "data-shown").partition("-")
    return int(low), int(high)


def plot(page: Any, number: int = 0) -> dict[str, float]:
    """Where the curves are."""
    page.locator(".u-over").nth(number).scroll_into_view_if_needed()
    return page.locator(".u-over").nth(number).bounding_box()  # type: ignore[no-any-return]


def drag(page: Any, begin: float, end: float, *, button: str = "left", number: int = 0) -> None:
    """From one part of the chart's width to another."""
    box = plot(page, number)
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + begin * box["width"], y)
    page.mouse.down(button=button)
    page.mouse.move(box["x"] + (begin + end) / 2 * box["width"], y, steps=3)
    page.mouse.move(box["x"] + end * box["width"], y, steps=3)
    page.mouse.up(button=button)


def shown_after(page: Any, act: Callable[[], None]) -> tuple[int, int]:
    """The window that is drawn once an act has had its effect."""
    before = page.get_attribute(".view-timeline", "data-shown")
    act()
    page.wait_for_function(
        "before => document.querySelector('.view-timeline').dataset.shown !== before", arg=before
    )
    settle(page)
    return span(page)


def hover(page: Any, part: float, number: int = 0) -> tuple[int, dict[str, int], int]:
    """Point at a part of the width: the time, bytes per category, and the total that are shown."""
    box = plot(page, number)
    page.mouse.move(box["x"] + part * box["width"], box["y"] + box["height"] - 20)
    page.wait_for_selector(".legend-title:has-text('at the cursor')")
    rows = page.eval_on_selector_all(
        ".legend-row:not([hidden])",
        "rows => rows.map(row => [row.dataset.category, Number(row.dataset.bytes)])",
    )
    total = int(page.get_attribute("[data-total=allocated]", "data-bytes"))
    return int(page.get_attribute(".legend", "data-time")), dict(rows), total


def test_the_whole_run_is_shown(show: Show, tab: MemoryTab) -> None:
    page = show("run=baseline")
    told = tab.ask("timeline", run="baseline", rank="0")
    assert span(page) == tuple(told["span"])
    assert page.locator(".u-over").count() == 1
    peak = page.get_attribute("[data-total=allocated]", "data-bytes")
    assert int(peak) == told["peak"]["allocated_bytes"]  # at rest the legend tells of the peak


def test_hovering_tells_exactly_what_was_there(show: Show, logdir: Path, tab: MemoryTab) -> None:
    page = show("run=baseline&rank=1")
    rank = memlens.load(logdir / "baseline").rank(1)
    origin_ns = int(rank.blocks.time_ns[0])
    entries = tab.ask("timeline", run="baseline", rank="1")
    for part in (0.02, 0.31, 0.5, 0.77, 0.99):
        time, categories, total = hover(page, part)
        assert time in entries["time"]
        held = rank.categories_at(origin_ns + time)
        assert {key: size for key, size in categories.items() if size} == {
            key.value: size for key, size in held.items() if size
        }
        assert total == sum(categories.values())
        low, high = span(page)
        # The crosshair snaps to the entry before the pointer; they are 500 columns or so.
        assert abs((time - low) / (high - low) - part) < 0.01
    tooltip = page.inner_text(".tooltip")
    assert f"{total:,} B" in tooltip
    assert f"step {rank.place_at(origin_ns + time).step}" in tooltip


def test_a_drag_zooms_and_the_server_samples_anew(show: Show, tab: MemoryTab) -> None:
    page = show("run=baseline")
    low, high = shown_after(page, lambda: drag(page, 0.40, 0.45))
    _, end = tab.ask("timeline", run="baseline", rank="0")["span"]
    assert low / end == pytest.approx(0.40, abs=0.01)
    assert high / end == pytest.approx(0.45, abs=0.01)
    for part in (0.2, 0.8):
        time, categories, _ = hover(page, part)
        told = tab.ask("timeline", run="baseline", rank="0", from_=low, to=high)
        at = len(told["time"]) - 1 - told["time"][::-1].index(time)
        assert {key: column[at] for key, column in told["categories"].items()} == {
            key: size for key, size in categories.items() if key in told["categories"]
        }
    page.mouse.move(0, 0)
    assert "every event" in page.inner_text(".card-head .window-text") or told["exact"] is False


def test_the_wheel_zooms_about_the_cursor(show: Show) -> None:
    page = show("run=baseline")
    low, high = span(page)
    box = plot(page)
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 50)
    about = low + 0.25 * (high - low)
    new_low, new_high = shown_after(page, lambda: page.mouse.wheel(0, -200))
    assert new_high - new_low < high - low
    assert new_low + 0.25 * (new_high - new_low) == pytest.approx(about, rel=0.01)
    again = shown_after(page, lambda: page.mouse.wheel(0, 200))
    assert again[1] - again[0] > new_high - new_low


def test_keys_zoom_and_pan(show: Show) -> None:
    page = show("run=baseline")
    whole = span(page)
    narrow = shown_after(page, lambda: page.keyboard.press("+"))
    width = narrow[1] - narrow[0]
    assert width == pytest.approx((whole[1] - whole[0]) / 2, abs=2)
    right = shown_after(page, lambda: page.keyboard.press("ArrowRight"))
    assert right[0] - narrow[0] == pytest.approx(width / 5, abs=2)
    assert right[1] - right[0] == width
    assert shown_after(page, lambda: page.keyboard.press("ArrowLeft")) == pytest.approx(
        narrow, abs=2
    )
    wide = shown_after(page, lambda: page.keyboard.press("-"))
    assert wide[1] - wide[0] > width
    shown_after(page, lambda: page.keyboard.press("+"))
    assert shown_after(page, lambda: page.keyboard.press("0")) == whole


def test_shift_and_drag_pans_and_so_does_the_middle_button(show: Show) -> None:
    page = show("run=baseline")
    low, high = shown_after(page, lambda: drag(page, 0.3, 0.6))

    def with_shift() -> None:
        page.keyboard.down("Shift")
        drag(page, 0.5, 0.25)
        page.keyboard.up("Shift")

    panned = shown_after(page, with_shift)
    assert panned[1] - panned[0] == high - low
    assert panned[0] - low == pytest.approx(0.25 * (high - low), rel=0.05)
    back = shown_after(page, lambda: drag(page, 0.25, 0.5, button="middle"))
    assert back[0] == pytest.approx(low, abs=0.02 * (high - low))


def test_double_click_shows_everything(show: Show) -> None:
    page = show("run=baseline")
    whole = span(page)
    shown_after(page, lambda: drag(page, 0.3, 0.6))
    box = plot(page)
    click = (box["x"] + 100, box["y"] + 60)
    assert shown_after(page, lambda: page.mouse.dblclick(*click)) == whole


def test_a_view_can_be_reloaded(show: Show) -> None:
    page = show("run=baseline&rank=1")
    zoomed = shown_after(page, lambda: drag(page, 0.3, 0.6))
    page.locator(".legend-row[data-category=weight]").click()
    page.reload()
    settle(page)
    assert span(page) == zoomed
    assert page.get_attribute(".legend-row[data-category=weight]", "aria-pressed") == "true"
    assert page.input_value("select[aria-label=Rank]") == "1"


def test_reserved_and_its_line(show: Show, logdir: Path) -> None:
    folder = next((logdir / "cuda").rglob("run.json")).parent
    page = show(f"run={folder.relative_to(logdir)}")
    rank = memlens.load(folder).rank(0)
    shown = int(page.get_attribute("[data-total=reserved]", "data-bytes"))
    assert shown == rank.peak().reserved_bytes
    assert page.input_value("select[aria-label=Rank]") == "0"
    assert len(page.query_selector_all("select[aria-label=Rank] option")) == 2  # two devices


def test_a_panel_for_each_rank(show: Show, logdir: Path) -> None:
    page = show("run=baseline&layout=panels")
    assert page.locator(".panel").count() == 2
    for number in (0, 1):
        rank = memlens.load(logdir / "baseline").rank(number)
        time, categories, _ = hover(page, 0.6, number)
        held = rank.categories_at(int(rank.blocks.time_ns[0]) + time)
        assert {key: size for key, size in categories.items() if size} == {
            key.value: size for key, size in held.items() if size
        }
        # The crosshair is in both.
        assert page.locator(".crosshair:not([hidden])").count() == 2
    box = plot(page, 1)
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 40)
    page.wait_for_selector("h2:has-text('picked instant')")
    assert page.input_value("select[aria-label=Rank]") == "1"


def test_all_ranks_overlaid(show: Show, tab: MemoryTab) -> None:
    page = show("run=baseline&layout=overlay")
    told = tab.ask("overlay", run="baseline", ranks="0,1")
    rows = page.locator(".legend [data-rank]")
    assert rows.count() == 2
    for number, rank in enumerate(told["ranks"]):
        most = max(rank["allocated"])
        assert f"{most / 2**20:.2f} MiB" in rows.nth(number).inner_text()
    rows.nth(1).click()
    page.wait_for_selector(".view-timeline[data-layout=rank]")
    assert page.input_value("select[aria-label=Rank]") == "1"
