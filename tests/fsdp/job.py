"""Trains one small model in every way that torch spreads over ranks; started by the tests of this folder.

Each way is trained twice, without memlens and under `memlens.profile`, on every rank. A rank writes its
captures to `FOLDER/<way>-<rank>`, and what it saw itself to `FOLDER/rank-<rank>.json`.

    torchrun --standalone --nproc-per-node 2 -m tests.fsdp.job FOLDER [WAY ...]
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    _runtime_utils,
    fully_shard,
)
from torch.distributed.fsdp._flat_param import FlatParamHandle
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

import memlens
from memlens.torch_private_distributed import CLASSES, Private

STEPS = 3
BATCH = 4


class Block(nn.Module):
    """Adds to its input what two layers make of it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + added


class Net(nn.Module):
    """Its sizes are odd, so that shards are padded; or even, so that torchao quantises shards."""

    def __init__(self, width: int = 67, inner: int = 131, outputs: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(13, width)
        self.layers = nn.ModuleList([Block(width, inner) for _ in range(2)])
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.last(x)
        return result


@dataclass
class Training:
    """A model that is spread, and what updates it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype = torch.float32
    """Of what goes into the model."""
    micro_batches: int = 1
    synchronise_each: bool = True
    """Reduce gradients after each micro-batch, not only after the last one."""


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def odd(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def even() -> Net:
    torch.manual_seed(0)
    return Net(128, 256, 5)


def ddp(dtype: torch.dtype = torch.float32, **options: Any) -> Training:
    # A cap that makes several buckets.
    model = DistributedDataParallel(odd(dtype), bucket_cap_mb=0.05, **options)
    return Training(model, adamw(model), dtype)


def zero_redundancy(views: bool, dtype: torch.dtype = torch.float32) -> Training:
    model = DistributedDataParallel(odd(dtype))
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.AdamW, parameters_as_bucket_view=views, lr=1e-3
    )
    return Training(model, optimizer, dtype)


def fsdp1(
    strategy: ShardingStrategy, originals: bool, policy: MixedPrecision | None = None
) -> Training:
    model = FullyShardedDataParallel(
        odd(),
        sharding_strategy=strategy,
        use_orig_params=originals,
        mixed_precision=policy,
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        device_id=torch.device("cpu"),
    )
    return Training(model, adamw(model))


def fsdp2(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    *,
    net: Callable[[], Net] = odd,
    micro_batches: int = 1,
    synchronise_each: bool = True,
    **options: Any,
) -> Training:
    model = net()
    options.setdefault("mesh", init_device_mesh("cpu", (dist.get_world_size(),)))
    for layer in model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return Training(
        model,
        optimizer(model),
        micro_batches=micro_batches,
        synchronise_each=synchronise_each,
    )


def fsdp2_in_groups() -> Training:
    """The matrices of a block are spread over a mesh of their own, so that it has two groups."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import (
        FSDPMeshInfo,
        ShardPlacementResult,
    )

    world = dist.get_world_size()
    group = dist.new_group(list(range(world)))
    other = FSDPMeshInfo(DeviceMesh.from_group(group, "cpu"), shard_mesh_dim=0)

    def place(parameter: nn.Parameter) -> ShardPlacementResult | None:
        return ShardPlacementResult(Shard(0), other) if parameter.dim() > 1 else None

    model = odd()
    mesh = init_device_mesh("cpu", (world,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=place)
    fully_shard(model, mesh=mesh)
    return Training(model, adamw(model))


def fsdp2_by_columns() -> Training:
    """Matrices are cut along their second side where that is even."""
    model = even()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def place(parameter: nn.Parameter) -> Shard | None:
        return Shard(1) if parameter.dim() > 1 else None

    for layer in model.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=place)
    fully_shard(model, mesh=mesh)
    return Training(model, adamw(model))


def fsdp2_for_fewer_ranks() -> Training:
    """After a forward, two ranks share what all of them share else; one of one or two keeps it."""
    return fsdp2(reshard_after_forward=2 if dist.get_world_size() > 2 else False)


def fsdp2_on_replicas() -> Training:
    """Pairs of ranks share a model, and all pairs reduce its gradients."""
    pairs = -(-dist.get_world_size() // 2)
    shape = (pairs, dist.get_world_size() // pairs)
    return fsdp2(mesh=init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")))


def adamw8bit(model: nn.Module) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(model.parameters(), lr=1e-3)
    return made


def adamw_r(model: nn.Module) -> torch.optim.Optimizer:
    from memlens.optim import AdamWR

    return AdamWR(model.parameters(), lr=1e-3)


def galore(model: nn.Module) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW

    projected = [value for name, value in model.named_parameters() if ".up.w" in name]
    rest = [value for name, value in model.named_parameters() if ".up.w" not in name]
    made: torch.optim.Optimizer = GaLoreAdamW(
        [
            {"params": rest},
            {
                "params": projected,
                "rank": 8,
                "update_proj_gap": 2,
                "scale": 1.0,
                "proj_type": "std",
            },
        ],
        lr=1e-3,
        no_deprecation_warning=True,
    )
    return made


_FULL, _GRADIENTS = ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP
_LOW1 = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
_LOW2 = MixedPrecisionPolicy(param_dtype=torch.bfloat16)

WAYS: dict[str, Callable[[], Training]] = {
    "ddp": ddp,
    "ddp-views": lambda: ddp(gradient_as_bucket_view=True),
    "ddp-bf16": lambda: ddp(torch.bfloat16),
    "zro": lambda: zero_redundancy(views=False),
    "zro-views": lambda: zero_redundancy(views=True),
    "zro-bf16": lambda: zero_redundancy(views=False, dtype=torch.bfloat16),
    "fsdp1-full": lambda: fsdp1(_FULL, originals=False),
    "fsdp1-full-originals": lambda: fsdp1(_FULL, originals=True),
    "fsdp1-gradients": lambda: fsdp1(_GRADIENTS, originals=False),
    "fsdp1-gradients-originals": lambda: fsdp1(_GRADIENTS, originals=True),
    "fsdp1-bf16": lambda: fsdp1(_FULL, originals=False, policy=_LOW1),
    "fsdp1-bf16-originals": lambda: fsdp1(_FULL, originals=True, policy=_LOW1),
    "fsdp2": fsdp2,
    "fsdp2-bf16": lambda: fsdp2(mp_policy=_LOW2),
    "fsdp2-keep": lambda: fsdp2(reshard_after_forward=False),
    "fsdp2-offload": lambda: fsdp2(offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "fsdp2-groups": fsdp2_in_groups,
    "fsdp2-columns": fsdp2_by_columns,
    "fsdp2-accumulate": lambda: fsdp2(micro_batches=2),
    "fsdp2-accumulate-unsharded": lambda: fsdp2(micro_batches=2, synchronise_each=False),
    "fsdp2-fewer": fsdp2_for_fewer_ranks,
    "fsdp2-replicas": fsdp2_on_replicas,
    "fsdp2-adamw8bit": lambda: fsdp2(adamw8bit, net=even),
    "fsdp2-adamw-r": lambda: fsdp2(adamw_r),
    "fsdp2-galore": lambda: fsdp2(galore, net=even),
    # Under a torch that lacks what MISSING says.
    "fsdp2-no-outputs": fsdp2,
    "fsdp2-no-group": fsdp2,
    "fsdp1-no-shards": lambda: fsdp1(_FULL, originals=False),
}

MISSING = {
    "fsdp2-no-outputs": "all_gather_outputs",
    "fsdp2-no-group": "FSDPParamGroup",
    "fsdp1-no-shards": "_fully_sharded_module",
}


def train(make: Callable[[], Training]) -> tuple[list[float], Training]:
    """Losses, and what is left: the gradients of the last step are still there."""
    training = make()
    model, optimizer = training.model, training.optimizer
    random = torch.Generator().manual_seed(1 + dist.get_rank())
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        for number in range(training.micro_batches):
            if not training.synchronise_each:
                is_last = number == training.micro_batches - 1
                model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            x = torch.randn(BATCH, 13, generator=random).to(training.dtype)
            target = torch.randn(BATCH, 5, generator=random)
            loss = nn.functional.mse_loss(model(x).float(), target)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    return losses, training


def release(training: Training) -> None:
    """Empty what torch does not let go of: flat parameters of FSDP1 are in a cycle through C++."""
    if isinstance(training.model, FullyShardedDataParallel):
        for parameter in training.model.parameters():
            if parameter.grad is not None:
                parameter.grad.untyped_storage().resize_(0)
            parameter.untyped_storage().resize_(0)


@contextlib.contextmanager
def without(missing: str) -> Iterator[None]:
    """Have memlens not find a private name of torch, which torch goes on using; "": all are there."""
    read, resolve = Private.read, Private.owner

    def read_all_but_one(self: Private, kind: str, owner: Any, name: str) -> Any:
        return read(self, kind, object() if name == missing else owner, name)

    def resolve_all_but_one(self: Private, kind: str) -> Any:
        path = CLASSES[kind]
        CLASSES[kind] = f"{path}Gone" if missing and path.endswith(missing) else path
        try:
            return resolve(self, kind)
        finally:
            CLASSES[kind] = path

    patched: Any = Private
    patched.read, patched.owner = read_all_but_one, resolve_all_but_one
    try:
        yield
    finally:
        patched.read, patched.owner = read, resolve


@contextlib.contextmanager
def without_compiling() -> Iterator[None]:
    """torchao compiles its steps, which takes half a minute and changes nothing here."""
    compile_ = torch.compile

    def leave(function: Any = None, **_: Any) -> Any:
        return function if function is not None else leave

    patched: Any = torch
    patched.compile = leave
    try:
        yield
    finally:
        patched.compile = compile_


def hooked() -> list[Any]:
    """What adapters put functions of their own in the place of."""
    found = [_runtime_utils._post_backward_hook]
    for wrapper in (DistributedDataParallel, FullyShardedDataParallel, ZeroRedundancyOptimizer):
        found.append(vars(wrapper)["__init__"])
    for owner in (FSDPParamGroup, FlatParamHandle):
        names = (
            "__init__",
            "pre_unshard",
            "unshard",
            "wait_for_unshard",
            "reshard",
            "post_backward",
        )
        found += [vars(owner).get(name) for name in names]
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), Path(sys.argv[1])
    seen: dict[str, Any] = {}
    before = hooked()
    gc.collect()
    gc.freeze()  # what was imported: sessions look through all other objects
    for way in sys.argv[2:] or WAYS:
        with without_compiling():
            expected, training = train(WAYS[way])
            release(training)
            del training
            gc.collect()
            with without(MISSING.get(way, "")), memlens.profile(out=folder / f"{way}-{rank}"):
                losses, training = train(WAYS[way])
            release(training)
            del training
            gc.collect()
        seen[way] = {"expected": expected, "losses": losses, "restored": hooked() == before}
        dist.barrier()
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    os._exit(0)  # gloo's threads abort some processes that end in good order


if __name__ == "__main__":
    main()
