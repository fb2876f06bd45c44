"""The jobs by which tools/gpu_check.py --plans holds plans against real runs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MATRIX", "STEPS", "Job"]

STEPS = 3
"""The first makes the optimizer's state, the second has it all along, the third shows that it stays."""
NEEDS = {
    "adafactor": ("transformers",),
    "adamw8bit": ("bitsandbytes",),
    "adamw8bit-torchao": ("torchao",),
    "galore-adamw": ("galore_torch", "bitsandbytes"),
    "galore-adamw8bit": ("galore_torch", "bitsandbytes"),
}
"""Modules beside torch that an optimizer of the catalogue needs."""


@dataclass(frozen=True)
class Job:
    """A built-in job: a model of memlens' table under an optimizer of its catalogue."""

    model: str
    batch: str
    optimizer: str
    dtype: str = "fp32"
    checkpointing: bool = False
    quick: bool = False
    """It is small, and one of those that --quick leaves in."""
    in_sight: bool = False
    """Its plan sees the machine's card, as that of a user would; those of the others do not."""

    @property
    def title(self) -> str:
        """For people; no two jobs share it."""
        more = ", checkpointing" if self.checkpointing else ""
        return f"{self.model} {self.batch} {self.dtype}, {self.optimizer}{more}"

    @property
    def words(self) -> tuple[str, ...]:
        """What follows `memlens plan`, without the optimizer."""
        more = ("--checkpointing",) if self.checkpointing else ()
        return ("--model", self.model, "--batch", self.batch, "--dtype", self.dtype, *more)

    @property
    def needs(self) -> tuple[str, ...]:
        """Modules without which it cannot run."""
        return NEEDS.get(self.optimizer, ())


# Each kind of model and of optimizer first, more of each after them: when time is over, they are known.
# Where batches are small the peak lies in the optimizer, elsewhere in backward.
MATRIX: tuple[Job, ...] = (
    Job("llama-60m", "16x512", "adamw", quick=True),
    Job("convnext-t", "32", "adamw", quick=True),
    Job("vit-b", "64", "adamw"),
    Job("bloom-560m", "4x512", "adamw", "bf16"),
    Job("llama-350m", "16x1024", "adamw", "bf16", checkpointing=True),
    Job("llama-1b", "4x1024", "adamw8bit", "bf16"),
    Job("llama-60m", "16x512", "galore-adamw"),
    Job("llama-1b", "4x1024", "adafactor", "bf16", checkpointing=True),
    Job("llama-350m", "8x1024", "adamw-r", "bf16"),
    Job("llama-60m", "64x512", "adamw", in_sight=True),
    Job("convnext-t", "128", "adamw", in_sight=True),
    Job("vit-b", "256", "adamw"),
    Job("bloom-560m", "16x512", "adamw", "bf16"),
    Job("llama-1b", "1x256", "adamw"),
    Job("llama-1b", "1x256", "adamw-r", "bf16"),
    Job("llama-350m", "16x1024", "adamw", "bf16"),
    Job("llama-60m", "64x512", "adamw", checkpointing=True),
    Job("vit-b", "256", "adamw", checkpointing=True),
    Job("bloom-560m", "16x512", "adafactor", "bf16", checkpointing=True),
    Job("convnext-t", "64", "adafactor"),
    Job("convnext-t", "128", "adamw-r", "bf16"),
    Job("bloom-560m", "1x256", "adamw8bit"),
    Job("vit-b", "64", "adamw8bit", "bf16"),
    Job("convnext-t", "64", "adamw8bit"),
    Job("llama-60m", "16x512", "adafactor"),
    Job("llama-130m", "4x256", "galore-adamw8bit", "bf16"),
    Job("vit-b", "64", "galore-adamw"),
    Job("llama-60m", "16x512", "adamw8bit-torchao"),
)
