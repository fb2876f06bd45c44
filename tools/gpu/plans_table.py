"""The tables of tools/gpu_check.py --plans: lines on the terminal, Markdown, and JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu.agreement import (
    LEAST_JOBS,
    MOST_IN_ONE,
    MOST_IN_THE_MEDIAN,
    Row,
    Summary,
    summarise,
)
from gpu.bench import FAIL, ROOT, Found
from gpu.matrix import Job

__all__ = ["PlansTable"]


@dataclass
class PlansTable:
    """The rows so far, on the terminal and in two files that are whole after every row."""

    path: Path
    """Of the Markdown; the JSON lies beside it."""
    command: str
    jobs: Sequence[Job]
    """All that there will be, in order."""
    planned_twice: bool
    """There is no GPU: a plan stands for the real run."""
    facts: Found = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, row: Row, at_s: float) -> None:
        """Add a row: print it, and write all again."""
        with self.lock:
            self.rows[row.job.title] = row
            print(f"{at_s:6.1f} s  {row.state:<13}  {row.job.title}: {_line(row)}", flush=True)
            self.write(at_s)

    def in_order(self) -> list[Row]:
        """The rows that there are, in the order of the jobs."""
        return [self.rows[job.title] for job in self.jobs if job.title in self.rows]

    @property
    def summary(self) -> Summary:
        """What the rows so far say together."""
        return summarise(self.in_order(), min(LEAST_JOBS, len(self.jobs)))

    def write(self, at_s: float) -> None:
        """Write both files."""
        rows, summary = self.in_order(), self.summary
        found = {
            "command": self.command,
            "facts": self.facts,
            "planned_twice": self.planned_twice,
            "seconds": round(at_s, 1),
            "summary": summary.to_json(),
            "jobs": [row.to_json() for row in rows],
        }
        text = "\n".join(self._markdown(rows, summary, at_s)) + "\n"
        for path, content in (
            (self.path, text),
            (self.path.with_suffix(".json"), json.dumps(found, indent=1) + "\n"),
        ):
            path.write_text(content.replace(str(ROOT), "."), encoding="utf-8")

    def _markdown(self, rows: Sequence[Row], summary: Summary, at_s: float) -> list[str]:
        lines = ["# Plans against real runs", ""]
        if self.planned_twice:
            lines += [
                "**No GPU was there: a second plan stands for each real run. This shows that the tool "
                "works, and nothing of a GPU.**",
                "",
            ]
        lines += [f"**{summary.state}**: {summary_line(summary)}; {at_s:.0f} s in all.", ""]
        lines += [f"* {failure}" for failure in summary.failures]
        lines += ["", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.facts.items()]
        lines += [f"| command | `{self.command}` |", ""]
        lines += [
            "Sizes in GiB; errors are relative, and positive where the plan has too much. "
            f"Limits: median {_limits()}, none above {MOST_IN_ONE:.0%}.",
            "",
            "| job | | allocated | planned | error | reserved | planned | error "
            "| largest category difference, of the peak | plan s | run s |",
            "|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|",
        ]
        lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
        if summary.categories:
            lines += [
                "",
                "## Categories at the peak",
                "",
                "Median and largest relative error over the jobs in which the category is at least 1 % "
                "of the real peak; last, the largest difference of all jobs as a share of the peak.",
                "",
                "| category | jobs | median error | largest | in | of the peak |",
                "|---|--:|--:|--:|---|--:|",
            ]
        lines += [
            f"| {name} | {each.jobs} | {each.median:.2%} | {each.largest:.2%} | {each.largest_in} "
            f"| {each.largest_difference:.2%} |"
            for name, each in summary.categories.items()
        ]
        failed = [row for row in rows if row.state == FAIL and row.log]
        if failed:
            lines += ["", "## What failing jobs printed"]
        for row in failed:
            lines += ["", row.job.title, "", "```", *row.log.rstrip().splitlines()[-40:], "```"]
        return lines


def summary_line(summary: Summary) -> str:
    """In one line: how many, and how far apart."""
    text = f"{summary.compared} jobs compared"
    for name, median in summary.medians.items():
        text += f", {name} {median:.2%} (largest {summary.largest[name]:.2%})"
    return text + (f", {summary.plan_s:.1f} s a plan" if summary.compared else "")


def _limits() -> str:
    return " and ".join(f"{limit:.0%} of {name}" for name, limit in MOST_IN_THE_MEDIAN.items())


def _line(row: Row) -> str:
    errors = ", ".join(f"{name} {error:+.2%}" for name, error in row.errors.items())
    parts = [errors] if errors else []
    if row.planned is not None and row.real is not None:
        parts.append(f"peak {_gib(row.real.allocated_bytes)} GiB")
        parts.append(f"plan {row.plan_s:.1f} s, run {row.real_s:.1f} s")
    return "; ".join((*row.problems, *parts))


def _cells(row: Row) -> list[str]:
    real, planned, errors = row.real, row.planned, row.errors
    title = row.job.title + (" (card in sight)" if row.job.in_sight else "")
    differing = sorted(row.category_differences.items(), key=lambda item: -abs(item[1]))
    largest = (
        f"{differing[0][0]} {differing[0][1]:+.2%}" if differing and differing[0][1] else "none"
    )
    if real is not None and planned is not None and real.moment != planned.moment:
        largest += f"; peak in {real.moment}, planned in {planned.moment}"
    return [
        title,
        row.state,
        _gib(real and real.allocated_bytes),
        _gib(planned and planned.allocated_bytes),
        f"{errors['allocated']:+.2%}" if errors else "",
        _gib(real and real.reserved_bytes),
        _gib(planned and planned.reserved_bytes),
        f"{errors['reserved']:+.2%}" if errors else "",
        largest if errors else "; ".join(row.problems).replace("|", "\\|").replace("\n", " "),
        f"{row.plan_s:.1f}" if errors else "",
        f"{row.real_s:.1f}" if errors else "",
    ]


def _gib(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 2**30:.2f}"
