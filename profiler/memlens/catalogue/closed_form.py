"""The closed-form answer: parameters times bytes, from the catalogue's figures.

No activations, no allocator, no batch: what a run really needs is measured by `memlens run`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial

from memlens.catalogue.combinations import ShardingMode, refusal
from memlens.catalogue.gpus import Gpu
from memlens.catalogue.measured import measured
from memlens.catalogue.row import Row
from memlens.errors import UsageError

__all__ = ["PRECISIONS", "Estimate", "estimate", "read_count"]

PRECISIONS = ("fp32", "bf16", "mixed")
_WEIGHT = {"fp32": 4, "bf16": 2, "mixed": 2}
_MASTER = {"fp32": 0, "bf16": 0, "mixed": 4}
_MOST_GPUS = 1 << 20
_TABLES = 0.3
"""Bytes per parameter that tables and counters of some 2 KiB make on the measured vector of 8192."""


@dataclass(frozen=True)
class Estimate:
    """One optimizer, for one model, in bytes on each card; activations are not in it."""

    row: Row
    parameters: int
    precision: str
    zero: int
    gpus: int
    weight_bytes: int
    master_weight_bytes: int
    gradient_bytes: int
    state_bytes: int
    temporary_bytes: int
    """What `step()` holds besides; a copy of the partition, where it is flat."""
    state_source: str
    """`measured` or `expected`."""
    no_retain_grad: bool = False

    @property
    def total_bytes(self) -> int:
        """Without activations, and without what only `step()` holds, when gradients may go."""
        return self.weight_bytes + self.master_weight_bytes + self.gradient_bytes + self.state_bytes

    def cards(self, gpu: Gpu) -> int | None:
        """How many cards hold the total; None: no number of them does, at this ZeRO stage.

        Without ZeRO the model has to be cut by other means (pipeline or tensor parallelism): the total
        over what one card has. With it, the smallest number whose share fits.
        """
        if not self.zero:
            return -(-self.total_bytes // gpu.usable_bytes)
        counts = range(1, _MOST_GPUS + 1)
        at = bisect_left(
            counts, True, key=lambda count: self._with(count).total_bytes <= gpu.usable_bytes
        )
        return counts[at] if at < len(counts) else None

    def _with(self, gpus: int) -> Estimate:
        return estimate(
            self.row,
            self.parameters,
            self.precision,
            zero=self.zero,
            gpus=gpus,
            no_retain_grad=self.no_retain_grad,
        )


def estimate(
    row: Row,
    parameters: int,
    precision: str,
    *,
    zero: int = 0,
    gpus: int = 1,
    no_retain_grad: bool = False,
) -> Estimate:
    """Work out what a row needs for a model of so many parameters, all taken to be in matrices.

    State is what was measured on a matrix of 1024 x 1024, else what the library's layout says; under
    ZeRO, where optimizers see flat partitions, what a vector costs those that depend on shapes. Weights
    and gradients are 4 bytes per parameter in fp32 and 2 otherwise; `mixed` adds fp32 master weights
    and keeps the state in fp32. ZeRO 1 cuts state and master weights by the number of cards, 2 also
    gradients, 3 also weights (Rajbhandari et al., arXiv 1910.02054, figure 1).

    Args:
        row: of the catalogue. Rows with a precision of their own keep it.
        parameters: how many.
        precision: one of PRECISIONS.
        zero: the stage, 0 to 3.
        gpus: how many cards share the partitions.
        no_retain_grad: update within backward; gradients are then one layer's, and not counted.

    Raises:
        UsageError: the row cannot run so.
    """
    if row.precision != "job":
        precision = row.precision
    if no_retain_grad and not (row.in_backward or row.always_in_backward):
        raise UsageError(f"{row.name} cannot update within backward; leave out --no-retain-grad")
    # Stage 0 is no DeepSpeed here, but the model on every card.
    mode = ShardingMode.of_stage(zero)
    if zero and (reason := refusal(row, mode, no_retain_grad=no_retain_grad)):
        raise UsageError(reason)
    dtype = "bf16" if precision == "bf16" else "fp32"
    figures = measured(row.name, dtype)
    state = figures.state if figures else partial(row.expected.of, dtype=dtype)
    per_parameter, of_vector = state("matrix"), state("vector")
    if zero and abs(of_vector - per_parameter) > _TABLES:
        per_parameter = of_vector
    temporary = figures.temporary if figures else 0.0
    if row.always_in_backward:
        no_retain_grad = True

    def share(stage: int, size: float) -> int:
        return -(-round(size * parameters) // (gpus if zero >= stage else 1))

    return Estimate(
        row=row,
        parameters=parameters,
        precision=precision,
        zero=zero,
        gpus=gpus,
        weight_bytes=share(3, _WEIGHT[precision]),
        master_weight_bytes=share(1, _MASTER[precision]),
        gradient_bytes=0 if no_retain_grad else share(2, _WEIGHT[precision]),
        state_bytes=share(1, per_parameter),
        # Of those that work on all parameters at once; a layer's is nothing to a model's.
        temporary_bytes=share(1, temporary) if row.implementation == "foreach" else 0,
        state_source="measured" if figures else "expected",
        no_retain_grad=no_retain_grad,
    )


def read_count(text: str) -> int:
    """Read a number of parameters: `70e9`, `7B`, `350M`, `1,300,000`.

    Raises:
        UsageError: it is none, or not above zero.
    """
    match = re.fullmatch(r"\s*([\d.,_]+(?:e\+?\d+)?)\s*([kmbt]?)\s*", text.lower())
    try:
        if match is None:
            raise ValueError
        factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}[match[2]]
        count = round(float(match[1].replace(",", "").replace("_", "")) * factor)
    except (ValueError, OverflowError):
        raise UsageError(f"not a number of parameters: {text!r}; write 7e9, 7B or 350M") from None
    if count < 1:
        raise UsageError(f"a model has at least one parameter, not {text}")
    return count
