"""What the tests of the core share."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def a_small_world() -> None:
    """Put all that is there by now out of the garbage collector's sight.

    Jobs begin with a full collection, and sessions with a walk over all objects. Both take a fraction of
    a second with what tests import, and a few milliseconds without. What the tests before have left in
    memory (a compiler's caches) is hidden as well.
    """
    gc.collect()
    gc.freeze()


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
