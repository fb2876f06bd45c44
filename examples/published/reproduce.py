"""Plan the rows of two publications, and write tables and charts beside this file; see README.md."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from charts import breakdown_chart, reuse_chart
from job import LANGUAGE

import memlens
from memlens.events import Category, Phase
from memlens.models.table import find_model

HERE = Path(__file__).parent
METHODS = {
    "BF16 AdamW": ("adamw", False),
    "Adafactor": ("adafactor-momentum", False),
    "AdamW (no retaining grad)": ("adamw", True),
    "8-bit Adam": ("adam8bit", False),
    "8-bit Adam (no retaining grad)": ("adam8bit", True),
    "8-bit GaLore (no retaining grad)": ("galore-adamw8bit:rank=1024", True),
}
"""What the chart calls a method, and our optimizer for it; whether gradients are freed layer by layer."""
COMPONENTS = {
    "weight": ("weight",),
    "optimization": ("optimizer_state", "master_weight"),
    "weight_gradient": ("gradient",),
}
OF_THE_TIME = {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1"}
"""Torch did not yet keep a workspace for cuBLASLt, which is 1 MiB in a segment of 2 MiB."""
RANKS = 8
"""DDP's and ZeRO's, of the language rows."""


def plan(*words: str, ranks: int = 1) -> dict[str, Any]:
    """Run `memlens plan`; the answer of its --json."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "memlens", "plan", "--json", "--no-stacks"]
        done = subprocess.run(
            [*command, "--out", f"{folder}/plan", *words],
            env={**os.environ, **OF_THE_TIME, "WORLD_SIZE": str(ranks)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"memlens plan {' '.join(words)}\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        found["update_bytes"] = update_bytes(memlens.load(f"{folder}/plan/run").ranks[0])
    return found


def update_bytes(rank: memlens.RankCapture) -> int:
    """Most that is allocated while the optimizer itself is at work, in the last step.

    Under ZeRO a step first casts and flattens the gradients. The update begins when the last one has
    been made, and what it was made from is given back.
    """
    line = rank.timeline()
    first = int(np.searchsorted(line.time_ns, max(line.step_start_ns.values())))
    phases = [rank.place_at(int(time)).phase for time in line.time_ns[first:]]
    within = first + np.flatnonzero([phase is Phase.OPTIMIZER for phase in phases])
    if not len(within):  # it makes and frees nothing
        return rank.steps()[-1].end_bytes
    change = np.diff(line.categories[Category.GRADIENT])[within - 1]
    made = np.flatnonzero(change > 0).max(initial=0)
    begun = made + int(np.argmax(change[made:] < 0))
    return int(line.allocated_bytes[within[begun:]].max())


def read(name: str) -> list[dict[str, str]]:
    with (HERE / name).open() as file:
        return list(csv.DictReader(file))


def plan_galore() -> Iterator[dict[str, Any]]:
    """Each method: GB of each component, ours and the chart's."""
    for row in read("galore_7b_breakdown.csv"):
        optimizer, in_backward = METHODS[row["method"]]
        words = ["--model", "llama-7b", "--batch", "1x256", "--dtype", "bf16"]
        words += ["--optimizer", optimizer, *(["--no-retain-grad"] if in_backward else [])]
        answer = plan(*words)
        rank = answer["ranks"][0]
        # Each component at its own highest, over the peaks of the steps and their ends.
        moments = [
            each for step in rank["steps"] for each in (step["categories"], step["end_categories"])
        ]
        moments.append(rank["peak"]["categories"])
        ours = {
            name: max(sum(moment[part] for part in parts) for moment in moments) / 1e9
            for name, parts in COMPONENTS.items()
        }
        yield {
            "method": row["method"],
            "optimizer": answer["plan"]["optimizer"],
            "ours": ours,
            "chart": {name: float(row[f"{name}_gb"]) for name in COMPONENTS},
            "peak_categories_gb": {
                name: size / 1e9 for name, size in rank["peak"]["categories"].items()
            },
            "allocated_peak_gb": answer["plan"]["allocated_peak_bytes"] / 1e9,
            "reserved_peak_gb": answer["plan"]["reserved_peak_bytes"] / 1e9,
            "chart_total_gb": float(row["total_gb"]),
        }


def plan_reuse() -> Iterator[dict[str, Any]]:
    """Each row: peak reserved in 10^6 bytes with the optimizer and with its -R, ours and published."""
    for row in read("gradient_space_reuse.csv"):
        if row["zero"] == "yes":
            continue
        is_text = row["model"].startswith(("BLOOM", "Qwen"))
        found = {}
        for name, optimizer in (("baseline", row["optimizer"]), ("reuse", f"{row['optimizer']}-R")):
            words = ("--optimizer", optimizer.lower(), str(HERE / "job.py"), row["model"])
            answer = plan(*words, ranks=RANKS if is_text else 1)["plan"]
            found[name] = answer["reserved_peak_bytes"] / 1e6
        yield {
            "optimizer": row["optimizer"],
            "model": row["model"],
            "kind": "language" if is_text else "vision",
            "ours": found,
            "published": {name: float(row[f"{name}_mb"]) for name in found},
        }


def plan_zero() -> Iterator[dict[str, Any]]:
    """Each row with ZeRO: 10^6 bytes with AdamW and with its -R, ours and published."""
    for row in read("gradient_space_reuse.csv"):
        if row["zero"] != "yes":
            continue
        found = {}
        for name, optimizer in (("baseline", "adamw"), ("reuse", "adamw-r")):
            words = ("--world-size", str(RANKS), "--optimizer", optimizer)
            answer = plan(*words, str(HERE / "job.py"), row["model"], "--zero")
            found[name] = {
                "allocated": answer["plan"]["allocated_peak_bytes"] / 1e6,
                "reserved": answer["plan"]["reserved_peak_bytes"] / 1e6,
                "update": answer["update_bytes"] / 1e6,
                "peak_phase": answer["ranks"][0]["peak"]["phase"],
            }
        yield {
            "model": row["model"],
            "ours": found,
            "theory_saved": 4
            * find_model(LANGUAGE[row["model"]]).published_parameters
            / RANKS
            / 1e6,
            "published": {name: float(row[f"{name}_mb"]) for name in found},
        }


def galore_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | weight | optimizer state | gradient | allocated | reserved | the chart's total |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['ours'][name]:.2f} / {row['chart'][name]:.1f}" for name in COMPONENTS]
        sizes = [row[name] for name in ("allocated_peak_gb", "reserved_peak_gb", "chart_total_gb")]
        lines.append(
            f"| {row['method']} | {' | '.join(cells)} | {' | '.join(f'{size:.1f}' for size in sizes)} |"
        )
    return "\n".join(lines)


def reuse_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | optimizer | planned / published | error | -R planned / published | error |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for name in ("baseline", "reuse"):
            ours, theirs = row["ours"][name], row["published"][name]
            cells += [f"{ours:,.0f} / {theirs:,.0f}", f"{100 * (ours / theirs - 1):+.1f} %"]
        lines.append(f"| {row['model']} | {row['optimizer']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def zero_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | planned / published | error | -R planned / published | error "
        "| saved, planned / published | saved in the update | theory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        base, reuse = row["ours"]["baseline"], row["ours"]["reuse"]
        theirs = row["published"]
        cells = []
        for name, each in (("baseline", base), ("reuse", reuse)):
            cells += [f"{each['reserved']:,.0f} / {theirs[name]:,.0f}"]
            cells += [f"{100 * (each['reserved'] / theirs[name] - 1):+.1f} %"]
        saved = base["reserved"] - reuse["reserved"]
        cells += [f"{saved:,.0f} / {theirs['baseline'] - theirs['reuse']:,.0f}"]
        cells += [f"{base['update'] - reuse['update']:,.0f}", f"{row['theory_saved']:,.0f}"]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("galore", "reuse", "zero"))
    parser.add_argument("--out", type=Path, default=HERE, help="default: beside this file")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, rows in (
        ("galore", plan_galore),
        ("reuse", plan_reuse),
        ("zero", plan_zero),
    ):
        if args.only in (None, name):
            results[name] = []
            for row in rows():
                results[name].append(row)
                print(json.dumps(row), flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    text = [
        "# Published figures, planned\n\nWritten by `reproduce.py`; see [README.md](README.md).\n"
    ]
    if rows := results.get("galore"):
        text += [
            "## LLaMA-7B by component, GB, planned / read off the chart\n",
            galore_table(rows),
            "",
        ]
        breakdown_chart(rows, args.out / "galore_7b.svg")
    if rows := results.get("reuse"):
        text += ["## Peak reserved, 10^6 bytes\n", reuse_table(rows), ""]
        reuse_chart(rows, args.out / "gradient_space_reuse.svg")
    if rows := results.get("zero"):
        text += ["## Under ZeRO 2, peak reserved, 10^6 bytes\n", zero_table(rows), ""]
    (args.out / "results.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
