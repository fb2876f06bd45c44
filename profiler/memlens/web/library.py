"""The runs that pages may ask about, and the ranks that have been read for them.

Names from outside are keys of what was found, and nothing else. Ranks stay in memory up to a budget, the
one that was asked for least recently leaves first. Of a run that is still written, an answer may be a
few seconds old.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from memlens.capture import Capture, RankCapture, look_at
from memlens.errors import CaptureError, MemlensError
from memlens.units import format_bytes
from memlens.web.opened import OpenedRank
from memlens.web.parameters import Refusal
from memlens.web.scan import Found, Place

__all__ = ["Library", "OpenedRun"]

BUDGET_BYTES = 1 << 30
"""For ranks in memory; a larger one is alone in it."""
SCAN_EVERY_S = 5.0
LOOK_EVERY_S = 2.0
"""Whether the files of a run have changed is looked up no more often."""
RELOAD_AFTER_S = 3.0
_LOADS_BETWEEN = 10
"""A run that takes a second to read is read again after ten, at the earliest."""
_BYTES_PER_EVENT = 200
"""Needed at most while a rank is read."""
_KEPT_BYTES_PER_EVENT = 100
"""About what `OpenedRank.size_bytes` comes to."""
_EVENTS_PER_BYTE = 0.35
"""On disk, where a rank that is still written does not say how many it has."""
_MOST_OF_FREE = 0.8

Signature = frozenset[tuple[str, int, int]]


@dataclass
class _Kept:
    """A rank in memory."""

    opened: OpenedRank
    signature: Signature
    loaded_s: float
    """When, by the monotonic clock."""
    took_s: float


class OpenedRun:
    """A run whose headers are read.

    Args:
        key: that of the run.
        folder: on this machine.
        signature: of its files, as they were then.

    Raises:
        CaptureError: it can not be read.
    """

    def __init__(self, key: str, folder: Path, signature: Signature) -> None:
        self.key = key
        self.folder = folder
        self.signature = signature
        self.capture: Capture = look_at(folder)
        self.ranks: dict[str, RankCapture] = {}
        """By key: the rank's number; further devices and starts of the same rank have a suffix."""
        for rank in self.capture.ranks:
            number = sum(other.rank == rank.rank for other in self.ranks.values())
            self.ranks[f"{rank.rank}.{number}" if number else str(rank.rank)] = rank


class Library:
    """Runs and ranks; safe to ask from many threads.

    Args:
        places: where runs may be.
        budget_bytes: for ranks in memory.
    """

    def __init__(self, places: Sequence[Place], budget_bytes: int = BUDGET_BYTES) -> None:
        self._places = places
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._found: list[tuple[Place, Found]] = []
        self._scanned_s = float("-inf")
        self._scanning: threading.Thread | None = None
        self._runs: dict[str, OpenedRun | MemlensError] = {}
        self._looked_s: dict[str, float] = {}
        self._wanted: set[str] = set()
        """Runs of which more than the headers was asked for."""
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._failed: dict[tuple[str, str], tuple[Signature, CaptureError]] = {}
        """Ranks that can not be read, as their files were then."""
        self._loading: dict[tuple[str, str], threading.Lock] = {}
        self.notes: dict[str, object] = {}
        """What views keep of a run between questions, by its key."""

    # -- finding -------------------------------------------------------------------------------

    @property
    def has_runs(self) -> bool:
        """Something was found so far; asks for a new search when the last one is a while ago."""
        self.search()
        return any(found.runs for _, found in self._found)

    @property
    def is_scanning(self) -> bool:
        """The first search is not over."""
        return self._scanned_s == float("-inf")

    @property
    def problems(self) -> list[str]:
        """What a search left out."""
        return [text for _, found in self._found for text in found.problems]

    def search(self, *, wait: bool = False) -> None:
        """Look for runs, in a thread, unless that was done a moment ago."""
        with self._lock:
            thread = self._scanning
            if thread is None and monotonic() - self._scanned_s > SCAN_EVERY_S:
                thread = threading.Thread(target=self._scan, name="memlens-scan", daemon=True)
                self._scanning = thread
                thread.start()
        if wait and thread is not None:
            thread.join()

    def _scan(self) -> None:
        try:
            begun = monotonic()
            found = [(place, place.find()) for place in self._places]
            _tell_apart([each.runs for _, each in found])
            with self._lock:
                self._found = found
                # A search that takes long is not made all the time.
                self._scanned_s = monotonic() + 4 * (monotonic() - begun)
        finally:
            self._scanning = None

    def keys(self) -> list[str]:
        """Of all runs that were found."""
        return sorted({key for _, found in self._found for key in found.runs})

    # -- opening -------------------------------------------------------------------------------

    def run(self, key: str, *, whole: bool = True) -> OpenedRun:
        """A run, read anew if its files have changed.

        Args:
            key: of the run.
            whole: its streams are wanted, too; else its headers are enough.

        Raises:
            Refusal: there is none of this key (404).
            MemlensError: it can not be read.
        """
        where = next(
            ((place, found.runs[key]) for place, found in self._found if key in found.runs), None
        )
        if where is None:
            raise Refusal(f"there is no run {key!r:.80}", 404)
        with self.lock_of(key, ""):
            known = self._runs.get(key)
            if whole and key not in self._wanted:
                self._wanted.add(key)
                self._looked_s[key] = float("-inf")
            if known is None or monotonic() - self._looked_s[key] > LOOK_EVERY_S:
                known = self._look(key, *where, known)
                self._runs[key] = known
        if isinstance(known, MemlensError):
            raise known
        return known

    def _look(
        self, key: str, place: Place, where: str, known: OpenedRun | MemlensError | None
    ) -> OpenedRun | MemlensError:
        begun = monotonic()
        try:
            folder = place.bring(where, whole=key in self._wanted)
            signature = _signature(folder)
            if isinstance(known, OpenedRun) and known.signature == signature:
                return known
            return OpenedRun(key, folder, signature)
        except MemlensError as error:
            return error
        except OSError as error:
            return CaptureError(f"cannot read the run {key}: {error.strerror or error}")
        finally:
            # With thousands of ranks, looking takes its time, too.
            self._looked_s[key] = monotonic() + 10 * (monotonic() - begun)

    def rank(self, run: str, rank: str) -> OpenedRank:
        """A rank with its streams in memory.

        Raises:
            Refusal: there is none (404), or it is too large for this machine's memory (422).
            CaptureError: it can not be read.
        """
        opened = self.run(run)
        if rank not in opened.ranks:
            raise Refusal(f"the run {run!r:.80} has no rank {rank!r:.20}", 404)
        key = (run, rank)
        with self.lock_of(*key):
            with self._lock:
                kept = self._kept.get(key)
                if kept is not None and not _is_stale(kept, opened.signature):
                    self._kept.move_to_end(key)
                    return kept.opened
                self._kept.pop(key, None)  # gone before the new one comes
                failed = self._failed.get(key)
            del kept
            if failed is not None and failed[0] == opened.signature:
                raise failed[1]
            begun = monotonic()
            try:
                # A copy: what the run's own ranks read is never kept there.
                found = _read(copy.deepcopy(opened.ranks[rank]))
            except CaptureError as error:
                self._failed[key] = opened.signature, error
                raise
            done = monotonic()
            with self._lock:
                self._kept[key] = _Kept(found, opened.signature, done, done - begun)
                self._make_room()
            return found

    def fitting(self, run: OpenedRun, most: int) -> list[str]:
        """The first ranks of a run, so many as fit into memory together; one at least."""
        found: list[str] = []
        room_bytes = self._budget_bytes
        for key, rank in list(run.ranks.items())[:most]:
            room_bytes -= _events_of(rank) * _KEPT_BYTES_PER_EVENT
            if found and room_bytes < 0:
                break
            found.append(key)
        return found

    def _make_room(self) -> None:
        held = sum(kept.opened.size_bytes for kept in self._kept.values())
        while held > self._budget_bytes and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            held -= gone.opened.size_bytes

    def lock_of(self, run: str, rank: str) -> threading.Lock:
        """One for each thing that is to be worked out once only."""
        with self._lock:
            return self._loading.setdefault((run, rank), threading.Lock())


def _tell_apart(places: Sequence[dict[str, str]]) -> None:
    """Give runs of several places keys of their own."""
    seen: set[str] = set()
    for runs in places:
        for key in [key for key in runs if key in seen]:
            number = 2
            while f"{key} ({number})" in seen:
                number += 1
            runs[f"{key} ({number})"] = runs.pop(key)
        seen.update(runs)


def _is_stale(kept: _Kept, signature: Signature) -> bool:
    age_s = monotonic() - kept.loaded_s
    return kept.signature != signature and age_s > max(RELOAD_AFTER_S, _LOADS_BETWEEN * kept.took_s)


def _signature(folder: Path) -> Signature:
    """What changes when any of a run's files does."""
    found = set()
    for path in (*folder.glob("*.json"), *folder.glob("*/*.json"), *folder.glob("*/*.arrow")):
        try:
            state = path.stat()
        except OSError:  # gone meanwhile
            continue
        found.add((str(path), state.st_size, state.st_mtime_ns))
    return frozenset(found)


def _events_of(rank: RankCapture) -> int:
    """About how many a rank has; its streams are not read."""
    promised = rank.header.get("device_events")
    return sum(promised) if promised else int(rank.size_bytes_on_disk * _EVENTS_PER_BYTE)


def _read(rank: RankCapture) -> OpenedRank:
    events = _events_of(rank)
    needed, free = events * _BYTES_PER_EVENT, _free_bytes()
    too_large = (
        f"rank {rank.rank} has {events:,} events, more than fit into this machine's memory; "
        "open it on a larger one"
    )
    if free is not None and needed > free * _MOST_OF_FREE:
        raise Refusal(
            f"{too_large} (it needs up to {format_bytes(needed)}, and {format_bytes(free)} are free)",
            422,
        )
    try:
        return OpenedRank(rank)
    except MemoryError:
        raise Refusal(too_large, 422) from None


def _free_bytes() -> int | None:
    """Memory that can be had without swapping; None: the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
