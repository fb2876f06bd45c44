"""What would have let a request through: changes to the job, and how much each frees.

Every figure is computed from what was alive when the request failed. Whether a change is enough is
judged by what was missing on the device: what it frees goes back there, or is used again in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memlens.analysis.fit import Fit, Obstacle
from memlens.answers import ModuleUsage, OutOfMemory
from memlens.events import Category, Phase

__all__ = ["Circumstances", "Remedy", "remedies_for", "two_together"]

WORTH_BYTES = 2**20
"""Less than this is not worth a change."""
WORTH_SHARE = 0.005
EIGHT_BIT_SHARE = 0.49
"""Of moments in 16 bits (4 bytes per parameter), 8-bit ones with their scales take 2.03; of moments in
32 bits they would take a quarter. See `memlens optimizers adamw8bit`."""
OUTSIDE_BYTES = 2 * 2**30
"""A CUDA context and NCCL take less than this; more is likely another process."""
_LAYER = re.compile(r"^(.*?)\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Circumstances:
    """What was going on when the request failed."""

    event: OutOfMemory
    fit: Fit
    phase: Phase
    categories: Mapping[Category, int]
    modules: Sequence[ModuleUsage]
    """All that held something."""
    largest: Mapping[Category, int]
    """Largest single block of each category."""
    world_size: int


@dataclass(frozen=True)
class Remedy:
    """One change, by itself."""

    change: str
    """What to write or set."""
    frees_bytes: int
    reason: str
    """Where the figure comes from."""
    cost: str
    suffices: bool
    """This alone would have let the request through."""


def remedies_for(case: Circumstances) -> tuple[Remedy, ...]:
    """Changes that would have helped: first those that suffice, each group cheapest first."""
    worth = max(WORTH_BYTES, int(WORTH_SHARE * case.event.allocated_bytes))
    found = [
        Remedy(change, frees, reason, cost, frees >= case.fit.missing_bytes)
        for change, frees, reason, cost in _proposals(case)
        if frees >= worth
    ]
    return tuple(sorted(found, key=lambda remedy: not remedy.suffices))


def two_together(case: Circumstances, remedies: Iterable[Remedy]) -> tuple[Remedy, Remedy] | None:
    """The first two that suffice together, where none does alone."""
    remedies = list(remedies)
    if any(remedy.suffices for remedy in remedies):
        return None
    for place, one in enumerate(remedies):
        for other in remedies[place + 1 :]:
            if one.frees_bytes + other.frees_bytes >= case.fit.missing_bytes:
                return one, other
    return None


def _proposals(case: Circumstances) -> Iterable[tuple[str, int, str, str]]:
    """Change, bytes, reason and cost; the cheapest first."""
    event, held, phase = case.event, case.categories, case.phase
    expandable = bool(event.allocator_settings.get("expandable_segments"))
    if case.fit.obstacle in (Obstacle.FRAGMENTATION, Obstacle.SIZE) and not expandable:
        yield (
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            event.free_pieces_bytes,
            "what lies free in the cache in pieces can then be joined",
            "none",
        )
    if case.fit.obstacle is Obstacle.LIMIT and event.limit_bytes is not None:
        yield (
            "raise torch.cuda.set_per_process_memory_fraction",
            max(0, event.device_total_bytes - event.limit_bytes),
            "the device has it, the process may not take it",
            "none",
        )
    yield (
        "optimizer with fused=True (or foreach=False, or memlens.optim.AdamWR for AdamW)",
        held[Category.OPTIMIZER_TEMPORARY],
        "temporaries of step() at that moment",
        "none with fused=True",
    )
    if phase is Phase.FORWARD:
        yield (
            "optimizer.zero_grad(set_to_none=True) before the forward",
            held[Category.GRADIENT],
            "gradients that are kept through the forward",
            "none, unless gradients are accumulated",
        )
    elif phase in (Phase.BACKWARD, Phase.OPTIMIZER):
        yield (
            "update within backward, layer by layer (memlens.optim.StepInBackward, LOMO)",
            held[Category.GRADIENT] - case.largest[Category.GRADIENT],
            "all gradients but the largest",
            "no clipping by the norm of all, no accumulation of gradients",
        )
    outside = case.fit.outside_bytes
    if outside > OUTSIDE_BYTES:
        yield (
            "see who else uses the device (nvidia-smi)",
            outside - OUTSIDE_BYTES,
            "in use beyond what a CUDA context and NCCL take",
            "none",
        )
    yield (
        "half the batch, with gradients accumulated over two",
        (held[Category.ACTIVATION] + held[Category.INPUT] + held[Category.TEMPORARY]) // 2,
        "half of activations, inputs and temporaries",
        "two passes per step",
    )
    repeated, largest = _repeated_activations(case.modules)
    yield (
        "activation checkpointing of the repeated layers (torch.utils.checkpoint)",
        repeated - largest,
        "their activations but one layer's; each layer's input stays, so somewhat less",
        "about a third more compute",
    )
    if case.world_size > 1:
        yield (
            f"ZeRO or FSDP2 over the {case.world_size} ranks",
            (held[Category.OPTIMIZER_STATE] + held[Category.MASTER_WEIGHT])
            * (case.world_size - 1)
            // case.world_size,
            "each rank keeps its share of state and master weights, unless it does already",
            "communication",
        )
    yield (
        "an optimizer with 8-bit state (bitsandbytes AdamW8bit)",
        int(EIGHT_BIT_SHARE * held[Category.OPTIMIZER_STATE]),
        "about half of the optimizer's state if that is of 16 bits, three quarters if of 32",
        "slightly other updates; see memlens optimizers adamw8bit",
    )


def _repeated_activations(modules: Sequence[ModuleUsage]) -> tuple[int, int]:
    """Activations of modules of which there are several by number: in all, and of the largest."""
    layers: dict[tuple[str, str], int] = {}
    for usage in modules:
        found = _LAYER.match(usage.module)
        if found:
            key = found[1], found[2]
            layers[key] = layers.get(key, 0) + usage.categories.get(Category.ACTIVATION, 0)
    stacks: dict[str, list[int]] = {}
    for (stack, _), size in layers.items():
        stacks.setdefault(stack, []).append(size)
    several = [sizes for sizes in stacks.values() if len(sizes) > 1]
    return sum(map(sum, several)), max((max(sizes) for sizes in several), default=0)
