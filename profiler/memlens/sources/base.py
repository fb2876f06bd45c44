"""What a source of allocation events is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["EventBatch", "Source"]


@dataclass
class EventBatch:
    """Events since the last drain, in columns of equal length, ordered by time."""

    time_ns: list[int] = field(default_factory=list)
    address: list[int] = field(default_factory=list)
    size_bytes: list[int] = field(default_factory=list)
    """Positive: handed out; negative: given back."""
    stack: list[int] | None = None
    """Frame numbers, or None when the source records no stacks."""
    allocator_total_bytes: int | None = None
    """The allocator's own count after the last event, since `start`; None if it does not tell."""
    census_frees: list[tuple[int, int, int]] = field(default_factory=list)
    """(time, address, bytes) of blocks from before `start` whose end the allocator does not tell."""


class Source(Protocol):
    """Tells of allocations on one kind of device.

    All methods are called on the thread that called `start`.
    """

    name: str
    """"cpu", "cuda" or "simulated"."""
    devices: tuple[str, ...]
    """What the `device` column of events and tags counts through."""
    device_type: str
    """`torch.device.type` of the tensors whose storages it tells of."""
    notes: list[str]
    """What the capture lacks by intention, one sentence each."""

    def start(self) -> None:
        """Begin to record.

        Raises:
            SourceError: this process cannot be recorded now.
        """

    def trace_calls(self, on: bool) -> bool:
        """Record stacks from the next drain on, or no longer; whether that is a change."""

    def drain(self) -> EventBatch:
        """Take the events so far and go on recording, without a gap on this thread."""

    def stop(self) -> EventBatch:
        """Stop recording, and take the events so far."""

    def abandon(self) -> None:
        """Stop recording in a forked child, which must not keep anything of its parent."""
