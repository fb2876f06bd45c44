"""Trains with every optimizer of the catalogue, one after the other, in a process that simulates CUDA."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tests.support.training import now
from torch import nn

from memlens.catalogue.table import CATALOGUE
from memlens.catalogue.variant import NO_RETAIN_GRAD, parse_variant
from memlens.variants.build import _home, build
from memlens.variants.request import read_construction
from memlens_integrations.bitsandbytes import BitsAndBytesAdapter

__all__ = ["DTYPES", "LAYERS", "RANK", "SHAPES", "SIDE", "WIDTH", "main"]

RANK = 8
"""Of projections of the language model."""
VOCABULARY, NARROW, INNER = 336, 304, 96
SIDE = 1024
LAYERS, WIDTH = 8, 512
"""Of the matrix and the stack on which the catalogue's figures were measured."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (VOCABULARY, NARROW),
    "up.weight": (INNER, NARROW),
    "up.bias": (INNER,),
    "down.weight": (NARROW, INNER),
    "down.bias": (NARROW,),
    "mix": (7, 700),
    "head.weight": (VOCABULARY, NARROW),
}
"""Of the language model: paged, 8-bit, projected, small and odd tensors, some not to be projected."""


class Language(nn.Module):
    """A language model of which no tensor exceeds 1 MiB: such blocks have the size that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, NARROW)
        self.up = nn.Linear(NARROW, INNER)
        self.down = nn.Linear(INNER, NARROW)
        self.mix = nn.Parameter(torch.zeros(7, 700))
        """4900 elements: neither 128 nor 256 divides them; a side shorter than the rank."""
        self.head = nn.Linear(NARROW, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss."""
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.up(x)))
        logits: torch.Tensor = self.head(x)
        loss = nn.functional.cross_entropy(logits[:-1].float(), tokens[1:])
        return loss + 0.1 * self.mix.float().square().mean()


def _optimizer(text: str, model: nn.Module) -> Any:
    asked = read_construction(torch.optim.AdamW, (model.parameters(),), {"lr": 1e-3})
    return build(parse_variant(text), asked)


def language_model(name: str, dtype: torch.dtype, ending: str = "") -> dict[str, Any]:
    """Two steps. When gradients were there, when the second step was done, and managed memory."""
    managed = _managed()
    options = f":rank={RANK}" if "rank" in CATALOGUE[name].options else ""
    with torch.device("cuda"):
        model = Language().to(dtype)
    optimizer = _optimizer(name + options + ending, model)
    tokens = torch.randint(VOCABULARY, (24,), device="cuda")
    told: dict[str, Any] = {}
    for _ in range(2):
        model(tokens).backward()
        told["before_step"] = now()
        optimizer.step()
        told["after_step"] = now()
        optimizer.zero_grad()
    told["after_zero_grad"] = now()
    told["managed"] = _managed() - managed
    _take_hooks_off(optimizer)
    return told


def matrix(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Two steps of one matrix. Bytes of weights, gradients, and state with master weights."""
    with torch.device("cuda"):
        x = torch.randn(2, SIDE, dtype=dtype)
        x @ x.T  # cuBLAS has its workspace from here on
        before = _held()
        model = nn.Sequential(nn.Linear(SIDE, SIDE, bias=False)).to(dtype)
    optimizer = _optimizer(name, model)
    told: dict[str, Any] = {}
    for _ in range(2):
        model(x).float().square().mean().backward()
        with_gradients = _held()
        optimizer.step()
        optimizer.zero_grad()
        told["gradient"] = with_gradients - _held()  # of the second step: state is there by then
    weight = told["weight"] = sum(each.nbytes for each in model.parameters())
    told["state"] = _held() - before - weight
    _take_hooks_off(optimizer)
    return told


def _held() -> int:
    """Bytes of the allocator, and of managed memory."""
    return torch.cuda.memory_allocated() + _managed()


def _managed() -> int:
    return sum(size for _, _, size in BitsAndBytesAdapter().gauges())


def stack(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Three steps of the stack. What the last `step()` held at most, besides what was there before."""
    options = ":heads=8" if name == "adam-mini" else ""
    with torch.device("cuda"):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).to(dtype)
    optimizer = _optimizer(name + options, model)
    x = torch.randn(2, WIDTH, dtype=dtype, device="cuda")
    temporary = 0
    for _ in range(3):
        model(x).float().square().mean().backward()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
        temporary = torch.cuda.max_memory_allocated() - before
        optimizer.zero_grad()
    _take_hooks_off(optimizer)
    return {"temporary": temporary}


def _take_hooks_off(optimizer: Any) -> None:
    if hasattr(optimizer, "remove"):
        optimizer.remove()


def _jobs(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    yield "language", lambda: language_model(name, dtype)
    yield "matrix", lambda: matrix(name, dtype)
    yield "stack", lambda: stack(name, dtype)
    if CATALOGUE[name].in_backward and dtype == torch.bfloat16:
        yield "no_retain_grad", lambda: language_model(name, dtype, NO_RETAIN_GRAD)


def main() -> None:
    """Print a line of JSON for each training."""
    warnings.simplefilter("ignore")
    for row in CATALOGUE.values():
        _home(row)
    # What libraries hold is out of the collector's sight: each full collection would walk over it.
    gc.collect()
    gc.freeze()
    for name in CATALOGUE:
        for text, dtype in DTYPES.items():
            for what, job in _jobs(name, dtype):
                told = {"name": name, "dtype": text, "what": what, **job()}
                print(json.dumps(told), flush=True)
                gc.collect()
