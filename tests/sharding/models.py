"""The model that the jobs of this folder train: no number of ranks divides its sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Odd", "groups_of", "is_frozen"]

FROZEN = "middle."


def is_frozen(name: str) -> bool:
    """Whether a parameter of that name takes no gradient."""
    return name.startswith(FROZEN)


def groups_of(names: list[tuple[str, int]]) -> list[list[str]]:
    """Matrices and the others, from pairs of a name and a number of dimensions."""
    return [
        [name for name, dims in names if dims > 1],
        [name for name, dims in names if dims <= 1],
    ]


class Odd(nn.Module):
    """Every element of a parameter has its own value, so that contents tell whose they are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(13, 7)
        self.first = nn.Linear(7, 11)
        self.middle = nn.Linear(11, 11)
        self.norm = nn.LayerNorm(11)
        self.last = nn.Linear(11, 5)
        self.scale = nn.Parameter(torch.ones(1))
        with torch.no_grad():
            start = 0
            for name, value in self.named_parameters():
                value.requires_grad_(not is_frozen(name))
                count = value.numel()
                # Exact in bfloat16 and float16, too, and small enough that nothing overflows.
                numbers = (torch.arange(start, start + count) % 251 + 1) / 256
                value.copy_(numbers.reshape(value.shape).to(value.dtype))
                start += count

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.middle(self.first(self.table(tokens)))
        out: Tensor = self.last(self.norm(hidden)) * self.scale
        return out
