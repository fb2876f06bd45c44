"""Trains a small model under one configuration after another, really or simulated, and marks points.

A point is a block of a size of its own: `point(place, moment)` bytes. Run by test_zero_plan.py and
test_fsdp_plan.py.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

START, BACKWARD, STEP = range(3)
"""Moments: before anything is made, after the last backward of the second step, after that step."""
_POINT_BYTES = 77_001
"""More than any tensor of the job has, so that a point is known by its size."""

BUCKETS = {"reduce_bucket_size": 2_000, "stage3_param_persistence_threshold": 64}
ACCUMULATE = {"gradient_accumulation_steps": 2}
FP32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}}


def config(stage: int, dtype: str, **more: Any) -> dict[str, Any]:
    """A ds_config."""
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, **BUCKETS},
        "bf16": {"enabled": dtype == "bf16"},
        # From a scale so small that no step is skipped.
        "fp16": {"enabled": dtype == "fp16", "initial_scale_power": 4},
        **more,
    }


ZERO: dict[str, dict[str, Any]] = {
    **{
        f"{stage} {dtype}": config(stage, dtype)
        for stage in range(4)
        for dtype in ("fp32", "bf16", "fp16")
    },
    **{f"{stage} bf16 accumulated": config(stage, "bf16", **ACCUMULATE) for stage in (1, 2, 3)},
    **{f"{stage} bf16+fp32": config(stage, "bf16", **FP32_GRADIENTS) for stage in (1, 2, 3)},
}
HOST = {"device": "cpu", "pin_memory": True}
OFFLOADED = {
    name: {
        **config(stage, "bf16", zero_force_ds_cpu_optimizer=False),
        "zero_optimization": {"stage": stage, **BUCKETS, **dict.fromkeys(parts, HOST)},
    }
    for name, stage, *parts in (
        ("2", 2),
        ("2 offloaded", 2, "offload_optimizer"),
        ("3", 3),
        ("3 offloaded", 3, "offload_optimizer", "offload_param"),
    )
}
FSDP = ("fp32", "bf16", "unsharded after forward", "FSDP1", "FSDP1 bf16", "FSDP1 SHARD_GRAD_OP")


def point(place: int, moment: int) -> int:
    """The size of a point's block.

    Args:
        place: of the configuration, counted from 0.
        moment: one of the three.
    """
    return _POINT_BYTES + 16 * place + moment


class Odd(nn.Module):
    """No number of ranks divides its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(131, 23)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(23), nn.Linear(23, 29), nn.GELU(), nn.Linear(29, 23))
            for _ in range(3)
        )
        self.last = nn.Linear(23, 131)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.table(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        out: torch.Tensor = self.last(hidden)
        return out.float().square().mean()


def marked(place: int, moment: int, device: torch.device) -> None:
    """Pass a point."""
    if device.type == "cpu":
        # A thread of gloo lets go of what was sent when everybody has been told that it was.
        torch.distributed.barrier()
        time.sleep(0.05)
    torch.empty(point(place, moment), dtype=torch.uint8, device=device)


def zero(place: int, settings: dict[str, Any], device: torch.device) -> None:
    """Train under DeepSpeed."""
    import deepspeed

    network = Odd()
    optimizer = torch.optim.AdamW(network.parameters())
    engine = deepspeed.initialize(model=network, optimizer=optimizer, config=settings)[0]
    for _ in range(2):
        for _ in range(settings.get("gradient_accumulation_steps", 1)):
            engine.backward(engine(torch.arange(10, device=device).reshape(2, 5)))
            marked(place, BACKWARD, device)
            engine.step()
    marked(place, STEP, device)
    engine.destroy()


def fsdp(place: int, name: str, device: torch.device) -> None:
    """Train under `fully_shard`, or its predecessor."""
    shard = _in_fsdp1 if name.startswith("FSDP1") else _fully_shard
    network = shard(Odd(), name, device)
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.arange(10, device=device).reshape(2, 5)).backward()
        marked(place, BACKWARD, device)
        optimizer.step()
    marked(place, STEP, device)


def _fully_shard(network: Odd, name: str, device: torch.device) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    settings: dict[str, Any] = {}
    if name == "bf16":
        settings["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    if name == "unsharded after forward":
        settings["reshard_after_forward"] = False
    for block in network.blocks:
        fully_shard(block, **settings)
    fully_shard(network, **settings)
    return network


def _in_fsdp1(network: Odd, name: str, device: torch.device) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    settings: dict[str, Any] = {}
    if name.endswith("bf16"):
        settings["mixed_precision"] = MixedPrecision(torch.bfloat16, torch.float32)
        settings["use_orig_params"] = True
    if name.endswith("SHARD_GRAD_OP"):
        settings["sharding_strategy"] = ShardingStrategy.SHARD_GRAD_OP
    return FullyShardedDataParallel(
        network,
        auto_wrap_policy=ModuleWrapPolicy({nn.Sequential}),
        device_id=device,
        **settings,
    )


def main() -> None:
    """Run all configurations of one kind."""
    torch.set_num_threads(1)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    run: Callable[[int, Any, torch.device], None]
    configurations: Sequence[Any]
    if sys.argv[1] != "fsdp":
        import deepspeed.ops

        if device.type == "cpu":
            # Communication over shared memory would be compiled here; gloo does without.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            # DeepSpeed asks for processors that are fast in fp16; any can compute in it.
            type(deepspeed.accelerator.get_accelerator()).is_fp16_supported = lambda _: True
        deepspeed.init_distributed(verbose=False)
        configurations = list((ZERO if sys.argv[1] == "zero" else OFFLOADED).values())
        run = zero
    else:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        run, configurations = fsdp, list(FSDP)
    for place, each in enumerate(configurations):
        marked(place, START, device)
        run(place, each, device)
        gc.collect()
    torch.distributed.barrier()
    if device.type == "cpu":
        # gloo's threads abort some processes that end in good order; memlens has its say before.
        atexit._run_exitfuncs()
        os._exit(0)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
