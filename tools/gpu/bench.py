"""Runs the jobs of tools/gpu_check.py as child processes, within the time that is left."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "FAIL",
    "MEASURED",
    "MEMLENS",
    "MISSING",
    "PASS",
    "ROOT",
    "SKIPPED",
    "Bench",
    "Found",
    "Stopped",
    "Verdict",
]

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "tools" / "gpu_job.py"
MEMLENS = (sys.executable, "-m", "memlens")

Found = dict[str, Any]
PASS, FAIL, SKIPPED, MISSING = "pass", "FAIL", "skipped", "not installed"
MEASURED = "measured"
"""There is no target to hold it against."""


@dataclass(frozen=True)
class Verdict:
    """What a check has found."""

    state: str
    figures: tuple[str, ...]
    log: str = ""


class Stopped(Exception):
    """A check can not go on; carries its verdict."""

    def __init__(self, state: str, text: str, log: str = "") -> None:
        super().__init__(text)
        self.verdict = Verdict(state, (text,), log)


class Bench:
    """Runs jobs as child processes, within the time that is left.

    Args:
        device: "cuda" or "cpu".
        quick: shorter jobs, and fewer.
        minutes: for everything.
        folder: where captures and results go.
    """

    def __init__(self, device: str, *, quick: bool, minutes: float, folder: Path) -> None:
        self.device = device
        self.quick = quick
        self.began = time.monotonic()
        self._deadline = self.began + 60 * minutes
        self._folder = folder
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self.trainings: dict[str, Found] = {}

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def left_s(self) -> float:
        return self._deadline - time.monotonic()

    def place(self, name: str) -> Path:
        """A path that is nobody else's."""
        with self._lock:
            return self._folder / f"{next(self._numbers):03}-{name}"

    def job(
        self,
        *words: str,
        before: Sequence[str] = (sys.executable,),
        environment: Mapping[str, str] | None = None,
        limit_s: float = 150,
    ) -> Found:
        """Run a job of gpu_job.py.

        Raises:
            Stopped: it came to no result.
        """
        result = self.place("-".join(words[:2]).replace("/", "-")).with_suffix(".json")
        command = [*before, str(JOB), *words, "--device", self.device, "--result", str(result)]
        log = self.run(command, environment=environment, limit_s=limit_s)
        if not result.exists():
            raise Stopped(FAIL, "the job left no result", log)
        found: Found = json.loads(result.read_text())
        if "missing" in found:
            raise Stopped(MISSING, f"{found['missing']} is not installed")
        return found

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        limit_s: float = 150,
    ) -> str:
        """Run a command to its end; returns what it printed.

        Raises:
            Stopped: it failed, or took too long.
        """
        limit = min(limit_s, self.left_s)
        process = subprocess.Popen(
            command,
            env=self._environment(environment or {}),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its own children end with it
        )
        self._running.add(process.pid)
        try:
            output, _ = process.communicate(timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if limit < limit_s:
                raise Stopped(SKIPPED, "the time was over before it was done", output) from None
            raise Stopped(FAIL, f"not done after {limit_s:.0f} s", output) from None
        finally:
            self._running.discard(process.pid)
        if process.returncode:
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            last = lines[-1] if lines else "no output"
            raise Stopped(FAIL, f"exit code {process.returncode}: {last[:300]}", output)
        return output

    def end(self) -> None:
        """Begin no more jobs, and end those that run."""
        self._deadline = time.monotonic()
        for pid in list(self._running):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MEMLENS_", "PYTORCH_"))
        }
        paths = [str(ROOT / "profiler"), str(ROOT / "integrations"), kept.get("PYTHONPATH", "")]
        kept["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        kept["HF_HUB_OFFLINE"] = "1"
        kept["KINETO_LOG_LEVEL"] = "99"
        if self.is_cuda:
            kept.setdefault("CUDA_VISIBLE_DEVICES", "0")
        else:
            kept["CUDA_VISIBLE_DEVICES"] = ""
            kept.setdefault("OMP_NUM_THREADS", "1")
        return {**kept, **extra}

    def together(self, *jobs: Callable[[], Found]) -> list[Found]:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return [future.result() for future in [pool.submit(job) for job in jobs]]

    def training(self, name: str, settings: str = "") -> Found:
        """Findings of one training under memlens; of each there is one."""
        key = f"{name} {settings}"
        if key not in self.trainings:
            allocator = {"PYTORCH_CUDA_ALLOC_CONF": settings} if settings else {}
            out, steps = str(self.place("run")), str(3 if self.quick else 8)
            words = ("train", name, "--out", out, "--steps", steps)
            self.trainings[key] = self.job(*words, environment=allocator)
        return self.trainings[key]
