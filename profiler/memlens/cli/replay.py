"""`memlens replay FILE`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

    from memlens.allocator.replay import Difference, Replayed
    from memlens.allocator.settings import AllocatorSettings

    History = tuple[dict[str, Any], AllocatorSettings]

__all__ = ["command"]


@click.command(name="replay")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option(
    "--settings",
    metavar="TEXT",
    help="Under these settings, written as in PYTORCH_CUDA_ALLOC_CONF.  [default: as recorded]",
)
@click.option(
    "--capacity",
    metavar="SIZE",
    help="On a device that has so much for PyTorch, such as 24GB.  [default: enough]",
)
@click.option("--rank", type=click.IntRange(min=0), help="This rank of a run.  [default: first]")
@click.option(
    "--device", type=click.IntRange(min=0), help="This device.  [default: first that was used]"
)
def command(
    file: str,
    as_json: bool,
    settings: str | None,
    capacity: str | None,
    rank: int | None,
    device: int | None,
) -> None:
    """Let a model of PyTorch's CUDA allocator serve the requests that a job made.

    FILE is a snapshot of torch.cuda.memory, or the folder of a run. As recorded, it shows how true the
    model is; under other settings or on a smaller device, whether they would do.
    """
    from pathlib import Path

    from memlens.allocator.replay import replay
    from memlens.allocator.settings import AllocatorSettings
    from memlens.units import format_bytes, parse_bytes

    other = None if settings is None else AllocatorSettings.from_text(settings)
    capacity_bytes = None if capacity is None else parse_bytes(capacity)
    path = Path(file)
    if path.is_dir():
        columns, recorded = _of_run(file, rank, device)
    else:
        columns, recorded = _of_snapshot(path, device)
    replayed = replay(columns, recorded, other, capacity_bytes)
    if as_json:
        import json

        click.echo(json.dumps(_payload(replayed), indent=2))
    else:
        how = "under other settings"
        if other in (None, recorded):
            which = "default" if replayed.recorded is None else "recorded"
            how = f"with the {which} settings"
        if capacity_bytes is not None:
            how += f", on a device with {format_bytes(capacity_bytes)}"
        for line in _lines(replayed, how):
            click.echo(line)


def _of_snapshot(path: Path, device: int | None) -> History:
    """Read torch's own snapshot; where its history begins late, what was there before comes first."""
    import numpy as np

    from memlens.allocator.follow import as_census, starting_state
    from memlens.allocator.settings import AllocatorSettings
    from memlens.allocator.snapshot import trace_columns
    from memlens.errors import CaptureError
    from memlens.importing.pickles import read_snapshot

    snapshot = read_snapshot(path)
    try:
        traces = snapshot.get("device_traces") or []
        used = [number for number, entries in enumerate(traces) if entries]
        number = used[0] if device is None and used else device
        if number not in used:
            which = "it" if device is None else f"device {device} of it"
            raise CaptureError(
                f"cannot replay {path}: {which} holds no history; record one with "
                "torch.cuda.memory._record_memory_history()"
            )
        settings = AllocatorSettings.from_snapshot(snapshot.get("allocator_settings") or {})
        columns = trace_columns(traces[number])
        mine = [each for each in snapshot["segments"] if each.get("device", 0) == number]
        census = as_census(*starting_state(columns, mine, settings))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CaptureError(
            f"cannot replay {path}: it is no torch memory snapshot as we know them "
            f"({type(error).__name__}: {error!s:.100})"
        ) from None
    return {
        name: np.concatenate([census[name], column]) for name, column in columns.items()
    }, settings


def _of_run(path: str, rank: int | None, device: int | None) -> History:
    """Read what a rank recorded of a device."""
    import numpy as np

    from memlens.allocator.settings import AllocatorSettings
    from memlens.cli.runs import open_run
    from memlens.disk.format import RANK_FILE
    from memlens.disk.reader import read_rank
    from memlens.errors import UsageError

    capture = open_run(path)
    number = capture.ranks[0].rank if rank is None else capture.rank(rank).rank
    data = next(
        each
        for each in map(
            read_rank, sorted(file.parent for file in capture.path.glob(f"*/{RANK_FILE}"))
        )
        if each.header["trains"] and each.header["rank"] == number
    )
    used = np.unique(data.events["device"]).tolist()
    chosen = used[0] if device is None and used else device
    if chosen not in used:
        which = "any device" if device is None else f"device {device}"
        raise UsageError(f"rank {number} of {path} recorded nothing of {which}; it used {used}")
    mine = np.flatnonzero(data.events["device"] == chosen)
    mine = mine[np.argsort(data.events["time_ns"][mine], kind="stable")]
    columns = {name: column[mine] for name, column in data.events.items()}
    return columns, AllocatorSettings.from_snapshot(data.header.get("allocator") or {})


def _payload(replayed: Replayed) -> dict[str, Any]:
    difference = replayed.first_difference
    return {
        "events": replayed.events,
        **asdict(replayed.totals),
        "recorded": None if replayed.recorded is None else asdict(replayed.recorded),
        "first_difference": None
        if difference is None
        else {
            "event": difference.event,
            "expected": _step(difference.expected),
            "got": _step(difference.got),
        },
        "out_of_memory": replayed.out_of_memory and asdict(replayed.out_of_memory),
    }


def _step(step: tuple[str, int, int] | None) -> dict[str, Any] | None:
    return None if step is None else dict(zip(("action", "address", "bytes"), step, strict=True))


def _lines(replayed: Replayed, how: str) -> list[str]:
    """What people want to know of it."""
    from memlens.units import format_bytes

    told = replayed.recorded
    lines = [f"{replayed.events:,} events replayed {how}"]
    for title, key in (
        ("reserved at most", "reserved_peak_bytes"),
        ("allocated at most", "allocated_peak_bytes"),
        ("segments at the end", "segments"),
    ):
        write = (lambda value: f"{value:,}") if key == "segments" else format_bytes
        ours = getattr(replayed.totals, key)
        beside = "" if told is None else f"  (recorded: {write(getattr(told, key))})"
        lines.append(f"  {title:<20} {write(ours):>12}{beside}")
    if (short := replayed.out_of_memory) is not None:
        lines.append(
            f"out of memory at event {short.event:,}: {format_bytes(short.requested_bytes)} more do not "
            f"fit; {format_bytes(short.reserved_bytes)} are reserved, of which "
            f"{format_bytes(short.allocated_bytes)} allocated (the replay goes on without it)"
        )
    if (difference := replayed.first_difference) is not None:
        lines.append(_difference(difference))
    elif replayed.is_compared:
        lines.append("the model did what the real allocator did, event by event")
    return lines


def _difference(difference: Difference) -> str:
    expected, got = (
        "nothing" if step is None else f"{step[0]} of {step[2]:,} bytes at {step[1]:#x}"
        for step in (difference.expected, difference.got)
    )
    return f"first difference at event {difference.event:,}: recorded {expected}, the model {got}"
