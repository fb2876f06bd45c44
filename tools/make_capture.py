"""Makes a large capture that looks like a training of a 100-layer model, without training anything.

python tools/make_capture.py OUT --events 1000000 --ranks 1

For measuring how captures are read: 1,000,000 events come with 250,000 marks, 20,000 stack frames,
reused addresses and a leak. Everything is known beforehand, so `make_capture` also says what the
answers have to be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens import __version__
from memlens.disk.format import FORMAT_NAME, FORMAT_VERSION, RUN_FILE, codes, write_json
from memlens.disk.writer import RankWriter, make_batch
from memlens.events import Action, Category, Certainty, MarkKind, NameKind

Array = npt.NDArray[Any]

ACTION, CATEGORY, CERTAINTY = codes(Action), codes(Category), codes(Certainty)
MARK, NAME = codes(MarkKind), codes(NameKind)

LAYERS = 100
PARTS = ("norm", "attention", "proj", "mlp", "act")
PARAMETERS = ("attention", "proj", "mlp", "norm")
FRAMES_PER_PART = 40
START_NS = 1_750_000_000_000_000_000
TICK_NS = 2_000
DRAIN_EVENTS = 16_000
LEAK_BYTES = 4_096
LEAK_MODULE = "layers.7.attention"
BASE_ADDRESS = 0x7F00_0000_0000
LEAK_ADDRESS = 0x7E00_0000_0000


@dataclass
class Expected:
    """What has to be read from one rank."""

    time_ns: Array
    """Of each event."""
    category: Array
    """Position in Category, of the block that each event begins or ends."""
    delta_bytes: Array
    address: Array
    steps: int
    step_events: list[int]
    """First event of each step but the first."""

    def totals(self) -> Array:
        """Bytes per category (columns) after each event (rows)."""
        rows = np.zeros((len(self.delta_bytes), len(CATEGORY)), np.int64)
        rows[np.arange(len(rows)), self.category] = self.delta_bytes
        return np.cumsum(rows, axis=0)

    def alive_at(self, event: int) -> list[int]:
        """Sizes of the blocks alive after an event."""
        sizes: dict[int, int] = {}
        deltas, addresses = self.delta_bytes.tolist(), self.address.tolist()
        for delta, address in zip(deltas[: event + 1], addresses, strict=False):
            if delta < 0:
                del sizes[address]
            else:
                sizes[address] = delta
        return list(sizes.values())


@dataclass
class Trace:
    """What happens in a part of the training, one entry per tick of the clock."""

    events: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    """(tick, action, address, bytes, stack, category)."""
    marks: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(tick, kind, id, value)."""
    tags: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    """(tick, address, bytes, category, name, module)."""
    ticks: int = 0

    def tick(self) -> int:
        """Let time pass."""
        self.ticks += 1
        return self.ticks - 1


class Allocator:
    """Hands out addresses, and the one that came back last first."""

    def __init__(self) -> None:
        self._free: dict[int, list[int]] = {}
        self._next = BASE_ADDRESS

    def alloc(self, size_bytes: int) -> int:
        """An address for a block."""
        free = self._free.setdefault(size_bytes, [])
        if free:
            return free.pop()
        address, self._next = self._next, self._next + size_bytes
        return address

    def free(self, address: int, size_bytes: int) -> None:
        """Take one back."""
        self._free[size_bytes].append(address)


class Job:
    """The training: `begin` once, then `step` as often as wanted.

    Args:
        layers: of the model, eight at least.
        scale: of the sizes of activations; what makes ranks differ.
    """

    def __init__(self, layers: int, scale: float) -> None:
        self._layers = layers
        self._scale = scale
        self._memory = Allocator()
        self.trace = Trace()
        self.names = list(self._name_everything())
        self._parameters: list[tuple[int, int, int, int]] = []  # address, bytes, name, module
        self._gradients: list[tuple[tuple[int, int], int, int]] = []  # block, name, module

    # -- names ---------------------------------------------------------------------------------

    def _name_everything(self) -> Iterator[tuple[int, int, int, str, str]]:
        yield NAME["module"], 0, -1, "", "Model"
        yield NAME["scope"], 0, -1, "AdamW", "AdamW"
        for layer in range(self._layers):
            yield NAME["module"], self._module(layer), -1, f"layers.{layer}", "Layer"
            for part, name in enumerate(PARTS):
                number = self._module(layer, part)
                yield NAME["module"], number, -1, f"layers.{layer}.{name}", name.title()
        tensors = ["tokens"]
        for layer in range(self._layers):
            for part in PARAMETERS:
                text = f"layers.{layer}.{part}.weight"
                tensors += [text, f"exp_avg of {text}", f"exp_avg_sq of {text}"]
        for number, text in enumerate(tensors):
            yield NAME["tensor"], number, -1, text, ""
        frame = 0
        for function in ("<module>", "main", "train_step", "forward"):
            yield NAME["stack"], frame, frame - 1, function, f"/home/ada/train.py:{10 * frame + 9}"
            frame += 1
        for layer in range(self._layers):
            for name in PARTS:
                parent = 3
                for depth in range(FRAMES_PER_PART):
                    place = f"/home/ada/model/{name}.py:{100 + depth}"
                    yield NAME["stack"], frame, parent, f"{name}_{layer}_{depth % 8}", place
                    parent = frame if depth % 8 < 7 else 3  # chains of eight frames
                    frame += 1

    @staticmethod
    def _module(layer: int, part: int = -1) -> int:
        return 1 + layer * (1 + len(PARTS)) + 1 + part

    @staticmethod
    def _stack(layer: int, part: int, place: int) -> int:
        chain = place % (FRAMES_PER_PART // 8)
        return 4 + (layer * len(PARTS) + part) * FRAMES_PER_PART + chain * 8 + 7

    # -- what happens --------------------------------------------------------------------------

    def _alloc(self, size_bytes: int, category: str, stack: int = 3) -> tuple[int, int]:
        address = self._memory.alloc(size_bytes)
        self.trace.events.append(
            (self.trace.tick(), ACTION["alloc"], address, size_bytes, stack, CATEGORY[category])
        )
        return address, size_bytes

    def _free(self, block: tuple[int, int], category: str) -> None:
        self._memory.free(*block)
        self.trace.events.append(
            (self.trace.tick(), ACTION["free"], *block, -1, CATEGORY[category])
        )

    def _mark(self, kind: str, number: int = -1, value: int = 0) -> None:
        self.trace.marks.append((self.trace.tick(), MARK[kind], number, value))

    def _tag(self, block: tuple[int, int], category: str, name: int, module: int) -> None:
        tick = self.trace.tick()
        self.trace.tags.append((tick, *block, CATEGORY[category], name, module))

    def _size(self, layer: int, place: int) -> int:
        return 64 * int((1_000 + 13 * (layer % 5) + 700 * place) * self._scale)

    def _temporaries(self, count: int, layer: int, part: int, category: str) -> None:
        for place in range(count):
            block = self._alloc(self._size(layer, place), category, self._stack(layer, part, place))
            self._free(block, category)

    def begin(self) -> Trace:
        """Make the model."""
        self._mark("recording_on")
        name = 1
        for layer in range(self._layers):
            for part in PARAMETERS:
                module = self._module(layer, PARTS.index(part))
                block = self._alloc(4 * 64 * (512 + layer), "weight")
                self._tag(block, "weight", name, module)
                self._parameters.append((*block, name, module))
                name += 3
        return self._take()

    def step(self, *, first: bool) -> Trace:
        """Train one step. All that it allocates it frees, but for the state of the first and the leak."""
        tokens = self._alloc(64 * 1_024, "input")
        self._mark("module_enter", 0)
        self._tag(tokens, "input", 0, -1)
        kept = []
        for layer in range(self._layers):
            self._mark("module_enter", self._module(layer))
            for part in range(len(PARTS)):
                self._mark("module_enter", self._module(layer, part))
                self._temporaries(2, layer, part, "temporary")
                kept.append(
                    self._alloc(self._size(layer, part), "activation", self._stack(layer, part, 3))
                )
                if (layer, part) == (7, 1):
                    self.trace.events.append(
                        (self.trace.tick(), ACTION["alloc"], LEAK_ADDRESS, LEAK_BYTES,
                         self._stack(7, 1, 4), CATEGORY["activation"])
                    )  # fmt: skip
                self._mark("module_exit", self._module(layer, part), 1)
            self._mark("module_exit", self._module(layer), 1)
        self._mark("module_exit", 0, 1)
        loss = self._alloc(64, "activation")
        self._mark("backward_enter")
        for layer in reversed(range(self._layers)):
            for part in reversed(range(len(PARTS))):
                self._mark("backward_module", self._module(layer, part))
                self._temporaries(2, layer, part, "temporary")
                if PARTS[part] in PARAMETERS:
                    _, size_bytes, name, module = self._parameters[
                        layer * len(PARAMETERS) + PARAMETERS.index(PARTS[part])
                    ]
                    block = self._alloc(size_bytes, "gradient")
                    self._gradients.append((block, name, module))
                self._free(kept.pop(), "activation")
        for block, name, module in self._gradients:
            self._tag(block, "gradient", name, module)
        self._mark("backward_exit")
        self._free(loss, "activation")
        self._mark("optimizer_enter", 0)
        made = []
        for _, size_bytes, name, module in self._parameters if first else ():
            for moment in (1, 2):
                made.append((self._alloc(size_bytes, "optimizer_state"), name + moment, module))
        for place in range(8):
            block = self._alloc(64 * 40_000, "optimizer_temporary", self._stack(0, 0, place))
            self._free(block, "optimizer_temporary")
        for block, name, module in made:
            self._tag(block, "optimizer_state", name, module)
        self._mark("optimizer_exit", 0)
        self._mark("step", -1, 0)  # the value is filled in when it is written
        while self._gradients:
            self._free(self._gradients.pop()[0], "gradient")
        self._free(tokens, "input")
        return self._take()

    def _take(self) -> Trace:
        taken, self.trace = self.trace, Trace()
        return taken


@dataclass
class Columns:
    """The whole capture of one rank."""

    events: list[Array]
    marks: list[Array]
    tags: list[Array]


def tile(first: list[Trace], repeated: Trace, repeats: int) -> tuple[Columns, int]:
    """Lay traces one after the other in time, the last one many times.

    Returns:
        Columns, with ticks in place of times, and how many steps there are.
    """
    widths = {"events": 6, "marks": 4, "tags": 6}
    parts: dict[str, list[Array]] = {name: [] for name in widths}
    before = 0
    for trace in first:
        for name, width in widths.items():
            rows = np.array(getattr(trace, name), np.int64).reshape(-1, width)
            rows[:, 0] += before
            parts[name].append(rows)
        before += trace.ticks
    for name, width in widths.items():
        rows = np.array(getattr(repeated, name), np.int64).reshape(-1, width)
        many = np.tile(rows, (repeats, 1))
        many[:, 0] += before + np.repeat(np.arange(repeats), len(rows)) * repeated.ticks
        parts[name].append(many)
    tables = {name: np.concatenate(rows) for name, rows in parts.items()}
    leaks = np.flatnonzero(tables["events"][:, 2] == LEAK_ADDRESS)
    tables["events"][leaks, 2] += np.arange(len(leaks)) * LEAK_BYTES
    step_marks = np.flatnonzero(tables["marks"][:, 1] == MARK["step"])
    tables["marks"][step_marks, 3] = 1 + np.arange(len(step_marks))
    columns = Columns(*(list(tables[name].T) for name in widths))
    return columns, len(step_marks)


def write_rank(
    folder: Path,
    rank: int,
    ranks: int,
    events: int,
    *,
    layers: int,
    batch_events: int,
    close: bool,
) -> Expected:
    """Write one rank; see `make_capture`."""
    job = Job(layers, 1 + rank / 8)
    first = [job.begin(), job.step(first=True)]
    repeated = job.step(first=False)
    missing = events - sum(len(trace.events) for trace in first)
    repeats = max(0, -(-missing // len(repeated.events)))
    columns, steps = tile(first, repeated, repeats)
    writer = RankWriter(
        folder,
        {
            "rank": rank,
            "world_size": ranks,
            "source": "cpu",
            "devices": ["cpu"],
            "started_ns": START_NS,
            "trains": True,
            "torch": "2.13.0+cpu",
            "memlens": __version__,
            "problems": [],
            "notes": [],
        },
    )
    times = [START_NS + TICK_NS * columns_[0] for columns_ in (columns.marks, columns.tags)]
    _, action, address, size_bytes, stack, category = columns.events
    time_ns = START_NS + TICK_NS * columns.events[0]
    writer.write("names", make_batch("names", list(zip(*job.names, strict=True))))
    last = len(time_ns) - 1
    signed = np.where(action == ACTION["alloc"], size_bytes, -size_bytes)
    total = np.cumsum(signed)
    done = [0, 0]
    for begin in range(0, len(time_ns), batch_events):
        end = min(begin + batch_events, len(time_ns))
        until = time_ns[end - 1] if end <= last else np.iinfo(np.int64).max
        upto = [int(np.searchsorted(moments, until, side="right")) for moments in times]
        marks = [column[done[0] : upto[0]] for column in (times[0], *columns.marks[1:])]
        marks = [
            np.append(column, value)
            for column, value in zip(
                marks, (time_ns[end - 1], MARK["allocator_total"], -1, total[end - 1]), strict=True
            )
        ]
        writer.write("marks", make_batch("marks", marks))
        tags = [column[done[1] : upto[1]] for column in (times[1], *columns.tags[1:])]
        zeros = np.zeros(len(tags[0]), np.int8)
        writer.write(
            "tags",
            make_batch(
                "tags",
                [tags[0], zeros, tags[1].astype(np.uint64), tags[2], tags[3],
                 zeros + CERTAINTY["declared"], tags[4], tags[5], zeros.astype(np.int64)],
            ),
        )  # fmt: skip
        here = slice(begin, end)
        size = size_bytes[here]
        none = np.zeros(len(size), np.int64)
        writer.write(
            "events",
            make_batch(
                "events",
                [time_ns[here], action[here], none.astype(np.int8),
                 address[here].astype(np.uint64), size, size, none, stack[here]],
            ),
        )  # fmt: skip
        done = upto
    if close:
        writer.close(events=len(time_ns), ended_ns=int(time_ns[-1]))
    step_ticks = columns.marks[0][columns.marks[1] == MARK["step"]]
    step_events = np.searchsorted(columns.events[0], step_ticks).tolist()
    return Expected(time_ns, category, signed, address, steps, step_events)


def make_capture(
    out: Path,
    events: int = 1_000_000,
    ranks: int = 1,
    *,
    layers: int = LAYERS,
    batch_events: int = DRAIN_EVENTS,
    close: bool = True,
) -> list[Expected]:
    """Write a run.

    Args:
        out: its folder; made here.
        events: at least so many for each rank.
        ranks: how many ranks.
        layers: of the model, eight at least.
        batch_events: how many events are written at a time.
        close: False leaves it as killed processes do.

    Returns:
        What has to be read from each rank.
    """
    out.mkdir(parents=True)
    write_json(
        out / RUN_FILE,
        {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "memlens": __version__,
            "command": ["train.py", "--layers", str(layers)],
            "created_ns": START_NS,
        },
    )
    return [
        write_rank(
            out / f"rank-{rank:05d}",
            rank,
            ranks,
            events,
            layers=layers,
            batch_events=batch_events,
            close=close,
        )
        for rank in range(ranks)
    ]


def main() -> None:
    """Make a capture and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--force", action="store_true", help="remove OUT first")
    options = parser.parse_args()
    if options.force:
        shutil.rmtree(options.out, ignore_errors=True)
    began = time.perf_counter()
    expected = make_capture(options.out, options.events, options.ranks)
    rows = json.loads((options.out / "rank-00000/rank.json").read_text())["rows"]
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    events = sum(len(rank.time_ns) for rank in expected)
    print(
        f"{options.out}: {events:,} events ({expected[0].steps} steps; in rank 0 {rows}), "
        f"{size / events:.1f} bytes per event, made in {time.perf_counter() - began:.1f} s"
    )


if __name__ == "__main__":
    main()
