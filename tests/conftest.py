"""What all tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from tests.support.traces import nothing_left_behind


@pytest.fixture(autouse=True)
def torch_is_as_it_was() -> Iterator[None]:
    """After every test: no hook, patch, mode, thread, open file or running profiler is left."""
    with nothing_left_behind():
        yield


@pytest.fixture(autouse=True, scope="module")
def a_small_world() -> None:
    """Put all that is there by now out of the garbage collector's sight.

    Jobs begin with a full collection, and sessions with a walk over all objects. Both take a fraction of
    a second with what tests import, and a few milliseconds without. What the tests before have left in
    memory (a compiler's caches, models that a library never lets go of) is hidden as well.
    """
    gc.collect()
    gc.freeze()
