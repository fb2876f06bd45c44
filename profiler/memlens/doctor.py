"""What this machine and environment can record and show, and how to get what is missing.

Works where things are broken: it needs nothing but the standard library, and a package that cannot
be imported becomes a line of the answer.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path

from memlens import __version__
from memlens.report.text import count
from memlens.units import format_bytes

__all__ = ["Check", "Status", "can_record_cpu", "examine", "in_range"]

LOW_SPACE_BYTES = 1 << 30
PROBE_TIMEOUT_S = 30


class Status(str, Enum):
    """What a check found."""

    OK = "ok"
    """Works."""
    MISSING = "missing"
    """A package is not installed, or cannot be imported."""
    PROBLEM = "problem"
    """There, but set up in a way that does not work."""
    UNSUPPORTED = "not supported"
    """memlens cannot do this here."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    group: str
    """Heading to show it under."""
    name: str
    status: Status
    detail: str
    fix: str = ""
    """The command that puts it right; empty when there is none or none is needed."""
    required: bool = False
    """Without it, nothing can be recorded on the CPU."""


def examine() -> list[Check]:
    """Look at everything."""
    torch = _torch()
    return [
        Check("recording", "Python", Status.OK, platform.python_version()),
        Check("recording", "memlens", Status.OK, __version__),
        torch,
        *(_torch_features() if torch.status is not Status.MISSING else []),
        _package("recording", "pyarrow", "writes and reads captures", required=True),
        _package("recording", "numpy", "reads captures", required=True),
        _child_processes(),
        _environment(),
        _output(),
        _package("showing", "rich", "prints reports"),
        _package(
            "showing", "tensorboard", "memlens export --to tensorboard", together_with="matplotlib"
        ),
        _package(
            "showing", "matplotlib", "memlens export --to svg and png", together_with="tensorboard"
        ),
        *(_library(name) for name in ("transformers", "accelerate", "deepspeed")),
    ]


def can_record_cpu(checks: list[Check]) -> bool:
    """Whether everything that recording on the CPU needs is in order."""
    return all(check.status is Status.OK for check in checks if check.required)


def in_range(version: str, specifier: str) -> bool:
    """Whether a version satisfies bounds such as `>=2.9,<2.16`.

    Only `>=` and `<` on numbers, which is what our own bounds use: `packaging` is not always there.
    """
    numbers = _numbers(version)
    for operator, bound in re.findall(r"(>=|<)\s*([\d.]+)", specifier):
        if (numbers >= _numbers(bound)) != (operator == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _torch() -> Check:
    try:
        import torch
    except Exception as error:
        return Check(
            "recording",
            "torch",
            Status.MISSING,
            _why(error),
            _pip("torch"),
            required=True,
        )
    bounds = _torch_bounds()
    detail = torch.__version__ + (f" (supported: {bounds})" if bounds else "")
    if in_range(torch.__version__, bounds):
        return Check("recording", "torch", Status.OK, detail, required=True)
    # Not a reason to refuse: what matters is whether the features below are there.
    return Check(
        "recording",
        "torch",
        Status.PROBLEM,
        f"{detail}; not tested with this version",
        _pip(f"torch{bounds}"),
    )


def _torch_bounds() -> str:
    """The versions that our package metadata asks for; empty when we are not installed."""
    try:
        requirements = metadata.requires("memlens") or []
    except metadata.PackageNotFoundError:
        return ""
    for requirement in requirements:
        if match := re.fullmatch(r"torch\s*([<>=][^;]*)", requirement.strip()):
            return ",".join(sorted(match[1].replace(" ", "").split(","), reverse=True))
    return ""


def _torch_features() -> list[Check]:
    return [_cpu(), _stacks(), _cuda(), _plans()]


def _cpu() -> Check:
    try:
        from memlens.sources import cpu

        problems = cpu.check()
    except Exception as error:
        problems = [_why(error)]
    if problems:
        return Check(
            "recording", "CPU memory", Status.UNSUPPORTED, "; ".join(problems), required=True
        )
    return Check("recording", "CPU memory", Status.OK, "every allocation", required=True)


def _stacks() -> Check:
    """Stacks and other threads need the allocator hook, which needs a C++ compiler once."""
    name = "Python stacks"
    try:
        from memlens.sources.cpu import hook_problem

        problem = hook_problem()
    except Exception as error:
        problem = _why(error)
    if problem is None:
        return Check("recording", name, Status.OK, "of every allocation; all threads of the job")
    fix = "apt install g++" if "compiler" in problem else ""
    detail = f"only the training thread, without stacks: {problem.partition(';')[0]}"
    return Check("recording", name, Status.PROBLEM, detail, fix)


def _cuda() -> Check:
    name = "CUDA memory"
    try:
        import torch

        from memlens.sources.choose import cuda_problem
        from memlens.torch_private import AllocatorHistory

        problem = cuda_problem()
        if problem is not None:
            return Check("recording", name, Status.UNSUPPORTED, _accelerators(problem))
        kinds = sorted(
            {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        )
        found = f"{count(torch.cuda.device_count(), 'device')} ({', '.join(kinds)})"
        if torch.version.hip:
            found += "; ROCm: the same calls, never tried"
        if not AllocatorHistory.can_annotate():
            found += "; blocks are placed by time alone (torch 2.10 and newer can do better)"
        if not AllocatorHistory.tells_out_of_memory():
            found += "; this torch does not tell when memory runs out, so nothing explains it"
    except Exception as error:
        return Check("recording", name, Status.UNSUPPORTED, _why(error))
    return Check("recording", name, Status.OK, found)


def _plans() -> Check:
    name = "memlens plan"
    try:
        from memlens.torch_private import missing_simulation_features

        missing = missing_simulation_features()
    except Exception as error:
        return Check("recording", name, Status.PROBLEM, _why(error))
    if missing:
        return Check("recording", name, Status.PROBLEM, f"this torch lacks {', '.join(missing)}")
    return Check("recording", name, Status.OK, "simulates CUDA; no GPU is needed")


def _accelerators(problem: str) -> str:
    """What is true of other devices that this machine may have."""
    import torch

    xpu = getattr(torch, "xpu", None)
    if xpu is not None and xpu.is_available():
        return (
            "Intel's GPUs are not recorded; `memlens import` reads what "
            "torch.xpu.memory._dump_snapshot() writes"
        )
    if torch.backends.mps.is_available():
        return "torch keeps no history of Apple's GPUs"
    return problem


def _child_processes() -> Check:
    """Whether a Python that `memlens run` starts finds memlens, also below a launcher."""
    from memlens.launch.environment import job_environment
    from memlens.options import Options

    probe = "import sys; print('memlens.launch.bootstrap' in sys.modules)"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", probe],
            env=job_environment(Path(os.devnull), Options(), main=False),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check("recording", "memlens run", Status.PROBLEM, _why(error))
    if answer.stdout.strip() == "True":
        return Check("recording", "memlens run", Status.OK, "reaches the processes of a job")
    said = " ".join(answer.stderr.split())[-200:]
    return Check(
        "recording",
        "memlens run",
        Status.PROBLEM,
        f"a Python process does not load memlens at its start{': ' if said else ''}{said}",
    )


def _environment() -> Check:
    from memlens.errors import MemlensError
    from memlens.options import Options

    given = sorted(name for name in os.environ if name.startswith("MEMLENS_"))
    try:
        options = Options.from_environment()
    except MemlensError as error:
        return Check(
            "recording",
            "environment",
            Status.PROBLEM,
            str(error),
            f"unset {' '.join(given)}",
            required=True,
        )
    if options.disabled:
        return Check(
            "recording",
            "environment",
            Status.PROBLEM,
            "MEMLENS_DISABLE is set, so nothing is recorded",
            "unset MEMLENS_DISABLE",
            required=True,
        )
    detail = ", ".join(given) if given else "no MEMLENS_ variable is set"
    return Check("recording", "environment", Status.OK, detail, required=True)


def _output() -> Check:
    folder = Path(os.environ.get("MEMLENS_OUT") or "memlens-runs").absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(
            "recording",
            "output folder",
            Status.PROBLEM,
            f"{there} is not a folder that can be written",
            "export MEMLENS_OUT=FOLDER, or memlens run --out FOLDER",
            required=True,
        )
    free = shutil.disk_usage(there).free
    detail = f"{folder}, {format_bytes(free)} free"
    if free < LOW_SPACE_BYTES:
        detail += " (little: a long job writes about 20 bytes per allocation)"
    return Check("recording", "output folder", Status.OK, detail, required=True)


def _package(
    group: str, name: str, purpose: str, *, required: bool = False, together_with: str = ""
) -> Check:
    version = _version(name)
    if version:
        return Check(group, name, Status.OK, f"{version}, {purpose}", required=required)
    fix = _pip(name, *([together_with] if together_with and not _version(together_with) else []))
    return Check(group, name, Status.MISSING, purpose, fix, required=required)


def _library(name: str) -> Check:
    version = _version(name)
    if version:
        return Check("libraries of jobs", name, Status.OK, version)
    return Check("libraries of jobs", name, Status.MISSING, "only for jobs that use it", _pip(name))


def _version(name: str) -> str:
    """Version of an installed package, without importing it; empty when it is not installed.

    Asked of the package metadata: a folder of this name in the working directory could be imported
    and would pass for the library.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _pip(*packages: str) -> str:
    python = shlex.quote(sys.executable or "python")
    return f"{python} -m pip install {' '.join(map(shlex.quote, packages))}"


def _why(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    return " ".join(f"{type(error).__name__}: {error}".split())
