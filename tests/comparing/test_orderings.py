"""What theory says of optimizers holds on a measured Llama: who needs more than whom, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import run_memlens, write_script

import memlens
from memlens.events import Category

SCRIPT = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=512, hidden_size=256, intermediate_size=688, num_hidden_layers=6,
    num_attention_heads=4, num_key_value_heads=4, use_cache=False,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.randint(512, (1, 8))
for step in range(3):
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
"""Few tokens, so that the peak lies in the update and not in the activations."""

FAMILIES = (
    "sgd sgd-momentum adamw-foreach adamw-loop adamw-fused adamw-r adamw-loop+no-retain-grad",
    "adamw8bit adamw8bit+no-retain-grad adamw8bit-torchao adamw4bit lion lion-r lion8bit",
    "adan adan-r adafactor adafactor-momentum came muon soap lomo apollo",
    "galore-adamw galore-adamw8bit galore-adafactor galore-adamw8bit+no-retain-grad "
    "galore-adamw+no-retain-grad galore-adamw8bit:rank=16",
)
NAMES = " ".join(FAMILIES).split()

BY_PEAK = (
    # The copy that foreach makes, a layer's, none.
    ("adamw-r", "adamw-loop", "adamw-foreach"),
    ("lion-r", "lion"),
    ("adan-r", "adan"),
    # States: none, one, two, four.
    ("sgd", "sgd-momentum", "adamw-r", "adan-r"),
    ("sgd", "lion-r", "adamw-r"),
    # Fewer bits, fewer values.
    ("adamw8bit", "adamw-loop"),
    ("adafactor", "adafactor-momentum", "adamw-loop"),
    ("galore-adamw8bit", "galore-adamw", "adamw-loop"),
    ("galore-adafactor", "galore-adamw"),
    # Gradients that are not retained.
    ("adamw-loop+no-retain-grad", "adamw-loop"),
    ("adamw8bit+no-retain-grad", "adamw8bit"),
    ("galore-adamw8bit+no-retain-grad", "galore-adamw+no-retain-grad", "galore-adamw"),
    ("galore-adamw8bit+no-retain-grad", "galore-adamw8bit"),
    ("lomo", "sgd"),
)
"""From the smallest peak to the largest, temporaries included."""

BY_STATE = (
    ("sgd", "adafactor", "lion8bit", "adamw8bit", "lion", "adamw-loop", "adan", "soap"),
    ("lomo", "galore-adafactor", "galore-adamw8bit", "galore-adamw", "adamw-loop"),
    ("lion8bit", "adamw4bit", "adamw8bit-torchao", "lion", "muon", "adamw-fused"),
    ("adafactor-momentum", "came", "adamw-loop"),
    ("galore-adamw8bit:rank=16", "adamw8bit", "galore-adamw8bit"),  # 128 of 256 is no low rank
)
"""The same without temporaries: what the update keeps from step to step."""

SAME_STATE = (
    ("adamw-foreach", "adamw-loop", "adamw-fused", "adamw-r", "adamw-loop+no-retain-grad"),
    ("galore-adamw8bit", "galore-adamw8bit+no-retain-grad"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every variant, measured once."""
    folder = tmp_path_factory.mktemp("orderings")
    write_script(folder / "train.py", SCRIPT)
    words = ("compare", "train.py", "--optimizer", ",".join(NAMES), "--json", "--no-stacks")
    done = run_memlens(*words, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr
    variants = {each["name"]: each for each in json.loads(done.stdout)["variants"]}
    assert list(variants) == NAMES
    for name, each in variants.items():
        assert each["status"] == "ok", (name, each["reason"])
        assert each["peak"]["categories"]["unknown"] == 0, name
    return variants


def state_bytes(variant: dict[str, Any]) -> int:
    (rank,) = memlens.load(Path(variant["run"])).ranks
    held = rank.steps()[-1].end_categories
    return held[Category.OPTIMIZER_STATE] + held[Category.MASTER_WEIGHT]


@pytest.mark.parametrize("names", BY_PEAK, ids="<".join)
def test_peaks(comparison: dict[str, dict[str, Any]], names: tuple[str, ...]) -> None:
    peaks = [comparison[name]["peak"]["allocated_bytes"] for name in names]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == len(peaks)


@pytest.mark.parametrize("names", BY_STATE, ids="<".join)
def test_states(comparison: dict[str, dict[str, Any]], names: tuple[str, ...]) -> None:
    states = [state_bytes(comparison[name]) for name in names]
    assert states == sorted(states)
    assert len(set(states)) == len(states)


@pytest.mark.parametrize("names", SAME_STATE, ids="=".join)
def test_the_same_state(comparison: dict[str, dict[str, Any]], names: tuple[str, ...]) -> None:
    assert len({state_bytes(comparison[name]) for name in names}) == 1


def test_the_copy_that_foreach_makes(comparison: dict[str, dict[str, Any]]) -> None:
    """It is as large as the model, and is what AdamW-R and a fused kernel do without."""
    foreach, ours, fused = (
        comparison[name]["peak"] for name in ("adamw-foreach", "adamw-r", "adamw-fused")
    )
    model_bytes = foreach["categories"]["weight"]
    copy_bytes = foreach["categories"]["optimizer_temporary"]
    assert abs(copy_bytes - model_bytes) < 0.01 * model_bytes  # buffers are weights, too
    assert ours["categories"]["optimizer_temporary"] < 1024
    # Without the copy the peak moves to the end of backward, where a few activations are left.
    few = sum(ours["categories"][name] for name in ("activation", "input", "temporary"))
    assert few < model_bytes // 100
    assert 0 <= ours["allocated_bytes"] - (foreach["allocated_bytes"] - copy_bytes) <= few
    assert ours["allocated_bytes"] == fused["allocated_bytes"]
    losses = {comparison[name]["final_loss"] for name in ("adamw-foreach", "adamw-r", "adamw-loop")}
    assert len(losses) == 1


def test_8_bit_galore_without_gradients_is_the_smallest_of_its_family(
    comparison: dict[str, dict[str, Any]],
) -> None:
    family = [name for name in NAMES if name.startswith("galore") and ":" not in name]
    smallest = min(family, key=lambda name: int(comparison[name]["peak"]["allocated_bytes"]))
    assert smallest == "galore-adamw8bit+no-retain-grad"
