"""A torch memory snapshot, looked at field by field, also in the forms of older releases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memlens.allocator.settings import AllocatorSettings
from memlens.errors import CaptureError, UsageError
from memlens.importing.stacks import Stacks

__all__ = ["Annotation", "DeviceSnapshot", "Snapshot", "parse_snapshot"]

Record = dict[str, Any]

_MOST_SIZE = 2**42
"""No device has as much."""
_MOST_WANTED = 2**55
"""By a request that could not be served: it may be a mistake of the job, and large."""
_MOST_TOTAL = 2**60
"""Of all sizes together; sums stay below what a capture may hold."""
_MOST_TIME_US = 2**62 // 1000
_MOST_DEVICES = 128
_STATES = {"active_allocated", "active_pending_free", "active_awaiting_free", "inactive"}
_XPU = "xpu"


@dataclass
class DeviceSnapshot:
    """One device: what its allocator held at the end, and what it did before."""

    index: int
    segments: list[Record] = field(default_factory=list)
    """With `address`, `total_size`, `stream`, `segment_type`, `is_expandable`, `blocks`; blocks with
    `address`, `size`, `requested_size`, `state`, `stack`."""
    entries: list[Record] = field(default_factory=list)
    """With `action`, `addr` or `device_free`, `size`, `stream`, `time_us`, `stack`."""


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
    device_type: str
    """`cuda` or `xpu`."""
    stacks: Stacks
    settings: Record
    annotations: list[Annotation]
    lacks_times: bool
    """Older releases tell no times: entries are a microsecond apart."""


def parse_snapshot(content: Record, name: str) -> Snapshot:
    """Check and complete what a pickle held; its own dictionaries are changed.

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

    for number, segment in enumerate(look.records(content.get("segments"), "segments")):
        where = f"segments[{number}]"
        index = look.number(segment.get("device", 0), f"{where}.device", below=_MOST_DEVICES)
        device(index).segments.append(look.segment(segment, where))
    traces = content.get("device_traces") or []
    if not isinstance(traces, list):
        raise look.error("device_traces", traces, "a list")
    for index, trace in enumerate(traces):
        if trace:
            entries = look.entries(trace, f"device_traces[{index}]")
            device(look.number(index, "device_traces", below=_MOST_DEVICES)).entries = entries
    if not devices:
        raise CaptureError(
            f"cannot import {name}: it holds no memory; torch.cuda.memory._record_memory_history() "
            "has to be called before the training, _dump_snapshot() after it"
        )
    for each in devices.values():
        look.apart(each.segments, f"segments of device {each.index}")
    settings = look.settings(content.get("allocator_settings") or {})
    is_xpu = any(
        f"{_XPU}::" in frame.name.lower() or f"torch/{_XPU}/" in frame.filename
        for frames in look.stacks.known
        for frame in frames
    )
    return Snapshot(
        devices=[devices[index] for index in sorted(devices)],
        device_type=_XPU if is_xpu else "cuda",
        stacks=look.stacks,
        settings=settings,
        annotations=look.annotations(content.get("external_annotations")),
        lacks_times=look.lacks_times,
    )


class _Look:
    def __init__(self, name: str) -> None:
        self.name = name
        self.stacks = Stacks()
        self.lacks_times = False
        self._total = 0
        self._lists: set[int] = set()

    def error(self, where: str, value: object, wanted: str) -> CaptureError:
        # Not the value of a container: it may be as deep as a file is long.
        plain = isinstance(value, (str, int, float, bool)) or value is None
        shown = f"{value!r:.40}" if plain else f"a {type(value).__name__}"
        return CaptureError(
            f"cannot import {self.name}: {where} is {shown}, not {wanted}; "
            "torch.cuda.memory._dump_snapshot writes it otherwise"
        )

    def number(self, value: object, where: str, *, below: int = 2**64) -> int:
        if type(value) is not int or not 0 <= value < below:
            raise self.error(where, value, "a number that makes sense")
        return value

    def size(self, value: object, where: str) -> int:
        size = self.number(value, where, below=_MOST_SIZE)
        self._total += size
        if self._total > _MOST_TOTAL:
            raise CaptureError(f"cannot import {self.name}: it tells of more bytes than there are")
        return size

    def records(self, value: object, where: str) -> list[Record]:
        if not isinstance(value, list):
            raise self.error(where, value, "a list")
        for number, each in enumerate(value):
            if type(each) is not dict:
                raise self.error(f"{where}[{number}]", each, "a dictionary")
        return value

    def own(self, value: object, where: str) -> list[Record]:
        """A list that belongs to nobody else; a small file could name a large one very often."""
        if id(value) in self._lists:
            raise CaptureError(f"cannot import {self.name}: {where} is there more than once")
        self._lists.add(id(value))
        return self.records(value, where)

    def stack(self, value: object, where: str) -> int:
        if not value:
            return 0
        try:
            if isinstance(value, list):
                return self.stacks.number(value)
        except ValueError:
            pass
        raise self.error(where, value, "a stack (name, filename and line of each frame)")

    def stream(self, value: object, where: str) -> int:
        if type(value) is not int or not -(2**63) <= value < 2**64:
            raise self.error(where, value, "a stream")
        return value

    def segment(self, segment: Record, where: str) -> Record:
        made: Record = {
            "address": self.number(segment.get("address"), f"{where}.address"),
            "total_size": self.size(segment.get("total_size"), f"{where}.total_size"),
            "stream": self.stream(segment.get("stream", 0), f"{where}.stream"),
            "segment_type": "small" if segment.get("segment_type") == "small" else "large",
            "is_expandable": bool(segment.get("is_expandable", False)),
        }
        place, blocks = made["address"], []
        for number, block in enumerate(self.own(segment.get("blocks"), f"{where}.blocks")):
            made_of = self.block(block, place, f"{where}.blocks[{number}]")
            place += made_of["size"]
            blocks.append(made_of)
        made["blocks"] = blocks
        if place - made["address"] != made["total_size"]:
            size = place - made["address"]
            raise self.error(
                f"{where}.total_size", made["total_size"], f"what its blocks are ({size})"
            )
        if place > 2**64:
            raise self.error(f"{where}.address", made["address"], "an address with room behind it")
        return made

    def block(self, block: Record, address: int, where: str) -> Record:
        # Releases before 2.1 have no addresses here; and the stack, and what was asked for, in a history
        # of the block (torch/csrc/cuda/Module.cpp; _block_extra_legacy in torch/cuda/_memory_viz.py).
        history = block.get("history")
        told: Record = self.records(history, f"{where}.history")[0] if history else {}
        size = self.size(block.get("size"), f"{where}.size")
        requested = block.get("requested_size", told.get("real_size", size))
        state = block.get("state")
        if not isinstance(state, str) or state not in _STATES:
            raise self.error(f"{where}.state", state, f"one of {', '.join(sorted(_STATES))}")
        return {
            "address": address,
            "size": size,
            "requested_size": self.number(requested, f"{where}.requested_size", below=_MOST_SIZE),
            "state": state,
            "stack": self.stack(block.get("frames") or told.get("frames"), f"{where}.frames"),
        }

    def entries(self, trace: object, where: str) -> list[Record]:
        entries = self.own(trace, where)
        for number, entry in enumerate(entries):
            action, size, time_us = entry.get("action"), entry.get("size", 0), entry.get("time_us")
            address = entry.get("addr", entry.get("device_free", 0))
            if type(action) is not str:
                raise self.error(f"{where}[{number}].action", action, "a text")
            if action == "oom":
                self.number(size, f"{where}[{number}].size", below=_MOST_WANTED)
            else:
                self.size(size, f"{where}[{number}].size")
            self.number(address, f"{where}[{number}].addr")
            if "stream" not in entry:
                entry["stream"] = 0
            self.stream(entry["stream"], f"{where}[{number}].stream")
            entry["size"] = size
            if "time_us" not in entry:
                self.lacks_times = True
                time_us = entry["time_us"] = number + 1
            self.number(time_us, f"{where}[{number}].time_us", below=_MOST_TIME_US)
            entry["stack"] = self.stack(entry.get("frames"), f"{where}[{number}].frames")
            entry.pop("user_metadata", None)  # of whatever kind; nothing here asks for it
        return entries

    def apart(self, segments: list[Record], where: str) -> None:
        end = 0
        for segment in sorted(segments, key=lambda each: int(each["address"])):
            if segment["address"] < end:
                raise self.error(where, segment["address"], "apart from each other")
            end = segment["address"] + segment["total_size"]

    def settings(self, value: object) -> Record:
        """The allocator's settings, which are kept as they are."""
        if not isinstance(value, dict):
            raise self.error("allocator_settings", value, "a dictionary")
        for key, each in value.items():
            inner = each if isinstance(each, dict) else {}
            plain = [key, *inner, *(inner.values() if isinstance(each, dict) else [each])]
            if not all(part is None or type(part) in (str, int, float, bool) for part in plain):
                raise self.error(f"allocator_settings[{key!r:.40}]", each, "plain")
            if not all(isinstance(part, str) for part in (key, *inner)):
                raise self.error("allocator_settings", value, "named by texts")
        try:
            AllocatorSettings.from_snapshot(value)
        except UsageError as error:
            raise CaptureError(f"cannot import {self.name}: {error}") from None
        return value

    def annotations(self, value: object) -> list[Annotation]:
        """Pairs of START and END; one that lacks the other, or makes no sense, is left out."""
        found: list[Annotation] = []
        started: dict[tuple[str, int], int] = {}
        for each in value if isinstance(value, list) else ():
            if not isinstance(each, dict):
                continue
            name, device, time_us = each.get("name"), each.get("device"), each.get("time_us")
            if not (isinstance(name, str) and type(device) is int and type(time_us) is int):
                continue
            if not 0 <= time_us < _MOST_TIME_US:
                continue
            if each.get("stage") == "START":
                started[name, device] = time_us
            elif (begin := started.pop((name, device), None)) is not None and begin <= time_us:
                found.append(Annotation(name, device, begin, time_us))
        return found
