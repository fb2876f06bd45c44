"""State of every optimizer in a recorded training: each block by name, to the byte."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.optimizers.layouts import FLOAT, LAYOUTS, SHARED, Parameter
from tests.support.training import Outcome, Recorded, Recording, now, run_both
from torch import nn

from memlens.catalogue.table import CATALOGUE
from memlens.catalogue.variant import parse_variant
from memlens.events import Category
from memlens.variants.build import build
from memlens.variants.request import read_construction
from memlens_integrations.optimizers.lomo import GroupedLOMO

RANK = 8
VOCABULARY, WIDTH, INNER = 80, 64, 96

ROWS = [name for name, row in CATALOGUE.items() if row.runs_on_cpu]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Small(nn.Module):
    """A language model: 8-bit, projected, small and odd tensors, some not to be projected."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)
        self.mix = nn.Parameter(0.1 * torch.randn(7, 700))
        """4900 elements: neither 128 nor 256 divides them; a side shorter than the rank."""
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.up(x)))
        logits: torch.Tensor = self.head(x)
        loss = nn.functional.cross_entropy(logits[:-1].float(), tokens[1:])
        return loss + 0.1 * self.mix.float().square().mean()


SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (VOCABULARY, WIDTH),
    "up.weight": (INNER, WIDTH),
    "up.bias": (INNER,),
    "down.weight": (WIDTH, INNER),
    "down.bias": (WIDTH,),
    "mix": (7, 700),
    "head.weight": (VOCABULARY, WIDTH),
}


def variant_text(name: str) -> str:
    return f"{name}:rank={RANK}" if "rank" in CATALOGUE[name].options else name


def training(name: str, dtype: torch.dtype) -> Callable[[Recording], Outcome]:
    """Two steps of an optimizer of the catalogue, in the place of the job's AdamW."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = Small().to(dtype)
            tokens = torch.randint(VOCABULARY, (24,))
            asked = read_construction(torch.optim.AdamW, (model.parameters(),), {"lr": 1e-3})
            optimizer = build(parse_variant(variant_text(name)), asked)
            for step in range(2):
                loss = model(tokens)
                loss.backward()
                optimizer.step()
                done.losses.append(loss.item())
                del loss
                done.moments[f"step {step}"] = now()
                optimizer.zero_grad()
        done.values = [value.detach() for value in model.parameters()]
        if isinstance(optimizer, GroupedLOMO):
            optimizer.remove()
        return done

    return job


def expected(name: str, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each block of state, and of each master weight."""
    cast = CATALOGUE[name].precision != "job"
    item = 2 if cast else dtype.itemsize
    state = dict(SHARED.get(name, {}))
    masters = {}
    for text, shape in SHAPES.items():
        parameter = Parameter(
            shape, item, RANK, hidden=text not in ("embed.weight", "head.weight"), name=text
        )
        for key, size in LAYOUTS[name](parameter).items():
            state[f"{key} of {text}"] = size
        if CATALOGUE[name].precision == "mixed":
            masters[f"master_weight of {text}"] = parameter.numel * FLOAT
    return state, masters


def blocks(recorded: Recorded, category: Category) -> dict[str, int]:
    """Bytes by name at the end of the second step; a table that many share goes by its own name."""
    found: dict[str, int] = {}
    for block in recorded.rank.allocations_at(recorded.outcome.moments["step 1"], None):
        if block.category is category:
            name = block.name.partition(" of ")[0] if block.name.startswith("qmap") else block.name
            assert name not in found, "two blocks of one name"
            found[name] = block.size_bytes
    return found


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_every_block_of_state_is_named_and_as_large_as_documented(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # paged state on a CPU, projections
        recorded = run_both(training(name, dtype), tmp_path)

    state, masters = expected(name, dtype)
    assert blocks(recorded, Category.OPTIMIZER_STATE) == state
    assert blocks(recorded, Category.MASTER_WEIGHT) == masters
    held = recorded.at("step 1")
    assert held.get(Category.OPTIMIZER_STATE, 0) == sum(state.values())
    assert held.get(Category.MASTER_WEIGHT, 0) == sum(masters.values())
    unknown = [
        block
        for block in recorded.rank.allocations_at(recorded.outcome.moments["step 1"], None)
        if block.category is Category.UNKNOWN and not block.preexisting  # tables of libraries
    ]
    assert unknown == []
    assert len(recorded.rank.steps()) == 2


def test_every_row_has_a_layout() -> None:
    assert set(LAYOUTS) == set(CATALOGUE)
