"""What a history of the allocator offers, and how far it was read."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, Protocol

__all__ = ["History", "OutOfMemoryCall", "Seen"]

Snapshot = dict[str, Any]
Entry = dict[str, Any]
OutOfMemoryCall = Callable[[int, int, int, int], None]
"""Device, requested bytes, what the device may give at most, what it has free."""

TAIL = 32
"""By so many of its last entries a history is recognised that others have gone on with."""
CLOCK_US = 1000
"""By less than this two conversions of one time differ."""
_LOOK = itemgetter("action", "size", "stream")
_KEPT = ("action", "addr", "size", "stream", "time_us")


class History(Protocol):
    """What `memlens.torch_private.AllocatorHistory` offers; see there."""

    device_type: str
    set_text: Callable[[str], None] | None

    def missing(self) -> list[str]: ...  # noqa: D102
    def device_names(self) -> tuple[str, ...]: ...  # noqa: D102
    def is_ready(self) -> bool: ...  # noqa: D102
    def when_ready(self, call: Callable[[], None]) -> Callable[[], None]: ...  # noqa: D102
    def backend(self) -> str: ...  # noqa: D102
    def is_enabled(self) -> bool: ...  # noqa: D102
    def enable(self, max_entries: int, *, stacks: bool) -> None: ...  # noqa: D102
    def disable(self) -> None: ...  # noqa: D102
    def snapshot(self) -> Snapshot: ...  # noqa: D102
    def text(self) -> str: ...  # noqa: D102
    def calls(self, device: int) -> int: ...  # noqa: D102
    def is_capturing(self) -> bool: ...  # noqa: D102
    def device_memory(self, device: int) -> tuple[int, int]: ...  # noqa: D102
    def current_stream(self, device: int) -> int: ...  # noqa: D102
    def limit_bytes(self, device: int) -> int | None: ...  # noqa: D102
    def pinned_bytes(self) -> int | None: ...  # noqa: D102
    def observe_out_of_memory(self, call: OutOfMemoryCall | None) -> bool: ...  # noqa: D102


class Seen:
    """How far the history of one device was read; at first, not at all."""

    def __init__(self) -> None:
        self._last: list[Entry] = []

    def note(self, entries: list[Entry]) -> None:
        """All of these were read."""
        self._last = [{key: entry.get(key) for key in _KEPT} for entry in entries[-TAIL:]]

    def newer(self, entries: list[Entry]) -> list[Entry]:
        """Those that came after what was read; all, where nothing of that is left."""
        seen = self._last
        if not seen:
            return entries
        # A loop leaves many entries that look alike, so the times decide; but torch converts them anew
        # for each snapshot, so they may differ by a little.
        best, smallest = 0, CLOCK_US
        for end in range(len(entries), len(seen) - 1, -1):
            if entries[end - 1]["time_us"] < seen[-1]["time_us"] - CLOCK_US:
                break
            same = entries[end - len(seen) : end]
            if list(map(_LOOK, same)) == list(map(_LOOK, seen)):
                apart = max(
                    abs(one["time_us"] - other["time_us"])
                    for one, other in zip(same, seen, strict=True)
                )
                if apart < smallest:
                    best, smallest = end, apart
        return entries[best:]
