"""Sessions over a stand-in for the history of torch's CUDA allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.support.histories import HookHistory

from memlens.recording import session
from memlens.recording.names import Names
from memlens.sources.cuda import CudaSource

Install = Callable[[HookHistory], HookHistory]


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Lets sessions read a history of one's own."""
    installed: list[HookHistory] = []

    def install(history: HookHistory) -> HookHistory:
        def make_source(device: str, names: Names, *, stack_depth: int) -> CudaSource:
            return CudaSource(names, stack_depth=stack_depth, history=history)

        monkeypatch.setattr(session, "make_source", make_source)
        history.__enter__()
        installed.append(history)
        return history

    yield install
    for history in installed:
        history.__exit__()
