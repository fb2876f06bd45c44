"""What callbacks of training libraries share: a session where there is none, and harmless scalars."""

from __future__ import annotations

import os
import sys

import memlens
from memlens.launch.arming import announce
from memlens.recording.session import current_session

__all__ = ["Recording"]


class Recording:
    """The session whose scalars a callback logs: the one that records already, or its own.

    Args:
        out: the folder of its own session's run; None chooses one.
    """

    def __init__(self, out: str | os.PathLike[str] | None) -> None:
        self._out = out
        self._session: memlens.Session | None = None
        self._has_complained = False

    def begin(self) -> None:
        """Start a session, if none records in this process."""
        if self._session is not None or current_session() is not None:
            return
        try:
            self._session = memlens.profile(out=self._out)
            self._session.start()
        except Exception as error:
            self._session = None
            self._complain(error)

    def scalars(self) -> dict[str, int]:
        """Of the last training step; nothing where there are none."""
        try:
            return memlens.scalars()
        except Exception as error:
            self._complain(error)
            return {}

    def end(self) -> None:
        """Stop the session, if it is its own."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.stop()
            announce(session)
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._has_complained:
            self._has_complained = True
            text = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"memlens: nothing is logged of memory ({text})", file=sys.stderr)
