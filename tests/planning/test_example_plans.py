"""Sharded examples, written for real ranks, are planned unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.example_jobs import EXAMPLES
from tests.support.jobs import run_memlens

import memlens
from memlens.events import Category

pytestmark = pytest.mark.slow

RANKS = 4


@pytest.mark.parametrize(
    "words",
    [
        ("deepspeed_cifar.py", "--deepspeed", "--deepspeed_config", "configs/ds_config.json"),
        ("hf_sharded.py", "--bf16", "--deepspeed", "configs/ds_zero3.json"),
        ("hf_sharded.py", "--fsdp", "--fsdp_config", "configs/fsdp2.json"),
        ("hf_sharded.py", "--fsdp", "--fsdp_config", "configs/fsdp1.json"),
    ],
    ids=lambda words: f"{words[0]} {Path(words[-1]).stem}",
)
def test_it_runs_as_one_rank_of_four(words: tuple[str, ...], tmp_path: Path) -> None:
    recording = ("--json", "--no-stacks", "--out", str(tmp_path / "plan"))
    ranks = ("--world-size", str(RANKS), "--rank", "1")
    done = run_memlens("plan", *recording, *ranks, *words, cwd=EXAMPLES, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["plan"]["steps"] == 3
    (rank,) = memlens.load(tmp_path / "plan" / "run").ranks
    peak, ended = rank.peak().categories, rank.steps()[-1].end_categories
    assert sum(peak.values()) == rank.peak().allocated_bytes
    assert peak[Category.UNKNOWN] == 0
    # Two moments of each parameter in 32 bits, of which a rank has its part.
    moments = ended[Category.OPTIMIZER_STATE]
    whole = ended[Category.MASTER_WEIGHT] or ended[Category.WEIGHT]
    assert moments == pytest.approx(
        2 * whole, rel=0.01
    )  # padding, blocks of 512 bytes, step counts
