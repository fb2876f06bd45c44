"""Trains under DeepSpeed and prints what its own tensors are; run by test_against_deepspeed.py.

Prints one line of JSON on each rank: per configuration, sizes of storages, and contents of the weights
that the optimizer updates. Nothing of memlens is in here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from tests.sharding.models import Odd, groups_of
from tests.support.deepspeed_on_cpu import do_without_a_compiler_and_allow_fp16
from torch import Tensor

do_without_a_compiler_and_allow_fp16()


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Sizes of the distinct storages behind tensors, by address."""
    found = {}
    for each in tensors:
        if isinstance(each, Tensor) and each.device.type != "meta":
            storage = each.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
    return found


def inside(value: Any) -> Iterator[Any]:
    """All tensors in lists and dictionaries, however deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        flat = getattr(value, "flat_partition", None)
        yield flat
        for each in value:
            yield from inside(each)
    else:
        yield value


class Watched:
    """One engine of DeepSpeed."""

    def __init__(self, config: dict[str, Any]) -> None:
        net = Odd()
        named = dict(net.named_parameters())
        groups = groups_of([(name, value.dim()) for name, value in named.items()])
        optimizer = torch.optim.AdamW(
            [{"params": [named[name] for name in group]} for group in groups],
            lr=0.01,
            weight_decay=0.0,
        )
        self.engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config)
        self.zero = self.engine.optimizer
        self.inner = getattr(self.zero, "optimizer", self.zero)
        self.parameters = list(self.engine.module.parameters())
        self.in_step: list[int] = []
        self.inner.register_step_pre_hook(lambda *_: self.in_step.append(sum(self.gradients())))

    def masters(self) -> list[Tensor]:
        for name in (
            "single_partition_of_fp32_groups",
            "fp32_groups_flat_partition",
            "fp32_partitioned_groups_flat",
        ):
            if hasattr(self.zero, name):
                found: list[Tensor] = getattr(self.zero, name)
                return found
        return [each for group in getattr(self.zero, "fp32_groups", []) for each in group]

    def weights(self) -> list[int]:
        parts = [each.ds_tensor if hasattr(each, "ds_tensor") else each for each in self.parameters]
        return list(storages(parts).values())

    def gathered(self) -> list[int]:
        """Whole parameters beside their parts."""
        parts = storages(each.ds_tensor for each in self.parameters if hasattr(each, "ds_tensor"))
        whole = storages(each.data for each in self.parameters)
        return [size for at, size in whole.items() if at not in parts] if parts else []

    def gradients(self) -> list[int]:
        """Beside weights: what DeepSpeed's gradients are kept in, wherever it keeps them."""
        kept: list[Any] = [each.grad for each in (*self.parameters, *self.masters())]
        for name in (
            "averaged_gradients",
            "all_grad_tensors",
            "grads_in_partition",
            "grad_partitions_flat_buffer",
            "fp32_groups_gradients_flat",
            "accumulated_grads_in_cpu",
            "temp_grad_buffer_for_cpu_offload",
            "temp_grad_buffer_for_gpu_offload",
        ):
            kept += inside(getattr(self.zero, name, None))
        # Those that lie in a bucket are no memory of their own.
        accumulated = [getattr(each, "grad_accum", None) for each in self.parameters]
        kept += [
            each
            for each in accumulated
            if each is not None and each.untyped_storage().nbytes() == each.nbytes
        ]
        return list(storages(kept).values())

    def state(self) -> int:
        values = [each for kept in self.inner.state.values() for each in kept.values()]
        return sum(storages(values).values())

    def contents(self) -> list[list[float]]:
        return [each.detach().float().reshape(-1).tolist() for each in self.masters()]


def run(config: dict[str, Any]) -> dict[str, Any]:
    job = Watched(config)
    found: dict[str, Any] = {"contents": job.contents()}
    micro_batches = config.get("gradient_accumulation_steps", 1)
    for _ in range(2):
        job.in_step.clear()
        for _ in range(micro_batches):
            out = job.engine(torch.arange(4).reshape(2, 2) % 13)
            job.engine.backward(out.float().square().mean())
            found["after_backward"] = sum(job.gradients())
            job.engine.step()
    found |= {
        "weights": sum(job.weights()),
        "masters": sum(storages(job.masters()).values()),
        "in_step": job.in_step,
        "state": job.state(),
        "gathered": sum(job.gathered()),
        "after_step": sum(job.gradients()),
    }
    job.engine.destroy()
    return found


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    answers = {name: run(config) for name, config in asked.items()}
    place = Path(os.environ["FOUND"], f"{torch.distributed.get_rank()}.json")
    place.write_text(json.dumps(answers))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort some processes that end in good order
