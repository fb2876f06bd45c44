"""Stage 0 of DeepSpeed: every rank holds everything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from memlens.errors import UsageError
from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, RankLayout, whole
from memlens.sharding.zero import MASTER_BYTES, Zero

__all__ = ["unsharded_layout"]


def unsharded_layout(
    zero: Zero, parameters: Sequence[Parameter], groups: Sequence[Sequence[Parameter]], rank: int
) -> RankLayout:
    """Say what each rank holds.

    In low precision this is the wrapper that DeepSpeed takes for torch's optimizers, which keeps one
    master weight for each parameter; its own FusedAdam gets flat ones of the same total.

    Raises:
        UsageError: DeepSpeed accumulates in another precision with ZeRO only.
    """
    if zero.accumulates_apart:
        raise UsageError(
            "at stage 0 DeepSpeed accumulates gradients in the weights' precision only; "
            "leave grad_accum_dtype out, or use stage 1"
        )
    trained = list(chain.from_iterable(groups))
    weights = whole(parameters, Category.WEIGHT, zero.weight_bytes)
    gradients = whole(trained, Category.GRADIENT, zero.weight_bytes)
    bucket = min(zero.reduce_bucket_size, sum(each.elements for each in trained))
    staging = Held("flattened gradients", Category.COMMUNICATION, bucket, zero.weight_bytes)
    low = zero.precision != "fp32"
    masters = whole(trained, Category.MASTER_WEIGHT, MASTER_BYTES) if low else ()
    converted = whole(trained, Category.GRADIENT, MASTER_BYTES) if low else ()
    return RankLayout(
        rank,
        weights=weights,
        master_weights=masters,
        gradients_between_steps=(),
        gradients_after_backward=gradients,
        gradients_in_step=((*gradients, *converted),),
        optimizer_tensors=masters or whole(trained, Category.WEIGHT, zero.weight_bytes),
        transient=(staging,) if zero.world_size > 1 else (),
    )
