"""The page as a whole: in TensorBoard, behind a prefix, light and dark, with hostile and damaged runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.browser import Window, frame_of_the_tab, settle
from tests.support.memory_tab import MemoryTab, memory_tab
from tests.support.small_runs import HOSTILE, empty_run, stepless_run

from memlens.palette import CATEGORY_SERIES
from memlens.report.text import plain
from memlens.units import format_bytes, format_duration_ns

pytestmark = pytest.mark.slow

Show = Callable[[str], Any]


def test_the_tab_in_tensorboard(window: Window, tab: MemoryTab) -> None:
    page = window.page
    page.goto(f"http://127.0.0.1:{tab.port}/#memlens")
    frame = frame_of_the_tab(page)
    settle(frame)
    assert frame.locator(".u-over").count() == 1
    # The view survives a reload of TensorBoard's own page.
    frame.select_option("select[aria-label=Run]", "variant")
    frame.click(".tab[data-view=modules]")
    frame.wait_for_selector(".cell")
    page.reload()
    frame = frame_of_the_tab(page)
    frame.wait_for_selector(".tab[data-view=modules][aria-selected=true]")
    assert frame.input_value("select[aria-label=Run]") == "variant"


def test_dark_and_light_follow_tensorboard(window: Window, tab: MemoryTab) -> None:
    page = window.page
    page.goto(f"http://127.0.0.1:{tab.port}/#memlens")
    frame = frame_of_the_tab(page)
    settle(frame)

    def background() -> str:
        found: str = frame.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    light = background()
    for theme in ("Dark", "Light"):
        page.click("app-header-dark-mode-toggle button")
        page.click(f"button[mat-menu-item]:has-text('{theme}')")
        frame.wait_for_selector(f"html[data-theme={theme.lower()}]", state="attached")
        assert (background() == light) == (theme == "Light")


def test_dark_by_choice_and_by_the_system(browser: Callable[..., Window], tab: MemoryTab) -> None:
    window = browser(color_scheme="dark")
    page = window.page
    page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens#run=baseline")
    settle(page)
    assert page.get_attribute("html", "data-theme") == "dark"
    page.click("[aria-label=Theme] button[data-value=light]")
    assert page.get_attribute("html", "data-theme") == "light"
    page.reload()
    settle(page)
    assert page.get_attribute("html", "data-theme") == "light"
    window.check()
    page.close()


def test_colours_are_those_of_the_palette(show: Show) -> None:
    page = show("run=baseline")
    shown = page.eval_on_selector_all(
        ".legend-row[data-category]",
        "rows => rows.map(row => [row.dataset.category, "
        "getComputedStyle(row.querySelector('.swatch')).backgroundColor])",
    )
    assert [key for key, _ in shown] == [series.key for series in reversed(CATEGORY_SERIES)]
    for series in CATEGORY_SERIES:
        red, green, blue = (int(series.colour[at : at + 2], 16) for at in (1, 3, 5))
        assert dict(shown)[series.key] == f"rgb({red}, {green}, {blue})"


def test_behind_a_prefix(window: Window, logdir: Path, tmp_path: Path) -> None:
    with memory_tab("--logdir", str(logdir), log=tmp_path / "log", prefix="/deep/er") as tab:
        window.page.goto(f"http://127.0.0.1:{tab.port}/deep/er/#memlens")
        settle(frame_of_the_tab(window.page))
        window.page.goto("about:blank")  # so that it asks no more when the server is gone


@pytest.mark.parametrize("view", ["timeline", "modules", "lifetimes", "steps", "ranks", "compare"])
def test_hostile_names_are_text(window: Window, show: Show, view: str) -> None:
    page = show(f"run=hostile&view={view}&with=baseline")
    if view == "timeline":
        page.click(".alive tr[data-row] .expand")
    assert page.locator(".memlens script, main img, main iframe").count() == 0
    if view in ("timeline", "modules"):
        assert "<script>alert('&')</script>" in page.inner_text("main")
    if view == "timeline":
        names = page.eval_on_selector_all(
            ".alive tr[data-row] td:nth-child(3)", "cells => cells.map(cell => cell.title)"
        )
        assert plain(HOSTILE) in names


def test_a_damaged_run_says_so_and_others_go_on(window: Window, tab: MemoryTab) -> None:
    page = window.page
    page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens#run=torn")
    page.wait_for_selector(".notice.error")
    error = next(run["error"] for run in tab.ask("runs")["runs"] if run["run"] == "torn")
    assert error in page.inner_text(".notice.error")
    page.select_option("select[aria-label=Run]", "baseline")
    settle(page)
    assert page.locator(".u-over").count() == 1


def test_a_folder_without_runs_says_what_to_do(window: Window, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with memory_tab("--logdir", str(tmp_path / "empty"), log=tmp_path / "log") as tab:
        window.page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens")
        window.page.wait_for_selector("text=memlens run --out")
        window.page.goto("about:blank")


def test_a_run_in_which_nothing_happened(window: Window, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    empty_run(tmp_path / "runs" / "empty")
    stepless_run(tmp_path / "runs" / "stepless")
    page = window.page
    with memory_tab("--logdir", str(tmp_path / "runs"), log=tmp_path / "log") as tab:
        for run in ("empty", "stepless"):
            for view in ("timeline", "modules", "lifetimes", "steps", "ranks", "compare"):
                address = f"name=memlens#run={run}&view={view}&with={run}"
                page.goto("about:blank")
                page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?{address}")
                page.wait_for_selector(
                    "main .notice" if run == "empty" else "main .notice, [data-shown]"
                )
                page.wait_for_function("!document.querySelector('main .busy')")
                assert page.locator("main .notice.error").count() == 0, (run, view)
        page.goto("about:blank")


def test_a_run_that_is_not_there_is_said(show: Show) -> None:
    page = show("run=gone")
    assert "There is no run gone here" in page.inner_text(".problems")


def test_a_server_that_goes_away_is_missed(
    browser: Callable[..., Window], logdir: Path, tmp_path: Path
) -> None:
    page = browser().page
    with memory_tab("--logdir", str(logdir), log=tmp_path / "log") as tab:
        page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens#run=baseline")
        settle(page)
    page.click(".tab[data-view=lifetimes]")
    page.wait_for_selector(".notice.error:has-text('does not answer')")
    page.wait_for_selector(".top.offline", timeout=40_000)
    page.close()


def test_help_and_keys(show: Show) -> None:
    page = show("run=baseline")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    assert "wheel" in page.inner_text("dialog").lower()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.keyboard.press("4")
    page.wait_for_selector(".tab[data-view=steps][aria-selected=true]")


@pytest.mark.parametrize("width", [420, 800, 1280, 2200])
def test_nothing_sticks_out(browser: Callable[..., Window], tab: MemoryTab, width: int) -> None:
    window = browser(viewport={"width": width, "height": 800})
    page = window.page
    for view in ("timeline", "modules", "lifetimes", "steps", "ranks", "compare"):
        address = f"name=memlens#run=baseline&view={view}"
        page.goto("about:blank")
        page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?{address}")
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    window.check()
    page.close()


def test_sizes_and_durations_read_as_everywhere(show: Show) -> None:
    page = show("run=baseline")
    pick = random.Random(7)
    values = [
        0,
        1,
        1023,
        1024,
        1152,
        1408,
        2**20 - 1,
        2**30,
        5 * 2**40,
        1_048_570,
        1_250,
        60_499_999_999,
    ]
    values += [pick.randrange(2 ** pick.randrange(1, 50)) for _ in range(2_000)]
    values += [1024 * eighths // 8 for eighths in range(1, 2_000)]  # ties, which round to even
    told = page.evaluate(
        """async (values) => {
            const units = await import(new URL("static/units.js", document.baseURI).href);
            return values.map((value) => [
                units.formatBytes(value), units.formatBytes(value, true), units.formatBytes(-value),
                units.formatDuration(value),
            ]);
        }""",
        values,
    )
    for value, texts in zip(values, told, strict=True):
        assert texts == [
            format_bytes(value),
            format_bytes(value, signed=True),
            format_bytes(-value),
            format_duration_ns(value),
        ]
