"""What each module holds at a moment, of its own and by category."""

from __future__ import annotations

from memlens.answers import ModuleUsage
from memlens.web.opened import OpenedRank
from memlens.web.parameters import Parameters
from memlens.web.sizes import Json, brief, within

__all__ = ["PARAMETERS", "modules", "own_bytes"]

PARAMETERS = ("time",)
MOST_MODULES = 2_000


def modules(rank: OpenedRank, asked: Parameters) -> Json:
    """The largest ones; those left out are counted, so that all sum to what is allocated."""
    time = asked.whole_or_none("time")
    usages = rank.rank.modules_at(None if time is None else rank.origin_ns + time, top=None)
    total = sum(usage.total_bytes for usage in usages)

    def build(count: int) -> Json:
        rest = usages[count:]
        return {
            "time": rank.peak["time"] if time is None else min(time, rank.total_ns),
            "allocated_bytes": total,
            "modules": [
                {
                    "module": brief(usage.module),
                    "class_name": brief(usage.class_name),
                    "categories": own_bytes(usage),
                }
                for usage in usages[:count]
            ],
            "left_out": {
                "count": len(rest),
                "size_bytes": sum(usage.total_bytes for usage in rest),
            },
        }

    return within(build, min(len(usages), MOST_MODULES))


def own_bytes(usage: ModuleUsage) -> dict[str, int]:
    """By category, without those of which it holds nothing."""
    return {category.value: size for category, size in usage.categories.items() if size}
