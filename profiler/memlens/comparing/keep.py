"""Results on disk, so that a second comparison of the same job reuses what the first has found."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memlens.comparing.results import PeakResult, RankResult, Result, Status
from memlens.events import Category

__all__ = ["find", "keep", "new_folder"]

_FILE = "result.json"


def new_folder(parent: Path, name: str, key: str) -> Path:
    """Make the folder of one try; there may have been others, which stay as they are."""
    stem = _stem(name, key)
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def keep(folder: Path, result: Result) -> None:
    """Write a result, as soon as it is there."""
    values = asdict(result)
    peaks = [values["peak"], *(each["peak"] for each in values["ranks"])]
    for peak in filter(None, peaks):
        peak["categories"] = {each.value: size for each, size in peak["categories"].items()}
    unfinished = folder / f".{_FILE}"
    unfinished.write_text(json.dumps(values, indent=2))
    unfinished.replace(folder / _FILE)


def find(parent: Path, name: str, key: str) -> Result | None:
    """The newest result of this variant of this very job that came to its end."""
    found = [
        result
        for path in parent.glob(f"{_stem(name, key)}*/{_FILE}")
        if (result := _read(path)) is not None and result.status is Status.OK
    ]
    newest = max(found, key=lambda each: Path(each.run).stat().st_mtime_ns, default=None)
    return None if newest is None else replace(newest, reused=True)


def _stem(name: str, key: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_.+=-]+', '-', name)[:60]}-{key}"


def _read(path: Path) -> Result | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values["peak"] is not None:
            values["peak"] = _peak(values["peak"])
        values["ranks"] = tuple(
            RankResult(**{**each, "peak": _peak(each["peak"])}) for each in values["ranks"]
        )
        for name in ("losses", "replaced", "notes"):
            values[name] = tuple(values[name])
        result = Result(**{**values, "status": Status(values["status"])})
    except (OSError, ValueError, KeyError, TypeError):  # of another version, or cut off
        return None
    return result if Path(result.run).is_dir() else None


def _peak(values: dict[str, Any]) -> PeakResult:
    categories = {Category(name): size for name, size in values["categories"].items()}
    return PeakResult(**{**values, "categories": categories})
