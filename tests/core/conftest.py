"""What the tests of the core share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Jobs must be the same to the bit, and not fight for cores."""
    torch.set_num_threads(1)


@pytest.fixture(params=["hook", "profiler"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which CPU allocations are recorded, one after the other."""
    name = str(request.param)
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", name)
    return name
