"""One simulated rank under DeepSpeed holds what it holds among real ones, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.planning.really_and_simulated import (
    JOB,
    TIMEOUT_S,
    Ran,
    assert_alike,
    really_and_simulated,
)
from tests.planning.sharded_job import BACKWARD, OFFLOADED, START, STEP, ZERO, point
from tests.support.jobs import run_memlens, write_script
from tests.support.points import held_at

import memlens
from memlens.events import Category

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[(1, [0]), (2, [0]), (4, [1, 3])], ids=lambda each: each[0])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Ran]:
    world_size, simulated = request.param
    return really_and_simulated("zero", tmp_path_factory.mktemp("zero"), world_size, simulated)


@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize("moment", [BACKWARD, STEP], ids=["after backward", "after step"])
def test_a_rank_holds_what_it_really_holds(ranks: dict[int, Ran], name: str, moment: int) -> None:
    assert_alike(ranks, list(ZERO).index(name), moment)


def test_what_the_host_keeps_is_not_on_the_device(tmp_path: Path) -> None:
    words = ("--no-stacks", "--steps", "1000", "--world-size", "4", "--rank", "1", "--out", "plan")
    done = run_memlens("plan", *words, JOB, "offloaded", cwd=tmp_path, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    (rank,) = memlens.load(tmp_path / "plan" / "run").ranks
    held = {
        name: held_at(rank, point(place, START), point(place, STEP))
        for place, name in enumerate(OFFLOADED)
    }
    for stage in ("2", "3"):
        assert held[stage][Category.MASTER_WEIGHT] and held[stage][Category.OPTIMIZER_STATE]
        offloaded = held[f"{stage} offloaded"]
        assert offloaded[Category.MASTER_WEIGHT] == offloaded[Category.OPTIMIZER_STATE] == 0
    assert held["2 offloaded"][Category.WEIGHT] == held["2"][Category.WEIGHT]
    # Of one gradient at a time, a buffer as large as the largest parameter.
    assert held["2 offloaded"][Category.GRADIENT] == 131 * 23 * 2
    assert held["3 offloaded"][Category.GRADIENT] == 0
    # Those that are too small to be gathered each time stay whole, padded for four ranks.
    assert held["3 offloaded"][Category.WEIGHT] == 3 * (24 + 24 + 32 + 24) * 2
    # The last one: weights in 16 bits and master weights, each in a block of a power of two.
    pinned = next(each for each in rank.gauges() if each.what == "pinned host memory")
    assert pinned.peak_bytes >= held["3"][Category.MASTER_WEIGHT]


def test_a_scripts_stage_is_replaced(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        """
        import deepspeed
        import torch

        network = torch.nn.Sequential(torch.nn.Linear(1000, 1000, bias=False))
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        }
        engine = deepspeed.initialize(
            model=network, model_parameters=network.parameters(), config=config
        )[0]
        for _ in range(10):
            batch = torch.ones(2, 1000, dtype=torch.bfloat16, device=engine.device)
            engine.backward(engine(batch).float().mean())
            engine.step()
        """,
    )
    words = (
        "--json",
        "--no-stacks",
        "--zero",
        "3",
        "--world-size",
        "8",
        "--rank",
        "7",
        "--out",
        "p",
        "train.py",
    )
    done = run_memlens("plan", *words, cwd=tmp_path, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    plan = json.loads(done.stdout)["plan"]
    assert (plan["rank"], plan["world_size"], plan["sharding"]) == (7, 8, "zero3")
    assert plan["steps"] == 3
    (rank,) = memlens.load(tmp_path / "p" / "run").ranks
    ended = rank.steps()[-1].end_categories
    # A million parameters over eight ranks, in blocks of 512 bytes.
    assert ended[Category.WEIGHT] == 250_368
    assert ended[Category.MASTER_WEIGHT] == 500_224
    # FusedAdam, which needs no compiler here.
    assert ended[Category.OPTIMIZER_STATE] == 2 * 500_224


def test_what_cannot_be_simulated_has_its_layout(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"zero_quantized_weights": true}}')
    model = ("--model", "llama-60m", "--batch", "1x16", "--dtype", "bf16", "--ds-config", "ds.json")
    words = ("--json", "--gpu", "24GB", "--zero", "3", "--world-size", "4", "--rank", "2")
    done = run_memlens("plan", *words, *model, cwd=tmp_path, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    plan = json.loads(done.stdout)["plan"]
    assert (plan["simulated"], plan["fits"]) == (False, None)
    assert plan["reason"].startswith("DeepSpeed's operator 'quantizer'")
    held = plan["categories"]
    parameters = 58_073_600
    assert held["weight"] == 2 * parameters // 4
    assert held["master_weight"] == parameters
    # The catalogue's figure has a step count in a million elements.
    assert 0 <= held["optimizer_state"] - 2 * parameters <= parameters // 1_000_000
