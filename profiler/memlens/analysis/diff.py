"""What differs between two captures, down to module and allocation site.

Both are looked at in one moment: each at its own peak, or each at its own peak of one step.
Categories, modules and sites each sum to the totals of that moment, to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlens.analysis.change import Change
from memlens.analysis.sites import SiteChange, pair_sites
from memlens.errors import UsageError
from memlens.events import Category

if TYPE_CHECKING:
    from memlens.answers import ModuleUsage, Peak, Step
    from memlens.capture import RankCapture

__all__ = ["Diff", "ModuleChange", "StepChange", "diff", "pair_modules"]


@dataclass(frozen=True)
class StepChange:
    """The peak of one training step in capture A and in capture B."""

    step: int
    a_bytes: int | None
    """None: A did not record this step."""
    b_bytes: int | None
    """None: B did not record this step."""

    @property
    def size(self) -> Change | None:
        """Both peaks; None when only one capture has the step."""
        if self.a_bytes is None or self.b_bytes is None:
            return None
        return Change(self.a_bytes, self.b_bytes)


@dataclass(frozen=True)
class ModuleChange:
    """What a module holds in capture A and in capture B, its submodules not included."""

    module: str
    """Qualified name, by which modules are matched; empty: outside of modules."""
    a_class_name: str
    """Empty when A has no such module, or it holds nothing."""
    b_class_name: str
    """Empty when B has no such module, or it holds nothing."""
    size: Change
    categories: Mapping[Category, Change]
    """Sums to `size`; only categories that are present in one or the other."""

    @property
    def differs(self) -> bool:
        """Some category does, also when their sum does not."""
        return any(change.difference_bytes for change in self.categories.values())


@dataclass(frozen=True)
class Diff:
    """All that differs between two captures. Differences are B less A."""

    step: int | None
    """The step whose peaks are compared; None: the peaks of the runs."""
    a_peak: Peak
    """Of A as a whole, also when a step was asked for."""
    b_peak: Peak
    peak: Change
    """Allocated bytes at both of these."""
    size: Change
    """Allocated bytes at the moment compared; `peak` unless a step was asked for."""
    categories: Mapping[Category, Change]
    """Every category; sums to `size`."""
    steps: tuple[StepChange, ...]
    """Every step that one or the other recorded, by number."""
    modules: tuple[ModuleChange, ...]
    """Every module that holds anything, the largest differences first; sums to `size`."""
    sites: tuple[SiteChange, ...]
    """Every allocation site (see `memlens.analysis.sites`), the largest differences first; sums to
    `size`."""

    @property
    def identical(self) -> bool:
        """Nothing differs: no step, category, module or site, be it by one byte or block."""
        return not (
            any(change.difference_bytes for change in (self.peak, *self.categories.values()))
            or any(step.a_bytes != step.b_bytes for step in self.steps)
            or any(module.differs for module in self.modules)
            or any(site.differs for site in self.sites)
        )


def diff(a: RankCapture, b: RankCapture, *, step: int | None = None) -> Diff:
    """Compare two captures of one rank each.

    Args:
        a: what is compared with; percentages are of it.
        b: what is compared.
        step: compare the peaks of this step; None compares the peaks of the runs.

    Raises:
        UsageError: one of them did not record the step.
    """
    a_peak, b_peak = a.peak(), b.peak()
    a_steps, b_steps = a.steps(), b.steps()
    a_categories, a_ns = _moment(a_peak, a_steps, step, "the first run")
    b_categories, b_ns = _moment(b_peak, b_steps, step, "the second run")
    sites = pair_sites(a.allocations_at(a_ns, top=None), b.allocations_at(b_ns, top=None))
    return Diff(
        step=step,
        a_peak=a_peak,
        b_peak=b_peak,
        peak=Change(a_peak.allocated_bytes, b_peak.allocated_bytes),
        size=Change(sum(a_categories.values()), sum(b_categories.values())),
        categories={
            category: Change(a_categories.get(category, 0), b_categories.get(category, 0))
            for category in Category
        },
        steps=_pair_steps(a_steps, b_steps),
        modules=pair_modules(a.modules_at(a_ns, top=None), b.modules_at(b_ns, top=None)),
        sites=tuple(sorted(sites, key=lambda site: _importance(site.size))),
    )


def _moment(
    peak: Peak, steps: Iterable[Step], number: int | None, which: str
) -> tuple[Mapping[Category, int], int | None]:
    """Bytes per category at the moment to compare, and how to ask the capture for it.

    The peak is asked for as None and not by its time, which several events may share.
    """
    if number is None:
        return peak.categories, None
    held = []
    for step in steps:
        if step.step == number:
            at_peak = peak.step == number and peak.time_ns == step.peak_ns
            return step.categories, None if at_peak else step.peak_ns
        held.append(step.step)
    there = f"steps {held[0]} to {held[-1]}" if held else "no complete step"
    raise UsageError(f"step {number} was not recorded in {which}; it holds {there}")


def _pair_steps(a: Iterable[Step], b: Iterable[Step]) -> tuple[StepChange, ...]:
    a_peaks = {step.step: step.peak_bytes for step in a}
    b_peaks = {step.step: step.peak_bytes for step in b}
    return tuple(
        StepChange(number, a_peaks.get(number), b_peaks.get(number))
        for number in sorted(a_peaks.keys() | b_peaks.keys())
    )


def pair_modules(a: Iterable[ModuleUsage], b: Iterable[ModuleUsage]) -> tuple[ModuleChange, ...]:
    """Modules of the same name, the largest differences first."""
    a_usages = {usage.module: usage for usage in a}
    b_usages = {usage.module: usage for usage in b}
    changes = [
        _module_change(name, a_usages.get(name), b_usages.get(name))
        for name in dict.fromkeys([*a_usages, *b_usages])
    ]
    return tuple(sorted(changes, key=lambda change: _importance(change.size)))


def _module_change(name: str, a: ModuleUsage | None, b: ModuleUsage | None) -> ModuleChange:
    a_parts, b_parts = (usage.categories if usage else {} for usage in (a, b))
    return ModuleChange(
        module=name,
        a_class_name=a.class_name if a else "",
        b_class_name=b.class_name if b else "",
        size=Change(a.total_bytes if a else 0, b.total_bytes if b else 0),
        categories={
            category: Change(a_parts.get(category, 0), b_parts.get(category, 0))
            for category in Category
            if category in a_parts or category in b_parts
        },
    )


def _importance(size: Change) -> tuple[int, int]:
    """Sorts the largest difference first, and the larger one first among equals."""
    return -abs(size.difference_bytes), -max(size.a_bytes, size.b_bytes)
