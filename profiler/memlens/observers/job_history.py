"""Makes way for a job that records the allocator's history itself: it must find what it expects."""

from __future__ import annotations

from contextlib import ExitStack
from functools import wraps
from typing import Any

from memlens import torch_private
from memlens.recording.recorder import Recorder
from memlens.sources.cuda import CudaSource

__all__ = ["JobHistoryObserver"]


class JobHistoryObserver:
    """Takes what there is before the job changes the recording, and shares it from there on.

    Args:
        recorder: whose source reads the history.
        source: that source.
    """

    def __init__(self, recorder: Recorder, source: CudaSource) -> None:
        self._recorder = recorder
        self._source = source

    def install(self, undo: ExitStack) -> None:
        """Wrap the function by which a job records, ends, or empties the history."""
        owner, name = torch_private.job_history_owner()
        original = getattr(owner, name)
        before = self._recorder.hook("history observer", self._recorder.drain)
        after = self._recorder.hook("history observer", self._source.adopt)

        @wraps(original)
        def record(*args: Any, **kwargs: Any) -> Any:
            if args[:1] == ("state",) or kwargs.get("enabled") == "state":
                # The job wants stacks of what is alive; "all" gives that, and to us the events.
                args, kwargs = args[1:], {**kwargs, "enabled": "all"}
            before()
            try:
                return original(*args, **kwargs)
            finally:
                after()

        setattr(owner, name, record)
        undo.callback(setattr, owner, name, original)
