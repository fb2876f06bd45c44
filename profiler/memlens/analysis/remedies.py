"""What would have let a request through: changes to the job, and how much each frees.

Every figure is computed from what was alive when the request failed. Whether a change is enough is
judged by what was missing on the device: what it frees goes back there, or is used again in its place.
Where a figure is uncertain, the smaller one is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memlens.analysis.circumstances import Circumstances, loss_frame
from memlens.analysis.fit import Obstacle
from memlens.analysis.frames import user_frames
from memlens.answers import Frame
from memlens.catalogue.measured import measured
from memlens.events import Category, Phase
from memlens.units import format_bytes

__all__ = ["Remedy", "remedies_for", "together_bytes", "two_together"]

WORTH_BYTES = 2**20
"""Less than this is not worth a change."""
WORTH_SHARE = 0.005
OUTSIDE_BYTES = 2 * 2**30
"""A CUDA context and NCCL take less than this; more is likely another process."""
CHUNKS = 8
"""Into how many a loss is cut."""
_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
"""State of torch's Adam and AdamW, and of those modelled on them, neither quantised nor factored."""
_FUSED = _MOMENTS | {"momentum_buffer", "sum"}
"""State of those optimizers of torch that have a fused implementation."""


@dataclass(frozen=True)
class Remedy:
    """One change, by itself."""

    change: str
    """What to write or set."""
    frees_bytes: int
    parts: Mapping[str, int]
    """Of what it frees how much: categories, and `request` (not made at all, or smaller), `cached`,
    `pending`, `outside`, `limit`. Two changes that free the same thing do not free it twice."""
    reason: str
    """Where the figure comes from."""
    cost: str
    suffices: bool
    """This alone would have let the request through."""
    where: Frame | None = None
    """The line of the job to look at."""


@dataclass(frozen=True)
class _Proposal:
    change: str
    parts: Mapping[str, int]
    reason: str
    cost: str
    where: Frame | None = None


def remedies_for(case: Circumstances) -> tuple[Remedy, ...]:
    """Changes that would have helped: first those that suffice, each group cheapest first."""
    if not case.fit.missing_bytes:  # by now there is room, so nothing can be judged by it
        return ()
    worth = max(WORTH_BYTES, int(WORTH_SHARE * case.event.allocated_bytes))
    found = []
    for item in (*_settings(case), *_of_step(case), *_of_passes(case), *_of_state(case)):
        parts = {name: size for name, size in item.parts.items() if size > 0}
        frees = sum(parts.values())
        enough = frees >= case.fit.missing_bytes
        if enough or frees >= worth:
            found.append(
                Remedy(item.change, frees, parts, item.reason, item.cost, enough, item.where)
            )
    return tuple(sorted(found, key=lambda remedy: not remedy.suffices))


def together_bytes(remedies: Iterable[Remedy]) -> int:
    """What several changes free together; what more than one of them frees counts once."""
    most: dict[str, int] = {}
    for remedy in remedies:
        for name, size in remedy.parts.items():
            most[name] = max(most.get(name, 0), size)
    return sum(most.values())


def two_together(case: Circumstances, remedies: Iterable[Remedy]) -> tuple[Remedy, Remedy] | None:
    """The first two that suffice together, where none does alone."""
    remedies = list(remedies)
    if any(remedy.suffices for remedy in remedies):
        return None
    for place, other in enumerate(remedies):
        for one in remedies[:place]:
            if together_bytes((one, other)) >= case.fit.missing_bytes:
                return one, other
    return None


def _settings(case: Circumstances) -> Iterable[_Proposal]:
    """What accumulates by mistake, and what is changed without touching the training."""
    event, fit = case.event, case.fit
    for group in case.growth[:1]:
        what = group.name or (f"what {group.module} makes" if group.module else "the blocks")
        frames = user_frames(group.stack, 1)
        grown = min(group.last_bytes - group.first_bytes, case.held(group.category))
        yield _Proposal(
            f"let go of {what} ({group.category.value.replace('_', ' ')})",
            {group.category.value: grown},
            f"accumulates by {format_bytes(group.bytes_per_step)} per step over {group.steps} steps",
            "none, if it is kept by mistake",
            frames[0] if frames else None,
        )
    free, left = event.device_free_bytes, fit.left_bytes
    if fit.obstacle is Obstacle.LIMIT and left is not None:
        yield _Proposal(
            "raise torch.cuda.set_per_process_memory_fraction",
            {"limit": free - left},
            "free on the device, and the process may not take it",
            "none",
        )
    if fit.obstacle is not Obstacle.STREAMS and not event.allocator_settings.get(
        "expandable_segments"
    ):
        # Small requests have segments of 2 MiB also then, and what lies free in them stays there.
        small = sum(piece[0] for piece in event.free_pieces if piece[1] == "small")
        yield _Proposal(
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            {"cached": event.free_pieces_bytes - small},
            "up to what lies free in the cache in large pieces: whole pages of it can be used anew",
            "none",
        )
    yield _Proposal(
        "have the streams wait for each other before tensors are freed (Tensor.record_stream)",
        {"pending": event.pending_bytes},
        "freed, but not to be used again before other streams are done",
        "less overlap of streams",
    )
    if fit.obstacle is not Obstacle.LIMIT:
        outside = fit.outside_bytes - OUTSIDE_BYTES
        yield _Proposal(
            "see who else uses the device (nvidia-smi)",
            # Of what the others give back this process takes no more than it may.
            {"outside": outside if left is None else min(outside, left - free)},
            f"in use beyond {format_bytes(OUTSIDE_BYTES)}, more than a CUDA context and NCCL take",
            "none",
        )


def _of_step(case: Circumstances) -> Iterable[_Proposal]:
    """About gradients and the optimizer's `step()`; the updates stay what they are."""
    gradients = case.held(Category.GRADIENT)
    names = case.state_names()
    if not names or (names & _FUSED and not any("projector" in name for name in names)):
        # Once the state is there, a fused step() asks for nothing.
        is_avoided = case.phase is Phase.OPTIMIZER and case.event.step > 0
        yield _Proposal(
            "optimizer with fused=True (or foreach=False, or memlens.optim.AdamWR for AdamW)",
            {
                Category.OPTIMIZER_TEMPORARY.value: case.held(Category.OPTIMIZER_TEMPORARY),
                "request": (case.event.requested_bytes or 0) if is_avoided else 0,
            },
            "temporaries of step() at that moment" + (", and the request" if is_avoided else ""),
            "none with fused=True",
        )
    if case.phase is Phase.FORWARD:
        yield _Proposal(
            "optimizer.zero_grad(set_to_none=True) before the forward",
            {Category.GRADIENT.value: gradients},
            "gradients that are kept through the forward",
            "none, unless gradients are accumulated",
        )
    elif case.phase in (Phase.BACKWARD, Phase.OPTIMIZER):
        yield _Proposal(
            "update within backward, layer by layer (memlens.optim.StepInBackward, LOMO)",
            {Category.GRADIENT.value: gradients - case.largest(Category.GRADIENT)},
            "all gradients but the largest",
            "no clipping by the norm of all, no accumulation of gradients",
        )


def _of_passes(case: Circumstances) -> Iterable[_Proposal]:
    """About what forward and backward keep."""
    loss: dict[str, int] = {}
    where = loss_frame(case.event.stack)
    if where is not None:
        loss["request"] = (case.event.requested_bytes or 0) * (CHUNKS - 1) // CHUNKS
    for block in case.blocks:
        if block.category in (Category.ACTIVATION, Category.TEMPORARY):
            frame = loss_frame(block.stack)
            if frame is not None:
                where = where or frame
                kind = block.category.value
                loss[kind] = loss.get(kind, 0) + block.size_bytes * (CHUNKS - 1) // CHUNKS
    yield _Proposal(
        f"cross entropy in {CHUNKS} chunks, or a fused one (Liger, cut-cross-entropy)",
        loss,
        f"{CHUNKS - 1} of {CHUNKS} parts of what the loss makes of the logits",
        "each chunk is computed again in backward",
        where,
    )
    passes = (Category.ACTIVATION, Category.INPUT, Category.TEMPORARY)
    yield _Proposal(
        "half the batch, with gradients accumulated over two",
        {category.value: case.held(category) // 2 for category in passes},
        "half of activations, inputs and temporaries",
        "two passes per step",
    )
    yield _Proposal(
        "activation checkpointing of the repeated layers (torch.utils.checkpoint)",
        {Category.ACTIVATION.value: case.recomputed_bytes()},
        "their activations, less all of the largest layer and one block for each other's input",
        "about a third more compute",
    )


def _of_state(case: Circumstances) -> Iterable[_Proposal]:
    """About the optimizer's state: other optimizers, more devices."""
    state, master = Category.OPTIMIZER_STATE, Category.MASTER_WEIGHT
    if case.world_size > 1:
        yield _Proposal(
            f"ZeRO or FSDP2 over the {case.world_size} ranks",
            {
                each.value: case.held(each) * (case.world_size - 1) // case.world_size
                for each in (state, master)
            },
            "each rank keeps its share of state and master weights, unless it does already",
            "communication",
        )
    moments = sum(
        block.size_bytes
        for block in case.blocks
        if block.category is state and block.name.split(" of ")[0] in _MOMENTS
    )
    # How wide the moments are is not recorded. Beside master weights they are of 32 bits; otherwise
    # taken to be of 16, of which less can be saved.
    dtype = "fp32" if case.held(master) else "bf16"
    plain, packed = measured("adamw", dtype), measured("adamw8bit", dtype)
    if plain is not None and packed is not None:
        left = packed.matrix_state / plain.matrix_state
        yield _Proposal(
            "an optimizer with 8-bit state (bitsandbytes AdamW8bit)",
            {state.value: int(moments * (1 - left))},
            f"moments shrink to {100 * left:.0f} % (measured, for moments of {dtype})"
            + (", to half of that if they are of fp32" if dtype == "bf16" else ""),
            "slightly other updates; see memlens optimizers adamw8bit",
        )
    yield _Proposal(
        "weights in bf16 with stochastic rounding instead of master weights (torchao)",
        {master.value: case.held(master)},
        "the higher-precision copies of the weights",
        "updates are rounded; compare the losses",
    )
