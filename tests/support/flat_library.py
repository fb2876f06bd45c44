"""A library as ZeRO is one: an optimizer over a flat copy of a model's parameters; and its adapter."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import nn

from memlens.adapters import Holding, Piece, mark_scope
from memlens.events import Category
from memlens.recording.recorder import Recorder

__all__ = ["FlatAdamW", "FlatAdapter", "gather", "reduce"]

PADDING = 3


class FlatAdamW:
    """Elements `first` to `last` of all parameters in a row, as one fp32 tensor with some padding."""

    def __init__(self, model: nn.Module, first: int, last: int) -> None:
        self.parameters = list(model.parameters())
        self.first, self.last = first, last
        flat = torch.cat([each.detach().float().flatten() for each in self.parameters])
        self.master = torch.zeros(last - first + PADDING)
        self.master[: last - first] = flat[first:last]
        self.master.requires_grad_(True)
        self.inner = torch.optim.AdamW([self.master])
        self.bucket: torch.Tensor | None = None

    def step(self) -> None:
        """Hand over the gradients, and step."""
        self.bucket = torch.zeros(64)
        flat = torch.cat(
            [each.grad.float().flatten() for each in self.parameters if each.grad is not None]
        )
        self.master.grad = torch.zeros_like(self.master)
        self.master.grad[: self.last - self.first] = flat[self.first : self.last]
        self.inner.step()
        self.master.grad = None
        for each in self.parameters:
            each.grad = None

    def pieces(self) -> Iterator[Piece]:
        """Whose elements the master holds."""
        begin = 0
        for each in self.parameters:
            start, end = max(begin, self.first), min(begin + each.numel(), self.last)
            if start < end:
                yield Piece(each, start - self.first, end - start, start - begin)
            begin += each.numel()


def gather(elements: int) -> torch.Tensor:
    """Make a buffer, by way of another one."""
    return torch.zeros(elements * 2)[:elements].clone()


def reduce(elements: int) -> float:
    """Make a buffer, and leave nothing."""
    return float(torch.zeros(elements).sum())


class FlatAdapter:
    """Tells what every FlatAdamW holds."""

    library = "tests.support.flat_library"

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Mark what gathers and reduces."""
        home = sys.modules[__name__]
        for name in ("gather", "reduce"):
            mark_scope(
                recorder,
                undo,
                home,
                name,
                text=name,
                survivors=Category.COMMUNICATION,
                temporaries=Category.COMMUNICATION if name == "reduce" else Category.TEMPORARY,
            )

    def sharding(self) -> list[str]:
        """Always in use."""
        return ["flat"]

    def holdings(self) -> Iterator[Holding]:
        """Master weights and buckets."""
        for item in gc.get_objects():
            if type(item) is FlatAdamW:
                pieces = tuple(item.pieces())
                yield Holding(item.master, Category.MASTER_WEIGHT, "flat master", pieces=pieces)
                if item.bucket is not None:
                    yield Holding(item.bucket, Category.COMMUNICATION, "bucket", inferred=True)
