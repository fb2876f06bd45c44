"""What one optimizer costs, measured by memlens: `python -m memlens.variants.measure adamw8bit`.

Prints one JSON object of whole bytes for fp32 and for bf16 parameters:

* `matrix`, `vector`: state and master weights of one matrix of 1024 x 1024, and of one vector of 8192,
  after a step; counters and shared tables included;
* `stack`: of eight layers of 512 x 512 and 512, the gradients that are there when `step()` begins,
  and the most that `step()` (or, without retained gradients, backward and step) holds in temporaries;
* `no_retain_grad`: the same for the layer-by-layer mode, where the row has it: the most gradients.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import memlens
from memlens.answers import Coverage
from memlens.catalogue.row import Row
from memlens.catalogue.table import find
from memlens.catalogue.variant import Variant
from memlens.errors import MemlensError
from memlens.events import Category
from memlens.variants.build import build
from memlens.variants.request import read_construction

__all__ = ["main", "measure"]

MATRIX, VECTOR = 1024, 8192
LAYERS, WIDTH = 8, 512
STEPS = 3
"""The first makes the state, the others show what a step costs from then on."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_OPTIONS = {"adam-mini": {"heads": 8}}
"""What rows need to know of the model that is measured."""


class _Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(VECTOR))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def _models() -> dict[str, tuple[nn.Module, int]]:
    """Each with the width of its input."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    return {
        "matrix": (nn.Sequential(nn.Linear(MATRIX, MATRIX, bias=False)), MATRIX),
        "vector": (_Vector(), VECTOR),
        "stack": (nn.Sequential(*layers), WIDTH),
    }


def measure(row: Row) -> dict[str, Any]:
    """Measure a row of the catalogue in this process.

    Returns:
        What the module's text says, by dtype.

    Raises:
        MemlensError: the library is missing, or the recording was incomplete.
    """
    torch.set_num_threads(1)
    # In children, one after the other: no job may find in memory what another has left there.
    context = multiprocessing.get_context("fork")
    found: dict[str, Any] = {}
    for dtype in _DTYPES:
        asked = [(row.name, dtype, what, False) for what in ("matrix", "vector", "stack")]
        if row.in_backward:
            asked.append((row.name, dtype, "stack", True))
        with context.Pool(1, maxtasksperchild=1) as pool:
            figures = pool.starmap(_measure, asked, chunksize=1)
        found[dtype] = dict(
            zip(("matrix", "vector", "stack", "no_retain_grad"), figures, strict=False)
        )
    return found


def _measure(name: str, dtype: str, what: str, no_retain_grad: bool) -> dict[str, int]:
    row = find(name)
    variant = Variant(row, _OPTIONS.get(name, {}), no_retain_grad)
    with tempfile.TemporaryDirectory() as folder:
        session = memlens.profile(out=Path(folder) / "run", stacks=False)
        with session:
            moments = _train(variant, _DTYPES[dtype], what)
        rank = session.capture.ranks[0]
        _check(rank.coverage)
    begin, before, after = moments
    held = rank.categories_at(after)
    if what != "stack":
        state, master = held[Category.OPTIMIZER_STATE], held[Category.MASTER_WEIGHT]
        return {"optimizer_state": state, "master_weight": master}
    timeline = rank.timeline()
    times = timeline.time_ns

    def most(category: Category, since: int) -> int:
        low = max(int(np.searchsorted(times, since, side="right")) - 1, 0)
        high = int(np.searchsorted(times, after, side="right"))
        return int(timeline.categories[category][low:high].max())

    in_backward = no_retain_grad or row.always_in_backward
    since = begin if in_backward else before
    # A method that has no step() of its own works in hooks of backward, and so do its temporaries.
    kind = Category.TEMPORARY if row.always_in_backward else Category.OPTIMIZER_TEMPORARY
    return {
        "weight": held[Category.WEIGHT],
        "gradient": most(Category.GRADIENT, begin)
        if in_backward
        else rank.categories_at(before)[Category.GRADIENT],
        "optimizer_temporary": most(kind, since),
    }


def _check(coverage: Coverage) -> None:
    """Refuse to give figures from a capture that lacks something: they would look like others.

    Raises:
        MemlensError: something went wrong while recording.
    """
    if not coverage.complete:
        reason = "; ".join(coverage.problems) or f"{coverage.lost_events} events were lost"
        raise MemlensError(f"not measured, the capture is incomplete: {reason}")


def _train(variant: Variant, dtype: torch.dtype, what: str) -> tuple[int, int, int]:
    """Train a few steps.

    Returns:
        When the last step's backward began, when its `step()` began, and when that had ended.
    """
    torch.manual_seed(0)
    model, width = _models()[what]
    model.to(dtype)
    asked = read_construction(torch.optim.AdamW, (model.parameters(),), {"lr": 1e-3})
    optimizer = build(variant, asked)
    x = torch.randn(2, width, dtype=dtype)
    begin = before = after = 0
    for _ in range(STEPS):
        loss = model(x).float().square().mean()
        begin = _moment()
        loss.backward()
        before = _moment()
        optimizer.step()
        after = _moment()
        optimizer.zero_grad()
    return begin, before, after


def _moment() -> int:
    """A time that no event lies close to."""
    time.sleep(0.001)
    now = time.time_ns()
    time.sleep(0.001)
    return now


def main() -> None:
    """Measure the optimizer that the command line names, and print it."""
    parser = argparse.ArgumentParser(description="Measure what an optimizer costs.")
    parser.add_argument("name")
    try:
        print(json.dumps(measure(find(parser.parse_args().name))))
    except MemlensError as error:
        print(f"memlens: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
