"""Train a small residual network on generated images, with DataLoader workers and an evaluation."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from common import DEVICE, command_line, print_checksum, print_size

CLASSES = 8


class Stripes(Dataset[tuple[Tensor, int]]):
    """Noisy stripes on 32 x 32 colour images; the class is their direction."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        label = index % CLASSES
        angle = torch.tensor(label * torch.pi / CLASSES)
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        shift = 6 * torch.rand(1, generator=generator)
        stripes = torch.sin(x * torch.cos(angle) + y * torch.sin(angle) + shift)
        return stripes + 0.3 * torch.randn(3, 32, 32, generator=generator), label


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
    model.eval()
    hits = [
        (model(images.to(DEVICE)).argmax(1) == labels.to(DEVICE)).float().mean()
        for images, labels in loader
    ]
    return torch.stack(hits).mean().item()


def main() -> None:
    args = command_line(steps=16, batch=32, workers=2)
    torch.manual_seed(args.seed)

    train = DataLoader(Stripes(256, 1), args.batch, shuffle=True, num_workers=args.workers)
    test = DataLoader(Stripes(64, 2), args.batch, num_workers=args.workers)
    blocks = Block(3, 32, 1), Block(32, 64, 2), Block(64, 128, 2)
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES))
    model.to(DEVICE)
    print_size(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    step = 0
    while step < args.steps:
        model.train()
        for images, labels in itertools.islice(train, args.steps - step):
            loss = F.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"step {step} loss {loss.item()!r}", flush=True)
            step += 1
        print(f"accuracy {accuracy(model, test)!r}")

    if args.checksum:
        print_checksum(model)


if __name__ == "__main__":
    main()
