"""A job's ds_config with another stage: what changes, and that nothing else does."""

from __future__ import annotations

import base64
import copy
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from memlens.catalogue.variant import parse_variant
from memlens.variants.witness import Witness

JOBS: dict[str, Any] = {
    "train_batch_size": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": 1_000,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
}


def changed(stage: int, variant: str, config: dict[str, Any] = JOBS) -> tuple[Any, list[str]]:
    from memlens_integrations.deepspeed.config import changed_config

    before = copy.deepcopy(config)
    found = changed_config(config, stage, parse_variant(variant))
    assert config == before
    return found


def test_the_job_s_own_optimizer_under_another_stage() -> None:
    config, notes = changed(2, "as-is")
    zero = dict(JOBS["zero_optimization"], stage=2)
    del zero["offload_param"]
    assert config == {**JOBS, "zero_optimization": zero}
    assert notes == ["offload_param is left out: ZeRO 2 has no such thing"]


def test_the_same_stage_changes_nothing() -> None:
    assert changed(3, "as-is") == (JOBS, [])


def test_without_zero_nothing_is_offloaded() -> None:
    config, notes = changed(0, "as-is")
    assert config["zero_optimization"] == {"stage": 0, "reduce_bucket_size": 1_000}
    assert len(notes) == 2


def test_an_optimizer_that_deepspeed_does_not_know() -> None:
    config, notes = changed(3, "adamw8bit")
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert [note.partition(" ")[0] for note in notes] == [
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    ]
    # One that it knows needs no leave, and where the job gives it, there is nothing to say.
    assert "zero_allow_untested_optimizer" not in changed(3, "adamw")[0]
    told = {**JOBS, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    assert changed(3, "adamw8bit", told) == (told, [])


def test_a_job_that_names_no_stage() -> None:
    assert changed(1, "adamw", {"train_batch_size": 8})[0] == {
        "train_batch_size": 8,
        "zero_optimization": {"stage": 1},
    }


@pytest.mark.parametrize("way", ["dict", "file", "commented file", "base64"])
def test_every_way_to_hand_it_over(way: str, tmp_path: Path) -> None:
    """What DeepSpeed then reads is the changed one, and it is kept beside the results."""
    pytest.importorskip("deepspeed")
    from deepspeed import DeepSpeedConfig

    from memlens_integrations.deepspeed.config import replace_stage

    job = {"train_batch_size": 2, "zero_optimization": {"stage": 3}}
    text = json.dumps(job)
    (tmp_path / "own.json").write_text(f"# our own\n{text}" if "commented" in way else text)
    given = {
        "dict": job,
        "base64": base64.urlsafe_b64encode(text.encode()).decode(),
    }.get(way, str(tmp_path / "own.json"))
    found: list[bool] = []
    witness = Witness(tmp_path)
    with ExitStack() as undo:
        replace_stage(1, parse_variant("lion"), witness, lambda: found.append(True), undo)
        config = DeepSpeedConfig(given)
    assert config.zero_optimization_stage == 1
    assert config.zero_allow_untested_optimizer
    assert found
    assert len(witness.notes) == 1
    assert json.loads((tmp_path / "ds_config.json").read_text())["zero_optimization"] == {
        "stage": 1
    }
    assert job["zero_optimization"] == {"stage": 3}
    assert DeepSpeedConfig(given).zero_optimization_stage == 3  # afterwards, all is as it was
