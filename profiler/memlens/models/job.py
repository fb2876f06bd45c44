"""An ordinary training job: `python -m memlens.models.job --model llama-60m --batch 1x256`.

It trains one model of the table on one random batch, again and again, so that the loss falls; with
`--zero` or `--fsdp` as one rank of those that a launcher starts. It does not record itself: `memlens run`
does that, as with any other job.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from memlens.errors import MemlensError, UsageError
from memlens.models.batch import parse_batch
from memlens.models.table import find_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["check", "main", "read_options"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print one line for each step.

    Args:
        arguments: the command line; None takes that of the process.
    """
    try:
        _train(read_options(arguments))
    except MemlensError as error:
        print(f"memlens: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def check(arguments: Sequence[str]) -> None:
    """See that a command line is one that `main` can carry out; loads no torch.

    Whether it says how to shard is not asked: that may be added to it.

    Raises:
        UsageError: it is not.
    """
    options = read_options(arguments)
    _batch(options)
    _check_sharding(options)


def _check_sharding(options: argparse.Namespace) -> None:
    if options.zero is not None and options.fsdp:
        raise UsageError("--zero and --fsdp both spread the training state; give one of them")
    if options.offload == "all" and options.zero in (0, 1, 2):
        raise UsageError(
            "--offload all moves parameters, which takes --zero 3; give --offload optimizer"
        )
    if options.offload and options.zero == 0:
        raise UsageError("--offload takes --zero 1 or more")


def _batch(options: argparse.Namespace) -> tuple[int, int]:
    samples, length = parse_batch(options.batch, find_model(options.model))
    if samples % options.accumulate:
        raise UsageError(
            f"a batch of {samples} cannot be cut into {options.accumulate} equal parts; "
            "give --accumulate a number that divides it"
        )
    return samples, length


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists the options)")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; loads no torch.

    Raises:
        UsageError: there are no such options.
    """
    parser = _Parser(
        prog="python -m memlens.models.job",
        description="Train a built-in model with AdamW on one random batch.",
    )
    parser.add_argument("--model", required=True, help="such as llama-60m")
    parser.add_argument("--batch", required=True, help="samples x tokens (1x256), or images (4)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=_positive, default=4, help="default: 4")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    # Without a warm-up: at 1e-3 GPT-2 diverges within four steps, here its loss falls.
    parser.add_argument("--lr", type=_learning_rate, default=1e-4, help="default: 1e-4")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument(
        "--accumulate",
        type=_positive,
        default=1,
        help="cut the batch into so many parts, and add their gradients up; default: 1",
    )
    parser.add_argument(
        "--zero", type=int, choices=range(4), help="train under DeepSpeed with this stage of ZeRO"
    )
    parser.add_argument(
        "--ds-config",
        type=_ds_config,
        default={},
        metavar="FILE",
        help="with --zero: what else DeepSpeed is to be told (bucket sizes, say), as JSON; batch size, "
        "precision and stage are the job's",
    )
    parser.add_argument("--fsdp", action="store_true", help="train under PyTorch's fully_shard")
    parser.add_argument(
        "--offload",
        choices=("optimizer", "all"),
        default="",
        help="under --zero: the host keeps the optimizer's state, or parameters as well; "
        "under --fsdp: all shards",
    )
    return parser.parse_args(arguments)


def _train(options: argparse.Namespace) -> None:
    shape = find_model(options.model)
    samples, length = _batch(options)
    _check_sharding(options)
    if options.offload and options.zero is None and not options.fsdp:
        raise UsageError("--offload goes with --zero or --fsdp")

    import torch

    from memlens.models.build import compute_loss, make_batch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    device = _device(options.device)
    torch.manual_seed(options.seed)
    training, device = _training(options, dtype, device, samples)
    if rank := int(os.environ.get("RANK", 0)):
        torch.manual_seed(options.seed + rank)  # a batch of its own
    batch = make_batch(shape, samples, length, dtype=dtype, device=device)

    count: int = options.accumulate
    chunks = {name: tensor.chunk(count) for name, tensor in batch.items()}
    parts = [{name: each[at] for name, each in chunks.items()} for at in range(count)]

    for step in range(options.steps):
        for part in parts:
            loss = compute_loss(training.network, part)
            training.learn(loss, is_last=part is parts[-1])
        if rank == 0:
            print(f"step {step} loss {loss.item()!r}", flush=True)


class _Training(Protocol):
    """A model and its optimizer."""

    network: nn.Module

    def learn(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of a part of a batch, and take a step after the last one."""


class _PlainTraining:
    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, accumulate: int
    ) -> None:
        self.network = network
        self._optimizer = optimizer
        self._accumulate = accumulate

    def learn(self, loss: Tensor, *, is_last: bool) -> None:
        if self._accumulate > 1:
            loss = loss / self._accumulate
        loss.backward()
        if is_last:
            self._optimizer.step()
            self._optimizer.zero_grad()


def _training(
    options: argparse.Namespace, dtype: torch.dtype, device: torch.device, samples: int
) -> tuple[_Training, torch.device]:
    """The model on its device, and that device."""
    import torch

    from memlens.models.build import build_model, model_class

    def build(where: str | torch.device, dtype: torch.dtype = dtype) -> nn.Module:
        return build_model(
            options.model, dtype=dtype, device=where, checkpointing=options.checkpointing
        )

    def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr=options.lr)

    count: int = options.accumulate
    if options.zero is None and not options.fsdp:
        network = build(device)
        return _PlainTraining(network, make_optimizer(network), count), device

    model_class(find_model(options.model))  # before DeepSpeed changes how tensors are made
    from memlens.models.sharded import FullyShardedTraining, Sharding, ZeroTraining, begin_ranks

    sharding = Sharding(options.zero, options.fsdp, options.offload, options.ds_config)
    device = begin_ranks(device)
    if options.fsdp:
        return FullyShardedTraining(
            sharding,
            device,
            dtype,
            count,
            lambda where: build(where, torch.float32),
            make_optimizer,
        ), device
    return ZeroTraining(sharding, device, dtype, samples, count, build, make_optimizer), device


def _device(text: str) -> torch.device:
    import torch

    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UsageError(f"torch knows no device {text!r}; give cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"torch finds no CUDA device here, so not {text!r}; give --device cpu")
    return device


def _ds_config(text: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} holds no ds_config, which is an object")
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, not {text!r}")
    return int(text)


def _learning_rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, not {text!r}")
    return number


if __name__ == "__main__":
    main()
