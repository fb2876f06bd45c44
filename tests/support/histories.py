"""Stand-ins for the history of torch's CUDA allocator, for machines without a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import time_ns
from typing import Any

from memlens.recording.names import Names
from memlens.sources.allocator_hook import AllocatorHookSource

Entry = dict[str, Any]
PAGE = 512
FRAMES = [{"name": "make", "filename": "job.py", "line": 7}]


class HookHistory:
    """Tells of this process's CPU allocations as torch's CUDA allocator would tell of its own.

    Real trainings run on it: tensors, hooks and threads are real, only the allocator is not. It rounds to
    512 bytes and tells of no segments.

    Args:
        ring: how many entries are kept at most; the allocator's parameter is ignored.
        annotates: it carries the text of the thread, as torch since 2.10 does.
        ready: there is a CUDA context from the start.
    """

    device_type = "cpu"

    def __init__(self, ring: int = 10**9, *, annotates: bool = True, ready: bool = True) -> None:
        self._hook = AllocatorHookSource(Names(), stack_depth=0)
        self._trace: deque[Entry] = deque(maxlen=ring)
        self._texts: list[tuple[int, str]] = [(0, "")]
        self._live: dict[int, int] = {}
        self._ready = ready
        self._queued: list[Callable[[], None]] = []
        self._calls = 0
        self.enabled: str | None = None
        self.is_running = False
        self.snapshots = 0
        self.device_bytes = 80 << 30
        self.pinned = 0
        self.capturing = False
        self.out_of_memory: Callable[[int, int, int, int], None] | None = None
        self.set_text: Callable[[str], None] | None = self._set_text if annotates else None

    # -- the job's side ------------------------------------------------------------------------

    def __enter__(self) -> HookHistory:
        self._hook.start()
        self.is_running = True
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.stop()
        self.is_running = False

    def make_context(self) -> None:
        """What the first use of CUDA does."""
        self._ready = True
        for call in self._queued:
            call()
        self._queued.clear()

    def allocated_bytes(self) -> int:
        """What `torch.cuda.memory_allocated()` would say."""
        self._take()
        return sum(map(_rounded, self._live.values()))

    # -- what the source asks ------------------------------------------------------------------

    def missing(self) -> list[str]:
        return []

    def device_names(self) -> tuple[str, ...]:
        return ("cuda:0",)

    def is_ready(self) -> bool:
        return self._ready

    def when_ready(self, call: Callable[[], None]) -> Callable[[], None]:
        self._queued.append(call)
        return lambda: self._queued.remove(call) if call in self._queued else None

    def backend(self) -> str:
        return "native"

    def is_enabled(self) -> bool:
        return self.enabled is not None

    def enable(self, max_entries: int, *, stacks: bool) -> None:
        self.record("all", clear_history=True)

    def record(self, enabled: str | None = "all", *, clear_history: bool = False) -> None:
        """`torch.cuda.memory._record_memory_history`."""
        self._take()
        self.enabled = enabled
        if clear_history or enabled is None:
            self._trace.clear()

    def disable(self) -> None:
        self.record(None)

    def snapshot(self) -> dict[str, Any]:
        self._take()
        self.snapshots += 1
        return {
            # One of none is always there: a real allocator keeps what it has taken from the device.
            "segments": [
                {**_segment(1 << 60, 0), "blocks": []},
                *(_segment(address, size) for address, size in self._live.items()),
            ],
            "device_traces": [[dict(entry) for entry in self._trace]],
            "allocator_settings": {},
        }

    def text(self) -> str:
        return self._texts[-1][1]

    def calls(self, device: int) -> int:
        self._take()
        return self._calls

    def is_capturing(self) -> bool:
        return self.capturing

    def device_memory(self, device: int) -> tuple[int, int]:
        return self.device_bytes - self.allocated_bytes() - (500 << 20), self.device_bytes

    def current_stream(self, device: int) -> int:
        return 0

    def limit_bytes(self, device: int) -> int | None:
        return None

    def pinned_bytes(self) -> int | None:
        return self.pinned

    def observe_out_of_memory(self, call: Callable[[int, int, int, int], None] | None) -> bool:
        self.out_of_memory = call
        return True

    # -- inside --------------------------------------------------------------------------------

    def _set_text(self, text: str) -> None:
        self._texts.append((time_ns(), text))

    def _take(self) -> None:
        """Bring what the allocator has done since the last look into the history."""
        if not self.is_running:
            return
        batch = self._hook.drain()
        texts, place = self._texts, 0
        for now, address, size in zip(batch.time_ns, batch.address, batch.size_bytes, strict=True):
            now, address, size = int(now), int(address), int(size)
            while place + 1 < len(texts) and texts[place + 1][0] <= now:
                place += 1
            entry: Entry = {
                "addr": address,
                "size": abs(size),
                "stream": 0,
                "time_us": now // 1000,
                "user_metadata": texts[place][1],
            }
            if size > 0:
                self._live[address] = size
            elif self._live.pop(address, None) is None:
                continue  # from before; the stand-in knows nothing of it
            self._calls += 1
            if self.enabled is None:
                continue
            if size > 0:
                self._trace.append({**entry, "action": "alloc", "frames": FRAMES})
            else:
                self._trace.append({**entry, "action": "free_requested", "frames": []})
                self._trace.append({**entry, "action": "free_completed", "frames": []})
        del texts[:place]


def _segment(address: int, size: int) -> Entry:
    """Each block as one of its own, of no size: it knows of no segments."""
    rounded = _rounded(size)
    return {
        "device": 0,
        "address": address,
        "total_size": 0,
        "allocated_size": rounded,
        "active_size": rounded,
        "requested_size": size,
        "stream": 0,
        "segment_type": "large",
        "blocks": [
            {
                "address": address,
                "size": rounded,
                "requested_size": size,
                "state": "active_allocated",
            }
        ],
    }


def _rounded(size: int) -> int:
    return -(-size // PAGE) * PAGE
