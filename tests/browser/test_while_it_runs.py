"""A run that is still written: the page goes on by itself, and keeps what is looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.browser import Window, settle
from tests.support.jobs import UNTIL_TOLD, clean_environment
from tests.support.memory_tab import memory_tab

pytestmark = pytest.mark.slow

LONGER = """(before) => {
    const shown = document.querySelector(".view-timeline")?.dataset.shown;
    return shown && Number(shown.split("-")[1]) > before;
}"""


def test_the_page_follows_a_run(window: Window, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(UNTIL_TOLD)
    (tmp_path / "logs").mkdir()
    page = window.page
    with memory_tab("--logdir", str(tmp_path / "logs"), log=tmp_path / "log") as tab:
        # The page is open before there is a run, and the run appears.
        page.goto(f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens")
        page.wait_for_selector("text=There is no memlens run")
        job = subprocess.Popen(
            [
                *(sys.executable, "-m", "memlens", "run", "--out"),
                *(str(tmp_path / "logs" / "run"), str(script)),
            ],
            stdin=subprocess.PIPE,
            env=clean_environment(),
        )
        try:
            page.wait_for_selector(".live", timeout=60_000)
            page.wait_for_selector(".view-timeline[data-shown]", timeout=60_000)
            settle(page)
            page.locator(".legend-row[data-category=weight]").click()
            for _ in range(2):
                before = int(page.get_attribute(".view-timeline", "data-shown").split("-")[1])
                page.wait_for_function(LONGER, arg=before, timeout=60_000)
            row = page.locator(".legend-row[data-category=weight]")
            assert row.get_attribute("aria-pressed") == "true"
            assert job.stdin is not None
            job.stdin.close()
            assert job.wait(60) == 0
            page.wait_for_selector(".live", state="detached", timeout=60_000)
        finally:
            job.kill()
            job.communicate()
        page.goto("about:blank")
    # While its first second is written, a run cannot be read yet; the page says so, and goes on.
    window.complaints = [each for each in window.complaints if " 422 " not in each]
