"""A comparison that was written earlier, from its `comparison.json`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from memlens.comparing.results import Comparison, PeakResult, RankResult, Result, Status
from memlens.errors import CaptureError
from memlens.events import Category

__all__ = ["is_comparison", "read_comparison"]

Json = dict[str, Any]
_FILE = "comparison.json"


def is_comparison(folder: Path) -> bool:
    """Whether `memlens compare` has made this folder."""
    return (folder / _FILE).is_file()


def read_comparison(folder: Path) -> Comparison:
    """Read what `Comparison.to_json` has written; verdicts of cards are left out.

    Raises:
        CaptureError: it is damaged.
    """
    try:
        values: Json = json.loads((folder / _FILE).read_text())
        return Comparison(
            job=values["job"],
            baseline=values["baseline"],
            results=tuple(_result(each) for each in values["variants"]),
            folder=str(folder.absolute()),
            torch_version=values["torch_version"],
            device=values["device"],
            simulated=values["simulated"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaptureError(
            f"{folder / _FILE} cannot be read ({type(error).__name__}: {error}); "
            "the same memlens compare writes it again from its results"
        ) from error


def _result(values: Json) -> Result:
    return Result(
        name=values["name"],
        status=Status(values["status"]),
        reason=values["reason"] or "",
        peak=_peak(values["peak"]),
        reserved_peak_bytes=values.get("reserved_peak_bytes"),
        step_time_ns=values["step_time_ns"],
        final_loss=values["final_loss"],
        # Older files have the last one only; what is no number is null in JSON.
        losses=tuple(math.nan if loss is None else loss for loss in values.get("losses") or ()),
        steps=values["steps"],
        run=values["run"] or "",
        replaced=tuple(values["replaced"]),
        notes=tuple(values["notes"]),
        reused=values["reused"],
        optimizer=values.get("optimizer") or "",
        sharding=values.get("sharding") or "",
        ranks=tuple(
            RankResult(each["rank"], peak, each["reserved_peak_bytes"])
            for each in values.get("ranks") or ()
            if (peak := _peak(each["peak"])) is not None
        ),
    )


def _peak(values: Json | None) -> PeakResult | None:
    if values is None:
        return None
    categories = {Category(name): size for name, size in values["categories"].items()}
    return PeakResult(**{**values, "categories": categories})
