"""What the examples share: the command line, the text, and a checksum of the trained weights."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

TEXT = Path(__file__).with_name("data") / "coriolanus.txt"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def command_line(**defaults: int) -> argparse.Namespace:
    """Parse the command line: one whole-number option for each keyword, with its default."""
    parser = argparse.ArgumentParser()
    for name, default in {**defaults, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument(
        "--checksum", action="store_true", help="print a SHA-256 of the trained weights"
    )
    return parser.parse_args()


def read_text() -> Tensor:
    """The text as one long vector of bytes: a vocabulary of 256."""
    return torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8)


class TextWindows(Dataset[dict[str, Tensor]]):
    """The text cut into consecutive windows of `length` tokens, as a language model wants them."""

    def __init__(self, length: int) -> None:
        self.text = read_text()
        self.length = length

    def __len__(self) -> int:
        return len(self.text) // self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * self.length
        tokens = self.text[start : start + self.length].long()
        return {"input_ids": tokens, "labels": tokens}


def print_size(model: nn.Module) -> None:
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")


def print_checksum(model: nn.Module) -> None:
    """Print a hash of all weights and buffers: equal only if every bit of them is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    print(f"weights {digest.hexdigest()}")
