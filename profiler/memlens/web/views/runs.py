"""What there is to look at: runs, their ranks, and how categories are drawn."""

from __future__ import annotations

from memlens import __version__
from memlens.across.ending import End, how_ended
from memlens.capture import Capture
from memlens.errors import MemlensError
from memlens.palette import CATEGORY_SERIES
from memlens.rank import RankCapture
from memlens.web.library import Library
from memlens.web.parameters import Parameters
from memlens.web.sizes import Json, brief, within

__all__ = ["PARAMETERS", "runs"]

PARAMETERS = ()
MOST_RANKS = 1_024
MOST_PROBLEMS = 10


def runs(library: Library, asked: Parameters) -> Json:
    """All runs that were found; a damaged one says so."""
    library.search()
    keys = library.keys()
    answer: Json = {
        "version": __version__,
        "scanning": library.is_scanning,
        "problems": library.problems[:MOST_PROBLEMS],
        "series": [
            {
                "key": series.key,
                "label": series.label,
                "colour": series.colour,
                "letter": series.letter,
            }
            for series in CATEGORY_SERIES
        ],
    }
    entries = [_run(library, key) for key in keys]

    def build(most_ranks: int, count: int) -> Json:
        shown = [_with_ranks(entry, most_ranks) for entry in entries[:count]]
        return {**answer, "runs": shown, "left_out": len(keys) - count}

    # Ranks go before runs do: the page has them in its view of all ranks as well.
    found = within(lambda most: build(most, len(keys)), MOST_RANKS)
    most_ranks = max((len(run["ranks"]) for run in found["runs"]), default=0)
    return within(lambda count: build(most_ranks, count), len(keys))


def _run(library: Library, key: str) -> Json:
    answer: Json = {
        "run": key,
        "name": key,
        "source": "",
        "world_size": 0,
        "state": "unknown",
        "problems": [],
        "error": None,
        "ranks": [],
    }
    try:
        run = library.run(key, whole=False)
    except MemlensError as error:
        return {**answer, "error": brief(str(error))}
    capture = run.capture
    return {
        **answer,
        "name": brief(capture.info.name),
        "source": brief(capture.info.source),
        "world_size": capture.info.world_size,
        "state": _state(capture),
        "problems": [
            brief(text)
            for text in (*capture.problems, *(each.problem for each in capture.unreadable))
        ][:MOST_PROBLEMS],
        "ranks": [_rank(each, rank) for each, rank in run.ranks.items()],
    }


def _with_ranks(entry: Json, most: int) -> Json:
    ranks = entry["ranks"]
    return {**entry, "ranks": ranks[:most], "ranks_left_out": max(len(ranks) - most, 0)}


def _rank(key: str, rank: RankCapture) -> Json:
    promised = rank.header.get("device_events")
    return {
        "key": key,
        "rank": rank.rank,
        "device": brief(rank.device),
        "events": sum(promised) if promised else None,
        "sharding": [brief(text) for text in rank.sharding],
        "launch": rank.launch,
    }


def _state(capture: Capture) -> str:
    """How the run ended, as its ranks' headers say; of another host's process nothing can be seen."""
    ends = {how_ended(rank.header) for rank in capture.ranks}
    if End.RUNNING in ends:
        return "running"
    if ends & {End.DIED, End.RAISED}:
        return "died"
    return "finished" if ends else "unknown"
