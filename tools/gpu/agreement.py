"""How far a plan is from the run that it foretells, and whether that is near enough."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu.bench import FAIL, PASS
from gpu.matrix import Job

__all__ = [
    "LEAST_JOBS",
    "MOST_IN_ONE",
    "MOST_IN_THE_MEDIAN",
    "CategoryErrors",
    "Figures",
    "Row",
    "Summary",
    "summarise",
]

MOST_IN_THE_MEDIAN = {"allocated": 0.01, "reserved": 0.03}
MOST_IN_ONE = 0.10
LEAST_JOBS = 12
LEAST_SHARE = 0.01
"""Of the peak: what is less is not asked for an error of its own, which a few blocks would make large."""


@dataclass(frozen=True)
class Figures:
    """What one side says of a job."""

    allocated_bytes: int
    """At the peak."""
    reserved_bytes: int
    """The most, at any time."""
    categories: Mapping[str, int]
    """What was alive at the peak, without those of no bytes."""
    moment: str
    """When the peak was."""

    @classmethod
    def of(cls, rank: Mapping[str, Any]) -> Figures:
        """Of what gpu_job.py's `examine` has found of a rank."""
        return cls(
            rank["peak_bytes"],
            rank["reserved_peak_bytes"] or 0,
            rank["peak_categories"],
            f"{rank['peak_phase']} of step {rank['peak_step']}",
        )

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Figures:
        """What `to_json` has made of it."""
        return cls(
            told["peak_allocated_bytes"],
            told["peak_reserved_bytes"],
            told["categories_at_peak_bytes"],
            told["peak_in"],
        )

    def to_json(self) -> dict[str, Any]:
        """For programs; sizes are whole bytes."""
        return {
            "peak_allocated_bytes": self.allocated_bytes,
            "peak_reserved_bytes": self.reserved_bytes,
            "categories_at_peak_bytes": dict(self.categories),
            "peak_in": self.moment,
        }


@dataclass(frozen=True)
class Row:
    """One job, run and planned."""

    job: Job
    state: str
    """Of the job: whether it can be compared, and if so whether no error is too large."""
    real: Figures | None = None
    planned: Figures | None = None
    real_s: float = 0.0
    plan_s: float = 0.0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What the plan says it did not do as the job has it."""
    log: str = ""

    @classmethod
    def compare(cls, job: Job, real: Figures, planned: Figures, **more: Any) -> Row:
        """Judge a job that both sides know."""
        row = cls(job, PASS, real, planned, **more)
        too_far = [
            f"{name} {error:+.2%}, limit {MOST_IN_ONE:.0%}"
            for name, error in row.errors.items()
            if abs(error) > MOST_IN_ONE
        ]
        problems = (*row.problems, *too_far)
        return cls(job, FAIL if problems else PASS, real, planned, **{**more, "problems": problems})

    @property
    def errors(self) -> dict[str, float]:
        """Relative, above 0 where the plan has too much; empty: there is nothing to compare."""
        if self.real is None or self.planned is None:
            return {}
        return {
            "allocated": _error(self.planned.allocated_bytes, self.real.allocated_bytes),
            "reserved": _error(self.planned.reserved_bytes, self.real.reserved_bytes),
        }

    @property
    def category_differences(self) -> dict[str, float]:
        """In shares of the real peak, so that they add up to the error of what is allocated."""
        if self.real is None or self.planned is None:
            return {}
        ours, theirs = self.planned.categories, self.real.categories
        return {
            name: (ours.get(name, 0) - theirs.get(name, 0)) / self.real.allocated_bytes
            for name in sorted({*ours, *theirs})
        }

    @property
    def category_errors(self) -> dict[str, float]:
        """Relative to the category's own bytes, where these are a share of the real peak."""
        if self.real is None or self.planned is None:
            return {}
        return {
            name: _error(self.planned.categories.get(name, 0), size)
            for name, size in self.real.categories.items()
            if size >= LEAST_SHARE * self.real.allocated_bytes
        }

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "job": self.job.title,
            "words": list(self.job.words),
            "optimizer": self.job.optimizer,
            "state": self.state,
            "real": self.real and self.real.to_json(),
            "planned": self.planned and self.planned.to_json(),
            "relative_errors": self.errors,
            "relative_category_errors": self.category_errors,
            "category_differences_of_peak": self.category_differences,
            "real_s": round(self.real_s, 2),
            "plan_s": round(self.plan_s, 2),
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def _error(planned: int, real: int) -> float:
    if not real:
        return 0.0 if not planned else float("inf")
    return (planned - real) / real


@dataclass(frozen=True)
class CategoryErrors:
    """One category over all jobs."""

    jobs: int
    """In which it is a share of the real peak."""
    median: float
    """Of the relative errors' sizes, over these."""
    largest: float
    largest_in: str
    """That job."""
    largest_difference: float
    """Over all jobs, as a share of the real peak."""


@dataclass(frozen=True)
class Summary:
    """What all jobs together say."""

    compared: int
    medians: Mapping[str, float] = field(default_factory=dict)
    """Of the relative errors' sizes."""
    largest: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, CategoryErrors] = field(default_factory=dict)
    plan_s: float = 0.0
    """Median."""
    failures: tuple[str, ...] = ()
    """Why plans are not near enough; empty: they are."""

    @property
    def state(self) -> str:
        return FAIL if self.failures else PASS

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "state": self.state,
            "jobs_compared": self.compared,
            "median_relative_errors": dict(self.medians),
            "largest_relative_errors": dict(self.largest),
            "limits": {"median": MOST_IN_THE_MEDIAN, "one_job": MOST_IN_ONE},
            "categories": {name: vars(each) for name, each in self.categories.items()},
            "median_plan_s": round(self.plan_s, 2),
            "failures": list(self.failures),
        }


def summarise(rows: Sequence[Row], least_jobs: int = LEAST_JOBS) -> Summary:
    """Judge all rows.

    Args:
        rows: also of jobs that came to nothing.
        least_jobs: with fewer that could be compared, nothing is proved.
    """
    compared = [row for row in rows if row.errors]
    failures = [f"{row.job.title}: {'; '.join(row.problems)}" for row in rows if row.state == FAIL]
    if len(compared) < least_jobs:
        failures.insert(0, f"{len(compared)} jobs compared, {least_jobs} are needed")
    if not compared:
        return Summary(0, failures=tuple(failures))
    sizes = {name: [abs(row.errors[name]) for row in compared] for name in MOST_IN_THE_MEDIAN}
    medians = {name: statistics.median(each) for name, each in sizes.items()}
    failures[:0] = [
        f"median error of {name} {median:.2%}, limit {MOST_IN_THE_MEDIAN[name]:.0%}"
        for name, median in medians.items()
        if median > MOST_IN_THE_MEDIAN[name]
    ]
    return Summary(
        len(compared),
        medians,
        {name: max(each) for name, each in sizes.items()},
        _categories(compared),
        statistics.median(row.plan_s for row in compared),
        tuple(failures),
    )


def _categories(rows: Sequence[Row]) -> dict[str, CategoryErrors]:
    found = {}
    for name in sorted({name for row in rows for name in row.category_differences}):
        errors = [
            (abs(row.category_errors[name]), row.job.title)
            for row in rows
            if name in row.category_errors
        ]
        largest, title = max(errors, default=(0.0, ""))
        found[name] = CategoryErrors(
            jobs=len(errors),
            median=statistics.median(error for error, _ in errors) if errors else 0.0,
            largest=largest,
            largest_in=title,
            largest_difference=max(abs(row.category_differences.get(name, 0.0)) for row in rows),
        )
    return found
