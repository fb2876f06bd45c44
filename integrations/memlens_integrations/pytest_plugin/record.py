"""Records a piece of a test, and measures it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memlens.capture import Capture
from memlens.errors import MemlensError
from memlens.options import Options, is_disabled
from memlens.recording.session import Session
from memlens_integrations.pytest_plugin.held import held_addresses
from memlens_integrations.pytest_plugin.measure import Measurement

__all__ = ["Recording"]


class Recording:
    """Records from `start` to `stop`.

    Args:
        folder: gets the capture; must not exist.
        device: what to record; see `Options.device`.
        root: to which files are shown relative.
    """

    def __init__(self, folder: Path, device: str, root: Path) -> None:
        options = Options(out=folder, device=device, disabled=is_disabled(os.environ))
        self._session = Session(options)
        self._all_counts = device == "simulated"
        self._held: set[int] = set()
        self._root = root

    def start(self, roots: Iterable[Any]) -> None:
        """Begin.

        Args:
            roots: from which what is there already must be reached to count. All of it does in a
                simulation, whose process is the test's own.

        Raises:
            MemlensError: it can not be recorded.
        """
        # What other tests have left as garbage must not go in the middle of this one.
        gc.collect()
        if not self._all_counts:
            self._held = held_addresses(roots)
        self._session.start()
        # The collector counts from zero: cycles of the test's own go at about the same moments each
        # time. (Not always; with threads, imports and the clock, nobody can foresee it.)
        gc.collect(1)

    def stop(self, error: BaseException | None = None) -> None:
        """End.

        Args:
            error: that came out of what was recorded.
        """
        kind, traceback = (type(error), error.__traceback__) if error else (None, None)
        self._session.__exit__(kind, error, traceback)

    @property
    def capture(self) -> Capture:
        """What was recorded, once it has stopped."""
        return self._session.capture

    def measure(self) -> Measurement:
        """The figures, once it has stopped.

        Raises:
            MemlensError: they can not be told.
        """
        held = None if self._all_counts else self._held
        measurement = Measurement(self.capture, held, self._root)
        if measurement.problems:
            raise MemlensError(
                "the recording is not whole, so that nothing can be said of what was needed: "
                + "; ".join(measurement.problems)
            )
        return measurement
