"""A million events in the browser. Times are printed, and held to far more than they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
from tests.support.browser import Window, settle
from tests.support.large import make_capture
from tests.support.memory_tab import memory_tab

pytestmark = pytest.mark.slow

MOST_S = 10.0
"""Machines of tests are shared; the aim is 2 s to open and 0.1 s to zoom."""
WAIT_FOR_ZOOM = """(before) => new Promise((done) => {
    const view = document.querySelector(".view-timeline");
    const begun = performance.now();
    const look = () => view.dataset.shown !== before
        ? done(performance.now() - begun) : requestAnimationFrame(look);
    document.querySelector(".buttons button[aria-label^='Zoom in']").click();
    look();
})"""


def test_a_million_events(
    window: Window, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    make_capture(tmp_path / "runs" / "million", events=1_000_000)
    page = window.page
    with memory_tab("--logdir", str(tmp_path / "runs"), log=tmp_path / "log") as tab:
        begun = perf_counter()
        page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens")
        settle(page)
        opened_s = perf_counter() - begun
        zooms_ms = []
        for _ in range(6):
            before = page.get_attribute(".view-timeline", "data-shown")
            zooms_ms.append(page.evaluate(WAIT_FOR_ZOOM, before))
            settle(page)
        sent = page.evaluate(
            "Math.max(...performance.getEntriesByType('resource').map(each => each.encodedBodySize))"
        )
        zoom_ms = sorted(zooms_ms)[len(zooms_ms) // 2]
        record_property("open_s", round(opened_s, 2))
        record_property("zoom_ms", round(zoom_ms))
        print(
            f"1,000,000 events: open {opened_s:.2f} s, zoom {zoom_ms:.0f} ms, {sent:,} bytes at most"
        )
        assert opened_s < MOST_S
        assert zoom_ms < 1000 * MOST_S
        assert sent <= 200_000
        page.goto("about:blank")
