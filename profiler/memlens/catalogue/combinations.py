"""Which optimizers run on which kind of sharding, and what is lost where they do.

DeepSpeed's ZeRO hands an optimizer flat vectors: a rank's part of all parameters of a group, one after
the other. `fully_shard` hands it DTensors: each parameter keeps its shape, and a rank has some rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from memlens.catalogue.row import Row
from memlens.errors import UsageError

__all__ = ["ShardingMode", "cautions", "read_stages", "refusal"]


class ShardingMode(str, Enum):
    """How ranks share a job's training state."""

    ZERO_0 = "zero0"
    """DeepSpeed without ZeRO: each rank has all of it."""
    ZERO_1 = "zero1"
    """Optimizer state and master weights are spread."""
    ZERO_2 = "zero2"
    """And gradients."""
    ZERO_3 = "zero3"
    """And weights."""
    FSDP = "fsdp"
    """All of it is spread, by PyTorch's `fully_shard`."""

    @classmethod
    def of_stage(cls, stage: int) -> ShardingMode:
        """The mode of a ZeRO stage."""
        return cls(f"zero{stage}")

    @property
    def stage(self) -> int | None:
        """Of ZeRO; None: it is not DeepSpeed's."""
        return None if self is ShardingMode.FSDP else int(self.value[-1])

    @property
    def label(self) -> str:
        """As people write it: `ZeRO 2`."""
        return "FSDP" if self.stage is None else f"ZeRO {self.stage}"


def refusal(row: Row, mode: ShardingMode, *, no_retain_grad: bool = False) -> str:
    """Why an optimizer cannot run so; empty: it can.

    Args:
        row: of the catalogue.
        mode: what hands it its parameters.
        no_retain_grad: it is to update within backward.
    """
    if mode.stage is None:
        return "" if row.runs_under_fsdp else f"{row.name} does not run under FSDP: {row.fsdp}"
    where = f"{row.name} cannot run under {mode.label}"
    if row.always_in_backward or no_retain_grad:
        return (
            f"{where}: DeepSpeed reduces gradients after it has them, and this uses each up before"
        )
    if row.precision != "job":
        own = row.zero or "DeepSpeed casts the model itself: set bf16 in the ds_config"
        return f"{where}: {own}"
    if mode.stage and row.matrices_only:
        return f"{where}: {row.zero}"
    return ""


def cautions(row: Row, mode: ShardingMode) -> tuple[str, ...]:
    """What to know of an optimizer that runs so."""
    text = {None: row.fsdp, 0: ""}.get(mode.stage, row.zero)
    return (f"{mode.label}: {text}",) if text else ()


def read_stages(text: str) -> Sequence[ShardingMode]:
    """Read stages of ZeRO: `0,1,2,3`, in the order in which they stand there.

    Raises:
        UsageError: one of them is no stage.
    """
    stages = [part.strip() for part in text.split(",") if part.strip()]
    wrong = next((each for each in stages if each not in ("0", "1", "2", "3")), None)
    if wrong is not None or not stages:
        raise UsageError(
            f"not a stage of ZeRO: {wrong or text!r}; --zero takes 0, 1, 2 and 3, such as --zero 0,2,3"
        )
    return [ShardingMode.of_stage(int(each)) for each in dict.fromkeys(stages)]
