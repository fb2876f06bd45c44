"""How a rank's recording ended: in good order, with an exception, or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from memlens.answers import Place
from memlens.rank import RankCapture

__all__ = ["End", "RankEnd", "end_of", "how_ended"]


class End(Enum):
    """How."""

    CLOSED = "closed"
    RAISED = "raised"
    """Closed, and the script had raised."""
    DIED = "died"
    """Not closed, and the process is gone, or of another host."""
    RUNNING = "running"
    """Not closed, and the process is there."""


@dataclass(frozen=True)
class RankEnd:
    """The end of a rank's recording."""

    how: End
    error: str | None
    """What the script raised, in one line."""
    out_of_memory: bool
    """A request for memory had failed."""
    time_ns: int | None
    """When the last allocation or free was recorded; None: there is none."""
    place: Place | None
    """What the job was doing then; None: it ended in good order, or there is no event."""
    host: str | None
    pid: int | None


def how_ended(header: Mapping[str, Any]) -> End:
    """The same by what `rank.json` says alone."""
    if header["closed"]:
        return End.CLOSED if _text(header.get("error")) is None else End.RAISED
    there = _is_there(_text(header.get("host")), _number(header.get("pid")))
    return End.RUNNING if there else End.DIED


def end_of(rank: RankCapture) -> RankEnd:
    """How a rank's recording ended; reads its streams."""
    header, how = rank.header, how_ended(rank.header)
    last = rank.last_event_ns
    is_over = how is End.CLOSED or last is None
    return RankEnd(
        how=how,
        error=_text(header.get("error")),
        out_of_memory=bool(rank.out_of_memory),
        time_ns=last,
        place=None if is_over or last is None else rank.place_at(last),
        host=_text(header.get("host")),
        pid=_number(header.get("pid")),
    )


def _is_there(host: str | None, pid: int | None) -> bool:
    """Whether the process is still there; one of another host, or of a container, can not be seen."""
    if pid is None or host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return pid > 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
