"""The exported page, opened as a file: the same numbers as the plugin's, and nothing from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.browser import Window, settle
from tests.support.large import make_capture
from tests.support.memory_tab import MemoryTab
from tests.support.pages import Pages

import memlens
from memlens.exporters import export
from memlens.exporters.html import columns
from memlens.exporters.html import page as html_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(logdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the run of two ranks."""
    return export(
        memlens.load(logdir / "baseline"), "html", tmp_path_factory.mktemp("html") / "run.html"
    )


@pytest.fixture
def opened(browser: Callable[..., Window], exported: Path) -> Iterator[Any]:
    """A function that opens the page and returns one that asks it what views ask."""
    window = browser()

    def open_page(path: Path = exported, address: str = "") -> Callable[..., Any]:
        window.page.goto("about:blank")
        window.page.goto(f"{path.as_uri()}#{address}")
        settle(window.page)

        def ask(question: str, **given: Any) -> Any:
            given = {name.rstrip("_"): value for name, value in given.items()}
            return window.page.evaluate(
                """async ([question, given]) => {
                    const { FileSource } = await import("memlens/sources/file.js");
                    const text = document.getElementById("memlens-data").textContent.trim();
                    window.source ??= await FileSource.from(text);
                    return window.source.ask(question, given);
                }""",
                [question, given],
            )

        open_page.page = window.page  # type: ignore[attr-defined]
        return ask

    open_page.page = window.page  # type: ignore[attr-defined]
    yield open_page
    window.check()
    window.page.close()


def by_module(answer: Any) -> dict[str, Any]:
    """Rows of modules, in no order."""
    return {row["module"]: row for row in answer["modules"]}


def levels(answer: Any) -> dict[int, int]:
    """The last level of each time."""
    return dict(zip(answer["time"], answer["allocated"], strict=True))


def test_it_answers_as_the_server_does(opened: Any, tab: MemoryTab) -> None:
    ask = opened()
    span = tab.ask("timeline", run="baseline", rank="0")["span"]
    middle = span[1] // 2
    for rank in ("0", "1"):
        about: dict[str, Any] = {"run": "baseline", "rank": rank}
        windows: tuple[dict[str, int], ...] = ({}, {"from_": middle, "to": middle + 500_000})
        for window in windows:
            ours, theirs = (
                ask("timeline", **about, **window),
                tab.ask("timeline", **about, **window),
            )
            for key in (
                "span",
                "from",
                "to",
                "exact",
                "steps",
                "phases",
                "phases_left_out",
                "peak",
                "window_peak",
            ):
                told = {**theirs["window_peak"], "module": ours["window_peak"]["module"]}
                assert ours[key] == (told if key == "window_peak" else theirs[key]), key
            if theirs["exact"]:
                assert levels(ours) == levels(theirs)
                assert ours["categories"] == theirs["categories"]
            assert max(ours["allocated"]) == max(theirs["allocated"])
        for time in ({}, {"time": middle}, {"time": span[1] - 5}, {"time": 0}):
            for order in ("size", "category", "name", "module", "step", "phase", "born", "op"):
                for descending in (0, 1):
                    asked = {**about, **time, "sort": order, "descending": descending, "limit": 40}
                    theirs = tab.ask("alive", **asked)
                    ours = ask("alive", **asked)
                    assert [row["row"] for row in ours["rows"]] == [
                        row["row"] for row in theirs["rows"]
                    ], asked
                    for mine, row in zip(ours["rows"], theirs["rows"], strict=True):
                        assert {**mine, "stack": 0} == {**row, "stack": 0}
                        frames = theirs["stacks"].get(str(row["stack"]), [])
                        assert ours["stacks"][str(mine["stack"])] == frames
                    for key in ("time", "allocated_bytes", "count", "matching", "step", "phase"):
                        assert ours[key] == theirs[key], (key, asked)
            searches: tuple[dict[str, Any], ...] = (
                {"search": "LAYERS.3"},
                {"category": "weight"},
                {"search": "mlp_2"},
            )
            for filters in searches:
                asked = {**about, **time, **filters}
                assert ask("alive", **asked)["matching"] == tab.ask("alive", **asked)["matching"]
            ours, theirs = ask("modules", **about, **time), tab.ask("modules", **about, **time)
            assert by_module(ours) == by_module(theirs)
            assert ours["allocated_bytes"] == theirs["allocated_bytes"]
            assert ours["left_out"]["size_bytes"] == 0
        for window in windows:
            ours = ask("lifetimes", **about, **window, limit=50)
            theirs = tab.ask("lifetimes", **about, **window, limit=50)
            assert ours["histogram"] == theirs["histogram"]
            assert (ours["count"], ours["size_bytes"]) == (theirs["count"], theirs["size_bytes"])
            assert ours["shown_bytes"] == theirs["shown_bytes"]
        assert ask("steps", **about) == tab.ask("steps", **about)
    ours, theirs = ask("overlay", run="baseline"), tab.ask("overlay", run="baseline")
    assert ours["span"] == theirs["span"]
    for mine, rank_there in zip(ours["ranks"], theirs["ranks"], strict=True):
        assert max(mine["allocated"]) == max(rank_there["allocated"])
        assert mine["shift"] == rank_there["shift"]
    pair: dict[str, Any] = {
        "run": "baseline",
        "rank": "0",
        "with_run": "baseline",
        "with_rank": "1",
    }
    ours, theirs = ask("difference", **pair), tab.ask("difference", **pair)
    assert ours["categories"] == theirs["categories"]
    assert by_module(ours) == by_module(theirs)
    tab.until(lambda: bool(tab.ask("ranks", run="baseline")["ready"]))
    assert ask("ranks")["ranks"] == tab.ask("ranks", run="baseline")["ranks"]


def test_two_devices_with_reserved_memory(
    opened: Any, logdir: Path, tab: MemoryTab, tmp_path: Path
) -> None:
    folder = next((logdir / "cuda").rglob("run.json")).parent
    ask = opened(export(memlens.load(folder), "html", tmp_path / "cuda.html"))
    for rank in ("0", "0.1"):
        theirs = tab.ask("timeline", run=str(folder.relative_to(logdir)), rank=rank)
        ours = ask("timeline", rank=rank)
        assert max(theirs["reserved"]) > max(theirs["allocated"])
        for key in ("time", "allocated", "reserved", "categories", "capacity_bytes", "exact"):
            assert ours[key] == theirs[key]
        few = ask("timeline", rank=rank, points=10)
        assert max(few["reserved"]) == max(theirs["reserved"])


@pytest.mark.parametrize("view", ["timeline", "modules", "lifetimes", "steps", "ranks", "compare"])
def test_each_view_comes_up(opened: Any, view: str) -> None:
    opened(address=f"view={view}")
    assert opened.page.get_attribute(f".tab[data-view={view}]", "aria-selected") == "true"
    assert opened.page.locator("main .notice.error").count() == 0


def test_a_click_lists_what_was_alive(opened: Any, logdir: Path) -> None:
    opened()
    page = opened.page
    box = page.locator(".u-over").bounding_box()
    page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + 60)
    page.wait_for_selector("h2:has-text('picked instant')")
    at = int(page.evaluate("new URLSearchParams(location.hash.slice(1)).get('at')"))
    rank = memlens.load(logdir / "baseline").rank(0)
    alive = rank.allocations_at(int(rank.blocks.time_ns[0]) + at, top=100)
    shown = page.eval_on_selector_all(
        ".alive td.size", "cells => cells.map(c => Number(c.dataset.bytes))"
    )
    assert shown == [block.size_bytes for block in alive]


def test_hostile_names_stay_text(opened: Any, logdir: Path, tmp_path: Path) -> None:
    shutil.copytree(logdir / "hostile", tmp_path / "run")
    capture = memlens.load(tmp_path / "run")
    object.__setattr__(capture.info, "name", "</title><script>alert(1)</script>\"'")
    path = export(capture, "html", tmp_path / "hostile.html")
    for view in ("timeline", "modules"):
        opened(path, f"view={view}")
        assert "<script>alert('&')</script>" in opened.page.inner_text("main")
    assert opened.page.locator("script").count() == 3  # ours: the import map, the data, the start
    assert "<script>alert" not in path.read_text()


def test_what_is_left_out_is_said(
    opened: Any, logdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_page, "MOST_BLOCKS", 4_000)
    monkeypatch.setattr(html_page, "MOST_RANKS", 1)
    monkeypatch.setattr(columns, "MOST_ENTRIES", 2_000)
    path = export(memlens.load(logdir / "baseline"), "html", tmp_path / "part.html")
    ask = opened(path)
    note = opened.page.inner_text(".problem.note")
    assert "the 1 of 2 ranks with the highest peak" in note
    assert "Curves are sampled" in note
    assert "Lists leave out" in note
    there = Pages(logdir)
    # At the peak nothing is missing, and the total of any instant that is kept is exact.
    ours = ask("alive", rank="1")
    theirs = there.ask("alive", run="baseline", rank="1")
    assert ours["matching"] == theirs["matching"]
    assert ask("timeline", rank="1")["peak"]["allocated_bytes"] == theirs["allocated_bytes"]
    modules = ask("modules", rank="1", time=20_000_000)
    held = sum(sum(row["categories"].values()) for row in modules["modules"])
    assert held + modules["left_out"]["size_bytes"] == modules["allocated_bytes"]
    with pytest.raises(Exception, match="not in this file"):
        ask("steps", rank="0")


def test_it_is_one_file_of_a_bounded_size(tmp_path: Path) -> None:
    make_capture(tmp_path / "run", events=300_000)
    path = export(memlens.load(tmp_path / "run"), "html", tmp_path / "run.html")
    assert path.stat().st_size < 2_000_000
    text = path.read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
