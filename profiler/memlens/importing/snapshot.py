"""A torch memory snapshot, looked at field by field, also in the forms of older releases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memlens.errors import CaptureError

__all__ = ["Annotation", "DeviceSnapshot", "Snapshot", "parse_snapshot"]

Record = dict[str, Any]
_MOST = 2**62
_MOST_BYTES = 2**42
"""No device has as much, and a million of these still add up in 64 bits."""


@dataclass
class DeviceSnapshot:
    """One device: what its allocator held at the end, and what it did before."""

    index: int
    segments: list[Record] = field(default_factory=list)
    """With `address`, `total_size`, `stream`, `segment_type`, `is_expandable`, `blocks`; blocks with
    `address`, `size`, `requested_size`, `state`, `frames`."""
    entries: list[Record] = field(default_factory=list)
    """With `action`, `addr`, `size`, `stream`, `time_us`, `frames`."""


@dataclass(frozen=True)
class Annotation:
    """A stretch of time that torch or the job has named."""

    name: str
    device: int
    start_us: int
    end_us: int


@dataclass(frozen=True)
class Snapshot:
    """What one process wrote."""

    devices: list[DeviceSnapshot]
    """Those that hold anything, in the order of their numbers."""
    settings: Record
    annotations: list[Annotation]
    lacks_times: bool
    """Older releases tell no times: entries are a microsecond apart."""


def parse_snapshot(content: Record, name: str) -> Snapshot:
    """Check and complete what a pickle held.

    Args:
        content: of the pickle.
        name: of the file, for messages.

    Raises:
        CaptureError: a field is missing or of another kind; the text names it.
    """
    look = _Look(name)
    devices: dict[int, DeviceSnapshot] = {}

    def device(index: int) -> DeviceSnapshot:
        return devices.setdefault(index, DeviceSnapshot(index))

    segments = look.records(content.get("segments"), "segments")
    for number, segment in enumerate(segments):
        where = f"segments[{number}]"
        made = look.segment(segment, where)
        device(look.number(segment.get("device", 0), f"{where}.device", below=128)).segments.append(
            made
        )
    traces = content.get("device_traces") or []
    if not isinstance(traces, list):
        raise look.error("device_traces", traces, "a list")
    lacks_times = False
    for index, trace in enumerate(traces):
        for number, entry in enumerate(look.records(trace, f"device_traces[{index}]")):
            where = f"device_traces[{index}][{number}]"
            if "time_us" not in entry:
                lacks_times = True
            device(index).entries.append(look.entry(entry, where, number))
    settings = content.get("allocator_settings") or {}
    if not isinstance(settings, dict):
        raise look.error("allocator_settings", settings, "a dictionary")
    found = [devices[index] for index in sorted(devices)]
    if not found:
        raise CaptureError(
            f"cannot import {name}: it holds no memory; torch.cuda.memory._record_memory_history() "
            "has to be called before the training, _dump_snapshot() after it"
        )
    return Snapshot(
        found, settings, look.annotations(content.get("external_annotations")), lacks_times
    )


class _Look:
    def __init__(self, name: str) -> None:
        self.name = name

    def error(self, where: str, value: object, wanted: str) -> CaptureError:
        return CaptureError(
            f"cannot import {self.name}: {where} is {value!r:.40}, not {wanted}; "
            "torch.cuda.memory._dump_snapshot writes it otherwise"
        )

    def number(self, value: object, where: str, *, below: int = _MOST) -> int:
        if type(value) is not int or not 0 <= value < below:
            raise self.error(where, value, "a size or an address")
        return value

    def records(self, value: object, where: str) -> list[Record]:
        if not isinstance(value, list):
            raise self.error(where, value, "a list")
        for number, each in enumerate(value):
            if not isinstance(each, dict):
                raise self.error(f"{where}[{number}]", each, "a dictionary")
        return value

    def frames(self, value: object, where: str) -> list[Record]:
        if not value:
            return []
        frames = self.records(value, where)
        for frame in frames:
            if not (
                isinstance(frame.get("name"), str)
                and isinstance(frame.get("filename"), str)
                and type(frame.get("line")) is int
            ):
                raise self.error(where, frame, "a frame of a stack")
        return frames

    def stream(self, value: object, where: str) -> int:
        if type(value) is not int or not -(2**63) <= value < 2**64:
            raise self.error(where, value, "a stream")
        return value

    def segment(self, segment: Record, where: str) -> Record:
        made: Record = {
            key: self.number(segment.get(key), f"{where}.{key}")
            for key in ("address", "total_size")
        }
        made["stream"] = self.stream(segment.get("stream", 0), f"{where}.stream")
        made["segment_type"] = "small" if segment.get("segment_type") == "small" else "large"
        made["is_expandable"] = bool(segment.get("is_expandable", False))
        place, made["blocks"] = made["address"], []
        for number, block in enumerate(self.records(segment.get("blocks"), f"{where}.blocks")):
            at = f"{where}.blocks[{number}]"
            size = self.number(block.get("size"), f"{at}.size", below=_MOST_BYTES)
            # Releases before 2.1 have the stack, and what was asked for, in a history of the block.
            history = self.records(block.get("history", []), f"{at}.history")
            told: Record = history[0] if history else {}
            requested = block.get("requested_size", told.get("real_size", size))
            frames = block.get("frames") or told.get("frames")
            state = block.get("state")
            if not isinstance(state, str):
                raise self.error(f"{at}.state", state, "a text")
            made["blocks"].append(
                {
                    "address": place,
                    "size": size,
                    "requested_size": self.number(
                        requested, f"{at}.requested_size", below=_MOST_BYTES
                    ),
                    "state": state,
                    "frames": self.frames(frames, f"{at}.frames"),
                }
            )
            place += size
        if place - made["address"] != made["total_size"]:
            raise self.error(where, place - made["address"], "as large as its blocks together")
        return made

    def entry(self, entry: Record, where: str, number: int) -> Record:
        action = entry.get("action")
        if not isinstance(action, str):
            raise self.error(f"{where}.action", action, "a text")
        address = entry.get("addr", entry.get("device_free", 0))
        time_us = entry.get("time_us", number + 1)
        return {
            "action": action,
            "addr": self.number(address, f"{where}.addr"),
            "size": self.number(entry.get("size", 0), f"{where}.size", below=_MOST_BYTES),
            "stream": self.stream(entry.get("stream", 0), f"{where}.stream"),
            "time_us": self.number(time_us, f"{where}.time_us", below=_MOST // 1000),
            "frames": self.frames(entry.get("frames"), f"{where}.frames"),
        }

    def annotations(self, value: object) -> list[Annotation]:
        """Pairs of START and END; one that lacks the other is left out."""
        found: list[Annotation] = []
        if not isinstance(value, list):
            return found
        started: dict[tuple[str, int], int] = {}
        for each in value:
            if not isinstance(each, dict):
                continue
            name, device, time_us = each.get("name"), each.get("device"), each.get("time_us")
            if not (isinstance(name, str) and type(device) is int and type(time_us) is int):
                continue
            if each.get("stage") == "START":
                started[name, device] = time_us
            elif (begin := started.pop((name, device), None)) is not None:
                found.append(Annotation(name, device, begin, time_us))
        return found
