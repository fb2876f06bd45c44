"""Those who do not ask for memory budgets notice nothing of the plugin."""

from __future__ import annotations

from pathlib import Path

from tests.support.pytest_runs import STRICT, run_pytest

UNUSED = """
import sys

HEAVY = {"torch", "numpy", "pyarrow", "rich", "click", "duckdb"}


def test_unused():
    packages = {name.partition(".")[0] for name in sys.modules}
    assert not packages & HEAVY
    assert "memlens" not in packages
"""
USED = """
import sys

import pytest

sys.modules["memlens"] = None  # as if it could not be imported


@pytest.mark.memory_budget(peak="1GB")
def test_used():
    pass


def test_fixture(memory_profile):
    pass


def test_other():
    pass
"""


def project(folder: Path, text: str) -> Path:
    (folder / "pytest.ini").write_text(STRICT)
    (folder / "test_memory.py").write_text(text)
    return folder


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    run = run_pytest(project(tmp_path, UNUSED), "--memory-report")
    assert run.code == 0, run.text
    assert "memlens" not in run.text


def test_without_memlens_only_tests_that_use_it_fail(tmp_path: Path) -> None:
    run = run_pytest(project(tmp_path, USED))
    assert run.tests["test_other"].outcome == "passed"
    for test in ("test_used", "test_fixture"):
        text = run.failure(test)
        assert "needs memlens and torch, and they can not be imported here" in text
        assert len(text.splitlines()) == 1


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    run = run_pytest(project(tmp_path, UNUSED), "-p", "no:memlens")
    assert run.code == 0
    assert run_pytest(tmp_path, "-p", "no:memlens", "--memory-report").code == 4
