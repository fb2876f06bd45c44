"""The job to compare: how to start it, and by what to know it again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memlens import __version__
from memlens.catalogue.installed import libraries_of, version_of
from memlens.catalogue.variant import Variant

__all__ = ["ComparedJob", "fingerprint"]


@dataclass(frozen=True)
class ComparedJob:
    """One job, started once per variant."""

    words: tuple[str, ...]
    """A script, `-m` and a module, or `--` and a command, with arguments."""
    name: str
    """Names its folder."""
    shown: str
    """What to call it in tables."""
    files: tuple[Path, ...] = ()
    """Results are used again only as long as these are the same."""
    content: str = ""
    """The same, for what is not in a file."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it is started with."""

    processes: int = 0
    """On so many of this machine, started by torchrun; 0: it starts as it stands."""

    @property
    def command(self) -> tuple[str, ...]:
        """What stands behind `memlens run`, on the machine that asks."""
        if not self.processes:
            return self.words
        launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        return ("--", *launcher, "--nproc-per-node", str(self.processes), *self.words)


def fingerprint(
    job: ComparedJob,
    variant: Variant | None,
    options: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> str:
    """What a result depends on, as far as that can be seen: a short text to know it again.

    The job's words and files (not the modules that they import), its folder and processes, the variant,
    the options and variables of the run, and the versions of Python, torch, memlens, DeepSpeed and of
    the optimizer's library.
    """
    extra = variant.row.extra if variant is not None and variant.row is not None else ""
    variables = {**(environment or {}), **job.environment}
    libraries = ("torch", "deepspeed", *libraries_of(extra))
    facts: dict[str, object] = {
        "words": job.words,
        "processes": job.processes,
        "folder": os.getcwd(),
        "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in job.files],
        "content": job.content,
        "variant": variant and variant.name,
        "options": list(options),
        **({"environment": dict(variables)} if variables else {}),
        "python": platform.python_version(),
        "memlens": __version__,
        "libraries": {name: version_of(name) for name in libraries},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
