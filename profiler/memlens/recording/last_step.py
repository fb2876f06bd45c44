"""What the last training step took, asked in the process that records it."""

from __future__ import annotations

from collections.abc import Callable

from memlens.live.scalars import EachStep, Logger, StepScalars
from memlens.recording.recorder import Recorder

__all__ = ["LastStep"]


class LastStep:
    """Follows what a recorder writes.

    Args:
        recorder: of this process.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._scalars: StepScalars | None = None

    def read(self) -> tuple[int, dict[str, int]] | None:
        """Number and scalars of the last step that has ended.

        Returns:
            None: no step has, nothing is on disk, or it can not be read; the job must not suffer from it.
        """
        recorder = self._recorder
        if recorder.folder is None or recorder.is_busy:
            return None
        try:
            if recorder.recording and recorder.can_drain and recorder.is_ours():
                recorder.drain()
            if self._scalars is None:
                self._scalars = StepScalars(recorder.folder)
            return self._scalars.read()
        except Exception as error:
            recorder.complain(f"there are no scalars ({type(error).__name__}: {error})")
            return None

    def handed_to(self, logger: Logger, every: int) -> Callable[[int], None]:
        """What to call with the number of each step that begins, so that a logger is given every so many.

        Args:
            logger: called with scalars and the number of their step.
            every: so many steps lie between two calls.
        """
        each = EachStep(logger, every, self._recorder.complain)

        def log(begins: int) -> None:
            found = self.read() if each.is_due(begins) else None
            if found is not None and found[0] == begins - 1:  # else that one was not recorded
                each.log(*found)

        return log
