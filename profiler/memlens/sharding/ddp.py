"""DDP: every rank holds everything, and reduces gradients in buckets."""

from __future__ import annotations

from collections.abc import Sequence

from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, Piece, RankLayout, check_rank, whole

__all__ = ["ddp_layout"]

MEBIBYTE = 1 << 20
FIRST_BUCKET_BYTES = MEBIBYTE


def ddp_layout(
    parameters: Sequence[Parameter],
    rank: int,
    world_size: int,
    *,
    bucket_cap_bytes: int = 25 * MEBIBYTE,
    gradients_are_views: bool = False,
) -> RankLayout:
    """Say what one rank holds.

    Args:
        parameters: of the model, in its order, of one dtype.
        rank: which.
        world_size: how many there are.
        bucket_cap_bytes: a bucket is full once it has this; the first one from 1 MiB on.
        gradients_are_views: `gradient_as_bucket_view`: gradients lie in the buckets.
    """
    check_rank(rank, world_size)
    trained = [each for each in parameters if each.trainable]
    # From the second iteration on: in the order in which gradients come, which is backwards.
    buckets: list[Held] = []
    pieces: list[Piece] = []
    end, limit = 0, min(FIRST_BUCKET_BYTES, bucket_cap_bytes)
    for each in reversed(trained):
        pieces.append(Piece(each.name, end, each.elements))
        end += each.elements
        if end * each.element_bytes >= limit:
            buckets.append(_bucket(len(buckets), end, each.element_bytes, pieces))
            pieces, end, limit = [], 0, bucket_cap_bytes
    if pieces:
        buckets.append(_bucket(len(buckets), end, trained[0].element_bytes, pieces))
    gradients = () if gradients_are_views else whole(trained, Category.GRADIENT)
    return RankLayout(
        rank,
        weights=whole(parameters, Category.WEIGHT),
        master_weights=(),
        gradients_between_steps=(),
        gradients_after_backward=gradients,
        gradients_in_step=(gradients,),
        optimizer_tensors=whole(trained, Category.WEIGHT),
        communication=tuple(buckets),
    )


def _bucket(index: int, elements: int, element_bytes: int, pieces: Sequence[Piece]) -> Held:
    return Held(f"bucket {index}", Category.COMMUNICATION, elements, element_bytes, tuple(pieces))
