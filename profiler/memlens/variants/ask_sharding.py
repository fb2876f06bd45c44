"""Sees to it that an unchanged job shares its training state in the way that was asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.variant import Variant
from memlens.errors import UsageError
from memlens.variants.parameters import roots_of
from memlens.variants.witness import Witness

__all__ = ["ask_for"]

_ZERO_CONFIG = "memlens_integrations.deepspeed.config"


def ask_for(mode: ShardingMode, variant: Variant, witness: Witness, undo: ExitStack) -> None:
    """Have the job in this process train under a kind of sharding, or refuse it at its first step.

    A job that uses DeepSpeed gets another stage of ZeRO. Neither DeepSpeed nor `fully_shard` can be put
    around a model from outside: a job that does not use them is told what to do.

    Args:
        mode: what is asked for.
        variant: the optimizer that takes the place of the job's.
        witness: takes notes.
        undo: gets the ways back.
    """
    check = _Check(mode, witness)
    if mode.stage is not None:
        import_module(_ZERO_CONFIG).replace_stage(
            mode.stage, variant, witness, check.found_it, undo
        )
    check.install(undo)


class _Check:
    """Looks at the job's first `step()`: by then models are sharded, or never will be."""

    def __init__(self, mode: ShardingMode, witness: Witness) -> None:
        self._mode = mode
        self._witness = witness
        self._found = False
        self._has_looked = False

    def found_it(self) -> None:
        """The job does what is asked for."""
        self._found = True

    def install(self, undo: ExitStack) -> None:
        # It stays: a hook that removes itself disturbs torch, which is going through them.
        undo.callback(register_optimizer_step_pre_hook(self._before_step).remove)

    def _before_step(self, optimizer: Any, args: object, kwargs: object) -> None:
        if self._has_looked:
            return
        self._has_looked = True
        if self._mode.stage is None:
            held = [each for group in optimizer.param_groups for each in group["params"]]
            self._found = _is_fully_sharded(held)
        if not self._found:
            self._witness.is_unsharded = True
            raise UsageError(_advice(self._mode))


def _is_fully_sharded(parameters: Iterable[torch.Tensor]) -> bool:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    parameters = list(parameters)
    return any(isinstance(each, DTensor) for each in parameters) or any(
        isinstance(module, FullyShardedDataParallel)
        for root in roots_of(parameters)
        for module in root.modules()
    )


def _advice(mode: ShardingMode) -> str:
    """How such a job is made one that can be compared."""
    if mode.stage is None:
        how = {
            "transformers.trainer": 'TrainingArguments(fsdp="full_shard auto_wrap")',
            "accelerate": "Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))",
            "": "torch.distributed.fsdp.fully_shard for each block and for the model",
        }
        what = "does not use FSDP, so there are no shards"
        if "accelerate" in sys.modules and not torch.accelerator.is_available():
            what += " (without a GPU, Accelerate quietly takes DDP in its place)"
    else:
        how = {
            "transformers.trainer": 'TrainingArguments(deepspeed="ds_config.json")',
            "accelerate": "Accelerator(deepspeed_plugin=DeepSpeedPlugin(zero_stage=1))",
            "": "deepspeed.initialize(model=..., config={...}), with any stage",
        }
        what = "does not use DeepSpeed, so there is no stage of ZeRO to replace"
    call = next(text for module, text in how.items() if not module or module in sys.modules)
    return f"the job {what}; have it call {call}, or compare a built-in job: --model llama-60m"
