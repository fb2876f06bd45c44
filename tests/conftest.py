"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.traces import nothing_left_behind


@pytest.fixture(autouse=True)
def torch_is_as_it_was() -> Iterator[None]:
    """After every test: no hook, patch, mode, thread, open file or running profiler is left."""
    with nothing_left_behind():
        yield
