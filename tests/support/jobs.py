"""Runs scripts as a user would, with and without memlens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

__all__ = [
    "STEPS",
    "UNTIL_TOLD",
    "clean_environment",
    "ours",
    "run_both",
    "run_memlens",
    "run_plain",
    "start_memlens",
    "theirs",
    "write_script",
]

UNTIL_TOLD = """
import sys, time, torch
model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
optimizer = torch.optim.Adam(model.parameters())
for step in range(10_000):
    model(torch.randn(32, 64)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.05)
    if sys.stdin in __import__("select").select([sys.stdin], [], [], 0)[0]:
        break
"""
"""A job that trains until something comes on its input."""

TIMEOUT_S = 120

STEPS = """
import torch

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
def train(steps):
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = None
        model(torch.randn(8, 64)).sum().backward()
"""
"""The beginning of a script that trains; without an optimizer, whose import takes a second."""


def clean_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job: nothing of memlens' own, and one thread."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MEMLENS_")
    }
    scripts = str(Path(sys.executable).parent)
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{scripts}{os.pathsep}{environment.get('PATH', '')}",
    }
    return environment | dict(changes or {})


def write_script(path: Path, text: str) -> Path:
    """Write a script; `text` may be indented as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def run_plain(
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout: float = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run a command without memlens."""
    return subprocess.run(
        words,
        cwd=cwd,
        env=clean_environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_memlens(
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout: float = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run `memlens WORDS...` to its end."""
    ours = (sys.executable, "-m", "memlens", *words)
    return run_plain(*ours, cwd=cwd, env=env, stdin=stdin, timeout=timeout)


def run_both(
    script: Sequence[str],
    options: Sequence[str] = (),
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """Run `python SCRIPT...` and `memlens run --out run OPTIONS... SCRIPT...` at the same time."""
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(run_plain, sys.executable, *script, cwd=cwd, env=env, stdin=stdin)
        words = ("run", "--out", "run", *options, *script)
        job = pool.submit(run_memlens, *words, cwd=cwd, env=env, stdin=stdin)
        return plain.result(), job.result()


def start_memlens(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `memlens WORDS...`, in a session of its own, so that it can be signalled alone."""
    return subprocess.Popen(
        [sys.executable, "-m", "memlens", *words],
        cwd=cwd,
        env=clean_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ours(stderr: str) -> list[str]:
    """The lines of a job's stderr that memlens wrote."""
    return [line for line in stderr.splitlines() if line.startswith("memlens: ")]


def theirs(stderr: str) -> list[str]:
    """All other lines; without the functions of ours through which the job calls torch's."""
    lines: list[str] = []
    within = False
    for line in stderr.splitlines():
        if line.startswith('  File "'):
            within = "/memlens/observers/" in line
        elif not line.startswith("    "):
            within = False
        if not within and not line.startswith("memlens: "):
            lines.append(line)
    return lines
