"""What DeepSpeed holds without stage 3: flat groups of parameters, of which stages 1 and 2 split some.

In the flat weights of a group, parameters lie one behind the other, and padding behind the last. A rank's
master weights, gradients and optimizer state are of one partition of that: elements `rank * size` to
`(rank + 1) * size`, which may begin or end within a parameter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch

from memlens.adapters import Holding, Piece
from memlens.events import Category
from memlens_integrations.deepspeed.private import Private

__all__ = [
    "buckets",
    "early_gradients",
    "holdings_of_bf16",
    "holdings_of_flat",
    "holdings_of_fp16",
    "norms",
    "pieces_of",
    "rank_in",
    "tensors_of",
]

Tensor = torch.Tensor


def rank_in(group: Any) -> int:
    """This process's place in a process group; 0 without one."""
    if not torch.distributed.is_initialized():
        return 0
    return max(0, torch.distributed.get_rank(group))


def pieces_of(
    parameters: Sequence[Tensor], offsets: Iterable[int] | None, start: int, size: int
) -> tuple[Piece, ...]:
    """Whose elements are in `start` to `start + size` of a flat tensor of parameters.

    Args:
        parameters: in their order.
        offsets: where each begins; None if each begins where the one before it ends.
        start: the first element of the partition.
        size: how many elements it has.
    """
    found = []
    begin = 0
    given = None if offsets is None else list(offsets)
    for number, parameter in enumerate(parameters):
        if given is not None and number < len(given):
            begin = given[number]
        elements = parameter.numel()
        first, last = max(begin, start), min(begin + elements, start + size)
        if first < last:
            found.append(Piece(parameter, first - start, last - first, first - begin, elements))
        begin += elements
    return tuple(found)


# -- stages 1 and 2 --------------------------------------------------------------------------------


def holdings_of_flat(private: Private, optimizer: Any) -> Iterator[Holding]:
    """Of `DeepSpeedZeroOptimizer`."""

    def read(name: str) -> Any:
        return private.read("flat", optimizer, name)

    for number, flat in enumerate(read("bit16_groups_flat") or ()):
        yield Holding(flat, Category.WEIGHT, f"flat weights of group {number}")
    partitions = cache(partial(_partitions, private, optimizer))
    for number, master in enumerate(read("single_partition_of_fp32_groups") or ()):
        pieces = partitions().get(number, ()) if private.is_new(master) else ()
        yield Holding(
            master, Category.MASTER_WEIGHT, f"master partition of group {number}", pieces=pieces
        )
    yield from _gradients(private, optimizer, partitions)
    yield from buckets(read("ipg_buckets"))
    for name, category, text in (
        ("param_buffer_of_bit16_for_cpu_offload_groups", Category.COMMUNICATION, "updated weights"),
        ("temp_grad_buffer_for_cpu_offload", Category.GRADIENT, "staged gradient"),
        ("temp_grad_buffer_for_gpu_offload", Category.GRADIENT, "staged gradient"),
        ("_muon_allgather_buffers", Category.COMMUNICATION, "all-gather buffer of Muon"),
    ):
        for tensor in tensors_of(read(name)):
            yield Holding(tensor, category, text)
    yield from norms(read("_global_grad_norm"), read("norm_for_param_grads"))


def _partitions(private: Private, optimizer: Any) -> dict[int, tuple[Piece, ...]]:
    """Of each group: whose elements this rank's partition has."""
    groups = private.read("flat", optimizer, "round_robin_bit16_groups")
    if groups is None:
        groups = private.read("flat", optimizer, "bit16_groups")
    sizes = private.read("flat", optimizer, "partition_size")
    shared_by = private.read("flat", optimizer, "real_dp_process_group")
    if groups is None or sizes is None or shared_by is None:
        return {}
    offsets = private.read("flat", optimizer, "round_robin_bit16_offsets") or [None] * len(groups)
    found = {}
    # Not strict: while DeepSpeed makes its groups, some of these have one more than others.
    for number, (group, begins, size, ranks) in enumerate(
        zip(groups, offsets, sizes, shared_by, strict=False)
    ):
        found[number] = pieces_of(group, begins, rank_in(ranks) * int(size), int(size))
    return found


def _gradients(
    private: Private, optimizer: Any, partitions: Callable[[], Mapping[int, tuple[Piece, ...]]]
) -> Iterator[Holding]:
    """Gradients that stay beyond backward: of this rank's partition, and those that straddle its ends."""
    mine = private.read("flat", optimizer, "params_in_partition") or ()
    averaged = private.read("flat", optimizer, "averaged_gradients") or {}
    whole = private.read("flat", optimizer, "all_grad_tensors") or {}
    for tensor in tensors_of(private.read("flat", optimizer, "grads_in_partition")):
        yield Holding(tensor, Category.GRADIENT, "gradients of this rank's partitions")
    for number, parameters in enumerate(mine):
        for parameter, gradient in zip(parameters, whole.get(number) or (), strict=False):
            if gradient is not None:
                yield Holding(gradient, Category.GRADIENT, parameter=parameter)
        gradients = averaged.get(number)
        if gradients is None:
            continue
        flat = private.read("flat", gradients, "flat_partition")
        text = f"gradient partition of group {number}"
        if flat is not None:
            pieces = partitions().get(number, ()) if private.is_new(flat) else ()
            yield Holding(flat, Category.GRADIENT, text, pieces=pieces)
            continue
        found = [gradient for gradient in gradients if gradient is not None]
        if any([private.is_new(gradient) for gradient in found]):
            sizes = [gradient.numel() for gradient in found]
            parts = _split(partitions().get(number, ()), sizes)
            for gradient, pieces in zip(found, parts, strict=True):
                yield Holding(gradient, Category.GRADIENT, text, pieces=pieces)
    yield from _accumulated(private, optimizer)


def _accumulated(private: Private, optimizer: Any) -> Iterator[Holding]:
    """Gradients that are added up over several backwards."""
    on_host = private.read("flat", optimizer, "accumulated_grads_in_cpu")
    numbered = private.read("flat", optimizer, "param_dict") or {}
    for number, gradient in (on_host or {}).items():
        yield Holding(gradient, Category.GRADIENT, "accumulated", parameter=numbered.get(number))
    for parameters in private.read("flat", optimizer, "bit16_groups") or ():
        for parameter in parameters:
            gradient = private.read("flat", parameter, "grad_accum")
            if gradient is not None:
                yield Holding(gradient, Category.GRADIENT, parameter=parameter)


def _split(pieces: Iterable[Piece], sizes: Iterable[int]) -> Iterator[tuple[Piece, ...]]:
    """Pieces of a partition's parts, one behind the other, of which each has so many elements."""
    waiting = deque(pieces)
    start = 0
    for size in sizes:
        end = start + size
        found = []
        while waiting and waiting[0].start < end:
            each = waiting[0]
            first, last = max(each.start, start), min(each.start + each.count, end)
            skipped = each.parameter_start + first - each.start
            found.append(Piece(each.parameter, first - start, last - first, skipped, each.elements))
            if each.start + each.count > end:
                break
            waiting.popleft()
        yield tuple(found)
        start = end


def early_gradients(private: Private, optimizer: Any) -> Iterator[Holding]:
    """What a reduction leaves and what is gone by the end of backward: asked just before that."""
    yield from buckets(private.read("flat", optimizer, "ipg_buckets"))
    for parameters in private.read("flat", optimizer, "params_in_partition") or ():
        for parameter in parameters:
            if parameter.grad is not None:
                yield Holding(parameter.grad, Category.GRADIENT, parameter=parameter)
    yield from _gradients(private, optimizer, cache(partial(_partitions, private, optimizer)))


def buckets(found: Any) -> Iterator[Holding]:
    """Buckets in which gradients are reduced: by dtype, or one, or a list of them."""
    for number, tensor in enumerate(tensors_of(found)):
        yield Holding(tensor, Category.COMMUNICATION, f"reduce bucket {number}")


def norms(*found: Any) -> Iterator[Holding]:
    """Norms of the last gradients; numbers, of which some are kept as tensors."""
    for tensor in tensors_of(found):
        yield Holding(tensor, Category.OPTIMIZER_TEMPORARY, "norm of gradients")


def tensors_of(found: Any) -> Iterator[Tensor]:
    """The tensors in what an attribute holds."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from tensors_of(list(found.values()))
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from tensors_of(each)
    elif found is not None and hasattr(found, "buffer"):
        yield from tensors_of(found.buffer)


# -- stage 1 with bfloat16 weights and float32 gradients ------------------------------------------


def holdings_of_bf16(private: Private, optimizer: Any) -> Iterator[Holding]:
    """Of `BF16_Optimizer`, whose gradients are not partitioned."""

    def read(name: str) -> Any:
        return private.read("bf16", optimizer, name) or ()

    groups, shared_by = read("bf16_groups"), read("real_dp_process_group")
    for number, flat in enumerate(read("bf16_groups_flat")):
        yield Holding(flat, Category.WEIGHT, f"flat weights of group {number}")
    for number, master in enumerate(read("fp32_groups_flat_partition")):
        pieces: tuple[Piece, ...] = ()
        if number < len(groups) and number < len(shared_by) and private.is_new(master):
            start = rank_in(shared_by[number]) * master.numel()
            pieces = pieces_of(groups[number], None, start, master.numel())
        yield Holding(
            master, Category.MASTER_WEIGHT, f"master partition of group {number}", pieces=pieces
        )
    for number, gradients in enumerate(read("fp32_groups_gradients_flat")):
        pieces = ()
        if number < len(groups) and private.is_new(gradients):
            pieces = pieces_of(groups[number], None, 0, gradients.numel())
        yield Holding(
            gradients, Category.GRADIENT, f"flat gradients of group {number}", pieces=pieces
        )
    yield from norms(private.read("bf16", optimizer, "_global_grad_norm"))


# -- stage 0 with master weights -------------------------------------------------------------------


def holdings_of_fp16(private: Private, optimizer: Any, kind: str) -> Iterator[Holding]:
    """Of `FP16_Optimizer` ("fused", flat groups) and `FP16_UnfusedOptimizer` ("unfused")."""
    groups = private.read(kind, optimizer, "fp16_groups") or ()
    if kind == "unfused":
        masters = private.read(kind, optimizer, "fp32_groups") or ()
        for parameters, copies in zip(groups, masters, strict=False):
            for parameter, master in zip(parameters, copies, strict=False):
                yield Holding(
                    master, Category.MASTER_WEIGHT, "master weight of", parameter=parameter
                )
        return
    for number, flat in enumerate(private.read(kind, optimizer, "fp16_groups_flat") or ()):
        yield Holding(flat, Category.WEIGHT, f"flat weights of group {number}")
    for number, master in enumerate(private.read(kind, optimizer, "fp32_groups_flat") or ()):
        pieces: tuple[Piece, ...] = ()
        if number < len(groups) and private.is_new(master):
            pieces = pieces_of(groups[number], None, 0, master.numel())
        yield Holding(
            master, Category.MASTER_WEIGHT, f"master weights of group {number}", pieces=pieces
        )
    yield from norms(private.read(kind, optimizer, "_global_grad_norm"))
