"""A small real language model, and a language that is learnt in a few steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memlens.catalogue.table import CATALOGUE
from memlens.catalogue.variant import parse_variant
from memlens.variants.build import build
from memlens.variants.request import read_construction

__all__ = ["RANK", "batches", "llama", "optimizer_for", "train"]

RANK = 16
VOCABULARY = 128


def llama(layers: int = 4, width: int = 128) -> Any:
    """Some 900,000 parameters, the same each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            use_cache=False,
        )
    )


def batches() -> Iterator[torch.Tensor]:
    """Sequences of 24 tokens that count up from somewhere, by one, two or three."""
    random = torch.Generator().manual_seed(1)
    while True:
        start = torch.randint(0, VOCABULARY, (4, 1), generator=random)
        stride = torch.randint(1, 4, (4, 1), generator=random)
        yield (start + stride * torch.arange(24)) % VOCABULARY


def optimizer_for(name: str, model: torch.nn.Module, **hyper: Any) -> Any:
    """What a variant makes in the place of `AdamW(model.parameters(), lr=1e-3)`."""
    row, plus, ending = name.partition("+")
    options = f":rank={RANK}" if "rank" in CATALOGUE[row].options else ""
    asked = read_construction(
        torch.optim.AdamW, (model.parameters(),), {"lr": 1e-3, "weight_decay": 0.01} | hyper
    )
    return build(parse_variant(row + options + plus + ending), asked)


def train(model: Any, optimizer: Any, tokens: Iterator[torch.Tensor], steps: int) -> list[float]:
    """Train as an ordinary loop does.

    Returns:
        The loss of each step.
    """
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # paged state on a CPU
        for _ in range(steps):
            batch = next(tokens)
            loss = model(input_ids=batch, labels=batch).loss
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses
