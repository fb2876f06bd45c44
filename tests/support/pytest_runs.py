"""Runs pytest on a small project, in a process of its own, as somebody who has memlens installed."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["STRICT", "Ran", "Test", "run_pytest"]

STRICT = """[pytest]
addopts = --strict-markers --strict-config --import-mode=importlib -p no:cacheprovider
filterwarnings = error
xfail_strict = true
junit_family = xunit1
"""
"""As strict as a project can be about what plugins do."""


@dataclass(frozen=True)
class Test:
    """What the JUnit file says of one test."""

    outcome: str
    """`passed`, `failed`, `error` or `skipped`."""
    message: str
    properties: Mapping[str, str]


@dataclass(frozen=True)
class Ran:
    """What came of one run."""

    code: int
    text: str
    tests: Mapping[str, Test]
    """By name, without the file and class."""

    def failure(self, test: str) -> str:
        """What pytest shows of a failed test."""
        assert self.tests[test].outcome in ("failed", "error"), self.text
        return self.tests[test].message


def run_pytest(project: Path, *words: str, environment: Mapping[str, str] | None = None) -> Ran:
    """Run pytest in a folder.

    Args:
        words: arguments.
        environment: variables beside those of this process.
    """
    junit = project / "junit.xml"
    junit.unlink(missing_ok=True)
    # Nothing of the pytest that runs us.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "MEMLENS"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--junitxml={junit}", *words],
        cwd=project,
        env={**inherited, "COLUMNS": "120", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    tests = {}
    for case in ET.parse(junit).iter("testcase") if junit.exists() else ():
        found = {child.tag: child for child in case}
        kind = next((tag for tag in ("failure", "error", "skipped") if tag in found), "passed")
        tests[case.attrib["name"]] = Test(
            outcome="failed" if kind == "failure" else kind,
            message="" if kind == "passed" else found[kind].text or "",
            properties={
                each.attrib["name"]: each.attrib["value"] for each in case.iter("property")
            },
        )
    return Ran(done.returncode, done.stdout + done.stderr, tests)
