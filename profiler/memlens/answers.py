"""What a capture answers: frozen records in the user's words.

All sizes are whole bytes. Times are nanoseconds since the Unix epoch; `None` means unknown or not
applicable, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memlens.events import ROLLUP, Category, Certainty, Phase, WeightKind

__all__ = [
    "Allocation",
    "Coverage",
    "Frame",
    "Gauge",
    "Growth",
    "ModuleUsage",
    "OutOfMemory",
    "Part",
    "Peak",
    "Place",
    "RunInfo",
    "Slack",
    "Step",
    "Timeline",
    "rollup",
]

Int64Array = npt.NDArray[np.int64]


def rollup(categories: Mapping[Category, int]) -> dict[str, int]:
    """Sum categories up to the five names of the published charts (Weight, Activation, ...)."""
    return {
        name: sum(categories.get(member, 0) for member in members)
        for name, members in ROLLUP.items()
    }


@dataclass(frozen=True)
class RunInfo:
    """What is known about a run as a whole."""

    path: str
    name: str
    """The folder's name."""
    format_version: int
    source: str
    """"cpu", "cuda" or "simulated"."""
    world_size: int
    command: tuple[str, ...]
    """The command line of the job; empty when recorded from code in a notebook."""
    created_ns: int
    torch_version: str | None
    memlens_version: str


@dataclass(frozen=True)
class Peak:
    """The moment with the most allocated bytes (the first one, if there are several)."""

    time_ns: int
    step: int
    phase: Phase
    module: str
    """Qualified name of the module at work; empty outside of modules."""
    allocated_bytes: int
    reserved_bytes: int | None
    """What the allocator had taken from the device by then; None: it takes nothing in advance."""
    categories: dict[Category, int]
    """Sums to `allocated_bytes`. Every category is present, also with 0."""


@dataclass(frozen=True)
class Step:
    """One training step: from the end of the previous `optimizer.step()` to the end of its own."""

    step: int
    start_ns: int
    end_ns: int
    peak_ns: int
    peak_bytes: int
    end_bytes: int
    categories: dict[Category, int]
    """At this step's peak; sums to `peak_bytes`."""
    end_categories: dict[Category, int]
    """At this step's end; sums to `end_bytes`."""


@dataclass(frozen=True)
class Frame:
    """One Python frame of a stack."""

    function: str
    file: str
    line: int


@dataclass(frozen=True)
class Part:
    """Some of the bytes of a block that several tensors share."""

    name: str
    """`layers.0.weight`; `layers.0.weight[1024:4096]` where only those elements are there."""
    module: str
    """Module that owns it."""
    offset_bytes: int
    """From the block's beginning."""
    size_bytes: int


@dataclass(frozen=True)
class Allocation:
    """One block, from its allocation to its free."""

    address: int
    size_bytes: int
    category: Category
    certainty: Certainty
    name: str
    """What the observers call it (`layers.0.weight`, `exp_avg of layers.0.weight`); may be empty."""
    module: str
    """Module at work when it was allocated; empty outside of modules."""
    phase: Phase
    step: int
    alloc_ns: int
    free_ns: int | None
    """None: alive at the end of the capture."""
    preexisting: bool
    """It was there before recording began, so module, phase and stack are not known."""
    stack: tuple[Frame, ...]
    """Outermost frame first; empty when stacks were not recorded."""
    weight_kind: WeightKind | None = None
    """Of a weight; None: it is none."""
    parts: tuple[Part, ...] = ()
    """What lies where in it, if several tensors share it (a flat partition of many parameters)."""
    module_class: str = ""
    """Class of `module`; empty: there is none, or it is not known."""


@dataclass(frozen=True)
class ModuleUsage:
    """What one module holds at one moment, its submodules not included.

    Weights, gradients and optimizer state count for the module that owns the parameter; anything
    else for the module that was at work when it was allocated.
    """

    module: str
    class_name: str
    total_bytes: int
    categories: dict[Category, int]
    """Sums to `total_bytes`; only categories that are present."""


@dataclass(frozen=True)
class Growth:
    """A group of blocks that accumulates from step to step: a suspected leak.

    Blocks of one group share category, module and stack (or name, without stacks).
    """

    category: Category
    module: str
    name: str
    bytes_per_step: int
    """Median increase over the steps looked at."""
    first_bytes: int
    last_bytes: int
    steps: int
    stack: tuple[Frame, ...]


@dataclass(frozen=True)
class Slack:
    """What an allocator has taken from the device, and how much of that no tensor uses."""

    reserved_bytes: int
    rounding_bytes: int
    """Part of the allocated bytes: blocks are larger than what was asked for."""
    cached_bytes: int
    """Reserved and not allocated: kept for later requests, and of use to those that fit."""


@dataclass(frozen=True)
class Gauge:
    """Memory beside the allocator's count, measured about once a second."""

    what: str
    device: str
    """Empty: the host."""
    peak_bytes: int
    last_bytes: int


@dataclass(frozen=True)
class Place:
    """What the job was doing at a moment."""

    step: int
    phase: Phase
    module: str
    """Qualified name of the module at work; empty outside of modules."""


@dataclass(frozen=True)
class OutOfMemory:
    """A request for memory that failed, and what there was at that moment."""

    time_ns: int
    reason: str
    """`own`: this rank's request; `peer`: another rank's, and this is what we held then."""
    peer_rank: int | None
    device: str
    device_index: int
    step: int
    requested_bytes: int | None
    """None: another rank's request."""
    stream: int | None
    """For which it was made, as `free_pieces` name it; None: not known."""
    device_total_bytes: int
    device_free_bytes: int
    limit_bytes: int | None
    """What `set_per_process_memory_fraction` allows."""
    allocated_bytes: int
    reserved_bytes: int
    private_pool_bytes: int
    """Of the reserved bytes: CUDA graphs', from which nothing else is served."""
    pending_bytes: int
    """Given back, but other streams still use it."""
    free_pieces: tuple[tuple[int, str, int], ...]
    """Bytes, pool (`small`, `large`) and stream of what lies free in the cache, largest first, a
    thousand at most."""
    free_pieces_bytes: int
    largest_free_bytes: int
    allocator_settings: dict[str, object]
    stack: tuple[Frame, ...]
    """Where the job was, outermost first; empty on threads of the autograd engine."""


@dataclass(frozen=True)
class Coverage:
    """How complete the capture is."""

    complete: bool
    """The session was closed in good order and nothing below is lost."""
    lost_events: int
    """Events that the source knows to have lost, or that the allocator's pairing shows missing."""
    blind_ns: int
    """Time within the capture in which the source did not record (the job's own profiler ran)."""
    uncovered_bytes: int
    """Most bytes seen at one time in tensors outside the allocator: shared, mapped or borrowed memory."""
    witness_difference_bytes: int
    """Largest difference between our running total and the allocator's own; 0 when they agree."""
    problems: tuple[str, ...]
    """What went wrong while recording or reading, one sentence each."""
    notes: tuple[str, ...] = ()
    """What was left out on purpose, one sentence each."""


@dataclass(frozen=True)
class Timeline:
    """Bytes per category over time, one entry per event (or per bucket when thinned out).

    Entry i holds from `time_ns[i]` until `time_ns[i + 1]`.
    """

    time_ns: Int64Array
    allocated_bytes: Int64Array
    categories: dict[Category, Int64Array]
    """Every category, each of the length of `time_ns`; they sum to `allocated_bytes` at every entry."""
    step_start_ns: dict[int, int]
    """Where each step begins."""
