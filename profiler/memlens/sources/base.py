"""What a source of allocation events is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = ["EventBatch", "Source"]

Array = npt.NDArray[Any]


@dataclass
class EventBatch:
    """Events since the last drain, in columns of equal length, ordered by time."""

    time_ns: Sequence[int] | Array = ()
    address: Sequence[int] | Array = ()
    size_bytes: Sequence[int] | Array = ()
    """Positive: handed out; negative: given back."""
    stack: Sequence[int] | Array | None = None
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
    drains_anywhere: bool
    """It can be drained inside the autograd engine, and works beside a torch.profiler of the job."""
    notes: list[str]
    """What the capture lacks by intention, one sentence each."""

    def start(self) -> None:
        """Begin to record.

        Raises:
            SourceError: this process cannot be recorded now.
        """

    def drain(self) -> EventBatch:
        """Take the events so far and go on recording, without a gap on this thread."""

    def stop(self) -> EventBatch:
        """Stop recording, and take the events so far."""

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage's memory comes from the allocator that this source follows."""

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Report the free of a block that was there before `start`."""

    def abandon(self) -> None:
        """Stop recording in a forked child, which must not keep anything of its parent."""
