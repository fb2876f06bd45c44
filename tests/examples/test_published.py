"""The published rows: the models have the published sizes, and a row comes out as it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "published"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("timm_shapes").make


@pytest.mark.parametrize(
    ("name", "thousands"),
    [
        ("ViT-S", 22_879),
        ("ViT-B", 88_224),
        ("ViT-L", 305_510),
        ("ViT-H", 630_765),
        ("ConvNeXt-T", 28_589),
        ("ConvNeXt-S", 50_224),
        ("ConvNeXt-B", 88_591),
        ("ConvNeXt-XL", 350_197),
    ],
)
def test_models_have_the_parameters_of_timms(make: Any, name: str, thousands: int) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in make(name).parameters())
    assert round(count / 1000) == thousands


def test_a_row_is_planned_as_the_table_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "memlens", "plan", "--json", "--no-stacks",
            "--out", str(tmp_path / "plan"), "--optimizer", "adamw-r",
            str(FOLDER / "job.py"), "ViT-S",
        ],
        env={**os.environ, "TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)["plan"]["reserved_peak_bytes"]
    results = json.loads((FOLDER / "results.json").read_text())["reuse"]
    (row,) = [each for each in results if (each["model"], each["optimizer"]) == ("ViT-S", "AdamW")]
    assert planned / 1e6 == row["ours"]["reuse"]
    # Published in whole megabytes.
    assert abs(planned / 1e6 - row["published"]["reuse"]) < 1


@pytest.mark.slow
def test_a_row_with_zero_saves_what_theory_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bytes for each parameter of the partition that a rank updates, up to a block's rounding."""
    monkeypatch.syspath_prepend(str(FOLDER))
    reproduce = import_module("reproduce")
    results = json.loads((FOLDER / "results.json").read_text())["zero"]
    (row,) = [each for each in results if each["model"] == "BLOOM-560M"]
    update = {}
    for name, optimizer in (("baseline", "adamw"), ("reuse", "adamw-r")):
        words = ("--world-size", "8", "--optimizer", optimizer)
        answer = reproduce.plan(*words, str(FOLDER / "job.py"), "BLOOM-560M", "--zero")
        update[name] = answer["update_bytes"]
        assert answer["plan"]["allocated_peak_bytes"] / 1e6 == row["ours"][name]["allocated"]
        assert answer["plan"]["reserved_peak_bytes"] / 1e6 == row["ours"][name]["reserved"]
        assert update[name] / 1e6 == row["ours"][name]["update"]
    saved = update["baseline"] - update["reuse"]
    assert abs(saved - 4 * 559_214_592 // 8) < 2**20
