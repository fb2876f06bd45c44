"""What the stack of an allocation says of it."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

__all__ = ["Evidence", "StackReader", "is_python", "job_frame"]

Frames = list[dict[str, Any]]


class Evidence(Enum):
    """Who asked for a block."""

    OPTIMIZER = "optimizer"
    BACKWARD = "backward"
    RECOMPUTE = "recompute"
    FORWARD = "forward"
    MAKING = "making"
    """Modules being made, moved or loaded."""
    LOADING = "loading"
    """A batch being made or moved."""
    COMMUNICATION = "communication"
    WORKSPACE = "workspace"
    JOB = "job"
    """Code of the job, outside of all of these."""
    NOTHING = "nothing"
    """There is no stack, and there are others without one only by chance."""


_WORKSPACE = re.compile(
    r"getNewWorkspace|[cC]ublas\w*Workspace|getCurrentCUDABlasHandle|WorkspaceAlloc"
)
_ENGINE = re.compile(
    r"torch::autograd::(Engine|python::PythonEngine|generated::|AccumulateGrad|Node)"
)
_OPTIMIZER_FILE = re.compile(
    r"optim(izers?)?(/|_|\.py)|/optim|bitsandbytes|galore|apex|adam|muon|lion", re.I
)
_STEP = re.compile(
    r"^(step|_?update|_init_group|_(single|multi|fused)_tensor\w*|_foreach\w*|adamw?|sgd)$"
)
_MAKING = {
    "__init__", "reset_parameters", "_apply", "from_pretrained", "load_state_dict", "_init_weights",
    "init_weights", "to_empty", "materialize", "register_parameter",
}  # fmt: skip
_LOADING = re.compile(
    r"dataloader\.py|collate\.py|pin_memory\.py|/datasets?/|get_batch|data_?load", re.I
)
_COMMUNICATION = re.compile(r"torch/distributed/|/deepspeed/|nccl|c10d", re.I)
_CALLS = ("_call_impl", "_wrapped_call_impl", "__call__")


def is_python(frame: dict[str, Any]) -> bool:
    """Whether a frame is of Python; others are C++."""
    filename: str = frame["filename"]
    return filename.endswith(".py") or filename.startswith("<")


def job_frame(frames: Frames) -> dict[str, Any] | None:
    """The innermost frame that is not of a library."""
    for frame in frames:
        if (
            is_python(frame)
            and "site-packages" not in frame["filename"]
            and ("/torch/" not in frame["filename"] and "dist-packages" not in frame["filename"])
        ):
            return frame
    return None


class StackReader:
    """Reads stacks, each once: a snapshot has few, and many blocks of each.

    Args:
        has_python: the snapshot has Python's frames, so that a stack without any is of a thread of the
            autograd engine.
    """

    def __init__(self, *, has_python: bool) -> None:
        self._has_python = has_python
        self._known: dict[tuple[int, ...], Evidence] = {}

    def read(self, frames: Frames) -> Evidence:
        """Say who asked."""
        key = tuple(map(id, frames))
        evidence = self._known.get(key)
        if evidence is None:
            evidence = self._known[key] = self._read(frames)
        return evidence

    def _read(self, frames: Frames) -> Evidence:
        native = [frame["name"] for frame in frames if not is_python(frame)]
        python = [frame for frame in frames if is_python(frame)]
        if any(_WORKSPACE.search(name) for name in native):
            return Evidence.WORKSPACE
        if not python:
            if any(_ENGINE.search(name) for name in native):
                return Evidence.BACKWARD
            return Evidence.BACKWARD if self._has_python else Evidence.NOTHING
        names = {frame["name"] for frame in python}
        files = [frame["filename"] for frame in python]
        if any(_COMMUNICATION.search(name) for name in files) and "forward" not in names:
            return Evidence.COMMUNICATION
        if _is_step(python):
            return Evidence.OPTIMIZER
        in_backward = "backward" in names or "_engine_run_backward" in names
        if in_backward and any("checkpoint" in name for name in files):
            return Evidence.RECOMPUTE
        if in_backward or any(_ENGINE.search(name) for name in native):
            return Evidence.BACKWARD
        # Innermost first: a module may be made within a forward, or a batch within a loop of the job.
        for frame in python:
            name, file = frame["name"], frame["filename"]
            if _LOADING.search(file) or _LOADING.search(name):
                return Evidence.LOADING
            if name in _MAKING or "/nn/init.py" in file:
                return Evidence.MAKING
            if name == "forward" or name in _CALLS:
                return Evidence.FORWARD
        return Evidence.JOB


def _is_step(python: Frames) -> bool:
    """A function of an optimizer's name, in a file that has to do with optimizers."""
    for place, frame in enumerate(python):
        if not _STEP.match(frame["name"]):
            continue
        caller = python[place + 1] if place + 1 < len(python) else None
        # torch wraps every Optimizer.step in profile_hook_step's `wrapper`.
        wrapped = caller is not None and caller["name"] in ("wrapper", "_use_grad")
        if wrapped or _OPTIMIZER_FILE.search(frame["filename"]):
            return True
    return False
