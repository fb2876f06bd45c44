"""Trainings that shard their model: on one GPU, as one rank that has it all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import distributed, nn

from gpu.trainings import Readings, Size, adamw, llama_shape
from memlens.models.build import build_model, make_batch

__all__ = ["deepspeed", "fully_sharded"]


@contextmanager
def one_rank(size: Size) -> Iterator[None]:
    """A process group of one, whose collectives are real."""
    if size.is_cuda:
        torch.cuda.set_device(0)
    os.environ["LOCAL_RANK"] = "0"  # a launcher's
    backend = "nccl" if size.is_cuda else "gloo"
    store: Any = distributed.HashStore()
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def fully_sharded(size: Size, readings: Readings) -> nn.Module:
    """FSDP2, computing in bfloat16."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    shape = llama_shape(size)
    with one_rank(size):
        model: Any = build_model(shape, device=size.device)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        optimizer = readings.watch(adamw(model))
        for _ in range(size.steps):
            batch = make_batch(shape, size.pick(8, 4), size.pick(512, 64), device=size.device)
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            readings.keep(loss)
    module: nn.Module = model
    return module


def deepspeed(size: Size, readings: Readings, *, stage: int) -> nn.Module:
    """ZeRO in bfloat16, with an optimizer of torch's."""
    library: Any = import_module("deepspeed")
    shape = llama_shape(size)
    if not size.is_cuda:
        # Its communication between processes of one machine would be compiled first, for minutes.
        import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    with one_rank(size):
        model = build_model(shape, device=size.device)
        samples = size.pick(8, 4)
        config = {
            "train_micro_batch_size_per_gpu": samples,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 5_000_000},
        }
        engine, optimizer, *_ = library.initialize(
            model=model, optimizer=adamw(model), config=config
        )
        readings.watch(optimizer)
        for _ in range(size.steps):
            batch = make_batch(shape, samples, size.pick(512, 64), device=size.device)
            loss = engine(**batch).loss
            engine.backward(loss)
            engine.step()
            readings.keep(loss)
        module: nn.Module = engine.module
    return module
