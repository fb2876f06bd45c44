"""`across_ranks` in `memlens report --json`: how the ranks compare, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from memlens.report.endings import ending_payload
from memlens.report.ranks import difference_line

if TYPE_CHECKING:
    from memlens.across.compare import RanksCompared
    from memlens.across.summary import RankSummary
    from memlens.palette import Series
    from memlens.report.all_ranks import AllRanks

__all__ = ["across_payload"]

Json = dict[str, Any]


def across_payload(ranks: AllRanks, series: Sequence[Series]) -> Json:
    """Plain values, ready for `json.dumps`.

    `total` is of the last start of the job; `partial` says why it is not that of all ranks, and is empty
    if it is.
    """
    compared, last = ranks.compared(series)
    total = ranks.total(last)
    return {
        "world_size": total.world_size,
        "starts": ranks.capture.launches,
        "highest": _rank(compared.highest),
        "median": _rank(compared.median),
        "lowest": _rank(compared.lowest),
        "peak": asdict(compared.peak),
        "categories": {key: asdict(level) for key, level in compared.categories.items()},
        "difference": _difference(compared, series),
        "total": {
            "size_bytes": total.size_bytes,
            "categories": {key: level.sum_bytes for key, level in last.categories.items()},
            "ranks": total.ranks,
            "of_ranks": total.world_size,
            "partial": list(total.why_partial),
        },
        "unreadable": [asdict(each) for each in ranks.unreadable],
        "ended": ending_payload(ranks.summaries),
    }


def _rank(summary: RankSummary) -> Json:
    return {
        "rank": summary.rank,
        "device": summary.device,
        "peak_bytes": summary.peak_bytes,
        "step": summary.peak.step,
        "phase": summary.peak.phase.value,
    }


def _difference(compared: RanksCompared, series: Sequence[Series]) -> Json | None:
    """Of the highest rank from the median one; None: there is none."""
    if compared.category is None:
        return None
    return {
        "size_bytes": compared.difference_bytes,
        "category": compared.category.name,
        "category_bytes": compared.category.size_bytes,
        "module": compared.module.name if compared.module else None,
        "module_bytes": compared.module.size_bytes if compared.module else None,
        "module_category": compared.module.category if compared.module else None,
        "sentence": difference_line(compared, series),
    }
