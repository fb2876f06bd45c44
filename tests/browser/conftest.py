"""Runs, a TensorBoard that serves them, and a browser; made once for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.browser import Window, chromium, settle
from tests.support.large import make_capture
from tests.support.memory_tab import MemoryTab, memory_tab
from tests.support.small_runs import cuda_run, hostile_run


@pytest.fixture(scope="session")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two ranks, one under the model of CUDA's allocator, a hostile and a damaged one."""
    folder = tmp_path_factory.mktemp("logdir")
    make_capture(folder / "baseline", events=40_000, ranks=2, layers=12)
    make_capture(folder / "variant", events=30_000, ranks=1, layers=10)
    cuda_run(folder / "cuda")
    hostile_run(folder / "hostile")
    shutil.copytree(folder / "variant", folder / "torn")
    for stream in (folder / "torn").glob("*/events.arrow"):
        stream.write_bytes(b"this is no stream")
    (folder / "torn" / "run.json").write_text("{")
    return folder


@pytest.fixture(scope="session")
def tab(logdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryTab]:
    """TensorBoard."""
    log = tmp_path_factory.mktemp("tensorboard") / "log.txt"
    with memory_tab("--logdir", str(logdir), log=log) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Callable[..., Window]]:
    """Opens windows."""
    with chromium() as open_window:
        yield open_window


@pytest.fixture
def window(browser: Callable[..., Window]) -> Iterator[Window]:
    """One window, in which nothing may go wrong."""
    opened = browser()
    yield opened
    opened.check()
    opened.page.close()


@pytest.fixture
def show(window: Window, tab: MemoryTab) -> Callable[[str], object]:
    """Opens a view: the frame that TensorBoard shows, by itself."""

    def show_view(address: str) -> object:
        window.page.goto("about:blank")
        window.page.goto(
            f"http://127.0.0.1:{tab.port}/data/plugin_entry.html?name=memlens#{address}"
        )
        settle(window.page)
        return window.page

    return show_view
