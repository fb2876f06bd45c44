"""The questions that pages ask, in one table, and what becomes of one: a status and an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memlens.errors import MemlensError
from memlens.web.library import Library, OpenedRun
from memlens.web.opened import OpenedRank
from memlens.web.parameters import Parameters, Refusal
from memlens.web.sizes import Json, dump
from memlens.web.views import (
    alive,
    difference,
    lifetimes,
    modules,
    overlay,
    ranks,
    runs,
    steps,
    timeline,
)

__all__ = ["QUESTIONS", "answer"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Question:
    """One row of the table: whom it is about, and who answers."""

    parameters: tuple[str, ...]
    about: tuple[str, ...]
    """Which parameters say whom it is about: nobody, a run, or a rank of it."""
    ask: Callable[[Library, Mapping[str, str], Parameters], Json]


def _of_all(view: Callable[[Library, Parameters], Json], known: tuple[str, ...]) -> _Question:
    return _Question(known, (), lambda library, about, asked: view(library, asked))


def _of_run(
    view: Callable[[Library, OpenedRun, Parameters], Json], known: tuple[str, ...]
) -> _Question:
    return _Question(
        known,
        ("run",),
        lambda library, about, asked: view(library, library.run(about["run"]), asked),
    )


def _of_rank(view: Callable[[OpenedRank, Parameters], Json], known: tuple[str, ...]) -> _Question:
    return _Question(
        known,
        ("run", "rank"),
        lambda library, about, asked: view(library.rank(about["run"], about["rank"]), asked),
    )


QUESTIONS: dict[str, _Question] = {
    "runs": _of_all(runs.runs, runs.PARAMETERS),
    "timeline": _of_rank(timeline.timeline, timeline.PARAMETERS),
    "alive": _of_rank(alive.alive, alive.PARAMETERS),
    "modules": _of_rank(modules.modules, modules.PARAMETERS),
    "lifetimes": _of_rank(lifetimes.lifetimes, lifetimes.PARAMETERS),
    "steps": _of_rank(steps.steps, steps.PARAMETERS),
    "ranks": _of_run(ranks.ranks, ranks.PARAMETERS),
    "overlay": _of_run(overlay.overlay, overlay.PARAMETERS),
    "difference": _Question(
        difference.PARAMETERS,
        ("run", "rank"),
        lambda library, about, asked: difference.difference(
            library, about["run"], about["rank"], asked
        ),
    ),
}
"""Every question; what each asks for and answers is told where it is defined."""


def answer(library: Library, name: str, given: Mapping[str, str]) -> tuple[int, bytes]:
    """Answer a question.

    Args:
        library: the runs.
        name: of the question.
        given: its parameters, as they came from outside.

    Returns:
        A status as in HTTP, and JSON: the answer, or `{"error": sentence}`. Nothing is raised.
    """
    try:
        question = QUESTIONS.get(name)
        if question is None:
            raise Refusal(f"there is no question {name!r:.40}", 404)
        asked = Parameters(given, (*question.about, *question.parameters))
        about = {each: asked.needed(each) for each in question.about}
        return 200, dump(question.ask(library, about, asked))
    except Refusal as error:
        return error.status, _error(str(error))
    except MemlensError as error:
        return 422, _error(str(error))
    except MemoryError:
        return 422, _error("this machine has too little memory for that; open it on a larger one")
    except Exception as error:
        _log.warning("memlens: the question %s failed", name, exc_info=error)
        return 500, _error(f"internal error: {type(error).__name__}: {error}"[:500])


def _error(text: str) -> bytes:
    return dump({"error": text})
