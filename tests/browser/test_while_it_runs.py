"""A run that is still written: the page goes on by itself, and keeps what is looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.browser import Window, settle
from tests.support.large import make_capture
from tests.support.memory_tab import memory_tab

pytestmark = pytest.mark.slow


def test_the_page_follows_a_run(window: Window, tmp_path: Path) -> None:
    """The streams grow as a job's do; nothing is closed."""
    make_capture(tmp_path / "whole", events=60_000, layers=10, batch_events=4_000, close=False)
    (tmp_path / "runs").mkdir()
    shutil.copytree(tmp_path / "whole", tmp_path / "runs" / "job")
    streams = sorted((tmp_path / "whole").glob("*/*.arrow"))
    for stream in streams:
        grown = tmp_path / "runs" / "job" / stream.relative_to(tmp_path / "whole")
        if stream.name == "events.arrow":
            grown.write_bytes(stream.read_bytes()[: stream.stat().st_size // 2])
    page = window.page
    with memory_tab("--logdir", str(tmp_path / "runs"), log=tmp_path / "log") as tab:
        page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens")
        settle(page)
        page.locator(".legend-row[data-category=weight]").click()
        first = page.get_attribute(".view-timeline", "data-shown")
        for stream in streams:
            shutil.copy(stream, tmp_path / "runs" / "job" / stream.relative_to(tmp_path / "whole"))
        page.wait_for_function(
            "before => document.querySelector('.view-timeline').dataset.shown !== before",
            arg=first,
            timeout=60_000,
        )
        settle(page)
        before, after = (
            int(text.split("-")[1])
            for text in (first, page.get_attribute(".view-timeline", "data-shown"))
        )
        assert after > 1.5 * before
        row = page.locator(".legend-row[data-category=weight]")
        assert row.get_attribute("aria-pressed") == "true"
        page.goto("about:blank")
