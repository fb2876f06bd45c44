"""What a source of allocation events is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = ["Block", "EventBatch", "Gauge", "Source"]

Array = npt.NDArray[Any]
Gauge = tuple[str, str, int]
"""What was measured, on which device (or empty), bytes."""


@dataclass(frozen=True)
class Block:
    """A piece of memory that was there when recording began."""

    address: int
    size_bytes: int
    device: int = 0
    requested_bytes: int | None = None
    """None: the same."""
    stream: int = 0
    is_segment: bool = False
    """What the allocator took from the device, and not what it has handed out."""
    is_pending: bool = False
    """It was given back, and still waits for another stream."""


@dataclass
class EventBatch:
    """Events since the last drain, in columns of equal length, ordered by time."""

    time_ns: Sequence[int] | Array = ()
    address: Sequence[int] | Array = ()
    size_bytes: Sequence[int] | Array = ()
    """What was asked for. Without `action`, positive: handed out; negative: given back."""
    stack: Sequence[int] | Array | None = None
    """Frame numbers, or None when the source records no stacks."""
    action: Array | None = None
    """Positions in Action, or None when the sign of the size tells."""
    allocated_bytes: Array | None = None
    """What was set aside, 0 where it is not told; None: exactly what was asked for."""
    device: Array | None = None
    """Positions in the source's `devices`; None: all are of the first."""
    stream: Array | None = None
    mark: Array | None = None
    """Number of the last mark that the event's thread had made, as `annotate` was told; -1: not known.
    None: the times are those of our own clock, and need no correction."""
    allocator_total_bytes: Mapping[int, int] = field(default_factory=dict)
    """The allocator's own count after the last event, since `start`, by device; empty: it tells none."""
    census_frees: list[tuple[int, int, int]] = field(default_factory=list)
    """(time, address, bytes) of blocks from before `start` whose end the allocator does not tell."""
    gauges: list[Gauge] = field(default_factory=list)
    """Memory beside the allocator's count, as it is now."""
    lost_events: int = 0
    """How many the source knows to have missed before the first of these."""
    header: Mapping[str, object] | None = None
    """What `rank.json` should say from now on."""
    census: list[Block] = field(default_factory=list)
    """After a loss: what is there when the first of these events comes."""


class Source(Protocol):
    """Tells of allocations on one kind of device.

    `start` and `stop` are called on one thread; `drain` may be called on a thread of the autograd
    engine if `drains_anywhere`.
    """

    name: str
    """"cpu", "cuda" or "simulated"."""
    devices: tuple[str, ...]
    """What the `device` column of events and tags counts through."""
    device_type: str
    """`torch.device.type` of the tensors whose storages it tells of."""
    drains_anywhere: bool
    """It can be drained inside the autograd engine, and works beside a torch.profiler of the job."""
    notes: list[str]
    """What the capture lacks by intention, one sentence each."""

    @property
    def annotate(self) -> Callable[[int], None] | None:
        """Called with the number of each mark, on its thread: events carry it from there on.

        None: the source's clock is the marks' own, so that time alone puts an event between two marks.
        """

    def start(self) -> None:
        """Begin to record.

        Raises:
            SourceError: this process cannot be recorded now.
        """

    def drain(self) -> EventBatch:
        """Take the events so far and go on recording, without a gap on this thread."""

    def stop(self) -> EventBatch:
        """Stop recording, and take the events so far."""

    def existing(self) -> list[Block] | None:
        """What the allocator had handed out when `start` was called; None: it keeps no list."""

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage's memory comes from the allocator that this source follows."""

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Report the free of a block that was there before `start`."""

    def header(self) -> dict[str, object]:
        """What `rank.json` says of the allocator, beside the devices."""

    def abandon(self) -> None:
        """Stop recording in a forked child, which must not keep anything of its parent."""
