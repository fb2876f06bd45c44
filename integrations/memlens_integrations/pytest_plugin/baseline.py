"""What tests needed when somebody last said that it is right: one JSON file, kept in version control.

    {"format_version": 1,
     "tests": {"tests/test_model.py::test_step": {
       "source": "cpu", "torch": "2.13.0", "threads": 2,
       "peak_bytes": 4801580,
       "most_bytes": {"activation": 327680, ...},
       "sites": {"activation": {"layers.* @ forward (model.py)": [327680, 327680], ...}, ...}}}}

Sizes are whole bytes. `most_bytes` is what a category came to at its own highest; a site has two
sizes, at the peak of all and at its category's highest, and each sums to the totals above. Keys are
sorted and every site has a line, so that a diff reads well and two branches merge. Lines of code have
no numbers in it: editing above one changes nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from memlens.analysis.change import Change
from memlens.errors import UsageError
from memlens.events import Category
from memlens_integrations.pytest_plugin.budget import PEAK, RESERVED, Tolerance
from memlens_integrations.pytest_plugin.measure import Held, Measurement, Site

__all__ = [
    "Comparison",
    "Entry",
    "as_json",
    "compare",
    "entry_of",
    "read_entry",
    "site_text",
    "write_entries",
]

FORMAT_VERSION = 1
UPDATE = "--memory-update-baseline"

_SIZES = re.compile(r"\[\s+(\d+),\s+(\d+)\s+\]")


@dataclass(frozen=True)
class Entry:
    """One test's figures as they are stored."""

    source: str
    """What was recorded: `cpu`, `cuda`, or `simulated A100 80GB`."""
    torch: str
    threads: int
    """Some operators keep a buffer per thread."""
    peak_bytes: int
    most_bytes: Mapping[str, int]
    """By category; only those that are present. `reserved`, too, if it is known."""
    sites: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    """By category and text of the site: bytes at the peak, and at the category's highest."""


@dataclass(frozen=True)
class Comparison:
    """A test's figures beside those of its baseline."""

    before: Entry
    now: Entry
    allowed_bytes: int

    @property
    def figures(self) -> dict[str, Change]:
        """The peak and what each category came to, before and now."""
        names = dict.fromkeys([RESERVED, *(each.value for each in Category)])
        return {
            PEAK: Change(self.before.peak_bytes, self.now.peak_bytes),
            **{
                name: Change(self.before.most_bytes.get(name, 0), self.now.most_bytes.get(name, 0))
                for name in names
                if name in self.before.most_bytes or name in self.now.most_bytes
            },
        }

    @property
    def grown(self) -> dict[str, Change]:
        """Those that are above their baseline by more than is allowed."""
        return {
            name: change
            for name, change in self.figures.items()
            if change.difference_bytes > self.allowed_bytes
        }

    @property
    def differs(self) -> bool:
        """By any byte, up or down."""
        return any(change.difference_bytes for change in self.figures.values())

    def sites_at_peak(self) -> dict[tuple[str, str], Change]:
        """By category and site; each side sums to its peak."""
        return self._sites(0)

    def sites_at_most(self, category: str) -> dict[tuple[str, str], Change]:
        """Those of one category, each side at its highest of that."""
        return {key: each for key, each in self._sites(1).items() if key[0] == category}

    def _sites(self, which: int) -> dict[tuple[str, str], Change]:
        before, now = (
            {
                (category, text): sizes[which]
                for category, sites in entry.sites.items()
                for text, sizes in sites.items()
            }
            for entry in (self.before, self.now)
        )
        return {key: Change(before.get(key, 0), now.get(key, 0)) for key in {**before, **now}}


def entry_of(measurement: Measurement, source: str) -> Entry:
    """What would be stored of a test."""
    categories = [each.value for each in Category]
    most = {
        name: size
        for name, size in measurement.most_bytes.items()
        if size and name in (RESERVED, *categories)
    }
    sites: dict[str, dict[str, tuple[int, int]]] = {}
    at_peak = measurement.sites(PEAK)
    for category in most.keys() & set(categories):
        at_most = measurement.sites(category)
        nothing = Held()
        sites[category] = {
            site_text(site): (
                at_peak.get(site, nothing).size_bytes,
                at_most.get(site, nothing).size_bytes,
            )
            for site in sorted({*at_peak, *at_most})
            if site.category == category
        }
    return Entry(
        source=source,
        torch=torch.__version__.partition("+")[0],
        threads=torch.get_num_threads(),
        peak_bytes=measurement.most_bytes[PEAK],
        most_bytes=most,
        sites=sites,
    )


def compare(before: Entry, now: Entry, tolerance: Tolerance) -> Comparison:
    """Put a test's figures beside its baseline.

    Raises:
        UsageError: they are of different allocators.
    """
    if before.source != now.source:
        raise UsageError(
            f"the baseline was recorded from {before.source}, and this from {now.source}; "
            f"{UPDATE} makes it again"
        )
    return Comparison(before, now, tolerance.allowed_bytes(before.peak_bytes))


def read_entry(path: Path, test: str) -> Entry | None:
    """What is stored of a test; None: nothing.

    Raises:
        UsageError: the file is not a baseline.
    """
    found = _read(path).get(test)
    if found is None:
        return None
    try:
        entry = Entry(**found)
        sizes = [entry.peak_bytes, entry.threads, *entry.most_bytes.values()]
        sizes += [
            size
            for sites in entry.sites.values()
            for pair in sites.values()
            for size in (pair[0], pair[1])
        ]
        if not all(type(size) is int for size in sizes):
            raise TypeError("a size is not a whole number")
    except (TypeError, AttributeError, LookupError) as error:
        raise UsageError(
            f"{path} holds no valid baseline of {test} ({error}); {UPDATE} makes it again"
        ) from None
    return entry


def write_entries(path: Path, entries: Mapping[str, Mapping[str, Any]], root: Path) -> int:
    """Store what tests needed; the file's other tests stay, but for those whose file is gone.

    Args:
        path: of the baseline.
        entries: `asdict` of an Entry by test.
        root: to which names of tests are relative.

    Returns:
        How many entries have changed.

    Raises:
        UsageError: the file that is there is not a baseline.
    """
    old = _read(path)
    new = {test: entry for test, entry in old.items() if (root / test.partition("::")[0]).exists()}
    new |= json.loads(json.dumps(entries))
    if new != old or not path.exists():
        text = json.dumps(
            {"format_version": FORMAT_VERSION, "tests": new}, indent=1, sort_keys=True
        )
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(_SIZES.sub(r"[\1, \2]", text) + "\n", encoding="utf-8")
        partial.replace(path)
    return sum(old.get(test) != new.get(test) for test in {*old, *new})


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as plain values."""
    return asdict(entry)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tests = found["tests"]
        version = found["format_version"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path} can not be read as a memory baseline ({error}); if a merge has left its marks "
            f"in it, take either side and run with {UPDATE}"
        ) from None
    if version != FORMAT_VERSION or not isinstance(tests, dict):
        raise UsageError(
            f"{path} is a baseline of format {version!r}, and this memlens reads {FORMAT_VERSION}; "
            f"{UPDATE} on a removed file makes it anew"
        )
    return tests


def site_text(site: Site) -> str:
    """A site in one line, as it stands in a baseline."""
    if site.what and site.where:
        return f"{site.what} @ {site.where}"
    return site.what or site.where or "(no name, no module)"
