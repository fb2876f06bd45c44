"""Runs of every kind, each made once for all tests."""

from __future__ import annotations

import pytest
from tests.support.small_runs import RUNS

from memlens.capture import Capture


@pytest.fixture(scope="session", params=list(RUNS))
def any_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """One run of each kind after the other."""
    return RUNS[request.param](tmp_path_factory.mktemp("run") / request.param)
