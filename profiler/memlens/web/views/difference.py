"""Two ranks, of two runs or of one, at their peaks: what differs by category and by module."""

from __future__ import annotations

from collections.abc import Mapping

from memlens.analysis.change import total
from memlens.analysis.diff import ModuleChange, pair_modules
from memlens.events import Category
from memlens.palette import CATEGORY_SERIES
from memlens.web.library import Library
from memlens.web.opened import CATEGORY_KEYS, OpenedRank
from memlens.web.parameters import Parameters
from memlens.web.sizes import Json, brief, within

__all__ = ["PARAMETERS", "difference"]

PARAMETERS = ("with_run", "with_rank")
MOST_MODULES = 500


def difference(library: Library, run: str, rank: str, asked: Parameters) -> Json:
    """Compare a rank with another; modules with the largest differences first."""
    other_run, other_rank = asked.needed("with_run"), asked.needed("with_rank")
    a = library.rank(run, rank)
    b = library.rank(other_run, other_rank)
    at_a, at_b = _at_peak(a), _at_peak(b)
    changes = pair_modules(
        a.rank.modules_at(time_ns=None, top=None), b.rank.modules_at(time_ns=None, top=None)
    )

    def build(count: int) -> Json:
        rest = total(change.size for change in changes[count:])
        return {
            "a": {"run": run, "rank": rank, "peak_bytes": sum(at_a.values()), "peak": a.peak},
            "b": {
                "run": other_run,
                "rank": other_rank,
                "peak_bytes": sum(at_b.values()),
                "peak": b.peak,
            },
            "categories": [
                {"key": series.key, "a": at_a.get(series.key, 0), "b": at_b.get(series.key, 0)}
                for series in CATEGORY_SERIES
                if at_a.get(series.key) or at_b.get(series.key)
            ],
            "modules": [_module(change) for change in changes[:count]],
            "left_out": {
                "count": len(changes[count:]),
                "a_bytes": rest.a_bytes,
                "b_bytes": rest.b_bytes,
            },
        }

    return within(build, min(len(changes), MOST_MODULES))


def _at_peak(rank: OpenedRank) -> dict[str, int]:
    levels = rank.pyramid.after(rank.pyramid.peak_event).tolist()
    return {
        CATEGORY_KEYS[category]: size
        for category, size in zip(rank.pyramid.categories, levels, strict=True)
    }


def _module(change: ModuleChange) -> Json:
    return {
        "module": brief(change.module),
        "a": _sizes({category: each.a_bytes for category, each in change.categories.items()}),
        "b": _sizes({category: each.b_bytes for category, each in change.categories.items()}),
    }


def _sizes(categories: Mapping[Category, int]) -> dict[str, int]:
    return {category.value: size for category, size in categories.items() if size}
