"""What all tests of a run came to: the summary, and the baseline if it is to be written.

Registered in the process that the user started only; see `hooks`. Imports nothing of memlens before
a test has been measured.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

__all__ = ["CARRIED", "AllTests"]

CARRIED = "memlens_measured"
"""Attribute of a report: what was measured in the test."""


class AllTests:
    """Collects what reports carry."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._measured: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._problem = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what was measured; of a test that is run again, the last."""
        for each in getattr(report, CARRIED, ()):
            self._measured[each["test"]] = {**each, "passed": report.passed}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Write the baseline, before the summary is printed."""
        entries = {
            test: each["entry"]
            for test, each in self._measured.items()
            if each["entry"] is not None and each["passed"]
        }
        if entries:
            from memlens.errors import MemlensError
            from memlens_integrations.pytest_plugin.baseline import write_entries
            from memlens_integrations.pytest_plugin.check import settings_of

            settings = settings_of(self._config)
            path = settings.shown(settings.baseline)
            try:
                changed = write_entries(settings.baseline, entries, settings.root)
            except (MemlensError, OSError) as error:
                self._problem = f"the memory baseline was not written: {error}"
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            else:
                self._notes.append(
                    f"memory baseline: {len(entries)} measured, {changed} changed, in {path}"
                )
        elif self._config.getoption("memory_update_baseline"):
            self._notes.append(
                "memory baseline: nothing was measured that has one (baseline=True), or it failed"
            )
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was measured, and where a baseline could be lower."""
        below = [
            each
            for each in self._measured.values()
            if each["passed"]
            and each["baseline_bytes"] is not None
            and each["most_bytes"]["peak"] < each["baseline_bytes"]
        ]
        if below:
            self._notes.append(
                f"memory baseline: {len(below)} below it; --memory-update-baseline keeps the gain"
            )
        lines: list[str] = []
        if self._config.getoption("memory_report") and self._measured:
            from memlens_integrations.pytest_plugin.texts import summary_lines

            lines = summary_lines(list(self._measured.values()))
        if lines or self._notes or self._problem:
            terminalreporter.section("memory (memlens)", sep="-")
            for line in lines + self._notes:
                terminalreporter.write_line(line)
            if self._problem:
                terminalreporter.write_line(self._problem, red=True)
