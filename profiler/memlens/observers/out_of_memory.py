"""Out of memory: what was there is on disk before the job hears of it, on this rank and the others."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from time import sleep, time_ns
from typing import Any

from memlens.disk.format import RANK_FILE
from memlens.disk.oom import BUNDLE_PATTERN, write_bundle
from memlens.recording.heartbeat import Heartbeat
from memlens.recording.recorder import Recorder
from memlens.sources.cuda import CudaSource

__all__ = ["OutOfMemoryObserver"]

MARKER = "out-of-memory"
"""Name of the file by which a rank tells the others, in the run's folder."""
PATIENCE_S = 2.0
"""How long a rank that has run out waits for the others: its launcher kills them when it ends."""
SAME_NS = 1_000_000_000
"""A library that retries with less within this time is the same event."""


class OutOfMemoryObserver:
    """Writes a bundle when a request fails, here or on another rank.

    Args:
        recorder: whose capture holds everything but the circumstances.
        source: tells of failing requests.
        open_folder: makes the rank's folder, where it is not there yet.
        run: the run's folder, once it is known.
        place: rank, world size and training step, at the moment.
        afterwards: called when a bundle is written.
    """

    def __init__(
        self,
        recorder: Recorder,
        source: CudaSource,
        open_folder: Callable[[], None],
        run: Callable[[], Path | None],
        place: Callable[[], tuple[int | None, int, int]],
        afterwards: Callable[[], None] | None = None,
    ) -> None:
        self._recorder = recorder
        self._source = source
        self._open_folder = open_folder
        self._run = run
        self._place = place
        self._afterwards = afterwards
        self._last: dict[int, tuple[int, int]] = {}
        """Of each thread the time of its last bundle, and what it asked for."""
        self._heard_ns = time_ns()
        self._writing = threading.RLock()
        """Requests of several threads can fail at once, and the heartbeat's writes for other ranks."""

    def install(self, undo: ExitStack, heartbeat: Heartbeat) -> None:
        """Be told of failing requests, and look for other ranks' troubles."""
        self._source.on_out_of_memory = self._failed
        heartbeat.each_beat.append(self._look_for_peers)
        undo.callback(setattr, self._source, "on_out_of_memory", None)

    def _failed(self, device: int, requested: int, limit: int, free: int) -> None:
        try:
            with self._writing:
                run = self._write_own(device, requested, limit, free)
            if run is not None:
                _wait_for_peers(run)
        except Exception as error:
            self._recorder.problem(f"no bundle was written ({type(error).__name__}: {error})")

    def _write_own(self, device: int, requested: int, limit: int, free: int) -> Path | None:
        """Write the bundle; the run's folder, where other ranks have been told to do the same."""
        if not self._recorder.active:
            return None
        thread = threading.get_ident()
        last_ns, asked = self._last.get(thread, (0, 0))
        if time_ns() - last_ns < SAME_NS and requested <= asked:
            return None  # a library tries again with less
        history = self._source.history
        _, total = history.device_memory(device)
        folder = self._write(
            device,
            reason="own",
            requested_bytes=requested,
            stream=history.current_stream(device),
            device_total_bytes=total,
            device_free_bytes=free,
            stack=_stack_of_job(),
            # Torch tells the limit in place of the total where there is one.
            **({"limit_bytes": limit} if limit < total else {}),
        )
        self._last[thread] = (time_ns(), requested)
        self._say(folder)
        rank, world_size, _ = self._place()
        if folder is None or world_size == 1:
            return None
        self._tell_peers(folder.parent, rank)
        return folder.parent

    def _say(self, folder: Path | None) -> None:
        if folder is not None:
            with suppress(OSError, ValueError):  # nobody is listening
                print(
                    f"memlens: out of CUDA memory; what led to it: memlens report {folder.parent}",
                    file=sys.stderr,
                )

    def _write(self, device: int, **circumstances: Any) -> Path | None:
        recorder = self._recorder
        recorder.drain()
        self._open_folder()
        folder = recorder.folder
        if folder is None:
            return None
        facts = self._source.facts(device)
        facts.update(circumstances)
        step = self._place()[2]
        write_bundle(folder, time_ns=time_ns(), step=step, **facts)
        if self._afterwards is not None:
            self._afterwards()
        return folder

    def _tell_peers(self, run: Path, rank: int | None) -> None:
        with suppress(OSError):
            (run / MARKER).write_text(f"{-1 if rank is None else rank}\n")
            self._heard_ns = (run / MARKER).stat().st_mtime_ns

    def _look_for_peers(self) -> None:
        """Called on the heartbeat's thread: this rank may be waiting for the other one, in C++."""
        run = self._run()
        if run is None or not self._recorder.active or self._recorder.is_busy:
            return
        if not self._writing.acquire(blocking=False):
            return  # the next beat looks again
        try:
            self._answer(run / MARKER)
        except Exception as error:
            self._recorder.problem(f"no bundle was written ({type(error).__name__}: {error})")
        finally:
            self._writing.release()

    def _answer(self, marker: Path) -> None:
        try:
            told_ns = marker.stat().st_mtime_ns
        except OSError:
            return
        if told_ns <= self._heard_ns:
            return
        self._heard_ns = told_ns
        peer = int(marker.read_text())
        device = self._source.first_device()
        free, total = self._source.history.device_memory(device)
        self._write(
            device,
            reason="peer",
            peer_rank=peer if peer >= 0 else None,
            requested_bytes=None,
            device_total_bytes=total,
            device_free_bytes=free,
            stack=[],
        )


def _wait_for_peers(run: Path) -> None:
    deadline = time_ns() + int(PATIENCE_S * 1e9)
    while time_ns() < deadline:
        ranks = {path.parent for path in run.glob(f"*/{RANK_FILE}")}
        if ranks <= {path.parent for path in run.glob(f"*/{BUNDLE_PATTERN}")}:
            return
        sleep(0.02)


def _stack_of_job() -> list[list[Any]]:
    """Where the job is: function, file and line, outermost first, without frames of ours."""
    ours = str(Path(__file__).parents[1])
    # Not extract_stack: it would read the files for the text of each line.
    frames = traceback.StackSummary.extract(
        traceback.walk_stack(sys._getframe(1)), lookup_lines=False
    )
    return [
        [frame.name, frame.filename, frame.lineno or 0]
        for frame in reversed(frames)
        if not frame.filename.startswith(ours)
    ]
