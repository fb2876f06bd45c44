"""On a GPU: what the capture says is what torch's allocator counts, to the byte.

`tools/gpu_check.py` does more of this kind, in processes of their own, and needs no pytest.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.training import assert_sound
from torch import Tensor, nn

import memlens
from memlens.capture import RankCapture
from memlens.models.build import build_model, make_batch
from memlens.models.table import find_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 1 << 20
LLAMA = replace(
    find_model("llama-60m"),
    config={
        **find_model("llama-60m").config,
        "vocab_size": 1000,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
)
Read = Callable[[], None]
Job = Callable[[Read], None]


@pytest.fixture(autouse=True, scope="module")
def transformers() -> None:
    """The first import of the library changes the process: tests begin after it."""
    build_model(LLAMA, device="meta")


@pytest.fixture(autouse=True)
def an_allocator_of_its_own() -> Iterator[None]:
    """What tests before have left in the cache is given back."""
    torch.manual_seed(0)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    gc.collect()
    torch.cuda.empty_cache()


def assert_counts_as_the_allocator(job: Job, folder: Path) -> RankCapture:
    """Run a job that calls `read` after each of its optimizer's steps."""
    read: list[int] = []
    with memlens.profile(device="cuda", out=folder / "run") as session:
        job(lambda: read.append(torch.cuda.memory_allocated()))
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    (rank,) = session.capture.ranks
    assert rank.device == f"cuda:{torch.cuda.current_device()}"
    assert_sound(rank)
    assert [step.end_bytes for step in rank.steps()] == read
    assert rank.peak().allocated_bytes == peak
    assert rank.reserved_peak_bytes == reserved
    return rank


def train_llama(read: Read, *, checkpointing: bool = False, steps: int = 4) -> None:
    model = build_model(LLAMA, device="cuda", checkpointing=checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(steps):
        batch = make_batch(LLAMA, 4, 128, device="cuda")
        model(**batch).loss.backward()
        optimizer.step()
        read()
        optimizer.zero_grad()


def perceptron(width: int = 512) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)).cuda()


def named_share(rank: RankCapture, category: str, phase: str) -> float:
    """Of all bytes of a category that were handed out in a phase: the part with a module's name."""
    blocks = rank.to_arrow()
    columns = {
        name: np.array(blocks[name].to_pylist(), dtype=object)
        for name in ("category", "phase", "module", "size_bytes")
    }
    chosen = (columns["category"] == category) & (columns["phase"] == phase)
    assert chosen.any(), f"no {category} in phase {phase}"
    named = chosen & (columns["module"] != "")
    return float(columns["size_bytes"][named].sum() / columns["size_bytes"][chosen].sum())


def test_a_language_model(tmp_path: Path) -> None:
    rank = assert_counts_as_the_allocator(train_llama, tmp_path)
    assert named_share(rank, "activation", "forward") > 0.95
    assert named_share(rank, "temporary", "backward") > 0.95


def test_recomputed_activations_on_the_engines_threads(tmp_path: Path) -> None:
    rank = assert_counts_as_the_allocator(
        lambda read: train_llama(read, checkpointing=True), tmp_path
    )
    assert named_share(rank, "activation", "backward") > 0.95
    blocks = rank.to_arrow().to_pylist()
    recomputed = {
        block["module"]
        for block in blocks
        if block["category"] == "activation" and block["phase"] == "backward"
    }
    for layer in range(3):
        assert any(name.startswith(f"model.layers.{layer}.mlp") for name in recomputed)


def test_blocks_that_another_stream_uses(tmp_path: Path) -> None:
    def job(read: Read) -> None:
        model = perceptron()
        optimizer = torch.optim.AdamW(model.parameters())
        side = torch.cuda.Stream()
        for _ in range(6):
            main = torch.cuda.current_stream()
            with torch.cuda.stream(side):
                batch = torch.randn(512, 512, device="cuda")
            main.wait_stream(side)
            batch.record_stream(main)
            output = model(batch)
            side.wait_stream(main)
            with torch.cuda.stream(side):
                copied = output.detach().clone()
                for _ in range(50):
                    copied = copied * 1.01
            output.record_stream(side)
            loss = output.square().mean()
            del batch, output, copied
            loss.backward()
            optimizer.step()
            read()
            optimizer.zero_grad()

    assert_counts_as_the_allocator(job, tmp_path)


def test_a_model_as_a_graph(tmp_path: Path) -> None:
    def job(read: Read) -> None:
        model = perceptron()
        graphed: Any = torch.cuda.make_graphed_callables(
            model, (torch.randn(64, 512, device="cuda"),)
        )
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(4):
            graphed(torch.randn(64, 512, device="cuda")).square().mean().backward()
            optimizer.step()
            read()
            optimizer.zero_grad()

    rank = assert_counts_as_the_allocator(job, tmp_path)
    assert {gauge.what for gauge in rank.gauges()} >= {"private pools", "device memory in use"}


def test_a_step_as_a_graph(tmp_path: Path) -> None:
    def job(read: Read) -> None:
        # Wide: graphs of tests before leave some tensors behind, of which nobody knows what they are.
        model = perceptron(2048)
        optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
        batch = torch.randn(64, 2048, device="cuda")

        def step() -> Tensor:
            loss: Tensor = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            read()
            return loss

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.zero_grad()
                step()
        torch.cuda.current_stream().wait_stream(side)
        optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()

    assert_counts_as_the_allocator(job, tmp_path)


def test_losses_are_the_same_to_the_bit(tmp_path: Path) -> None:
    def losses() -> list[float]:
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.AdamW(model.parameters())
        found = []
        for _ in range(10):
            loss = model(torch.randn(64, 512, device="cuda")).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    plain = losses()
    assert losses() == plain, "these jobs can not be compared"
    with memlens.profile(device="cuda", out=tmp_path / "run"):
        assert losses() == plain


def test_a_bundle_is_there_before_the_exception(tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 512 * MIB / total))
    try:
        with memlens.profile(device="cuda", out=tmp_path / "run") as session:
            model = perceptron()
            model(torch.randn(64, 512, device="cuda")).sum().backward()
            kept = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda")
            with pytest.raises(torch.OutOfMemoryError):
                try:
                    torch.empty(600 * MIB, dtype=torch.uint8, device="cuda")
                finally:
                    bundles = list((tmp_path / "run").glob("*/oom*.json"))
            assert [path.name for path in bundles] == ["oom.json"]
            del kept
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (found,) = session.capture.ranks[0].out_of_memory
    assert found.requested_bytes == 600 * MIB
    assert found.allocated_bytes >= 64 * MIB
    assert any(
        frame.function == "test_a_bundle_is_there_before_the_exception" for frame in found.stack
    )


@pytest.mark.parametrize("fails", [False, True])
def test_oom_only_writes_nothing_unless_it_fails(tmp_path: Path, fails: bool) -> None:
    with memlens.profile(device="cuda", out=tmp_path / "run", oom_only=True):
        perceptron()(torch.randn(64, 512, device="cuda")).sum().backward()
        if fails:
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert (tmp_path / "run").exists() is fails


def test_a_history_of_the_jobs_own_goes_on(tmp_path: Path) -> None:
    torch.cuda.memory._record_memory_history("all", stacks="python", max_entries=100_000)
    try:
        before = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        with memlens.profile(device="cuda", out=tmp_path / "run") as session:
            within = torch.empty(5 * MIB, dtype=torch.uint8, device="cuda")
            perceptron()(torch.randn(64, 512, device="cuda")).sum().backward()
        after = torch.empty(7 * MIB, dtype=torch.uint8, device="cuda")
        assert torch._C._cuda_isHistoryEnabled()
        snapshot = torch.cuda.memory._snapshot()
        entries = snapshot["device_traces"][torch.cuda.current_device()]
        ours = [
            entry
            for entry in entries
            if entry["action"] == "alloc" and entry["size"] in (3 * MIB, 5 * MIB, 7 * MIB)
        ]
        assert [entry["size"] for entry in ours] == [3 * MIB, 5 * MIB, 7 * MIB]
        # What the autograd engine's threads allocate has no Python stack.
        assert all(entry.get("frames") for entry in ours)
        del before, within, after
    finally:
        torch.cuda.memory._record_memory_history(None)
    rank = session.capture.ranks[0]
    assert (rank.blocks.requested_bytes == 5 * MIB).sum() == 1
    assert any("the job records" in note for note in rank.coverage.notes)
