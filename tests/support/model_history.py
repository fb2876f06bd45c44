"""The history of several devices whose allocators are memlens' own model of torch's."""

from __future__ import annotations

from collections.abc import Callable
from time import time_ns
from typing import Any

from memlens.allocator.caching import CachingAllocator
from memlens.allocator.settings import AllocatorSettings

OutOfMemoryCall = Callable[[int, int, int, int], None]


class ModelHistory:
    """Segments, streams, splits and running out are as on a GPU; no tensor is.

    Args:
        devices: how many.
        settings: as PYTORCH_CUDA_ALLOC_CONF.
        ring: how many entries each device keeps.
        capacity_bytes: of each device.
    """

    device_type = "cuda"

    def __init__(
        self,
        devices: int = 1,
        settings: str = "",
        ring: int | None = None,
        capacity_bytes: int | None = None,
    ) -> None:
        self.allocators = [
            CachingAllocator(
                AllocatorSettings.from_text(settings),
                capacity_bytes,
                max_entries=ring,
                clock=lambda: time_ns() // 1000,
            )
            for _ in range(devices)
        ]
        self.capacity_bytes = capacity_bytes or 80 << 30
        self.enabled: str | None = None
        self.capturing = False
        self.out_of_memory: OutOfMemoryCall | None = None
        self.made = [0] * devices
        self.set_text: Callable[[str], None] | None = self._set_text

    def __enter__(self) -> ModelHistory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    # -- the job's side ------------------------------------------------------------------------

    def malloc(self, device: int, size: int, stream: int = 0) -> int:
        self.made[device] += 1
        return self.allocators[device].malloc(size, stream)

    def free(self, device: int, address: int) -> None:
        self.made[device] += 1
        self.allocators[device].free(address)

    # -- what the source asks ------------------------------------------------------------------

    def missing(self) -> list[str]:
        return []

    def device_names(self) -> tuple[str, ...]:
        return tuple(f"cuda:{number}" for number in range(len(self.allocators)))

    def is_ready(self) -> bool:
        return True

    def when_ready(self, call: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError("it is ready")

    def backend(self) -> str:
        return "native"

    def is_enabled(self) -> bool:
        return self.enabled is not None

    def enable(self, max_entries: int, *, stacks: bool) -> None:
        self.record("all", clear_history=True)

    def record(self, enabled: str | None = "all", *, clear_history: bool = False) -> None:
        self.enabled = enabled
        if clear_history or enabled is None:
            for allocator in self.allocators:
                allocator.history.clear()

    def disable(self) -> None:
        self.record(None)

    def snapshot(self) -> dict[str, Any]:
        parts = [allocator.snapshot() for allocator in self.allocators]
        for number, part in enumerate(parts):
            for segment in part["segments"]:
                segment["device"] = number
        return {
            "segments": [segment for part in parts for segment in part["segments"]],
            "device_traces": [part["device_traces"][0] for part in parts],
            "allocator_settings": parts[0]["allocator_settings"],
        }

    def text(self) -> str:
        return self.allocators[0].user_metadata

    def calls(self, device: int) -> int:
        return self.made[device]

    def is_capturing(self) -> bool:
        return self.capturing

    def device_memory(self, device: int) -> tuple[int, int]:
        return self.capacity_bytes - self.allocators[device].reserved_bytes, self.capacity_bytes

    def current_stream(self, device: int) -> int:
        return 0

    def limit_bytes(self, device: int) -> int | None:
        return None

    def pinned_bytes(self) -> int | None:
        return None

    def observe_out_of_memory(self, call: OutOfMemoryCall | None) -> bool:
        self.out_of_memory = call
        return True

    def _set_text(self, text: str) -> None:
        for allocator in self.allocators:
            allocator.user_metadata = text
