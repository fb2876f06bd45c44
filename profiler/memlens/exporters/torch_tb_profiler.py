"""Traces for TensorBoard's PyTorch Profiler plugin (torch-tb-profiler), whose Memory view shows them.

    OUT/
      <host>_<rank>.<milliseconds>.pt.trace.json.gz   one per rank

The plugin's curve is what each memory event says is allocated and reserved in all, so it is exact at
those that are written. It has no categories: each block lies within an operator `<category> | <module>`,
which both of its tables are about, and a counter in the Trace view has the levels by category.

It keeps all events in memory and sends them all to the browser, so a device with many is thinned out:
the peak and the last event of each of many short times are written, what is alive at the rank's peak,
and the largest blocks; each with both of its events.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memlens.exporters.chrome_trace import TraceFile, quoted
from memlens.exporters.rank_history import actions_of, module_names
from memlens.palette import CATEGORY_SERIES, label
from memlens.rank import CATEGORIES
from memlens.report.view import choose_ranks

if TYPE_CHECKING:
    from memlens.capture import Capture, RankCapture

__all__ = ["export"]

Array = npt.NDArray[Any]

MOST_EVENTS = 100_000
"""Of a rank. The plugin takes 3 seconds and 270 MB for them, 50 seconds and 1.7 GB for ten times more."""
_GAP_NS = 0.4
"""Between operators that follow each other, which to the plugin must not touch; events are 1 ns apart."""
_SHOWN_NS = 1000
"""How long an operator goes on after its last event, where there is room."""
_STEPS_TID = 1
_FAR = 2**48
"""Above all addresses."""


def export(capture: Capture, folder: Path) -> None:
    """Write one trace per rank that allocated anything."""
    by_rank: dict[int, list[RankCapture]] = defaultdict(list)
    for device in choose_ranks(capture, None):
        by_rank[device.rank].append(device)
    for number, devices in by_rank.items():
        header = devices[0].header
        started_ns = int(header["started_ns"])
        host = re.sub(r"[^A-Za-z0-9]+", "-", str(header.get("host") or "host"))
        path = folder / f"{host}_{number}.{started_ns // 1_000_000}.pt.trace.json.gz"
        with TraceFile(path, {"schemaVersion": 1}, started_ns) as trace:
            for step in devices[0].steps():
                name, span = f"ProfilerStep#{step.step}", (step.start_ns, step.end_ns)
                trace.slice(0, _STEPS_TID, name, *span, category="user_annotation", gap_ns=_GAP_NS)
            for at, rank in enumerate(devices):
                _write_device(trace, rank, at, MOST_EVENTS // len(devices))
        for rank in devices:
            rank.release()


def _write_device(trace: TraceFile, rank: RankCapture, number: int, most: int) -> None:
    tid = _STEPS_TID + 1 + number
    blocks = _chosen(rank, most)
    actions = actions_of(rank, blocks)
    # Events in the order in which they happened: none at the time of another, so that each has an
    # operator of its own.
    order = np.arange(len(actions.block))
    time_ns = (np.maximum.accumulate(actions.time_ns - order) + order).tolist()
    size = rank.blocks.size_bytes[blocks][actions.block]
    change = np.where(actions.is_begin, size, -size).tolist()
    allocated = actions.allocated_bytes.tolist()
    reserved = (
        [0] * len(order) if actions.reserved_bytes is None else actions.reserved_bytes.tolist()
    )
    # The plugin pairs events by address alone, and two devices may have the same.
    address = [
        place + number * _FAR for place in rank.blocks.address[blocks][actions.block].tolist()
    ]
    kind, index = _device(rank.device)
    for name, start_ns, end_ns in _spans(time_ns, _operators(rank, blocks[actions.block])):
        trace.slice(0, tid, name, start_ns, end_ns, category="cpu_op", gap_ns=_GAP_NS)
    for row in zip(time_ns, change, address, allocated, reserved, strict=True):
        time, changed, addr, total, held = row
        trace.add(
            f'{{"ph":"i","s":"t","name":"[memory]","pid":0,"tid":{tid},"ts":{trace.at(time)},'
            f'"args":{{"Device Type":{kind},"Device Id":{index},"Bytes":{changed},"Addr":{addr},'
            f'"Total Allocated":{total},"Total Reserved":{held}}}}}'
        )
    _write_levels(trace, rank, f"{rank.device} by category", most // 5)


def _chosen(rank: RankCapture, most: int) -> Array:
    """Rows of the blocks whose two events are written; those without bytes tell nothing."""
    blocks, level = rank.blocks, rank.history.running
    keep = blocks.size_bytes > 0
    if len(level) > most:
        picked = np.zeros(len(level) + 1, bool)  # one more: where what is never freed ends
        edges = np.linspace(0, len(level), most // 10 + 1).astype(np.int64)
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            picked[[low + int(np.argmax(level[low:high])), high - 1]] = True
        keep = picked[blocks.first] | picked[blocks.last]
        peak = int(np.argmax(level))
        alive = (blocks.first <= peak) & (blocks.last > peak)
        first_of_all = np.lexsort((-blocks.size_bytes, ~alive, keep))
        room = most // 2 - int(np.count_nonzero(keep))
        keep[first_of_all[:room]] = True
        keep &= blocks.size_bytes > 0
    return np.flatnonzero(keep)


def _operators(rank: RankCapture, block: Array) -> list[str]:
    """What to call the operator of each block."""
    category = rank.attribution.category[block].tolist()
    module = rank.attribution.module[block]
    names = module_names(rank, module)
    return [
        f"{label(CATEGORIES[kind])} | {names[number]}" if names[number] else label(CATEGORIES[kind])
        for kind, number in zip(category, module.tolist(), strict=True)
    ]


def _spans(time_ns: list[int], texts: list[str]) -> Iterator[tuple[str, int, int]]:
    """Operators around events: one for all that follow each other and have the same text."""
    first = 0
    for at in range(1, len(texts) + 1):
        if at == len(texts) or texts[at] != texts[first]:
            end_ns = time_ns[at - 1] + _SHOWN_NS
            if at < len(texts):
                end_ns = min(end_ns, time_ns[at])
            yield texts[first], time_ns[first], end_ns
            first = at


def _device(name: str) -> tuple[int, int]:
    """Type and number as torch's profiler writes them; it knows the CPU and CUDA."""
    kind, _, index = name.partition(":")
    return (0, -1) if kind == "cpu" else (1, int(index) if index.isdigit() else 0)


def _write_levels(trace: TraceFile, rank: RankCapture, name: str, most: int) -> None:
    """A counter that the Trace view stacks: all series in each event."""
    timeline = rank.timeline(max_points=most)
    used = [
        (series.label, timeline.categories[category].tolist())
        for series in CATEGORY_SERIES
        for category in series.members
        if timeline.categories[category].any()
    ]
    for at, time in enumerate(timeline.time_ns.tolist()):
        levels = ",".join(f'"{text}":{values[at]}' for text, values in used)
        trace.add(
            f'{{"ph":"C","pid":0,"name":{quoted(name)},"ts":{trace.at(time)},"args":{{{levels}}}}}'
        )
