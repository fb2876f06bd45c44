"""All failed requests of a run: a few explained in full, the others in short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memlens.report.oom.explain import Failure, explain_event, failures_of
from memlens.report.oom.text import explanation_lines, place_text, wrapped
from memlens.report.text import count
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.capture import RankCapture

__all__ = ["out_of_memory_lines"]

MOST_EXPLAINED = 3
MOST_IN_SHORT = 12
MOST_RANKS = 8
"""So many are named of those that failed alike."""


def out_of_memory_lines(ranks: Sequence[RankCapture], world_size: int, width: int) -> list[str]:
    """All failed requests of some ranks; empty where there were none.

    The first few are explained in full. Those of the other ranks have a line each, or one for all that
    failed at the same place for the same reason.

    Args:
        ranks: which.
        world_size: of the run.
        width: of a line, in characters.
    """
    lines: list[str] = []
    many = len(ranks) > 1
    groups: dict[tuple[object, ...], list[Failure]] = {}
    for each in failures_of(ranks):
        place = (each.event.step, each.place.phase, each.place.module, each.fit.obstacle)
        groups.setdefault(place, []).append(each)
    for first, *others in list(groups.values())[:MOST_EXPLAINED]:
        found = explain_event(first.rank, first.event, world_size)
        lines += ([""] if lines else []) + explanation_lines(found, width, with_rank=many)
        if others:
            lines += wrapped(_alike(others, many), width)
    later = list(groups.values())[MOST_EXPLAINED:]
    lines += [""] if later else []
    for group in later[:MOST_IN_SHORT]:
        lines += wrapped(_in_short(group, many), width)
    if untold := sum(map(len, later[MOST_IN_SHORT:])):
        lines += wrapped(f"{count(untold, 'request')} failed later; --json tells of all.", width)
    return lines + _peer_lines(ranks, world_size, width, is_own_known=bool(groups))


def _peer_lines(
    ranks: Sequence[RankCapture], world_size: int, width: int, *, is_own_known: bool
) -> list[str]:
    """What ranks held when another one ran out; one of them in full, where the other one is not known.

    In full they would be a section for each of thousands of ranks.
    """
    lines: list[str] = []
    peers = [
        (rank, event) for rank in ranks for event in rank.out_of_memory if event.reason == "peer"
    ]
    if peers and not is_own_known:
        rank, event = max(peers, key=lambda item: item[1].allocated_bytes)
        found = explain_event(rank, event, world_size)
        lines += explanation_lines(found, width, with_rank=len(ranks) > 1)
    if len(peers) > (0 if is_own_known else 1):
        held = [event.allocated_bytes for _, event in peers]
        lines += wrapped(
            f"What others held when a rank ran out ({count(len(peers), 'bundle')}): "
            f"{format_bytes(min(held))} to {format_bytes(max(held))} allocated.",
            width,
        )
    return lines


def _alike(others: Sequence[Failure], many: bool) -> str:
    asked = [each.event.requested_bytes or 0 for each in others]
    return (
        f"{count(len(others), 'more request')}{_of_ranks(others) if many else ''} for "
        f"{_between(asked)} failed there too."
    )


def _in_short(group: Sequence[Failure], many: bool) -> str:
    first = group[0]
    asked = [each.event.requested_bytes or 0 for each in group]
    missing = [each.fit.missing_bytes for each in group]
    return (
        f"{place_text(first.event, first.place.phase, first.place.module)}: "
        f"{count(len(group), 'request')}{_of_ranks(group) if many else ''} for {_between(asked)} "
        f"failed, {_between(missing)} were missing ({first.fit.obstacle.value})"
    )


def _of_ranks(failures: Sequence[Failure]) -> str:
    numbers = sorted({each.rank.rank for each in failures})
    named = ", ".join(map(str, numbers[:MOST_RANKS]))
    more = len(numbers) - MOST_RANKS
    text = f"rank {named}" if len(numbers) == 1 else f"ranks {named}"
    return f" of {text}" + (f" and {more:,} more" if more > 0 else "")


def _between(sizes: Sequence[int]) -> str:
    least, most = format_bytes(min(sizes)), format_bytes(max(sizes))
    return least if least == most else f"{least} to {most}"
