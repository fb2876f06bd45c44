"""What one rank contributes to questions about all: small, so that thousands fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from memlens.across.ending import RankEnd, end_of
from memlens.answers import Coverage, Peak
from memlens.events import Category
from memlens.rank import RankCapture

__all__ = ["RankSummary", "summarize"]

_POSITION = {category: position for position, category in enumerate(Category)}
_VALUES = [category.value for category in Category]


@dataclass(frozen=True)
class RankSummary:
    """One rank and device."""

    rank: int
    device: str
    launch: int
    """Which start of the job it belongs to, from 0 on."""
    events: int
    steps: int
    """How many whole training steps were recorded."""
    peak: Peak
    modules: pa.RecordBatch
    """What each module holds at the peak: columns module, category, size_bytes."""
    coverage: Coverage
    end: RankEnd

    @property
    def peak_bytes(self) -> int:
        """Allocated bytes at the peak."""
        return self.peak.allocated_bytes


def summarize(rank: RankCapture) -> RankSummary:
    """Ask a rank; reads its streams."""
    return RankSummary(
        rank=rank.rank,
        device=rank.device,
        launch=rank.launch,
        events=rank.events,
        steps=len(rank.steps()),
        peak=rank.peak(),
        modules=_modules(rank),
        coverage=rank.coverage,
        end=end_of(rank),
    )


def _modules(rank: RankCapture) -> pa.RecordBatch:
    usages = rank.modules_at(top=None)
    names, categories, sizes = [], [], []
    for row, usage in enumerate(usages):
        for category, size_bytes in usage.categories.items():
            names.append(row)
            categories.append(_POSITION[category])
            sizes.append(size_bytes)
    return pa.RecordBatch.from_pydict(
        {
            "module": pa.DictionaryArray.from_arrays(
                pa.array(names, pa.int32()),
                pa.array([_encodable(each.module) for each in usages], pa.string()),
            ),
            "category": pa.DictionaryArray.from_arrays(
                pa.array(categories, pa.int8()), pa.array(_VALUES)
            ),
            "size_bytes": pa.array(sizes, pa.int64()),
        }
    )


def _encodable(name: str) -> str:
    """A name that Arrow takes: half a surrogate pair is written as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()
