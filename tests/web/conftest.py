"""Runs that the pages are asked about, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.large import make_capture
from tests.support.pages import Pages

import memlens


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two ranks, whose events are many, and one of few."""
    folder = tmp_path_factory.mktemp("runs")
    make_capture(folder / "long", events=60_000, ranks=2)
    make_capture(folder / "inner" / "short", events=9_000, ranks=1)
    return folder


@pytest.fixture(scope="session")
def pages(runs: Path) -> Pages:
    """Asks as a page does."""
    return Pages(runs)


@pytest.fixture(scope="session")
def rank(runs: Path) -> memlens.capture.RankCapture:
    """What `long` says of rank 0 by itself."""
    return memlens.load(runs / "long").rank(0)
