"""One rank of several: DDP takes the memory that it takes, and waits for nobody."""

from __future__ import annotations

from tests.simulation.conftest import Simulate

from memlens.events import Category

SIZE = 1024
PARAMETER_BYTES = 4 * SIZE * SIZE * 4

DDP = f"""
    import os
    import torch
    from torch import nn

    torch.distributed.init_process_group("nccl")
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    print(torch.distributed.get_rank(), torch.distributed.get_world_size())
    layers = [nn.Linear({SIZE}, {SIZE}, bias=False) for _ in range(4)]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers).to(rank), [rank])
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(3):
        model(torch.zeros(2, {SIZE}, device=rank)).sum().backward()
        total = torch.ones(1, device=rank)
        torch.distributed.all_reduce(total)
        optimizer.step()
        optimizer.zero_grad()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def test_ddp_keeps_buckets_as_large_as_the_gradients(simulate: Simulate) -> None:
    job = simulate(DDP, environment={"WORLD_SIZE": "8"})
    assert job.output.split() == ["0", "8"]
    peak = job.rank.peak()
    assert peak.categories[Category.COMMUNICATION] == PARAMETER_BYTES
    assert peak.categories[Category.WEIGHT] == PARAMETER_BYTES
    assert peak.categories[Category.GRADIENT] == PARAMETER_BYTES
    # A counter of each parameter lies on the host.
    assert peak.categories[Category.OPTIMIZER_STATE] == 2 * PARAMETER_BYTES
    assert peak.categories[Category.OPTIMIZER_TEMPORARY] == PARAMETER_BYTES
