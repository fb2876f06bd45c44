"""What lies beside the tensors: workspaces of libraries, memory that no allocator tells of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.histories import HookHistory
from torch import nn

import memlens
from memlens.events import Category
from memlens.sources.cuda_facts import facts_of
from memlens.sources.cuda_workspaces import lt_workspace_bytes, workspace_bytes

Install = Callable[[HookHistory], HookHistory]
MIB = 2**20


@pytest.mark.parametrize(
    ("environment", "sizes"),
    [
        ({}, [8_519_680, 32 * MIB]),
        ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, [4 * MIB, 32 * MIB]),
        ({"CUBLAS_WORKSPACE_CONFIG": ":16:8:4096:2"}, [4_210_688, 8_519_680]),
        ({"CUBLAS_WORKSPACE_CONFIG": "none of it"}, [8_519_680, 32 * MIB]),
    ],
)
def test_how_large_workspaces_are(environment: dict[str, str], sizes: list[int]) -> None:
    assert workspace_bytes(environment) == sizes


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, MIB),
        ({"CUBLASLT_WORKSPACE_SIZE": "512"}, MIB // 2),
        ({"CUBLASLT_WORKSPACE_SIZE": "much"}, MIB),
        ({"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1"}, 0),
    ],
)
def test_how_large_the_workspace_of_products_with_a_bias_is(
    environment: dict[str, str], size: int
) -> None:
    assert lt_workspace_bytes(environment) == size


class Library(nn.Module):
    """Makes itself a workspace in its first call, as cuBLAS does, and keeps it."""

    kept: list[torch.Tensor]

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.size = size
        self.kept = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.kept:
            self.kept.append(torch.empty(self.size, dtype=torch.uint8))
        y: torch.Tensor = self.inner(x)
        return y


@pytest.mark.parametrize(
    ("size", "category"), [(8_519_680, "workspace"), (8_519_681, "activation")]
)
def test_a_workspace_is_known_by_its_size(
    over: Install, tmp_path: Path, size: int, category: str
) -> None:
    over(HookHistory())
    model = Library(size)
    optimizer = torch.optim.SGD(model.parameters())
    with memlens.profile(out=tmp_path / "run") as session:
        for _ in range(3):
            model(torch.zeros(2, 8)).sum().backward()
            optimizer.step()
    rank = session.capture.ranks[0]
    (block,) = [
        rank.allocation(number)
        for number in range(len(rank.blocks.first))
        if rank.blocks.requested_bytes[number] == size
    ]
    assert block.category is Category(category)


def test_managed_memory_of_bitsandbytes(
    over: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    over(HookHistory())
    with memlens.profile(out=tmp_path / "run") as session:
        monkeypatch.setattr(functional.GlobalPageManager, "_instance", None)
        manager = functional.GlobalPageManager.get_instance()
        state = torch.zeros(1000)
        manager.paged_tensors += [state, state, torch.zeros(24)]
        nn.Linear(8, 8)(torch.zeros(2, 8))
    gauges = {gauge.what: gauge for gauge in session.capture.ranks[0].gauges()}
    assert gauges["bitsandbytes managed memory"].last_bytes == 4096


def test_an_adapter_is_installed_when_its_library_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    from types import ModuleType

    installed: list[str] = []

    class Late:
        library = "a_late_library"

        def install(self, recorder: object, undo: object) -> None:
            installed.append(self.library)

    monkeypatch.setattr("memlens.adapters.load_adapters", lambda recorder: [Late()])
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters())
    with memlens.profile(out=tmp_path / "run"):
        model(torch.zeros(2, 8)).sum().backward()
        optimizer.step()
        assert installed == []
        monkeypatch.setitem(sys.modules, "a_late_library", ModuleType("a_late_library"))
        model(torch.zeros(2, 8)).sum().backward()
        optimizer.step()
        model(torch.zeros(2, 8))
    assert installed == ["a_late_library"]


def segment(pool: tuple[int, int], *blocks: tuple[int, str], stream: int = 0) -> dict[str, object]:
    total = sum(size for size, _ in blocks)
    return {
        "device": 0,
        "address": 4096,
        "total_size": total,
        "allocated_size": sum(size for size, state in blocks if state == "active_allocated"),
        "active_size": sum(size for size, state in blocks if state != "inactive"),
        "stream": stream,
        "segment_type": "large",
        "segment_pool_id": pool,
        "blocks": [{"size": size, "state": state} for size, state in blocks],
    }


def test_how_an_allocator_stands() -> None:
    segments = [
        segment((0, 0), (5, "active_allocated"), (7, "inactive"), (11, "active_awaiting_free")),
        segment((0, 0), (13, "inactive"), stream=3),
        # A CUDA graph's: nothing else is served from it, so what is free there is of no use.
        segment((0, 1), (17, "active_allocated"), (19, "inactive")),
        {**segment((0, 0), (23, "inactive")), "device": 1},
    ]
    assert facts_of(segments, 0) == {
        "allocated_bytes": 22,
        "reserved_bytes": 72,
        "private_pool_bytes": 36,
        "pending_bytes": 11,
        "free_pieces": [[13, "large", 3], [7, "large", 0]],
        "free_pieces_bytes": 20,
        "largest_free_bytes": 13,
    }
