"""Allocation sites, and which one of a capture is which one of another.

A site is a category and a line of code: the innermost frame of an allocation's stack that is not
mere plumbing (`memlens.analysis.frames.user_frames`), a line of the job or of a library's model.
Blocks without a stack are told apart by their tensor's name, or else by the module at work; if one
of the two captures has no stacks at all, the blocks of both are.

Lines are compared across captures that may come from different folders, machines or versions:

* A file is the same if it has the same name. Of several files of one name, those belong together
  whose paths agree for longest, counted from the end.
* A line is the same if category, file and function are, and the line number, too, once the function
  is moved to where most of its lines are found again: code above it may have been edited.
* What is left then of one category, file and function is paired in the order of the lines, if both
  captures have as many: code within the function was edited.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from memlens.analysis.change import Change
from memlens.analysis.frames import slashes, user_frames
from memlens.events import Category

if TYPE_CHECKING:
    from memlens.answers import Allocation, Frame

__all__ = ["SiteChange", "pair_sites"]


@dataclass(frozen=True)
class SiteChange:
    """What one allocation site holds in capture A and in capture B."""

    category: Category
    a_frame: Frame | None
    """Where A makes it; None when A has no such site, or no stack."""
    b_frame: Frame | None
    """Where B makes it; as that of A but for the file's path and, if lines moved, the line."""
    name: str
    """What the tensors are called; only of blocks without a stack, and may be empty there."""
    module: str
    """Module at work; only of blocks without stack and name, and may be empty there."""
    size: Change
    a_blocks: int
    b_blocks: int

    @property
    def differs(self) -> bool:
        """In bytes or in blocks."""
        return self.size.difference_bytes != 0 or self.a_blocks != self.b_blocks


@dataclass(frozen=True)
class _Place:
    """What the blocks of a site share within one capture."""

    category: Category
    frame: Frame | None
    name: str
    module: str


@dataclass
class _Held:
    total_bytes: int = 0
    blocks: int = 0


_Sites = dict[_Place, _Held]

_Function = tuple[str, str]
"""File and name."""


def pair_sites(a: Sequence[Allocation], b: Sequence[Allocation]) -> list[SiteChange]:
    """Compare the blocks of two captures by allocation site; see the rules above.

    Returns:
        Every site of either capture, in no particular order. The sizes sum to those of the blocks.
    """
    stacks = all(any(block.stack for block in blocks) for blocks in (a, b) if blocks)
    a_sites, b_sites = _sites(a, stacks), _sites(b, stacks)
    partner = _partners(a_sites, b_sites)
    only_b = b_sites.keys() - partner.values()
    pairs: list[tuple[_Place | None, _Place | None]] = [
        *((place, partner.get(place)) for place in a_sites),
        *((None, place) for place in b_sites if place in only_b),
    ]
    nothing = _Held()
    return [
        _change(
            a_place,
            b_place,
            a_sites[a_place] if a_place else nothing,
            b_sites[b_place] if b_place else nothing,
        )
        for a_place, b_place in pairs
    ]


def _sites(blocks: Iterable[Allocation], stacks: bool) -> _Sites:
    found: _Sites = {}
    told: dict[tuple[Frame, ...], Frame] = {}
    for block in blocks:
        if stacks and block.stack:
            if block.stack not in told:
                told[block.stack] = user_frames(block.stack, 1)[0]
            place = _Place(block.category, told[block.stack], "", "")
        else:
            place = _Place(block.category, None, block.name, "" if block.name else block.module)
        held = found.setdefault(place, _Held())
        held.total_bytes += block.size_bytes
        held.blocks += 1
    return found


def _partners(a_sites: _Sites, b_sites: _Sites) -> dict[_Place, _Place]:
    """The site of B that each site of A is; without those that only one of them has."""
    a_file = _same_files(_files(a_sites), _files(b_sites))
    b_place = {_in_file_of_a(place, a_file): place for place in b_sites}
    lines_down = _lines_down(a_sites, b_place)
    partner = {
        place: b_place[there]
        for place in a_sites
        if (there := _moved(place, lines_down)) in b_place
    }
    taken = set(partner.values())
    a_left = _by_category(place for place in a_sites if place not in partner)
    b_left = _by_category(place for place, original in b_place.items() if original not in taken)
    for key, places in a_left.items():
        others = b_left.get(key, [])
        if len(places) == len(others):
            partner |= {place: b_place[other] for place, other in zip(places, others, strict=True)}
    return partner


def _lines_down(a: Iterable[_Place], b: Iterable[_Place]) -> dict[_Function, int]:
    """By how many lines each function of A is further down in B.

    That is the number under which most of its places are found again; the smallest of equals, so
    that nothing moves without a reason.
    """
    votes: dict[_Function, Counter[int]] = defaultdict(Counter)
    b_lines = _by_category(b)
    for key, places in _by_category(a).items():
        for place in places:
            votes[key[1:]].update(_line(other) - _line(place) for other in b_lines.get(key, []))
    return {
        function: min(found, key=lambda lines: (-found[lines], abs(lines), lines))
        for function, found in votes.items()
        if found
    }


def _moved(place: _Place, lines_down: dict[_Function, int]) -> _Place:
    frame = place.frame
    if frame is None or not (lines := lines_down.get((frame.file, frame.function), 0)):
        return place
    return replace(place, frame=replace(frame, line=frame.line + lines))


def _files(sites: _Sites) -> set[str]:
    return {place.frame.file for place in sites if place.frame}


def _same_files(a_files: Iterable[str], b_files: Iterable[str]) -> dict[str, str]:
    """The file of A that each file of B is."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for file in sorted(a_files):
        by_name[_parts(file)[0]].append(file)
    pairs = [
        (_agreement(a_file, b_file), a_file, b_file)
        for b_file in sorted(b_files)
        for a_file in by_name[_parts(b_file)[0]]
    ]
    found: dict[str, str] = {}
    for _, a_file, b_file in sorted(pairs, key=lambda pair: -pair[0]):
        if b_file not in found and a_file not in found.values():
            found[b_file] = a_file
    return found


def _agreement(a_file: str, b_file: str) -> float:
    """How many parts of two paths agree, from the end; infinite for one and the same path."""
    if a_file == b_file:
        return float("inf")
    both = zip(_parts(a_file), _parts(b_file), strict=False)
    return sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], both))


def _parts(file: str) -> list[str]:
    """A path's parts, the file's name first."""
    return slashes(file).split("/")[::-1]


def _in_file_of_a(place: _Place, a_file: dict[str, str]) -> _Place:
    if place.frame is None or place.frame.file not in a_file:
        return place
    return replace(place, frame=replace(place.frame, file=a_file[place.frame.file]))


def _by_category(places: Iterable[_Place]) -> dict[tuple[Category, str, str], list[_Place]]:
    """Places with a stack by category, file and function, in the order of their lines."""
    found: dict[tuple[Category, str, str], list[_Place]] = defaultdict(list)
    for place in places:
        if place.frame:
            found[place.category, place.frame.file, place.frame.function].append(place)
    return {key: sorted(group, key=_line) for key, group in found.items()}


def _line(place: _Place) -> int:
    return place.frame.line if place.frame else 0


def _change(
    a_place: _Place | None, b_place: _Place | None, a_held: _Held, b_held: _Held
) -> SiteChange:
    place = a_place or b_place
    assert place is not None
    return SiteChange(
        category=place.category,
        a_frame=a_place.frame if a_place else None,
        b_frame=b_place.frame if b_place else None,
        name=place.name,
        module=place.module,
        size=Change(a_held.total_bytes, b_held.total_bytes),
        a_blocks=a_held.blocks,
        b_blocks=b_held.blocks,
    )
