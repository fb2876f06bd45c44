"""A session: everything that is recorded in one process, from `start` to `stop`."""

from __future__ import annotations

import atexit
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from time import time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from memlens import __version__
from memlens.adapters import Adapters
from memlens.disk.headers import one_line
from memlens.disk.runs import create_run, open_planned
from memlens.disk.upload import Upload
from memlens.disk.writer import open_rank
from memlens.errors import MemlensError, SessionActiveError, UsageError
from memlens.observers.backward import BackwardObserver
from memlens.observers.census import existing_blocks, learn_existing_objects
from memlens.observers.holdings import HoldingObserver
from memlens.observers.inputs import InputObserver
from memlens.observers.job_history import JobHistoryObserver
from memlens.observers.job_profiler import JobProfilerObserver
from memlens.observers.modules import ModuleObserver
from memlens.observers.optimizers import OptimizerObserver
from memlens.observers.out_of_memory import OutOfMemoryObserver
from memlens.observers.parameters import Parameters
from memlens.options import Options
from memlens.recording.heartbeat import Heartbeat
from memlens.recording.identity import (
    find_launch,
    find_rank,
    is_loader_worker,
    is_multiprocessing_child,
    uncaught_error,
)
from memlens.recording.names import Names
from memlens.recording.recorder import Recorder
from memlens.recording.tail import Tail
from memlens.recording.uninterrupted import uninterrupted
from memlens.sources.choose import make_source
from memlens.sources.cuda import CudaSource

if TYPE_CHECKING:
    from memlens.capture import Capture
    from memlens.live.scalars import Logger
    from memlens.recording.last_step import LastStep

__all__ = ["Session", "current_session"]

TAIL_EVENTS = 100_000
MOST_TAIL_ROWS = 400_000
"""What is kept in memory for --oom-only: some 30 MB."""

T = TypeVar("T")
_current: Session | None = None


def current_session() -> Session | None:
    """The session that records in this process, if there is one."""
    return _current


class Session:
    """Records this process. `memlens.profile` makes one; use it as a context manager.

    Args:
        options: what to record.
        run: the run's folder, if another process made it; None makes one from `options`.
        wait: hold everything in memory until the process turns out to train a model.
        model: models to name first; others are found without help.
        optimizer: optimizers to know from the start; others are found without help.
        on_close: called when the capture is complete.
        on_step: called with the number of each training step that begins, but the first.
        logger: called with the scalars of a step that has ended (`memlens.scalars`) and its number.
        log_every: for every so many-th step.

    Raises:
        SessionActiveError: another session records in this process (from `start`).
        OutputExistsError: the output folder is already there (from `start`).
        SourceError: this process can not be recorded (from `start`).
    """

    def __init__(
        self,
        options: Options,
        *,
        run: Path | None = None,
        wait: bool = False,
        model: torch.nn.Module | Iterable[torch.nn.Module] | None = None,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        on_close: Callable[[Session], None] | None = None,
        on_step: Callable[[int], None] | None = None,
        logger: Logger | None = None,
        log_every: int = 10,
    ) -> None:
        self._after_step = on_step
        self._logger, self._log_every = logger, log_every
        self._last_step: LastStep | None = None
        self._on_close = on_close
        self._options = options
        self._run = run
        self._wait = wait
        self._models = _as_list(model, torch.nn.Module)
        self._optimizers = _as_list(optimizer, torch.optim.Optimizer)
        self._undo = ExitStack()
        self._recorder: Recorder | None = None
        self._started = self._stopping = False
        self._error: BaseException | None = None
        self._folder: Path | None = None
        self._upload: Upload | None = None
        self.rank: int | None = None
        """Which rank this process is; None as long as that is not known."""
        self.events = 0
        """How many allocations and frees were recorded, once the session has stopped."""
        self.is_recorded = False
        """There is a capture of this process on disk."""
        self.trains = False
        """It called a module, ran a backward or made an optimizer."""

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> Session:
        """Begin to record."""
        global _current
        if self._options.disabled:
            return self
        if self._started:
            raise SessionActiveError("this session was started before; make a new one")
        if _current is not None:
            raise SessionActiveError(
                "a memlens session is already recording in this process; stop it first "
                "(the job may already run under `memlens run`)"
            )
        names = Names()
        depth = self._options.stack_depth if self._options.stacks else 0
        source = make_source(self._options.device, names, stack_depth=depth)
        tail = None
        if self._options.oom_only:
            if not isinstance(source, CudaSource):
                raise UsageError("--oom-only waits for CUDA to run out, and there is no CUDA here")
            tail = Tail(TAIL_EVENTS, MOST_TAIL_ROWS, source.header)
        recorder = self._recorder = Recorder(source, names, tail)
        self._last_step = None
        recorder.on_fault = self._fall_asleep
        self._source = source
        try:
            self._install(recorder)
        except BaseException as error:
            recorder.active = False
            ours = isinstance(error, MemlensError) or not isinstance(error, Exception)
            if not ours:  # a fault; the job goes on without us
                recorder.complain(
                    f"recording did not start ({type(error).__name__}: {error})",
                    "; the training goes on",
                )
            self._wind_up(recorder)
            self._recorder = None
            if ours:
                raise
            return self
        self._started = True
        if self._recorder is not None:  # else a fault has stopped the session already
            _current = self
            atexit.register(self.stop_at_exit)
        return self

    def _install(self, recorder: Recorder) -> None:
        if self._wait or self._options.oom_only:
            recorder.on_evidence = self._on_evidence
        if self._wait:
            pass
        elif not self._options.starts_late:
            recorder.start_source()  # first of all: where it fails, nothing is on disk yet
        if not self._wait and not self._options.oom_only:
            self._open()
        recorder.active = True
        parameters = self._parameters = Parameters(recorder)
        modules = self._modules = ModuleObserver(recorder, parameters)
        optimizers = self._optimizer_observer = OptimizerObserver(recorder, parameters)
        inputs = InputObserver(recorder, parameters)
        modules.on_root += [inputs.on_root, self._on_root]
        optimizers.on_step.append(self._on_step)
        if self._after_step is not None:
            optimizers.on_step.append(self._after_step)
        if self._logger is not None:
            from memlens.recording.last_step import LastStep

            self._last_step = LastStep(recorder)
            optimizers.on_step.append(self._last_step.handed_to(self._logger, self._log_every))
        backward = BackwardObserver(recorder, parameters)
        backward.on_exit.append(optimizers.after_backward)
        holdings = HoldingObserver(recorder, parameters)
        heartbeat = Heartbeat(recorder)
        self._weights_step = -1
        for observer in (
            parameters,
            modules,
            backward,
            optimizers,
            inputs,
            holdings,
            heartbeat,
        ):
            observer.install(self._undo)
        if not self._source.drains_anywhere:
            JobProfilerObserver(recorder, self._begin_recording).install(self._undo)
        if isinstance(self._source, CudaSource):
            JobHistoryObserver(recorder, self._source).install(self._undo)
            OutOfMemoryObserver(
                recorder,
                self._source,
                open_folder=self._open,
                run=lambda: self._run,
                place=self._place,
                afterwards=self._close_early if self._options.oom_only else None,
            ).install(self._undo, heartbeat)
        self._adapters = Adapters(recorder, self._undo)
        self._adapters.install_new()
        # Before a library has made anything, if that is possible.
        modules.on_new.append(self._adapters.install_new)
        for model in self._models:
            modules.learn_existing(list(model.modules()))
            modules.name(model)
        for optimizer in self._optimizers:
            optimizers.learn(optimizer)
        # From here on they are the job's alone: what it deletes must be gone.
        self._models, self._optimizers = [], []
        learn_existing_objects(modules, optimizers)
        recorder.take_stock()
        self._on_step(0)

    def stop(self) -> None:
        """Stop recording, put torch back as it was and close the capture."""
        recorder = self._recorder
        if recorder is None or self._stopping:
            return
        with uninterrupted():
            self._stop(recorder)

    def stop_at_exit(self) -> None:
        """Stop, as the process ends; and wait until the capture is where it shall be."""
        self._error = self._error or uncaught_error()
        self.stop()
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.wait()

    def _stop(self, recorder: Recorder) -> None:
        global _current
        self._stopping = True
        if not self._options.upload:
            atexit.unregister(self.stop_at_exit)
        try:
            if recorder.active:
                self._modules.name_all()
                recorder.take_stock()
                self._parameters.tag_weights()
                self._parameters.tag_gradients()
        except Exception as error:
            recorder.fail("parameter observer", error)
        recorder.active = False
        self._finish(recorder)
        self._recorder = _current = None

    def _finish(self, recorder: Recorder) -> None:
        self.trains = recorder.trains
        self._wind_up(recorder)
        self.events = recorder.events
        if self._options.upload and self._folder is not None:
            try:
                self._upload = Upload(self._folder, self._options.upload)
            except OSError as error:
                recorder.complain(f"{self._folder} can not be copied ({error})")
        if self._on_close is not None:
            self._on_close(self)

    def _wind_up(self, recorder: Recorder) -> None:
        for finish in (
            recorder.stop_source,
            self._undo.close,
            self._note_rank,
            self._note_error,
            recorder.close,
        ):
            try:
                finish()
            except Exception as error:
                recorder.complain(f"closing failed ({type(error).__name__}: {error})")

    def __enter__(self) -> Session:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._error = error
        self.stop()

    @property
    def run(self) -> Path | None:
        """The run's folder; None when recording is switched off by MEMLENS_DISABLE."""
        return self._run

    @property
    def url(self) -> str | None:
        """Where the run is copied to; None: nowhere."""
        return self._options.upload

    @property
    def capture(self) -> Capture:
        """What was recorded, once the session has stopped.

        Raises:
            UsageError: the session still records, never did, or is switched off.
        """
        if self._recorder is not None:
            raise UsageError("the session still records; leave the `with` block, or call stop()")
        if not self._started or self._run is None:
            raise UsageError(
                "nothing was recorded: MEMLENS_DISABLE is set, or start() was not called or failed"
            )
        from memlens.capture import load

        return load(self._run)

    def last_step(self) -> tuple[int, dict[str, int]] | None:
        """Number and scalars (`memlens.scalars`) of the last training step that has ended.

        Returns:
            None: no step has, nothing is on disk, or it can not be read; the job must not suffer from it.
        """
        recorder = self._recorder
        if recorder is None:
            return None
        if self._last_step is None:
            from memlens.recording.last_step import LastStep

            self._last_step = LastStep(recorder)
        return self._last_step.read()

    # -- events --------------------------------------------------------------------------------

    def _on_root(self, module: torch.nn.Module) -> None:
        step = self._optimizer_observer.step
        if step != self._weights_step:
            self._weights_step = step
            self._adapters.install_new()
            self._parameters.tag_weights()
            self._note_rank()
            self._adapters.note_sharding()
        if self._recorder is not None:
            self._recorder.take_stock()

    def _on_step(self, step: int) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        self._modules.forget_calls()
        first, last = self._options.first_step, self._options.last_step
        if last is not None and step >= last:
            recorder.stop_source()
        elif step == first:
            self._begin_recording()

    def _begin_recording(self) -> None:
        """Let the source record, and account for everything that is there already."""
        recorder = self._recorder
        if recorder is None or not recorder.active:
            return
        recorder.start_source()
        recorder.take_stock()
        known = [tensor for _, tensor in self._parameters.alive()]
        known += self._optimizer_observer.state_tensors()
        recorder.add_census(existing_blocks(self._source, known))
        self._optimizer_observer.retag()  # first: it may know of more parameters
        self._parameters.retag()

    def _fall_asleep(self) -> None:
        """Record no more. Hooks stay until `stop`: torch may be in a loop over them right now."""
        recorder = self._recorder
        if recorder is None:
            return
        recorder.active = False
        # Inside the autograd engine not every source can be stopped; then it waits for stop().
        if recorder.can_drain:
            recorder.stop_source()

    def _on_evidence(self, certain: bool) -> None:
        if is_loader_worker():  # it calls modules, or makes them, and is no rank
            self._fall_asleep()
        elif not self._options.oom_only and (certain or not is_multiprocessing_child()):
            self._open()

    # -- disk ----------------------------------------------------------------------------------

    def _place(self) -> tuple[int | None, int, int]:
        """Rank, world size and training step."""
        rank, world_size = find_rank()
        return rank, world_size, self._optimizer_observer.step

    def _open(self) -> None:
        recorder = self._recorder
        if recorder is None or recorder.is_open:
            return
        if self._run is None:
            self._run = create_run(self._options, command=tuple(sys.argv))
        elif self._options.oom_only:
            open_planned(self._run, command=tuple(sys.argv))
        self.rank, world_size = find_rank()
        launch, restart = find_launch()
        header: dict[str, object] = {
            "rank": self.rank,
            "world_size": world_size,
            "launch": launch,
            "restart": restart,
            "source": self._source.name,
            "devices": list(self._source.devices),
            **self._source.header(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_ns": time_ns(),
            "trains": recorder.trains,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "memlens": __version__,
            "threads": torch.get_num_threads(),
            "stacks": self._options.stacks,
            "stack_depth": self._options.stack_depth,
            "first_step": self._options.first_step,
            "last_step": self._options.last_step,
            "problems": recorder.problems,
            "notes": self._source.notes,
        }
        writer = open_rank(self._run, self.rank, header)
        self._folder = writer.folder
        recorder.open(writer)
        self.is_recorded = True

    def _close_early(self) -> None:
        """With --oom-only, what led to the first failure is all that is written."""
        recorder = self._recorder
        if recorder is not None:
            recorder.active = False
            recorder.stop_source()
            recorder.close()

    def _note_rank(self) -> None:
        recorder = self._recorder
        if recorder is None or not recorder.is_open:
            return
        rank, world_size = find_rank()
        if rank is not None and rank != self.rank:
            self.rank = rank
            recorder.update_header(rank=rank, world_size=world_size)

    def _note_error(self) -> None:
        recorder = self._recorder
        if recorder is not None and recorder.is_open and self._error is not None:
            recorder.update_header(error=one_line(self._error).strip())

    def abandon(self) -> None:
        """Forget the session, in a forked child that is not the process it began in."""
        global _current
        _current = None
        recorder, self._recorder = self._recorder, None
        atexit.unregister(self.stop_at_exit)
        if recorder is not None:
            was_recording = recorder.recording
            recorder.abandon()
            if was_recording:
                self._source.abandon()
            self._undo.close()


def _as_list(value: Any, kind: type[T]) -> list[T]:
    if value is None:
        return []
    items = [value] if isinstance(value, kind) else list(value)
    if not all(isinstance(item, kind) for item in items):
        raise UsageError(f"expected a {kind.__name__} or several, got {value!r:.80}")
    return items


def _after_fork_in_child() -> None:
    session = _current
    if session is not None:
        session.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
