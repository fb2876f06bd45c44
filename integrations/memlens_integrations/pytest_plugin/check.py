"""Holds what a test needed against its budget and its baseline."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from memlens.errors import UsageError
from memlens_integrations.pytest_plugin.baseline import (
    UPDATE,
    as_json,
    compare,
    entry_of,
    read_entry,
)
from memlens_integrations.pytest_plugin.budget import RESERVED, Budget, Tolerance
from memlens_integrations.pytest_plugin.measure import Measurement
from memlens_integrations.pytest_plugin.texts import exceeded_text, grown_text

__all__ = ["Checked", "Settings", "check", "check_baseline", "check_limits", "settings_of"]


@dataclass(frozen=True)
class Settings:
    """What the run of pytest was asked for."""

    root: Path
    """Names of tests and files are relative to it."""
    baseline: Path
    update: bool
    """Whatever tests need is right, and will be stored."""
    captures: Path | None
    """Where captures are kept; None: nowhere."""
    here: Path
    """Where pytest was started."""

    @contextmanager
    def folder(self, test: str) -> Iterator[Path]:
        """A place for a capture, which does not exist yet."""
        if self.captures is None:
            with TemporaryDirectory(prefix="memlens-") as temporary:
                yield Path(temporary, "run")
            return
        name = re.sub(r"[^A-Za-z0-9_.=,-]+", "-", test).strip("-.")[-150:]
        self.captures.mkdir(parents=True, exist_ok=True)
        yield _free(self.captures / name)

    def shown(self, path: Path) -> str:
        """A path as somebody would write it who stands where pytest was started."""
        return os.path.relpath(path, self.here)

    def update_command(self, test: str) -> str:
        """What makes this test's figures its baseline."""
        file, colons, rest = test.partition("#")[0].partition("::")
        path = self.shown(self.root / file)
        return f"pytest {shlex.quote(path + colons + rest)} {UPDATE}"


def settings_of(config: pytest.Config) -> Settings:
    """What the options and pytest's configuration file say."""
    root, here = config.rootpath, config.invocation_params.dir
    option = config.getoption("memory_baseline")
    stored = root / (config.getini("memory_baseline") or "memory_baseline.json")
    captures = config.getoption("memory_captures")
    return Settings(
        root=root,
        baseline=here / option if option else stored,
        update=config.getoption("memory_update_baseline"),
        captures=here / captures if captures else None,
        here=here,
    )


@dataclass
class Checked:
    """What came of one measurement; its plain values travel with the test's report."""

    values: dict[str, Any]
    failures: list[str]

    @classmethod
    def of(cls, test: str, measurement: Measurement, limits: Mapping[str, int]) -> Checked:
        """Before anything is checked."""
        return cls(
            {
                "test": test,
                "most_bytes": dict(measurement.most_bytes),
                "limits_bytes": dict(limits),
                "baseline_bytes": None,
                "entry": None,
            },
            [],
        )


def check(test: str, measurement: Measurement, budget: Budget, settings: Settings) -> Checked:
    """Check a test's budget, and its baseline if it has one.

    Raises:
        UsageError: that can not be done.
    """
    checked = Checked.of(test, measurement, budget.limits_bytes)
    check_limits(checked, measurement, budget.limits_bytes)
    if budget.baseline:
        source = f"simulated {budget.gpu}" if budget.gpu else measurement.source
        check_baseline(checked, measurement, source, budget.tolerance, settings)
    return checked


def check_limits(checked: Checked, measurement: Measurement, limits: Mapping[str, int]) -> None:
    """Note what is above its limit.

    Raises:
        UsageError: a limit is of what this device does not tell.
    """
    needed = measurement.most_bytes
    if RESERVED in limits and RESERVED not in needed:
        raise UsageError("the CPU's allocator reserves nothing; limit reserved on CUDA")
    over = {name: (needed[name], limit) for name, limit in limits.items() if needed[name] > limit}
    if over:
        checked.failures.append(exceeded_text(over, measurement))


def check_baseline(
    checked: Checked,
    measurement: Measurement,
    source: str,
    tolerance: Tolerance,
    settings: Settings,
) -> None:
    """Note what has grown, or what is to be stored.

    Raises:
        UsageError: the baseline can not be read, or is of another source.
    """
    test = checked.values["test"]
    now = entry_of(measurement, source)
    if settings.update:
        checked.values["entry"] = as_json(now)
        return
    before = read_entry(settings.baseline, test)
    accept = settings.update_command(test)
    if before is None:
        checked.failures.append(
            f"no memory baseline of this test in {settings.shown(settings.baseline)}; "
            f"make it with: {accept}"
        )
        return
    checked.values["baseline_bytes"] = before.peak_bytes
    comparison = compare(before, now, tolerance)
    if comparison.grown:
        checked.failures.append(grown_text(comparison, measurement, accept))


def _free(path: Path) -> Path:
    """The path, or the first numbered one of its kind that is not there yet."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
