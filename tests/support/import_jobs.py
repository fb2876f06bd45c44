"""Small trainings in the ways in which people write them, which an importer has to tell apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["JOBS"]

WIDTH, WORDS, STEPS = 48, 40, 3
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Block(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.reentrant = reentrant

    def body(self, x: Tensor) -> Any:
        return x + self.down(torch.relu(self.up(self.norm(x))))

    def forward(self, x: Tensor) -> Any:
        if self.reentrant is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


class Net(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(reentrant) for _ in range(3))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Any:
        hidden = self.embedding(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def batch() -> Tensor:
    return torch.randint(0, WORDS, (8, 33))


def loss_of(model: nn.Module, words: Tensor) -> Tensor:
    out = model(words[:, :-1])
    return nn.functional.cross_entropy(out.flatten(0, 1), words[:, 1:].flatten())


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, foreach=True)


def train(
    make: MakeOptimizer = adamw, *, reentrant: bool | None = None, accumulate: int = 1
) -> None:
    model = Net(reentrant)
    optimizer = make(model.parameters())
    for _ in range(STEPS):
        for _ in range(accumulate):
            loss_of(model, batch()).backward()
        if accumulate > 1:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def plain() -> None:
    train()


def checkpoint_reentrant() -> None:
    train(reentrant=True)


def checkpoint_not_reentrant() -> None:
    train(reentrant=False)


def accumulates_and_clips() -> None:
    train(accumulate=3)


def sgd() -> None:
    """Its name is that of an optimizer, and it is none; SGD itself takes no memory."""
    train(lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def closure() -> None:
    """As Lightning trains: forward and backward are within the optimizer's step."""
    model = Net()
    optimizer = adamw(model.parameters())
    for _ in range(STEPS):
        words = batch()

        def again(words: Tensor = words) -> float:
            optimizer.zero_grad()
            loss = loss_of(model, words)
            loss.backward()
            return float(loss.detach())

        optimizer.step(again)


def lbfgs() -> None:
    """Its step goes back and forth between its own work and the closure."""
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    words = batch()

    def again() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, words)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(again)


def copies_weights() -> None:
    model = Net()
    average = copy.deepcopy(model)
    optimizer = adamw(model.parameters())
    for _ in range(STEPS):
        loss_of(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)


def loads() -> None:
    model = Net()
    optimizer = adamw(model.parameters())
    for (words,) in DataLoader(TensorDataset(torch.randint(0, WORDS, (24, 33))), batch_size=8):
        loss_of(model, words).backward()
        optimizer.step()
        optimizer.zero_grad()


class Handmade(torch.optim.Optimizer):
    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["m"].mul_(0.9).add_(0.1 * weight.grad)
                state["v"].mul_(0.99).add_(0.01 * weight.grad**2)
                weight -= 1e-3 * state["m"] / (state["v"].sqrt() + 1e-8)


def handmade() -> None:
    train(Handmade)


class Trainer:
    """Trains while it is being made, in a method that is called `step`."""

    def __init__(self) -> None:
        self.model = Net()
        self.optimizer = adamw(self.model.parameters())
        for _ in range(STEPS):
            self.step()

    def step(self) -> None:
        loss_of(self.model, batch()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def trainer() -> None:
    Trainer()


def steps_in_backward() -> None:
    model = Net()
    optimizers = {each: adamw([each]) for each in model.parameters()}

    def step(weight: Tensor) -> None:
        optimizer = optimizers[weight]  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()

    handles = [each.register_post_accumulate_grad_hook(step) for each in model.parameters()]
    for _ in range(STEPS):
        loss_of(model, batch()).backward()
    for handle in handles:
        handle.remove()


JOBS: tuple[Callable[[], None], ...] = (
    plain,
    checkpoint_reentrant,
    checkpoint_not_reentrant,
    accumulates_and_clips,
    sgd,
    closure,
    lbfgs,
    copies_weights,
    loads,
    handmade,
    trainer,
    steps_in_backward,
)
