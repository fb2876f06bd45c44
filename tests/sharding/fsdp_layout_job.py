"""Trains under FSDP and prints what torch's own tensors are; run by test_against_fsdp.py.

Prints one line of JSON on each rank: per configuration, sizes of storages, and contents of the parts.
Nothing of memlens is in here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.sharding.models import Odd
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy


def local(tensor: Any) -> Any:
    """The part of a DTensor that is here; any other tensor is its own."""
    return getattr(tensor, "_local_tensor", tensor)


def size_of(tensors: Iterable[Any]) -> int:
    """Bytes of the distinct storages behind tensors."""
    found = {}
    for each in map(local, tensors):
        if isinstance(each, Tensor):
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(size for at, size in found.items() if at)


def fsdp2(dtype: torch.dtype | None) -> dict[str, Any]:
    net = Odd()
    policy = MixedPrecisionPolicy(param_dtype=dtype)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    gathered: dict[str, int] = {}

    def note(name: str, module: nn.Module, *_: Any) -> None:
        gathered[name] = size_of(module.parameters(recurse=False))

    for name in ("table", "first", "middle"):
        fully_shard(getattr(net, name), mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy)
    for name in ("table", "first", "middle"):
        module = getattr(net, name)
        module.register_forward_hook(partial(note, name), prepend=True)
    found = train(net, net.parameters)
    contents = {name: local(value).reshape(-1).tolist() for name, value in fresh_parts(mesh)}
    return {**found, "gathered": gathered, "contents": contents}


def fresh_parts(mesh: Any) -> list[tuple[str, Any]]:
    net = Odd()
    fully_shard(net, mesh=mesh)
    return list(net.named_parameters())


def fsdp1(original: bool) -> dict[str, Any]:
    net = Odd()
    policy = ModuleWrapPolicy({nn.Embedding, nn.Linear})
    wrapped = FullyShardedDataParallel(
        net,
        auto_wrap_policy=policy,
        use_orig_params=original,
        device_id=torch.device("cpu"),
        mixed_precision=MixedPrecision(),
    )
    units = FullyShardedDataParallel.fsdp_modules(wrapped)
    flat = [each._handle.flat_param for each in units if each._handle is not None]
    contents = [each.detach().tolist() for each in flat]
    return {**train(wrapped, lambda: flat), "contents": contents}


def train(called: nn.Module, weights: Callable[[], Iterable[Any]]) -> dict[str, Any]:
    updated = [each for each in called.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(updated, lr=0.01, weight_decay=0.0)
    found: dict[str, Any] = {}
    for _ in range(2):
        called(torch.arange(4).reshape(2, 2) % 13).float().square().mean().backward()
        held = [each.grad for each in (*weights(), *updated) if each.grad is not None]
        found["gradients"] = size_of(held)
        optimizer.step()
        optimizer.zero_grad()
    found["weights"] = size_of(getattr(each, "_local_shard", each) for each in weights())
    found["state"] = size_of(each for kept in optimizer.state.values() for each in kept.values())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    answers = {
        "fsdp2 fp32": fsdp2(None),
        "fsdp2 bf16": fsdp2(torch.bfloat16),
        "fsdp1": fsdp1(original=False),
        "fsdp1 original": fsdp1(original=True),
    }
    place = Path(os.environ["FOUND"], f"{torch.distributed.get_rank()}.json")
    place.write_text(json.dumps(answers))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort some processes that end in good order
