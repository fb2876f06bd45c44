"""Sessions over a stand-in for the history of torch's CUDA allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest
from tests.support.histories import HookHistory
from tests.support.model_history import ModelHistory

from memlens.recording import session
from memlens.recording.names import Names
from memlens.sources.cuda import CudaSource

T = TypeVar("T", HookHistory, ModelHistory)


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[T], T]]:
    """Lets sessions read a history of one's own."""
    with ExitStack() as undo:

        def install(history: T) -> T:
            def make_source(device: str, names: Names, *, stack_depth: int) -> CudaSource:
                return CudaSource(names, stack_depth=stack_depth, history=history)

            monkeypatch.setattr(session, "make_source", make_source)
            return undo.enter_context(history)

        yield install
