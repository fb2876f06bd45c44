"""The other views in a real browser: each tells what the capture tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.support.browser import settle
from tests.support.large import LEAK_BYTES, LEAK_MODULE
from tests.support.memory_tab import MemoryTab

import memlens
from memlens.analysis.diff import diff

pytestmark = pytest.mark.slow

Show = Callable[[str], Any]


def numbers(page: Any, selector: str) -> list[int]:
    found: list[int] = page.eval_on_selector_all(
        selector, "nodes => nodes.map(node => Number(node.dataset.bytes))"
    )
    return found


def test_modules_as_an_icicle(show: Show, logdir: Path) -> None:
    page = show("run=baseline&view=modules")
    usages = memlens.load(logdir / "baseline").rank(0).modules_at(top=None)
    page.wait_for_selector(".cell")
    whole = sum(usage.total_bytes for usage in usages)
    assert numbers(page, ".cell[data-module='']") == [whole]
    for name in ("layers", "layers.3", "layers.3.mlp"):
        inside = [usage for usage in usages if f"{usage.module}.".startswith(f"{name}.")]
        expected = sum(usage.total_bytes for usage in inside)
        assert numbers(page, f".cell[data-module='{name}']") == [expected]
    wide = page.locator(".cell[data-module='layers.3']").bounding_box()["width"]
    page.click(".cell[data-module='layers.3']")
    page.wait_for_selector(".icicle[data-focus='layers.3']")
    assert page.locator(".cell[data-module='layers.3']").bounding_box()["width"] > 5 * wide
    assert page.locator(".cell[data-module='layers.4']").count() == 0
    page.hover(".cell[data-module='layers.3.mlp']")
    assert "layers.3.mlp" in page.inner_text(".tooltip")
    page.click(".crumbs button >> nth=0")
    page.wait_for_selector(".cell[data-module='layers.4']")


def test_modules_at_the_picked_instant(show: Show, logdir: Path) -> None:
    rank = memlens.load(logdir / "baseline").rank(0)
    origin_ns, at = int(rank.blocks.time_ns[0]), 20_000_000
    page = show(f"run=baseline&view=modules&at={at}")
    page.wait_for_selector(".cell")
    expected = sum(usage.total_bytes for usage in rank.modules_at(origin_ns + at, top=None))
    assert numbers(page, ".cell[data-module='']") == [expected]
    assert "picked instant" in page.inner_text(".window-text >> nth=0")


def test_lifetimes(show: Show, tab: MemoryTab) -> None:
    page = show("run=baseline&view=lifetimes")
    told = tab.ask("lifetimes", run="baseline", rank="0", limit=600)
    assert f"of {told['count']:,} blocks" in page.inner_text(".card-head .window-text >> nth=0")
    rows = page.eval_on_selector_all(
        ".histogram tbody tr", "rows => rows.map(row => row.cells[1].innerText)"
    )
    assert [int(text.replace(",", "")) for text in rows] == [row[1] for row in told["histogram"]]
    assert sum(row[1] for row in told["histogram"]) == told["count"]
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] - 3)
    page.wait_for_selector(".tooltip")
    assert "born" in page.inner_text(".tooltip")
    before = page.get_attribute(".view-lifetimes", "data-shown")
    page.keyboard.press("+")
    page.wait_for_function(
        "before => document.querySelector('.view-lifetimes').dataset.shown !== before", arg=before
    )
    settle(page)
    page.select_option("select[aria-label=Category]", "weight")
    weights = tab.ask("lifetimes", run="baseline", rank="0", category="weight")["count"]
    page.wait_for_function(
        "count => document.querySelector('.view-lifetimes').dataset.shown.endsWith('/' + count)",
        arg=weights,
    )


def test_steps_and_growth(show: Show, logdir: Path) -> None:
    page = show("run=baseline&view=steps")
    steps = memlens.load(logdir / "baseline").rank(0).steps()
    assert numbers(page, ".step-bar") == [step.peak_bytes for step in steps]
    growth = page.locator("[aria-label=Growth] tbody tr")
    assert numbers(page, "[aria-label=Growth] td[data-bytes]")[0] == LEAK_BYTES
    assert LEAK_MODULE in growth.first.inner_text()
    page.click("button[data-value=end]")
    page.wait_for_selector(f".view-steps[data-shown='{len(steps)}/end']")
    assert numbers(page, ".step-bar") == [step.end_bytes for step in steps]
    page.click(f".step-bar[data-step='{steps[2].step}']")
    page.wait_for_selector(".view-timeline[data-shown]")
    origin_ns = int(memlens.load(logdir / "baseline").rank(0).blocks.time_ns[0])
    shown = page.get_attribute(".view-timeline", "data-shown")
    assert shown == f"{steps[2].start_ns - origin_ns}-{steps[2].end_ns - origin_ns}"


def test_the_heat_map_of_ranks(show: Show, logdir: Path) -> None:
    page = show("run=baseline&view=ranks")
    page.wait_for_selector(".view-ranks[data-shown='2/true']")
    ranks = memlens.load(logdir / "baseline").ranks
    peaks = [rank.peak().allocated_bytes for rank in ranks]
    assert numbers(page, "[aria-label=Ranks] td[data-bytes]") == peaks
    page.click("button[data-value=peak]")
    page.wait_for_function(
        "document.querySelector('[aria-label=Ranks] tbody tr').dataset.rank === '1'"
    )
    box = page.locator("canvas.heat").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 16)
    page.wait_for_selector(".tooltip:has-text('rank 1')")
    # What is painted is darker for more: the pixel of the higher rank, beside that of the other.
    dark, light = page.evaluate(
        """() => {
            const canvas = document.querySelector("canvas.heat");
            const pixels = canvas.getContext("2d").getImageData(canvas.width - 12, 0, 1, 50).data;
            return [pixels[4 * 12], pixels[4 * 39]];
        }"""
    )
    assert dark < light
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 16)
    page.wait_for_selector(".view-timeline[data-shown]")
    assert page.input_value("select[aria-label=Rank]") == "1"


def test_two_runs_on_one_axis(show: Show, logdir: Path) -> None:
    page = show("run=baseline&view=compare&with=variant")
    found = diff(
        memlens.load(logdir / "baseline").rank(0), memlens.load(logdir / "variant").rank(0)
    )
    a, b = found.size.a_bytes, found.size.b_bytes
    assert numbers(page, ".verdict [data-bytes]") == [a, b, b - a]
    for category, change in found.categories.items():
        row = f".by-category tr[data-category='{category.value}'] td[data-bytes]"
        expected = [change.a_bytes, change.b_bytes, change.difference_bytes]
        assert numbers(page, row) == (expected if any(expected) else [])
    for module in [each for each in found.modules if each.differs][:20]:
        row = f".by-module tr[data-module='{module.module}'] td[data-bytes]"
        size = module.size
        assert numbers(page, row) == [size.a_bytes, size.b_bytes, size.difference_bytes]
    charts = page.locator(".u-over")
    assert charts.count() == 2
    box = charts.first.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 40)
    assert "→" in page.inner_text(".tooltip")
    assert page.locator(".crosshair:not([hidden])").count() == 2
    page.click("button[data-value=lines]")
    page.wait_for_function("document.querySelectorAll('.u-over').length === 1")
    settle(page)
    page.click("button[data-value=time]")
    page.wait_for_function("document.querySelector('.view-compare').dataset.shown.startsWith('0-')")
    settle(page)
    page.click("button:has-text('Swap')")
    page.wait_for_function(
        "bytes => Number(document.querySelector('.verdict [data-bytes]')?.dataset.bytes) === bytes",
        arg=b,
    )
    assert numbers(page, ".verdict [data-bytes]") == [b, a, a - b]


def test_two_ranks_of_one_run(show: Show, logdir: Path) -> None:
    page = show("run=baseline&view=compare&with=baseline")
    peaks = [rank.peak().allocated_bytes for rank in memlens.load(logdir / "baseline").ranks]
    assert numbers(page, ".verdict [data-bytes]") == [*peaks, peaks[1] - peaks[0]]


def test_runs_of_different_speed_are_laid_step_on_step(show: Show, logdir: Path) -> None:
    """The axis counts steps; a drag over one step asks each run for its own time of it."""
    page = show("run=baseline&view=compare&with=variant")
    steps = [memlens.load(logdir / name).rank(0).steps() for name in ("baseline", "variant")]
    longest = max(len(each) for each in steps)
    low, _, high = page.get_attribute(".view-compare", "data-shown").partition("-")
    assert int(low) == 0
    assert int(high) / 1e9 == pytest.approx(longest, abs=1)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    box = page.locator(".u-over").first.bounding_box()
    begin, end = (box["x"] + box["width"] * step * 1e9 / int(high) for step in (3, 5))
    y = box["y"] + 60
    page.mouse.move(begin, y)
    page.mouse.down()
    page.mouse.move((begin + end) / 2, y, steps=3)
    page.mouse.move(end, y, steps=3)
    page.mouse.up()
    page.wait_for_function(
        "!document.querySelector('.view-compare').dataset.shown.startsWith('0-')"
    )
    settle(page)
    for name, held in zip(("baseline", "variant"), steps, strict=True):
        url = next(each for each in asked if "timeline?" in each and f"run={name}&" in each)
        query = parse_qs(urlsplit(url).query)
        origin_ns = int(memlens.load(logdir / name).rank(0).blocks.time_ns[0])
        length = held[3].end_ns - held[3].start_ns
        assert int(query["from"][0]) + origin_ns == pytest.approx(held[3].start_ns, abs=length / 20)
        assert int(query["to"][0]) + origin_ns == pytest.approx(held[5].start_ns, abs=length / 20)
