"""The table of tools/gpu_check.py, on the terminal and in Markdown."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu.bench import FAIL, MEASURED, MISSING, PASS, ROOT, SKIPPED, Found, Verdict
from gpu.checks import SECTIONS

__all__ = ["Table"]


@dataclass
class Table:
    """The rows so far, on the terminal and in a file that is whole after every row."""

    path: Path
    command: str
    facts: Found = field(default_factory=dict)
    rows: dict[tuple[str, str], tuple[Verdict, float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, section: str, check: str, verdict: Verdict, took_s: float, at_s: float) -> None:
        with self.lock:
            self.rows[section, check] = verdict, took_s
            first, *rest = verdict.figures
            print(f"{at_s:6.1f} s  {verdict.state:<13}  {section}: {check}: {first}", flush=True)
            for line in rest:
                print(f"{'':25}{line}", flush=True)
            self.write(at_s)

    def count(self, state: str) -> int:
        return sum(verdict.state == state for verdict, _ in self.rows.values())

    @property
    def summary(self) -> str:
        states = (PASS, FAIL, MEASURED, SKIPPED, MISSING)
        return ", ".join(f"{self.count(state)} {state}" for state in states if self.count(state))

    def write(self, at_s: float) -> None:
        lines = ["# memlens on a GPU", "", f"{self.summary}; {at_s:.0f} s.", ""]
        lines += ["| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.facts.items()]
        lines += [f"| command | `{self.command}` |"]
        for section in SECTIONS:
            rows = [
                f"| {check} | {verdict.state} | {_cell(verdict.figures)} | {took_s:.0f} |"
                for (title, check), (verdict, took_s) in self.in_order()
                if title == section.title
            ]
            if rows:
                lines += ["", f"## {section.title}", "", "| check | | measured | s |"]
                lines += ["|---|---|---|--:|", *rows]
        failed = [(key, v) for key, (v, _) in self.in_order() if v.state == FAIL and v.log]
        if failed:
            lines += ["", "## What failing jobs printed"]
        for (section_title, check), verdict in failed:
            tail = verdict.log.rstrip().splitlines()[-40:]
            lines += ["", f"{section_title}: {check}", "", "```", *tail, "```"]
        text = "\n".join(lines) + "\n"
        self.path.write_text(text.replace(str(ROOT), "."), encoding="utf-8")

    def in_order(self) -> list[tuple[tuple[str, str], tuple[Verdict, float]]]:
        order = [(section.title, check.title) for section in SECTIONS for check in section.checks]
        return [(key, self.rows[key]) for key in order if key in self.rows]


def _cell(lines: Sequence[str]) -> str:
    return "<br>".join(line.replace("|", "\\|").replace("\n", " ") for line in lines)
