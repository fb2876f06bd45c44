"""Small models of the usual kinds, and a training that any optimizer can be put into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import Adan, Lion
from torch import Tensor, nn
from torch.optim import Optimizer

from memlens.optim import AdamWR, AdanR, LionR

__all__ = [
    "MODELS",
    "PAIRS",
    "SPENDING",
    "Make",
    "convolutional",
    "gradients",
    "groups",
    "identical",
    "loss_of",
    "train",
    "transformer",
    "values",
]

Make = Callable[..., Optimizer]

PAIRS: dict[str, tuple[Make, Make]] = {
    "AdamWR": (torch.optim.AdamW, AdamWR),
    "AdanR": (Adan, AdanR),
    "LionR": (Lion, LionR),
}
"""The original and ours."""

SPENDING: dict[str, Make] = {"AdamWR": AdamWR, "LionR": LionR}
"""Those that leave no gradient in `p.grad`."""


class _Transformer(nn.Module):
    """Two layers, with the output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.output = nn.Linear(16, 32, bias=False)
        self.output.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.scale
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.output(x)
        return logits


def transformer() -> nn.Module:
    """Language model; tied weights, and one parameter without dimensions."""
    return _Transformer()


def convolutional() -> nn.Module:
    """Classifier of images, with the weights of the convolutions in channels_last order."""
    model: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    converted: nn.Module = model.to(memory_format=torch.channels_last)  # not in torch's stubs
    return converted


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutional": convolutional,
    "transformer": transformer,
}


def loss_of(model: nn.Module, random: torch.Generator) -> Tensor:
    """Loss of a batch that the generator decides."""
    dtype = next(model.parameters()).dtype
    if isinstance(model, _Transformer):
        tokens = torch.randint(0, 32, (4, 9), generator=random)
        return nn.functional.cross_entropy(
            model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )
    images = torch.randn(8, 3, 8, 8, generator=random).to(dtype)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (8,), generator=random)
    return nn.functional.cross_entropy(model(images), labels)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Decay for matrices, none and another learning rate for the rest; and a group with nothing in it."""
    parameters = list(model.parameters())
    return [
        {"params": [value for value in parameters if value.dim() > 1], "weight_decay": 0.1},
        {"params": [value for value in parameters if value.dim() <= 1], "lr": 3e-3},
        {"params": []},
    ]


def values(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.parameters()]


def gradients(model: nn.Module) -> list[Tensor | None]:
    return [value.grad for value in model.parameters()]


def identical(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether both are the same to the bit (and neither has a NaN)."""
    return len(some) == len(others) and all(map(torch.equal, some, others))


def train(
    make: Make,
    kind: str = "convolutional",
    dtype: torch.dtype = torch.float32,
    steps: int = 200,
    sign: int = 1,
    update: Callable[[nn.Module, Optimizer], Any] = lambda model, optimizer: optimizer.step(),
    clear: Callable[[nn.Module, Optimizer], Any] = lambda model, optimizer: optimizer.zero_grad(),
    micro_batches: int = 1,
    **options: Any,
) -> list[Tensor]:
    """Final parameters of a training; the same for the same arguments.

    Args:
        make: constructor of the optimizer.
        kind: name of the model in `MODELS`.
        sign: -1 to train with the loss negated.
        update: what is called for a step.
        clear: how gradients are cleared, before each step.
        micro_batches: backward passes per step.
        options: for the optimizer.
    """
    torch.manual_seed(0)
    model = MODELS[kind]().to(dtype)
    before = values(model)
    optimizer = make(groups(model), lr=1e-3, **options)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        clear(model, optimizer)
        for _ in range(micro_batches):
            (sign * loss_of(model, random)).backward()
        update(model, optimizer)
    after = values(model)
    assert all(bool(value.isfinite().all()) for value in after)
    assert not any(map(torch.equal, before, after)), "something was not trained"
    return after
