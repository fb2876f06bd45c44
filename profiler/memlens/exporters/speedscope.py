"""Flame graphs of the peak for speedscope: two profiles per rank, by stack and by module.

The format: https://www.speedscope.app/file-format-schema.json. A sample is a path, and its weight the
bytes that are alive there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlens.answers import Frame
from memlens.exporters import peak_paths
from memlens.exporters.rank_names import rank_title
from memlens.report.text import plain
from memlens.report.view import choose_ranks

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["export"]

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def export(capture: Capture, out: Path) -> None:
    """Write a capture as one JSON file."""
    frames: dict[Frame, int] = {}
    profiles = []
    ranks = choose_ranks(capture, None)
    for rank in ranks:
        title = rank_title(rank, ranks)
        for how, held in (
            ("by stack", peak_paths.peak_by_stack(rank)),
            ("by module", peak_paths.peak_by_module(rank)),
        ):
            profiles.append(_profile(f"{title}, peak {how}", held, frames))
        rank.release()
    content = {
        "$schema": SCHEMA,
        "exporter": f"memlens@{capture.info.memlens_version}",
        "name": plain(capture.info.name),
        "activeProfileIndex": 0,
        "profiles": profiles,
        "shared": {"frames": [_frame(frame) for frame in frames]},
    }
    with out.open("w", encoding="ascii") as file:
        json.dump(content, file, separators=(",", ":"))


def _profile(
    name: str, held: dict[peak_paths.Path, int], frames: dict[Frame, int]
) -> dict[str, Any]:
    return {
        "type": "sampled",
        "name": name,
        "unit": "bytes",
        "startValue": 0,
        "endValue": sum(held.values()),
        "samples": [[frames.setdefault(frame, len(frames)) for frame in path] for path in held],
        "weights": list(held.values()),
    }


def _frame(frame: Frame) -> dict[str, Any]:
    name = plain(frame.function) or "(no name)"
    if not frame.file:
        return {"name": name}
    return {"name": name, "file": plain(frame.file), "line": frame.line}
