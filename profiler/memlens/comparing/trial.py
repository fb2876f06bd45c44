"""Running a job under one variant, in a process of its own, and reading what came of it."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.comparing.job import ComparedJob
from memlens.comparing.results import PeakResult, RankResult, Result, Status
from memlens.disk.headers import PARTIAL
from memlens.errors import CaptureError
from memlens.launch.environment import VARIANT, VARIANT_OUT

if TYPE_CHECKING:
    from memlens.capture import Capture, RankCapture

__all__ = ["run_trial"]

POLL_S = 0.1
_OURS = re.compile(r"(?:\[rank\d+\]: *)?memlens\.errors\.(\w+): (.+)")
_ERROR = re.compile(
    r"(?:\[rank\d+\]: *)?"
    r"(?:([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))|\S+: (error))(?:: ?(.*))?$"
)
_CRASHES = (signal.SIGABRT, signal.SIGSEGV)
_CRASHED = re.compile(r"\b(?:SIGABRT|SIGSEGV)\b|return code = -(?:6|11)\b")
"""What launchers say of a process that one of these has ended."""


def run_trial(
    job: ComparedJob,
    name: str,
    stand_in: str | None,
    folder: Path,
    options: Sequence[str],
    tell: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Run a job to its end.

    Args:
        job: what to run.
        name: of the variant.
        stand_in: what takes the place of the job's optimizer, for `parse_variant`; None: nothing,
            the job is compared as it stands.
        folder: new and empty; gets the capture, the job's output, and its notes.
        options: for `memlens run`.
        tell: called with the last line of the job's output, every now and then.
        environment: variables for the job, beside those of this process.
    """
    run = folder / "run"
    words = [sys.executable, "-m", "memlens", "run", "--out", str(run), *options, *job.command]
    variables = {
        **os.environ,
        **(environment or {}),
        **job.environment,
        VARIANT: stand_in or "as-is",
        VARIANT_OUT: str(folder),
    }
    output, errors = folder / "output.txt", folder / "errors.txt"
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=variables,
            start_new_session=True,  # so that all of it can be stopped
        )
        try:
            while process.poll() is None:
                tell(_last_line(output))
                time.sleep(POLL_S)
        except BaseException:
            _stop(process)
            raise
    return _result(name, stand_in, folder, run, process.returncode)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 400))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-1].strip() if lines else ""


def _result(name: str, stand_in: str | None, folder: Path, run: Path, code: int) -> Result:
    from memlens.capture import load
    from memlens.variants.witness import read_witnesses

    witnesses = read_witnesses(folder)
    replaced = tuple(dict.fromkeys(kind for each in witnesses for kind in each["replaced"]))
    notes = tuple(dict.fromkeys(note for each in witnesses for note in each["notes"]))
    if code and _crashed_at_exit(folder / "errors.txt", run, code):
        notes += ("the job had ended when a process crashed on its way out (a thread of gloo's?)",)
    elif code:
        status, reason = _why(folder / "errors.txt", code)
        hopeless = status is Status.REFUSED and any(each["is_unsharded"] for each in witnesses)
        return Result(
            name, status, reason, run=str(run), replaced=replaced, notes=notes, is_hopeless=hopeless
        )
    if stand_in is not None and not replaced:
        reason = (
            "the job constructs no torch.optim.Optimizer that could be replaced; "
            "compare it as-is, or several callables with memlens.compare"
        )
        return Result(name, Status.REFUSED, reason, run=str(run), is_hopeless=True)
    try:
        capture = load(run)
    except CaptureError as error:
        return Result(name, Status.FAILED, str(error), run=str(run), replaced=replaced)
    if partial := _problems(capture, stopped=True):
        return Result(name, Status.FAILED, partial[0], run=str(run), replaced=replaced, notes=notes)
    if missing := _missing_ranks(capture):
        return Result(name, Status.FAILED, missing, run=str(run), replaced=replaced, notes=notes)
    losses = next((tuple(each["losses"]) for each in witnesses if each["losses"]), ())
    steps, step_time_ns = _steps(capture)
    ranks = _ranks(capture)
    return Result(
        name,
        Status.OK,
        peak=max((each.peak for each in ranks), key=lambda each: each.allocated_bytes),
        reserved_peak_bytes=_reserved_peak_bytes(capture),
        step_time_ns=step_time_ns,
        final_loss=losses[-1] if losses else None,
        losses=losses,
        steps=steps,
        run=str(run),
        replaced=replaced,
        notes=(*notes, *_doubts(capture)),
        ranks=ranks,
    )


def _crashed_at_exit(errors: Path, run: Path, code: int) -> bool:
    """Whether every rank had done all of its work and closed its capture, before a process crashed.

    A thread of gloo's that lets go of a tensor wants the GIL. Python, while it shuts down, ends such a
    thread, and C++ answers that by `abort` (as core dumps show; torch 2.13, Python 3.11).
    """
    from memlens.across.ending import End, how_ended
    from memlens.capture import load

    if -code not in _CRASHES and not _CRASHED.search(errors.read_text("utf-8", "replace")):
        return False
    try:
        capture = load(run)
    except CaptureError:
        return False
    ends = {how_ended(rank.header) for rank in capture.ranks}
    return ends == {End.CLOSED} and not _missing_ranks(capture)


def _ranks(capture: Capture) -> tuple[RankResult, ...]:
    """Every rank's own peak; of one with several devices, the highest."""
    highest: dict[int, RankResult] = {}
    for each in capture.ranks:
        found = RankResult(each.rank, _peak(each), each.reserved_peak_bytes)
        other = highest.setdefault(each.rank, found)
        if found.peak.allocated_bytes > other.peak.allocated_bytes:
            highest[each.rank] = found
    return tuple(highest.values())


def _missing_ranks(capture: Capture) -> str:
    """Why the highest peak is not known: a rank left no capture; empty: all did."""
    there = {each.rank for each in capture.ranks}
    if len(there) >= capture.info.world_size:
        return ""
    return f"of {capture.info.world_size} ranks, {len(there)} left a capture" + "".join(
        f"; {problem}" for problem in capture.problems
    )


def _peak(rank: RankCapture) -> PeakResult:
    peak = rank.peak()
    return PeakResult(
        time_ns=peak.time_ns,
        step=peak.step,
        phase=peak.phase.value,
        module=peak.module,
        allocated_bytes=peak.allocated_bytes,
        reserved_bytes=peak.reserved_bytes,
        categories=peak.categories,
    )


def _reserved_peak_bytes(capture: Capture) -> int | None:
    reserved = [rank.reserved_peak_bytes for rank in capture.ranks]
    return max((each for each in reserved if each is not None), default=None)


def _steps(capture: Capture) -> tuple[int, int | None]:
    """How many steps, and the median time of one: without the first, in which much is made."""
    steps = capture.ranks[0].steps()
    times = [step.end_ns - step.start_ns for step in (steps[1:] or steps)]
    return len(steps), int(statistics.median(times)) if times else None


def _problems(capture: Capture, *, stopped: bool) -> list[str]:
    """What went wrong in recording: what has stopped it, or all else."""
    problems = [problem for rank in capture.ranks for problem in rank.coverage.problems]
    return [each for each in dict.fromkeys(problems) if each.endswith(PARTIAL) is stopped]


def _doubts(capture: Capture) -> list[str]:
    """What to know before believing a peak."""
    lost = sum(rank.coverage.lost_events for rank in capture.ranks)
    more = [f"{lost} allocations were lost: the peak may be higher"] if lost else []
    return _problems(capture, stopped=False) + more


def _why(errors: Path, code: int) -> tuple[Status, str]:
    """The line of its stderr that says why a job ended, and whether it was we who refused."""
    lines = errors.read_text("utf-8", "replace").splitlines()
    for line in lines:
        if match := _OURS.match(line.strip()):
            return Status.REFUSED, match[2]
    found = [match for line in lines if (match := _ERROR.match(line.strip()))]
    # A launcher says at the end that one of its processes failed; why, that one has said before.
    causes = [match for match in found if not (match[1] or "").endswith("ChildFailedError")]
    if found:
        match = (causes or found)[-1]
        kind = (match[1] or match[2]).rpartition(".")[2]
        return Status.FAILED, f"{kind}: {match[3] or ''}".rstrip(": ")
    told = [line.strip() for line in lines if line.strip() and "memlens: recorded" not in line]
    if code < 0:
        ended = f"ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            ended += " (out of memory?)"
        return Status.FAILED, ended
    last = f": {told[-1]}" if told else ""
    return Status.FAILED, f"exit code {code}{last}"
