"""Trains with DDP and FSDP2, with the originals and with ours; run on two processes by test_jobs_r.py.

Prints one line of JSON on rank 0: per optimizer and way, whether the final weights are the same to the
bit on all ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from tests.optim.training import PAIRS, Make
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


class Net(nn.Module):
    """The middle layer is left out in every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, whole: bool) -> Tensor:
        x = self.first(x)
        result: Tensor = self.last(self.middle(x) if whole else x)
        return result


def ddp(net: nn.Module) -> nn.Module:
    return DistributedDataParallel(net, find_unused_parameters=True)


def ddp_views(net: nn.Module) -> nn.Module:
    return DistributedDataParallel(
        net, gradient_as_bucket_view=True, find_unused_parameters=True, bucket_cap_mb=1
    )


def fsdp(net: nn.Module) -> nn.Module:
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    return net


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": ddp,
    "DDP with gradients as views of buckets": ddp_views,
    "FSDP2": fsdp,
}


def train(make: Make, wrap: Callable[[nn.Module], nn.Module], set_to_none: bool) -> list[Tensor]:
    torch.manual_seed(0)
    net: Any = wrap(Net())
    # Adan's foreach uses a function that DTensor does not know.
    foreach = False if wrap is fsdp else None
    optimizer = make(net.parameters(), lr=0.01, weight_decay=0.1, foreach=foreach)
    random = torch.Generator().manual_seed(torch.distributed.get_rank())
    for step in range(6):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = net(torch.randn(4, 6, generator=random), step % 2 == 0).square().sum()
        loss.backward()
        optimizer.step()
    return [
        (value.to_local() if isinstance(value, DTensor) else value).detach().clone()
        for value in net.parameters()
    ]


def main() -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found = {}
    for name, (original, ours) in PAIRS.items():
        for way, wrap in WAYS.items():
            for set_to_none in (True, False):
                finals = [train(make, wrap, set_to_none) for make in (original, ours)]
                same = all(map(torch.equal, *finals))
                flag = torch.tensor(same, dtype=torch.int32)
                torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
                found[f"{name}, {way}, set_to_none={set_to_none}"] = bool(flag)
    if torch.distributed.get_rank() == 0:
        print("found " + json.dumps(found), flush=True)
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort some processes that end in good order


if __name__ == "__main__":
    main()
