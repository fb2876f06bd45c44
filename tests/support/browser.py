"""Debian's Chromium, driven by Playwright: nothing may leave the machine or go wrong unseen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

__all__ = ["Window", "chromium", "frame_of_the_tab", "settle"]

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 20_000
EXPECTED = ("Multiple instances of Three.js", "/font-roboto/")
"""What TensorBoard's own page complains about; the fonts, behind a prefix."""


class Window:
    """One page, whose complaints and requests are written down.

    Args:
        page: Playwright's.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.left_the_machine: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.route("**/*", self._route)

    def _hear(self, message: Any) -> None:
        text = f"{message.text} {message.location['url']}"
        if message.type in ("error", "warning") and not any(each in text for each in EXPECTED):
            self.complaints.append(f"{message.type}: {text}")

    def _route(self, route: Any) -> None:
        parts = urlsplit(route.request.url)
        if parts.scheme in ("data", "blob", "file") or parts.hostname == "127.0.0.1":
            route.continue_()
        else:
            self.left_the_machine.append(route.request.url)
            route.abort()

    def check(self) -> None:
        """Nothing was complained about, and nothing asked for elsewhere."""
        assert not self.complaints, self.complaints
        assert not self.left_the_machine, self.left_the_machine


@contextmanager
def chromium() -> Iterator[Callable[..., Window]]:
    """A browser: a function that opens windows; its options are those of Playwright's `new_page`."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)

        def open_window(**options: Any) -> Window:
            return Window(
                browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
            )

        try:
            yield open_window
        finally:
            browser.close()


def settle(frame: Any) -> None:
    """Wait until what was asked for is shown."""
    frame.wait_for_selector("[data-shown]")
    frame.wait_for_function("!document.querySelector('main .busy')")


def frame_of_the_tab(page: Any) -> Any:
    """Our frame within TensorBoard's page."""
    handle = page.wait_for_selector("iframe")
    frame = handle.content_frame()
    frame.wait_for_selector(".memlens .tab")
    return frame
