"""What torch's allocator did on an H200, event by event, and the model of it.

`recorded/` has the histories of six jobs of tools/gpu_check.py (torch 2.11, driver 580): each event
without stack and time, and what `torch.cuda.max_memory_allocated` and `max_memory_reserved` told the job.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from memlens.allocator.addresses import DriverAddresses
from memlens.allocator.caching import CachingAllocator
from memlens.allocator.follow import follow
from memlens.allocator.replay import replay
from memlens.allocator.settings import AllocatorSettings
from memlens.disk.format import codes
from memlens.events import Action

FILES = sorted((Path(__file__).parent / "recorded").glob("*.parquet"))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns as `replay` takes them, and what was told."""
    table = parquet.read_table(path)
    told = json.loads((table.schema.metadata or {})[b"recorded"])
    columns = {name: table[name].to_numpy() for name in table.column_names}
    code = codes(Action)
    columns["action"] = np.array([code[name] for name in table["action"].to_pylist()], np.int8)
    return columns, told


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    return read(request.param)


def test_all_are_there() -> None:
    assert len(FILES) == 6


def test_the_model_does_what_the_allocator_did(recorded: Any) -> None:
    columns, told = recorded
    replayed = replay(columns, AllocatorSettings.from_text(told["settings"]))
    assert replayed.is_compared
    assert replayed.first_difference is None
    assert replayed.totals.reserved_peak_bytes == told["reserved_peak_bytes"]
    assert replayed.totals.allocated_peak_bytes == told["peak_bytes"]


SETTINGS = ("language-model", "expandable-segments", "roundup-power2", "max-split-size")


@pytest.mark.parametrize("other", SETTINGS)
@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_do_what_they_did(name: str, other: str) -> None:
    """One job under four settings: from the history of any, the model tells the peak of any other."""
    (columns, told), (_, wanted) = (read(FILES[0].with_stem(each)) for each in (name, other))
    recorded, changed = (AllocatorSettings.from_text(each["settings"]) for each in (told, wanted))
    replayed = replay(columns, recorded, changed)
    assert replayed.totals.reserved_peak_bytes == wanted["reserved_peak_bytes"]


def test_sizes_of_blocks_follow_from_requests(recorded: Any) -> None:
    columns, told = recorded
    known = follow(columns, AllocatorSettings.from_text(told["settings"]))
    assert known.reserved_bytes.max() == told["reserved_peak_bytes"]


def test_requests_alone_give_the_peaks(recorded: Any) -> None:
    """Served from addresses of our own, as a plan is; the requests are all that it is told."""
    columns, told = recorded
    names = {code: name for name, code in codes(Action).items()}
    model = CachingAllocator(
        AllocatorSettings.from_text(told["settings"]), place=DriverAddresses(), max_entries=0
    )
    places: dict[int, int] = {}
    rows = zip(
        *(columns[name].tolist() for name in ("action", "address", "requested_bytes", "stream")),
        strict=True,
    )
    for code, address, size, stream in rows:
        if names[code] == "alloc":
            places[address] = model.malloc(size, stream)
        elif names[code] in ("free", "free_completed"):  # the latter once no other stream uses it
            model.free(places.pop(address))
    if codes(Action)["free_requested"] not in columns["action"]:  # else some count as free before
        assert model.peak_allocated_bytes == told["peak_bytes"]
    assert model.peak_reserved_bytes == told["reserved_peak_bytes"]
