"""The built-in job with its training state spread over ranks, by DeepSpeed's ZeRO or by `fully_shard`.

A launcher (torchrun, `deepspeed`, or a simulation of one rank) says how many ranks there are; without
one the job is the only rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from memlens.errors import MissingDependencyError

__all__ = ["FullyShardedTraining", "Sharding", "ZeroTraining", "begin_ranks", "zero_config"]

_Build = Callable[[str | torch.device], nn.Module]
"""Builds the model on a device."""
_MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Sharding:
    """How the training state is spread."""

    zero_stage: int | None = None
    """Of DeepSpeed; None: it is not used."""
    fully_shard: bool = False
    offload: str = ""
    """What the host keeps between uses: `optimizer`, `all` (parameters as well), or empty: nothing."""
    ds_config: Mapping[str, Any] = field(default_factory=dict)
    """What else DeepSpeed is told."""


def begin_ranks(device: torch.device) -> torch.device:
    """Join the other ranks; of several devices a rank takes its own."""
    distributed: Any = torch.distributed
    index = int(os.environ.get("LOCAL_RANK", 0))
    if device.type == "cuda":
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            distributed.init_process_group(backend)
        else:
            store = distributed.HashStore()
            distributed.init_process_group(backend, store=store, rank=0, world_size=1)
            # DeepSpeed asks the environment.
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    return device


def zero_config(
    sharding: Sharding, dtype: torch.dtype, samples: int, accumulate: int
) -> dict[str, Any]:
    """The ds_config of a stage: all else as the user has it, or DeepSpeed by default.

    Args:
        sharding: with a stage.
        dtype: bfloat16 trains on 16-bit weights with fp32 master weights.
        samples: of one rank's batch.
        accumulate: parts that it is cut into.
    """
    asked = sharding.ds_config.get("zero_optimization", {})
    zero: dict[str, Any] = {**asked, "stage": sharding.zero_stage}
    if sharding.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if sharding.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        **sharding.ds_config,
        "train_micro_batch_size_per_gpu": samples // accumulate,
        "gradient_accumulation_steps": accumulate,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_optimization": zero,
        # Any optimizer may take the place of the job's.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


class ZeroTraining:
    """Trains under DeepSpeed.

    Args:
        sharding: with a stage.
        device: of this rank.
        dtype: of the weights.
        samples: of one rank's batch.
        accumulate: parts that it is cut into.
        build: builds the model; in stage 3 each rank keeps its part of each weight at once.
        make_optimizer: makes the optimizer.
    """

    def __init__(
        self,
        sharding: Sharding,
        device: torch.device,
        dtype: torch.dtype,
        samples: int,
        accumulate: int,
        build: _Build,
        make_optimizer: _MakeOptimizer,
    ) -> None:
        deepspeed = _deepspeed(device)
        config = zero_config(sharding, dtype, samples, accumulate)
        deepspeed.init_distributed()
        if sharding.zero_stage == 3:
            with deepspeed.zero.Init(config_dict_or_path=config):
                network = build(device)
        else:
            network = build(device)
        optimizer = make_optimizer(network)
        self.network: Any = deepspeed.initialize(model=network, optimizer=optimizer, config=config)[
            0
        ]

    def learn(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of a part of a batch; DeepSpeed knows when it is the last one."""
        self.network.backward(loss)
        self.network.step()


class FullyShardedTraining:
    """Trains under `fully_shard`: each block of the model is a unit, and what is left is one.

    With bfloat16 the shards stay fp32, which the optimizer updates, and computing is in 16 bits.

    Args:
        sharding: says whether the shards lie on the host.
        device: of this rank.
        dtype: to compute in.
        accumulate: parts that a batch is cut into.
        build: builds the model, in fp32; on the host, as no device need hold all of it.
        make_optimizer: makes the optimizer.
    """

    def __init__(
        self,
        sharding: Sharding,
        device: torch.device,
        dtype: torch.dtype,
        accumulate: int,
        build: _Build,
        make_optimizer: _MakeOptimizer,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        settings: dict[str, Any] = {"mesh": mesh}
        if dtype is not torch.float32:
            settings["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=dtype, reduce_dtype=torch.float32
            )
        if sharding.offload:
            settings["offload_policy"] = CPUOffloadPolicy()
        self.network = build("cpu")
        for block in _blocks(self.network):
            fully_shard(block, **settings)
        fully_shard(self.network, **settings)
        # Buffers are nobody's shard, and stay where they were made.
        for module in self.network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        self._optimizer = make_optimizer(self.network)
        self._accumulate = accumulate

    def learn(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of a part of a batch, and take a step after the last one."""
        (loss / self._accumulate if self._accumulate > 1 else loss).backward()
        if is_last:
            self._optimizer.step()
            self._optimizer.zero_grad()


def _blocks(network: nn.Module) -> list[nn.Module]:
    """What stands in the outermost module lists: the blocks of every model of the table."""
    found: list[nn.Module] = []
    waiting = [network]
    while waiting:
        for child in waiting.pop().children():
            if isinstance(child, nn.ModuleList):
                found += child
            else:
                waiting.append(child)
    return found


def _deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        deepspeed = import_module("deepspeed")
    except ImportError as error:
        raise MissingDependencyError("deepspeed", "train under ZeRO", "deepspeed") from error
    if device.type == "cpu":
        # An operator that would be compiled first, and is faster; gloo does its work as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
