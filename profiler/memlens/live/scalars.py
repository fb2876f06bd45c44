"""Numbers for loggers: what the last training step of this process took.

`memlens.scalars()` gives them to whoever logs by hand; `memlens.profile(logger=...)` and the callbacks in
`memlens_integrations` write the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from memlens.events import Category
from memlens.live.follow import DeviceState, RankFollower
from memlens.palette import label

__all__ = ["SCALARS", "EachStep", "Logger", "StepScalars", "scalars"]

Logger = Callable[[dict[str, int], int], object]
"""Takes scalars and the number of the step that they are of."""

SCALARS: dict[str, str] = {
    "memory/peak_bytes": "most that was allocated within the step",
    "memory/end_bytes": "allocated when the step ended",
    "memory/run_peak_bytes": "most that was allocated since recording began",
    "memory/reserved_bytes": "taken from the device at the step's peak (where an allocator does so)",
    **{
        f"memory/{category.value}_bytes": f"{label(category)} at the step's peak"
        for category in Category
    },
}
"""Every scalar: whole bytes. Those of categories sum to `memory/peak_bytes`.

What a loader has made in advance is `unknown` as long as the forward that it is for has not begun.
"""


def scalars() -> dict[str, int]:
    """What the last training step that ended in this process took, by the names of `SCALARS`.

    Costs what following costs: a few milliseconds, so rather every ten steps than every one.

    Returns:
        Nothing as long as no step has ended, or where no session records in this process.
    """
    sessions = sys.modules.get("memlens.recording.session")  # not there: there is no session
    session = sessions.current_session() if sessions is not None else None
    found = session.last_step() if session is not None else None
    return {} if found is None else found[1]


class StepScalars:
    """Follows the capture of this process.

    Args:
        folder: the rank's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._follower = RankFollower(folder)

    def read(self) -> tuple[int, dict[str, int]] | None:
        """Number and scalars of the last step that has ended; None: none has.

        Of several devices, the one of which that step needed most.
        """
        self._follower.poll()
        ended = [state for state in self._follower.states if state.step is not None]
        if not ended:
            return None
        state = max(ended, key=lambda each: each.step.peak_bytes if each.step else 0)
        return (state.step.step if state.step else 0), _flat(state)


def _flat(state: DeviceState) -> dict[str, int]:
    step = state.step
    if step is None:
        return {}
    found = {
        "memory/peak_bytes": step.peak_bytes,
        "memory/end_bytes": step.end_bytes,
        "memory/run_peak_bytes": state.peak.allocated_bytes,
    }
    if state.step_reserved_bytes is not None:
        found["memory/reserved_bytes"] = state.step_reserved_bytes
    categories = {f"memory/{name.value}_bytes": size for name, size in step.categories.items()}
    return found | categories


class EachStep:
    """Hands the scalars of steps to a logger of the job's.

    Args:
        logger: what to call.
        every: so many steps lie between two calls.
        complain: says what is wrong with it.
    """

    def __init__(self, logger: Logger, every: int, complain: Callable[[str], None]) -> None:
        self._logger = logger
        self._every = every
        self._complain = complain
        self._broken = False

    def is_due(self, begins: int) -> bool:
        """Whether the step before the one that begins is to be logged."""
        return not self._broken and begins % self._every == 0

    def log(self, step: int, values: dict[str, int]) -> None:
        """Call the logger; one that fails is called no more, and the training goes on."""
        try:
            self._logger(values, step)
        except Exception as error:
            self._broken = True
            self._complain(
                f"the logger failed ({type(error).__name__}: {error}), and is called no more"
            )
