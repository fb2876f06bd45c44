"""`memlens report --json`: one object that other programs rely on.

Keys are only ever added. Sizes are whole bytes, times nanoseconds since the Unix epoch
(`elapsed_ns`: since the rank's first event), and `null` means unknown. `categories` always sums to
the total beside it, and `weight_kinds` to the weights there. With rollup, the five published names
stand wherever a category would. `across_ranks` compares the ranks; it is `null` where there is one only,
or one was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from memlens.events import Category, WeightKind
from memlens.palette import series_of
from memlens.report.all_ranks import view_ranks
from memlens.report.oom.explain import explain, oom_payload
from memlens.report.ranks_payload import across_payload
from memlens.report.view import (
    RankView,
    ReportOptions,
    view_rank,
)

if TYPE_CHECKING:
    from memlens.answers import Allocation, Growth, ModuleUsage, Step
    from memlens.capture import Capture, RankCapture

__all__ = ["payload"]

Json = dict[str, Any]


def payload(capture: Capture, options: ReportOptions) -> Json:
    """The whole report as plain values, ready for `json.dumps`.

    Raises:
        UsageError: the rank or step asked for was not recorded.
    """
    info = capture.info
    ranks = view_ranks(capture, options.rank, partial(_rank, options, info.world_size))
    return {
        "format_version": info.format_version,
        "name": info.name,
        "path": info.path,
        "source": info.source,
        "world_size": info.world_size,
        "command": list(info.command),
        "created_ns": info.created_ns,
        "torch_version": info.torch_version,
        "memlens_version": info.memlens_version,
        "rollup": options.rollup,
        "warnings": list(ranks.warnings),
        "across_ranks": None if ranks.is_one else across_payload(ranks, series_of(options.rollup)),
        "ranks": list(ranks.answers),
    }


def _rank(options: ReportOptions, world_size: int, rank: RankCapture) -> Json:
    return _Writer(options, world_size).rank(view_rank(rank, options))


class _Writer:
    """Turns answers into plain values."""

    def __init__(self, options: ReportOptions, world_size: int) -> None:
        self._world_size = world_size
        self._top = options.top
        self._series = series_of(options.rollup)
        self._name = {member: each.key for each in self._series for member in each.members}

    def rank(self, view: RankView) -> Json:
        coverage = view.rank.coverage
        return {
            "rank": view.rank.rank,
            "launch": view.rank.launch,
            "sharding": list(view.rank.sharding),
            "device": view.rank.device,
            "peak": self._peak(view),
            "steps": [self._step(step) for step in view.steps],
            "reserved_peak_bytes": view.rank.reserved_peak_bytes,
            "slack": None if view.slack is None else asdict(view.slack),
            "gauges": [asdict(gauge) for gauge in view.rank.gauges()],
            "out_of_memory": [
                oom_payload(found, self._categories(found.categories))
                | {
                    "modules": [self._module(usage) for usage in found.modules[: self._top]],
                    "allocations": [
                        self._allocation(block) for block in found.allocations[: self._top]
                    ],
                }
                for found in explain(view.rank, self._world_size)
            ],
            "events": view.rank.events,
            "lost_events": coverage.lost_events,
            "coverage": asdict(coverage),
            "at": self._moment(view),
            "modules": [self._module(usage) for usage in view.modules[: self._top]],
            "allocations": [self._allocation(block) for block in view.allocations[: self._top]],
            "allocations_count": len(view.allocations),
            "growth": [self._growth(group) for group in view.growth],
        }

    def _categories(self, categories: Mapping[Category, int]) -> dict[str, int]:
        return {each.key: each.amount(categories) for each in self._series}

    def _peak(self, view: RankView) -> Json:
        peak = view.peak
        return {
            "time_ns": peak.time_ns,
            "elapsed_ns": peak.time_ns - view.start_ns,
            "step": peak.step,
            "phase": peak.phase.value,
            "module": peak.module,
            "allocated_bytes": peak.allocated_bytes,
            "reserved_bytes": peak.reserved_bytes,
            "categories": self._categories(peak.categories),
            "weight_kinds": _weight_kinds(view.peak_weight_kinds),
        }

    def _step(self, step: Step) -> Json:
        return {
            "step": step.step,
            "start_ns": step.start_ns,
            "end_ns": step.end_ns,
            "peak_ns": step.peak_ns,
            "peak_bytes": step.peak_bytes,
            "end_bytes": step.end_bytes,
            "categories": self._categories(step.categories),
            "end_categories": self._categories(step.end_categories),
        }

    def _moment(self, view: RankView) -> Json:
        """The moment that modules and allocations describe: the peak, or that of a given step."""
        moment = view.moment
        return {
            "time_ns": moment.time_ns,
            "step": moment.step,
            "phase": moment.phase.value if moment.phase else None,
            "allocated_bytes": moment.allocated_bytes,
            "categories": self._categories(moment.categories),
            "inferred": self._categories(view.inferred_bytes),
            "weight_kinds": _weight_kinds(view.weight_kinds),
        }

    def _module(self, usage: ModuleUsage) -> Json:
        return {
            "module": usage.module,
            "class_name": usage.class_name,
            "total_bytes": usage.total_bytes,
            "categories": self._categories(usage.categories),
        }

    def _allocation(self, block: Allocation) -> Json:
        values = asdict(block)
        return values | {
            "category": self._name[block.category],
            "certainty": block.certainty.value,
            "phase": block.phase.value,
            "weight_kind": block.weight_kind.value if block.weight_kind else None,
        }

    def _growth(self, group: Growth) -> Json:
        return asdict(group) | {"category": self._name[group.category]}


def _weight_kinds(kinds: Mapping[WeightKind, int]) -> dict[str, int]:
    return {kind.value: size for kind, size in kinds.items()}
