"""The two charts of reproduce.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "memlens"  # the same figures give the same file
from matplotlib import pyplot as plt  # noqa: E402

COLOURS = {"weight": "#0072B2", "optimization": "#E69F00", "weight_gradient": "#009E73"}
LABELS = {
    "weight": "weight",
    "optimization": "optimizer state",
    "weight_gradient": "gradient",
}
OTHER_COLOUR = "#6A6A6A"
"""Activations and the rest: one colour, since the two sides draw the line between them differently."""


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def breakdown_chart(rows: list[dict[str, Any]], path: Path) -> None:
    """Of each method two bars: planned, and as the chart has it (hatched)."""
    figure, axes = plt.subplots(figsize=(9, 0.75 * len(rows) + 1.6))
    for number, row in enumerate(rows):
        for side, height, total in (
            ("ours", number - 0.2, row["allocated_peak_gb"]),
            ("chart", number + 0.2, row["chart_total_gb"]),
        ):
            left = 0.0
            hatch = "" if side == "ours" else "////"
            for name, colour in COLOURS.items():
                size = row[side][name]
                axes.barh(height, size, 0.36, left, color=colour, hatch=hatch, edgecolor="white")
                left += size
            rest = max(0.0, total - left)
            axes.barh(height, rest, 0.36, left, color=OTHER_COLOUR, hatch=hatch, edgecolor="white")
            axes.text(max(left, total) + 0.6, height, f"{total:.1f}", va="center", fontsize=8)
    axes.axvline(24, color="#B22222", linestyle="--", linewidth=1)
    axes.text(24.3, -0.62, "24 GB", color="#B22222", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        "GB (10^9 bytes) at the peak of what is allocated; plain: planned, hatched: chart"
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    handles.append(plt.Rectangle((0, 0), 1, 1, color=OTHER_COLOUR))
    axes.legend(
        handles,
        [*LABELS.values(), "activations, temporaries, workspaces"],
        fontsize=8,
        loc="lower right",
        frameon=False,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        "LLaMA-7B, bf16, 1 × 256 tokens: planned beside the published chart", fontsize=10
    )
    save(figure, path)


def reuse_chart(rows: list[dict[str, Any]], path: Path) -> None:
    """Error of each planned row, with and without reuse of gradient space."""
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(rows) + 1.4))
    for shift, name, colour, label in (
        (-0.17, "baseline", "#0072B2", "optimizer"),
        (0.17, "reuse", "#E69F00", "its -R variant"),
    ):
        errors = [100 * (row["ours"][name] / row["published"][name] - 1) for row in rows]
        places = [number + shift for number in range(len(rows))]
        axes.barh(places, errors, 0.32, color=colour, label=label)
        for place, error in zip(places, errors, strict=True):
            axes.text(
                error + (0.1 if error >= 0 else -0.1),
                place,
                f"{error:+.1f}",
                va="center",
                ha="left" if error >= 0 else "right",
                fontsize=7,
            )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['model']}, {row['optimizer']}" for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("planned peak reserved against the published one, %")
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
