"""What to record: one frozen record, made from arguments or from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from memlens.errors import UsageError

__all__ = ["DEFAULT_STACK_DEPTH", "Options", "is_disabled", "is_url", "parse_steps"]

DEFAULT_STACK_DEPTH = 32
DEVICES = ("auto", "cpu", "cuda", "simulated")
_WAY_OUT = {
    "cuda": "all CUDA devices that a process uses are recorded: 'cuda', without a number",
    "hip": "AMD's GPUs are 'cuda' in torch's ROCm build",
    "rocm": "AMD's GPUs are 'cuda' in torch's ROCm build",
    "xpu": "`memlens import` reads what torch.xpu.memory._dump_snapshot() writes",
    "mps": "torch keeps no history of Apple's GPUs",
}
"""What to do about devices that somebody may well ask for."""
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", "none"}


@dataclass(frozen=True)
class Options:
    """What one session records."""

    out: Path | None = None
    """The run's folder; None chooses `memlens-runs/<time>-<name>`."""
    upload: str | None = None
    """Where each rank's folder is copied to when it closes: a URL that fsspec reaches."""
    join: bool = False
    """The run may be there already: other hosts start the same job."""
    name: str | None = None
    """Ends the name of the folder that is chosen; None takes the script's."""
    first_step: int = 0
    """Record from this training step on; 0 records from the very start, model creation included."""
    last_step: int | None = None
    """Record up to this step, which is not recorded any more; None records to the end."""
    stacks: bool = True
    """Record the Python stack of each allocation."""
    stack_depth: int = DEFAULT_STACK_DEPTH
    """Innermost Python frames kept per allocation."""
    device: str = "auto"
    """Kind of device whose allocator is recorded: `cpu`, `cuda`, or `auto`, CUDA where there is one.
    `memlens plan` takes `simulated`."""
    oom_only: bool = False
    """Write nothing to disk unless a request for CUDA memory fails."""
    disabled: bool = False
    """Record nothing at all."""

    def __post_init__(self) -> None:
        """Refuse what can not be recorded."""
        if self.device not in DEVICES:
            way_out = _WAY_OUT.get(self.device.partition(":")[0].lower(), "")
            raise UsageError(
                f"device {self.device!r} can not be recorded, only {', '.join(DEVICES[:3])}"
                + (f"; {way_out}" if way_out else "")
            )
        if self.stack_depth < 1:
            raise UsageError(f"stack depth must be 1 or more, not {self.stack_depth}")
        if self.oom_only and self.device == "cpu":
            raise UsageError(
                "--oom-only waits for CUDA to run out of memory, so it goes with --device cuda or auto"
            )

    def with_out(self, out: str | os.PathLike[str]) -> Options:
        """Options with another place for the run: a folder, or a URL to which it is copied."""
        if is_url(out):
            return replace(self, out=None, upload=str(out))
        return replace(self, out=Path(out), upload=None)

    @property
    def starts_late(self) -> bool:
        """Recording begins only after some steps."""
        return self.first_step > 0

    def to_environment(self) -> dict[str, str]:
        """The variables from which `from_environment` makes these options again."""
        last = "" if self.last_step is None else str(self.last_step)
        return {
            "MEMLENS_STEPS": f"{self.first_step}:{last}",
            "MEMLENS_STACKS": "1" if self.stacks else "0",
            "MEMLENS_STACK_DEPTH": str(self.stack_depth),
            "MEMLENS_DEVICE": self.device,
            "MEMLENS_OOM_ONLY": "1" if self.oom_only else "0",
            **({"MEMLENS_UPLOAD": self.upload} if self.upload else {}),
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Options:
        """Read the MEMLENS_ variables (see `memlens run --help`).

        Raises:
            UsageError: one of them is not valid.
        """
        first, last = parse_steps(environment.get("MEMLENS_STEPS") or "0:")
        depth = environment.get("MEMLENS_STACK_DEPTH") or str(DEFAULT_STACK_DEPTH)
        if not depth.isdecimal():
            raise UsageError(f"MEMLENS_STACK_DEPTH must be a number of frames, not {depth!r}")
        flags = {}
        for name, default in (("MEMLENS_STACKS", "1"), ("MEMLENS_OOM_ONLY", "0")):
            text = (environment.get(name) or default).lower()
            if text not in _TRUE | _FALSE:
                raise UsageError(f"{name} must be 1 or 0, not {text!r}")
            flags[name] = text in _TRUE
        options = cls(
            upload=environment.get("MEMLENS_UPLOAD") or None,
            first_step=first,
            last_step=last,
            stacks=flags["MEMLENS_STACKS"],
            oom_only=flags["MEMLENS_OOM_ONLY"],
            stack_depth=int(depth),
            device=environment.get("MEMLENS_DEVICE") or "auto",
            disabled=is_disabled(environment),
        )
        if options.upload is None and (out := environment.get("MEMLENS_OUT")):
            options = options.with_out(out)
        return options


def is_url(out: str | os.PathLike[str]) -> bool:
    """Whether a place is one that fsspec reaches (`s3://bucket/run`), and not a folder."""
    return isinstance(out, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", out) is not None


def is_disabled(environment: Mapping[str, str]) -> bool:
    """Whether memlens is switched off as a whole."""
    return environment.get("MEMLENS_DISABLE", "").strip().lower() in _TRUE


def parse_steps(text: str) -> tuple[int, int | None]:
    """Read `"3:8"` (steps 3 to 7), `"3:"`, `":8"` or `"5"` (step 5 alone).

    Raises:
        UsageError: it is none of these, or an empty range.
    """
    match = re.fullmatch(r"\s*(\d*)\s*(:?)\s*(\d*)\s*", text)
    if match is None or not (match[1] or match[2]) or (match[3] and not match[2]):
        raise UsageError(f"steps must look like 3:8, 3:, :8 or 5, not {text!r}")
    first = int(match[1] or 0)
    last = int(match[3]) if match[3] else None if match[2] else first + 1
    if last is not None and last <= first:
        raise UsageError(f"no step lies in {text!r}: the second number must be the larger one")
    return first, last
