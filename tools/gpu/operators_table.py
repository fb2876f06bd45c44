"""What single operators allocate on a GPU beside what a plan says of them: Markdown, and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu.bench import FAIL, MEMLENS, Bench, Found, Stopped

__all__ = ["Sizes", "differences", "hold_operators", "requests_of", "write_operators"]

PHASES = ("forward", "backward")
Sizes = Mapping[str, Mapping[str, Sequence[int]]]
"""By case and phase: bytes of each request to the allocator, in order."""


def requests_of(run: Path) -> dict[str, dict[str, list[int]]]:
    """What a run of `gpu_job.py operators` has asked for in its second round."""
    import memlens

    (rank,) = memlens.load(run).ranks
    found: dict[str, dict[str, list[int]]] = {}
    for row in sorted(rank.to_arrow().to_pylist(), key=lambda row: row["alloc_ns"]):
        place, _, case = row["module"].partition(".")
        if place == "cases":
            phases = found.setdefault(case, {phase: [] for phase in PHASES})
            phases[row["phase"]].append(row["requested_bytes"])
    return found


def differences(real: Sizes, planned: Sizes) -> dict[str, dict[str, tuple[list[int], list[int]]]]:
    """By case and phase: what only the GPU has asked for, and what only the plan has; in any order."""
    found: dict[str, dict[str, tuple[list[int], list[int]]]] = {}
    for case, phases in real.items():
        for phase in PHASES:
            theirs, ours = list(phases[phase]), list(planned.get(case, {}).get(phase, ()))
            for size in tuple(theirs):
                if size in ours:
                    theirs.remove(size)
                    ours.remove(size)
            if theirs or ours:
                found.setdefault(case, {})[phase] = theirs, ours
    return found


def write_operators(path: Path, command: str, facts: Found, real: Sizes, planned: Sizes) -> str:
    """Write Markdown, and JSON beside it with what the GPU has asked for; returns a summary."""
    lines = [f"  {json.dumps(case)}: {json.dumps(real[case])}" for case in sorted(real)]
    head = json.dumps({"command": command, "facts": facts}, indent=1)[:-2]
    text = head + ',\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    other = differences(real, planned)
    summary = (
        f"{len(real)} operators: of {len(real) - len(other)} a plan has each request that CUDA made, "
        "to the byte"
    )
    lines = ["# Operators: CUDA beside a plan", "", f"{summary}.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += [f"| command | `{command}` |", ""]
    lines += [
        "The others; sizes in bytes, requests that both have are left out.",
        "",
        "| operator | | only CUDA | only the plan |",
        "|---|---|---|---|",
    ]
    for case, phases in sorted(other.items()):
        for phase, (theirs, ours) in phases.items():
            lines.append(f"| {case} | {phase} | {_told(theirs)} | {_told(ours)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return summary


def _told(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size:,}" for size in sizes)


def hold_operators(
    bench: Bench, card: Sequence[str], path: Path, command: str, facts: Found
) -> None:
    """Run and plan all cases, and write what came of them.

    Raises:
        Stopped: there is no GPU, or a case could not be run, or planned.
    """
    if not bench.is_cuda:
        raise Stopped(FAIL, "operators are held against CUDA's")
    runs = []
    ways = {"run": ("run", "--device", bench.device), "plan": ("plan", *card)}
    for name, words in ways.items():
        out = bench.place(name)
        found = bench.job("operators", "--plain", before=(*MEMLENS, *words, "--out", str(out)))
        for case, why in found["refused"].items():
            raise Stopped(FAIL, f"{name}: {case}: {why}")
        runs.append(out if name == "run" else out / "run")
    print(write_operators(path, command, facts, *(requests_of(run) for run in runs)))
