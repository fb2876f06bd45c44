"""`memlens diff --json`: one object that other programs rely on.

Keys are only ever added. Sizes are whole bytes; a difference is B less A, and its per cent are of
A, `null` when A has nothing. The lists each sum to `at`, the moment that is compared, before they
are cut to the number asked for. With rollup, the five published names stand wherever a category
would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from memlens.analysis.change import Change, total
from memlens.events import Category
from memlens.palette import series_of

if TYPE_CHECKING:
    from memlens.analysis.diff import ModuleChange, StepChange
    from memlens.analysis.sites import SiteChange
    from memlens.answers import Peak
    from memlens.report.diff.view import DiffView, Side
    from memlens.report.view import ReportOptions

__all__ = ["FORMAT_VERSION", "diff_payload"]

FORMAT_VERSION = 1
"""Of this object; that of each capture is its own."""

Json = dict[str, Any]


def diff_payload(view: DiffView, options: ReportOptions) -> Json:
    """The whole diff as plain values, ready for `json.dumps`."""
    found = view.diff
    writer = _Writer(options)
    return {
        "format_version": FORMAT_VERSION,
        "a": _side(view.a, found.a_peak),
        "b": _side(view.b, found.b_peak),
        "warnings": list(view.warnings),
        "rollup": options.rollup,
        "identical": found.identical,
        "peak": _change(found.peak),
        "at": {"step": found.step, **_change(found.size)},
        "categories": writer.categories(found.categories),
        "steps": [_step(change) for change in found.steps],
        "modules": [writer.module(change) for change in found.modules[: options.top]],
        "modules_count": len(found.modules),
        "sites": [writer.site(change) for change in found.sites[: options.top]],
        "sites_count": len(found.sites),
    }


class _Writer:
    """Turns what goes by category into plain values."""

    def __init__(self, options: ReportOptions) -> None:
        self._series = series_of(options.rollup)
        self._name = {member: each.key for each in self._series for member in each.members}

    def categories(self, categories: Mapping[Category, Change]) -> list[Json]:
        nothing = Change(0, 0)
        return [
            {
                "category": each.key,
                **_change(total(categories.get(member, nothing) for member in each.members)),
            }
            for each in self._series
        ]

    def module(self, change: ModuleChange) -> Json:
        return {
            "module": change.module,
            "a_class_name": change.a_class_name or None,
            "b_class_name": change.b_class_name or None,
            **_change(change.size),
            "categories": self.categories(change.categories),
        }

    def site(self, change: SiteChange) -> Json:
        return {
            "category": self._name[change.category],
            "a_frame": asdict(change.a_frame) if change.a_frame else None,
            "b_frame": asdict(change.b_frame) if change.b_frame else None,
            "name": change.name,
            "module": change.module,
            **_change(change.size),
            "a_blocks": change.a_blocks,
            "b_blocks": change.b_blocks,
        }


def _side(side: Side, peak: Peak) -> Json:
    return {
        **asdict(side.capture.info),
        "command": list(side.capture.info.command),
        "rank": side.rank.rank,
        "device": side.rank.device,
        "peak": {
            "step": peak.step,
            "phase": peak.phase.value,
            "module": peak.module,
            "allocated_bytes": peak.allocated_bytes,
        },
    }


def _change(change: Change) -> Json:
    return {
        "a_bytes": change.a_bytes,
        "b_bytes": change.b_bytes,
        "difference_bytes": change.difference_bytes,
        "difference_percent": change.difference_percent,
    }


def _step(change: StepChange) -> Json:
    size = change.size
    return {
        "step": change.step,
        "a_bytes": change.a_bytes,
        "b_bytes": change.b_bytes,
        "difference_bytes": size.difference_bytes if size else None,
        "difference_percent": size.difference_percent if size else None,
    }
