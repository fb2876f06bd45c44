"""Makes way for the job's own torch.profiler: two can not run on one thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from memlens import torch_private
from memlens.recording.recorder import Recorder

__all__ = ["JobProfilerObserver"]


class JobProfilerObserver:
    """Stops the source while a profiler of the job runs; the marks say for how long.

    Args:
        recorder: whose source gives way.
        begin: starts to record again, with a census of what is there by then.
    """

    def __init__(self, recorder: Recorder, begin: Callable[[], None]) -> None:
        self._recorder = recorder
        self._begin = begin
        self._waiting = False

    def install(self, undo: ExitStack) -> None:
        """Wrap the two functions through which `torch.profiler` starts and stops."""
        found = torch_private.job_profiler_owner()
        if found is None:
            return
        owner, prepare, disable = found
        original_prepare, original_disable = getattr(owner, prepare), getattr(owner, disable)
        yield_ = self._recorder.hook("profiler observer", self._yield)
        resume = self._recorder.hook("profiler observer", self._resume)

        def prepare_profiler(*args: Any, **kwargs: Any) -> Any:
            yield_()
            return original_prepare(*args, **kwargs)

        def disable_profiler(*args: Any, **kwargs: Any) -> Any:
            try:
                return original_disable(*args, **kwargs)
            finally:
                resume()

        setattr(owner, prepare, prepare_profiler)
        undo.callback(setattr, owner, prepare, original_prepare)
        setattr(owner, disable, disable_profiler)
        undo.callback(setattr, owner, disable, original_disable)

    def _yield(self) -> None:
        if self._recorder.recording:
            self._waiting = True
            self._recorder.stop_source()
            self._recorder.problem(
                "the job ran its own torch.profiler; nothing was recorded while it did"
            )

    def _resume(self) -> None:
        if self._waiting:
            self._waiting = False
            self._begin()
