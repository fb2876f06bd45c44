"""What an unchanged script sees of the device that is not there, and what it is told it cannot have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.simulation.conftest import Simulate, SimulatedJob, simulate

from memlens.catalogue.gpus import find_gpu

SCRIPT = Path(__file__).parents[1] / "support" / "simulated_script.py"
GPU = "RTX 4090"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SimulatedJob:
    return simulate(SCRIPT.read_text(), tmp_path_factory.mktemp("script"), gpu=GPU, stacks=True)


@pytest.fixture(scope="module")
def answers(job: SimulatedJob) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(job.output.splitlines()[-1])
    return found


EXPECTED: dict[str, Any] = {
    "available": True,
    "devices": 1,
    "name": GPU,
    "total": find_gpu(GPU).total_bytes,
    "capability": [8, 9],
    "accelerator": "cuda",
    "is_cuda": [True, False, False],
    "type": "torch.cuda.FloatTensor",
    "device of host": "cpu",
    "device in context": "cuda:0",
    "device by default": "cuda:0",
    # Addresses and counts are the allocator's.
    "views share": 4000,
    "others do not": True,
    "storage": True,
    "4 MB": 4_000_256,
    "back": 0,
    "reserved": True,
    "free": True,
    "peak": True,
    # What comes from the host, or is computed from such alone, has values.
    "known all": False,
    "known sum": 2,
    "known index": [2, 4],
    "known nonzero": [2, 1],
    "known list": [0, 2, 4, 6],
    "known copy": [True, False, True],
    "known in place": [[False, True, False], [True, False, True]],
    "known through a view": [True, True, True],
    "host values": [0, 1, 2],
    # Of all else there are stand-ins.
    "overwritten": False,
    "loss": 1.0,
    "condition": False,
    "count": "1",
    "count + 1": "2",
    "mean": 10.0,
    "mean of tensor": [4, 4],
    "numpy of the device": "TypeError: can't convert cuda:0 device type tensor to numpy. Use "
    "Tensor.cpu() to copy the tensor to host memory first.",
    # Modules keep their parameters.
    "identity": True,
    "tied": True,
    "of optimizer": True,
    "buffers": "cuda:0",
    "half": "torch.float16",
    "gradient": "cuda:0",
    "clip": "cuda:0",
    "state": "cuda:0",
    "state dict": "cuda:0",
    "compile": "cuda:0",
    "cpu again": "cpu",
    # Loading, streams, checkpoints, mixed precision.
    "batches": [[32, 3, 64, 64], [32, 3, 64, 64], [32, 3, 64, 64], [4, 3, 64, 64]],
    "labels": True,
    "stream": True,
    "elapsed": True,
    "checkpoint new": "None",
    "checkpoint old": "None",
    "autocast": ["torch.float16", "torch.float32"],
    "scaled step": "None",
    "dropout": "NativeDropoutBackward0",
    "attention": [2, 10, 64],
}
UNKNOWN = (
    "shape from a count",
    "unknown index",
    "unknown unique",
    "numpy of much",
    "graph",
    "graphed",
)
"""Asking for these ends in an error that names the operation, the line and the way out."""


def test_every_question_is_expected(answers: dict[str, Any]) -> None:
    told = {name for name in answers if not name.startswith("device of ")} | {"device of host"}
    assert told == {*EXPECTED, *UNKNOWN}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_answer_is_what_cuda_would_say(answers: dict[str, Any], name: str) -> None:
    assert answers[name] == EXPECTED[name]


def test_tensors_are_where_the_script_puts_them(answers: dict[str, Any]) -> None:
    places = {name: text for name, text in answers.items() if name.startswith("device of ")}
    del places["device of host"]
    assert len(places) == 12
    assert set(places.values()) == {"cuda:0"}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_depends_on_values_is_refused_with_its_line(
    answers: dict[str, Any], name: str
) -> None:
    text = answers[name]
    assert text.startswith("SimulationError: ")
    assert "job.py:" in text
    assert "; " in text.partition("job.py:")[2]


def test_what_was_not_done_is_noted_with_its_line(job: SimulatedJob) -> None:
    (file,) = job.run.glob("simulation-*.json")
    notes = json.loads(file.read_text())["notes"]
    for what in (
        "a value that is read from the device is a stand-in",
        "batches are loaded in the training's process, without workers",
        "a checkpoint is not saved",
        "torch.compile is left out, so memory is that of eager execution",
    ):
        assert any(note.startswith(f"{what} (job.py:") for note in notes), (what, notes)


def test_the_capture_adds_up(job: SimulatedJob) -> None:
    rank = job.rank
    assert job.capture.info.source == "simulated"
    assert rank.coverage.complete
    assert rank.coverage.witness_difference_bytes == 0
    peak = rank.peak()
    assert sum(peak.categories.values()) == peak.allocated_bytes
    assert peak.reserved_bytes is not None and peak.reserved_bytes >= peak.allocated_bytes
    replayed = rank.replayed()
    assert replayed.is_compared and replayed.first_difference is None


def test_stacks_show_the_job_and_not_the_simulation(job: SimulatedJob) -> None:
    files = [frame.file for each in job.rank.allocations_at(top=None) for frame in each.stack]
    assert any(file.endswith("job.py") for file in files)
    assert not any("memlens/simulation" in file or "_subclasses" in file for file in files)


def test_enough_steps_end_the_job(simulate: Simulate) -> None:
    job = simulate(
        """
        import torch

        weight = torch.nn.Parameter(torch.zeros(1000, 1000, device="cuda"))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for step in range(1000):
            print("step", step)
            weight.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        """,
        steps=2,
    )
    assert job.output.split() == ["step", "0", "step", "1"]
    assert len(job.rank.steps()) == 2


def test_an_operator_without_a_fake_is_named(simulate: Simulate) -> None:
    job = simulate(
        """
        import torch

        @torch.library.custom_op("mine::twice", mutates_args=())
        def twice(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        twice(torch.zeros(3, device="cuda"))
        """,
        succeeds=False,
    )
    (file,) = job.run.glob("simulation-*.json")
    error = json.loads(file.read_text())["error"]
    assert error.startswith("the operator mine::twice at job.py:8: ")
    assert "register_fake" in error


def test_what_is_refused_within_backward_is_told(simulate: Simulate) -> None:
    """An exception that leaves the autograd engine may abort the process, so it is written at once."""
    job = simulate(
        """
        import torch

        weight = torch.ones(3, device="cuda", requires_grad=True)
        product = weight * 2
        product.register_hook(lambda gradient: gradient[gradient > 0])
        (product * torch.randn(3, device="cuda")).sum().backward()
        """,
        succeeds=False,
    )
    (file,) = job.run.glob("simulation-*.json")
    error = json.loads(file.read_text())["error"]
    assert error.startswith("the operator aten::nonzero at job.py:6: ")


def test_checkpointed_attention_recomputes(simulate: Simulate) -> None:
    """Checkpointing compares the devices of what is saved and recomputed."""
    job = simulate(
        """
        import torch
        from torch import nn
        from torch.nn import functional as F
        from torch.utils.checkpoint import checkpoint

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.qkv = nn.Linear(64, 192)
                self.norm = nn.BatchNorm1d(16)

            def forward(self, x):
                q, k, v = self.qkv(x).view(2, 16, 3, 4, 16).permute(2, 0, 3, 1, 4)
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                return x + self.norm(attended.transpose(1, 2).reshape(2, 16, 64))

        blocks = nn.ModuleList(Block() for _ in range(3)).cuda()
        x = torch.zeros(2, 16, 64, device="cuda", requires_grad=True)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        x.sum().backward()
        print("done")
        """
    )
    assert job.output.split() == ["done"]
