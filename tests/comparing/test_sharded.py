"""ZeRO times optimizers, and FSDP, with real processes: held against arithmetic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import run_memlens, write_script

RANKS = 2
PARAMETERS = 58_073_600
"""Of llama-60m."""
TENSORS, NORMS = 75, 17 * 512
"""How many it has, and elements of those that are vectors."""
BUFFERS = 2 * 32 * 4
"""Rotary tables, in bytes: they stay whole."""
CODES = 2 * (1 + 4 / 256)
"""Bytes of two 8-bit moments of an element: a code each, and a scale for each 256."""
TABLES = 2 * 1024

BUCKETS = {
    "zero_optimization": {
        "reduce_bucket_size": 5_000_000,
        "allgather_bucket_size": 5_000_000,
        "stage3_prefetch_bucket_size": 2_000_000,
        # By default so small a model would stay gathered.
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
    }
}

Found = dict[str, dict[str, Any]]


def compare(*words: str, cwd: Path, code: int = 0) -> Found:
    done = run_memlens("compare", "--json", "--no-stacks", *words, cwd=cwd, timeout=1800)
    assert done.returncode == code, done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["variants"]}


def on_each_rank(variant: dict[str, Any], *categories: str) -> list[tuple[int, ...]]:
    """Bytes at each rank's own peak; all that is there adds up, and is known."""
    assert variant["status"] == "ok", variant["reason"]
    assert [each["rank"] for each in variant["ranks"]] == list(range(RANKS))
    peaks = [each["peak"] for each in variant["ranks"]]
    for peak in peaks:
        assert sum(peak["categories"].values()) == peak["allocated_bytes"]
        assert peak["categories"]["unknown"] <= peak["allocated_bytes"] // 100
    highest = max(peaks, key=lambda each: each["allocated_bytes"])
    assert variant["peak"] == highest
    return [tuple(peak["categories"][name] for name in categories) for peak in peaks]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "buckets.json").write_text(json.dumps(BUCKETS))
    job = ("--model", "llama-60m", "--batch", "1x16", "--steps", "2")
    names = "adamw,adamw8bit,adamw-r,galore-adamw"
    asked = ("--zero", "0,1,2,3", "--optimizer", names, "--nproc", str(RANKS))
    found = compare(*job, "--ds-config", "buckets.json", *asked, "--out", "all", cwd=folder)
    kept = folder / "all" / Path(found["adamw@zero2"]["run"]).parent.name / "ds_config.json"
    config = json.loads(kept.read_text())
    assert config["zero_optimization"] == {**BUCKETS["zero_optimization"], "stage": 2}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", ["adamw", "adamw-r", "adamw8bit"])
def test_what_is_spread_is_spread_to_the_byte(matrix: Found, name: str, stage: int) -> None:
    variant = matrix[f"{name}@zero{stage}"]
    held = on_each_rank(variant, "weight", "master_weight", "optimizer_state")
    part = PARAMETERS // (RANKS if stage else 1)
    # Without ZeRO there is a state for each tensor, with it one for the partition.
    if name == "adamw8bit":
        small = 0 if stage else NORMS
        state = int((part - small) * CODES) + small * 8 + TABLES
    else:
        state = 8 * part + 4 * (1 if stage else TENSORS)
    for weight, master, found in held:
        whole = 4 * (PARAMETERS // RANKS if stage == 3 else PARAMETERS) + BUFFERS
        # Stage 3 gathers vectors once and for all, but for the time of a step.
        assert weight - whole in ((0, 4 * NORMS) if stage == 3 else (0,))
        assert master == (4 * part if stage else 0)
        assert found == state


@pytest.mark.slow
def test_gradients_of_stage_two_are_spread_when_the_optimizer_steps(matrix: Found) -> None:
    for name in ("adamw", "adamw8bit"):
        held = on_each_rank(matrix[f"{name}@zero2"], "gradient")
        assert held == [(4 * PARAMETERS // RANKS,)] * RANKS


@pytest.mark.slow
def test_ours_trains_the_same_in_less(matrix: Found) -> None:
    for stage in range(4):
        theirs, ours = matrix[f"adamw@zero{stage}"], matrix[f"adamw-r@zero{stage}"]
        assert ours["final_loss"] == theirs["final_loss"]
        assert ours["peak"]["allocated_bytes"] <= theirs["peak"]["allocated_bytes"]
    # Where the peak is in the step, AdamW's two copies of the partition are what it is higher by,
    # but for what DeepSpeed itself makes before.
    saved = (
        matrix["adamw@zero2"]["peak"]["allocated_bytes"]
        - matrix["adamw-r@zero2"]["peak"]["allocated_bytes"]
    )
    assert 0 < saved <= 2 * 4 * PARAMETERS // RANKS


@pytest.mark.slow
def test_what_cannot_run_stands_in_the_matrix_with_its_reason(matrix: Found) -> None:
    assert matrix["galore-adamw@zero0"]["status"] == "ok"
    for stage in (1, 2, 3):
        refused = matrix[f"galore-adamw@zero{stage}"]
        assert refused["status"] == "refused"
        assert "GaLore needs matrices" in refused["reason"]
        assert refused["run"] is None


@pytest.mark.slow
def test_a_built_in_job_under_fully_shard(tmp_path: Path) -> None:
    job = ("--model", "llama-60m", "--batch", "1x16", "--steps", "2")
    names = "adamw,adamw8bit-torchao,adamw8bit"
    found = compare(*job, "--fsdp", "--optimizer", names, "--nproc", "2", cwd=tmp_path)
    held = on_each_rank(found["adamw@fsdp"], "weight", "master_weight", "optimizer_state")
    shard = PARAMETERS // RANKS
    assert held == [(4 * shard + BUFFERS, 0, 8 * shard + 4 * TENSORS)] * RANKS
    # Codes and scales; the tensors that are left as they are, and a table each, are a hundredth.
    for (state,) in on_each_rank(found["adamw8bit-torchao@fsdp"], "optimizer_state"):
        assert shard * CODES < state < shard * CODES * 1.02
    assert "DTensors" in found["adamw8bit@fsdp"]["reason"]


@pytest.mark.slow
def test_a_script_that_uses_deepspeed_is_unchanged(tmp_path: Path) -> None:
    """Its ds_config asks for stage 3, offloads, and names the optimizer; so does `zero.Init`."""
    shutil.copy(Path(__file__).parent / "zero_job.py", tmp_path / "train.py")
    job = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 100_000,
            "offload_param": {"device": "cpu", "pin_memory": False},
        },
    }
    (tmp_path / "ds_config.json").write_text(json.dumps(job))
    words = ("train.py", "--deepspeed", "--deepspeed_config", "ds_config.json", "--steps", "2")
    asked = ("--zero", "1,3", "--optimizer", "as-is,adamw-r", "--nproc", "2", "--out", "all")
    found = compare(*words, *asked, cwd=tmp_path)

    elements = 4 * (256 * 256 + 256)
    for name, each in found.items():
        held = on_each_rank(each, "weight", "master_weight", "optimizer_state")
        weight = elements * 2 // (RANKS if name.endswith("zero3") else 1)
        for rank in held:
            # Stage 3 may have gathered as much as all of so small a model.
            assert 0 <= rank[0] - weight <= (2 * elements if name.endswith("zero3") else 0)
            assert rank[1:] == (4 * elements // RANKS, 8 * elements // RANKS + 4)
    assert found["adamw-r@zero1"]["replaced"] == ["AdamW"]
    assert found["as-is@zero1"]["final_loss"] == found["adamw-r@zero1"]["final_loss"]
    notes = [note.partition(" ")[0] for note in found["adamw-r@zero1"]["notes"]]
    assert notes == ["offload_param", "zero_allow_untested_optimizer"]
    config = json.loads((Path(found["as-is@zero1"]["run"]).parent / "ds_config.json").read_text())
    zero = {"stage": 1, "reduce_bucket_size": 100_000}
    assert config == {**job, "zero_optimization": zero}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"), [(("--zero", "1,2"), "DeepSpeed"), (("--fsdp",), "fully_shard")]
)
def test_a_script_that_is_not_sharded_is_told_how(
    option: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    write_script(
        tmp_path / "train.py",
        """
        import torch
        model = torch.nn.Linear(8, 8)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(2, 8)).sum().backward()
        optimizer.step()
        """,
    )
    asked = ("train.py", *option, "--optimizer", "adamw,lion", "--nproc", "1")
    found = compare(*asked, cwd=tmp_path, code=2)
    assert {each["status"] for each in found.values()} == {"refused"}
    for each in found.values():
        assert each["reason"].startswith("the job does not use ")
        assert words in each["reason"]
    # It was run once, to its first step.
    assert len(list(tmp_path.glob("memlens-runs/*/*/output.txt"))) == 1
