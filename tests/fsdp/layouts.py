"""What each rank holds of the job's model in each of its ways, as pure arithmetic."""

from __future__ import annotations

from dataclasses import replace

from tests.fsdp.job import Net

from memlens.events import Category
from memlens.sharding.ddp import ddp_layout
from memlens.sharding.fsdp import Fsdp, FsdpGroup, fsdp_layout
from memlens.sharding.fsdp_flat import FlatFsdp, flat_fsdp_layout
from memlens.sharding.layout import Held, Parameter, Piece, RankLayout, State

__all__ = [
    "expected",
    "groups_of",
    "parameters",
    "state_bytes",
    "units",
    "zero_redundancy_buckets",
]

BUCKET_CAP_BYTES = int(0.05 * (1 << 20))
EVEN = ("fsdp2-columns", "fsdp2-adamw8bit", "fsdp2-galore")
BLOCK, TABLE_BYTES = 256, 1024
"""torchao: elements per scale, and its table of 256 numbers."""
RANK = 8
"""GaLore's."""


def parameters(way: str) -> list[Parameter]:
    """Of the model, in its order."""
    size = 2 if way in ("ddp-bf16", "zro-bf16") else 4
    net = Net(128, 256, 5) if way in EVEN else Net()
    return [Parameter(name, tuple(each.shape), size) for name, each in net.named_parameters()]


def units(way: str) -> list[list[Parameter]]:
    """Those of each block, and the rest."""
    every = parameters(way)
    inner = [[e for e in every if e.name.startswith(f"layers.{index}.")] for index in range(2)]
    if way == "fsdp2-groups":
        matrices = [[e for e in group if len(e.shape) > 1] for group in inner]
        others = [[e for e in group if len(e.shape) == 1] for group in inner]
        inner = [*matrices, *others]
    return [*inner, [e for e in every if not e.name.startswith("layers.")]]


def shards(way: str, world_size: int) -> int:
    """How many ranks share a model."""
    return min(world_size, 2) if way == "fsdp2-replicas" else world_size


def groups_of(way: str, world_size: int) -> tuple[FsdpGroup, ...]:
    """What FSDP2 gathers."""
    world_size = shards(way, world_size)
    fsdp = Fsdp(world_size, gather_bytes=2 if way == "fsdp2-bf16" else None)
    return fsdp_layout(fsdp, units(way), 0)[1]


def expected(way: str, rank: int, world_size: int) -> RankLayout:
    """What a rank holds after the last backward."""
    if way.startswith("ddp"):
        return ddp_layout(
            parameters(way),
            rank,
            world_size,
            bucket_cap_bytes=BUCKET_CAP_BYTES,
            gradients_are_views=way == "ddp-views",
        )
    if way.startswith("zro"):
        layout = ddp_layout(parameters(way), rank, world_size)
        chosen = {each.name for each in _updated_by(way, rank, world_size)}
        mine = tuple(each for each in layout.optimizer_tensors if each.name in chosen)
        return replace(layout, optimizer_tensors=mine)
    if way.startswith("fsdp1"):
        flat = FlatFsdp(
            world_size,
            use_orig_params=way.endswith("originals"),
            gather_bytes=2 if "bf16" in way else None,
        )
        return flat_fsdp_layout(flat, units(way), rank)[0]
    world_size = shards(way, world_size)
    layout, _ = fsdp_layout(Fsdp(world_size), units(way), rank % world_size)
    return _by_columns(layout, world_size) if way == "fsdp2-columns" else layout


def state_bytes(way: str, layout: RankLayout) -> int:
    """What the optimizer keeps: AdamW's moments in the parameters' dtype, and a counter in fp32."""
    if way == "fsdp2-adamw8bit":
        return sum(2 * _moment_in_8_bits(each.elements) + 4 for each in layout.optimizer_tensors)
    if way == "fsdp2-galore":
        return sum(map(_galore_bytes, layout.optimizer_tensors))
    size = 2 if way.endswith("bf16") and way[:3] in ("ddp", "zro") else 4
    return layout.state_bytes(State(per_element_bytes=2 * size))


def _moment_in_8_bits(elements: int) -> int:
    """torchao quantises what has 4,096 elements, in whole blocks of 256; else it is fp32."""
    if elements < 4096 or elements % BLOCK:
        return 4 * elements
    return elements + 4 * elements // BLOCK + TABLE_BYTES


def _galore_bytes(part: Held) -> int:
    """The counter is a number of Python's; the projector keeps all of the SVD's factor."""
    if ".up.weight" not in part.name:
        return 8 * part.elements
    rows, columns = part.elements // 128, 128
    return 2 * 4 * rows * RANK + 4 * columns * columns


def _updated_by(way: str, rank: int, world_size: int) -> list[Parameter]:
    """The largest parameter that is left goes to the rank that has the least."""
    ranks: list[list[Parameter]] = [[] for _ in range(world_size)]
    totals = [0] * world_size
    for each in sorted(parameters(way), key=lambda each: each.elements, reverse=True):
        least = totals.index(min(totals))
        ranks[least].append(each)
        totals[least] += each.elements
    return ranks[rank]


def zero_redundancy_buckets(way: str, world_size: int) -> list[Held]:
    """With `parameters_as_bucket_view`: for each rank, what it updates is one storage on all ranks."""
    buckets = []
    for rank in range(world_size):
        pieces, end = [], 0
        for each in _updated_by(way, rank, world_size):
            pieces.append(Piece(each.name, end, each.elements))
            end += each.elements
        buckets.append(Held(f"rank {rank}", Category.WEIGHT, end, 4, tuple(pieces)))
    return buckets


def _by_columns(layout: RankLayout, world_size: int) -> RankLayout:
    """Matrices of blocks are cut along their second side, so that a shard is no range of elements."""

    def change(each: Held, *, padded: bool) -> Held:
        if not each.name.endswith(("up.weight", "down.weight")):
            return each
        elements = 128 * 256 // world_size
        pieces = (Piece(each.name, 0, elements),) if padded else each.pieces
        return replace(each, elements=elements, pieces=pieces, category=Category.WEIGHT)

    return replace(
        layout,
        weights=tuple(change(each, padded=True) for each in layout.weights),
        optimizer_tensors=tuple(change(each, padded=False) for each in layout.optimizer_tensors),
    )
