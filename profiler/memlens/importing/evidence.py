"""What the stack of an allocation says of it.

The frame nearest to the allocation that means anything decides: a module that is called by the closure
of an optimizer's step runs forward, and a script's `main` says nothing of what it calls.
"""

from __future__ import annotations

import re
from enum import Enum

from memlens.importing.stacks import Frame, Stacks, is_python

__all__ = ["Evidence", "read_stacks"]


class Evidence(Enum):
    """Who asked for a block, or gave it back."""

    OPTIMIZER = "optimizer"
    STEP_IN_BACKWARD = "step_in_backward"
    """An optimizer that steps in a hook, as soon as a gradient is there."""
    BACKWARD = "backward"
    RECOMPUTE = "recompute"
    """A forward within backward."""
    FORWARD = "forward"
    MAKING = "making"
    """Modules being made, moved or loaded."""
    LOADING = "loading"
    """A batch being made or moved."""
    ZEROING = "zeroing"
    """`zero_grad`."""
    COMMUNICATION = "communication"
    WORKSPACE = "workspace"
    JOB = "job"
    """Code of the job, outside of all of these."""
    ASIDE = "aside"
    """The same on another thread: says nothing of what the training does meanwhile."""
    NOTHING = "nothing"
    """There is no stack, and none is to be expected."""


_WORKSPACE = re.compile(
    r"getNewWorkspace|[cC]ublas\w*Workspace|getCurrentCUDABlasHandle|WorkspaceAlloc"
)
_ENGINE = re.compile(
    r"torch::autograd::(Engine|python::PythonEngine|generated::|AccumulateGrad|Node)"
)
_NATIVE_COMMUNICATION = re.compile(r"c10d::|ProcessGroup\w*::|nccl", re.I)

_OPTIMIZERS = (
    r"(adam[wx]?|adan|sgd|lion|muon|lamb|lars|rmsprop|adagrad|adafactor|sophia|galore|came)"
)
_OPTIMIZER_FILE = re.compile(
    rf"(^|[/_.-])(optim(izers?|ization)?|{_OPTIMIZERS[1:-1]}|apex|bitsandbytes)([/_.-]|$)",
    re.I,
)
"""Of a file and its folder: a home folder may be called adam."""
_OPTIMIZER_LIBRARY = re.compile(r"deepspeed/runtime/(zero|fp16|bf16_optimizer)")
_STEP = re.compile(r"_?(step|update|init_state|init_group|(single|multi|fused)_tensor\w*)")
_OPTIMIZER_FUNCTION = re.compile(rf"_?{_OPTIMIZERS}(_(step|update))?")
"""Hand-written ones, wherever they are."""
_NO_STEP = {"zero_grad", "__init__", "add_param_group", "wrapper", "_use_grad"}

_MAKING = {
    "reset_parameters", "_apply", "from_pretrained", "load_state_dict", "_init_weights", "init_weights",
    "to_empty", "materialize", "register_parameter", "register_buffer", "__deepcopy__", "deepcopy",
    "fully_shard",
}  # fmt: skip
_HELPS_MAKING = re.compile(r"__init__|_*(init|build|make|create|setup|add|register|reset)\w*")
_LOADING_FILE = re.compile(r"torch/utils/data/|(site|dist)-packages/datasets/|[/_]data_?loader")
_LOADING = re.compile(
    r"_?(get_|next_|load_|prepare_|fetch_|sample_)(mini)?batch\w*|collate\w*|_?prepare_inputs?"
    r"|(move|send)_to_(device|cuda)|pin_memory"
)
_COMMUNICATION_FILE = re.compile(
    r"torch/distributed/(fsdp|_composable|algorithms/\w*comm\w*|distributed_c10d|_functional_coll"
    r"|nn/|tensor/_(redistribute|collective)|_symmetric_memory)|deepspeed/(comm|runtime/(comm|zero))/"
)
"""Not the launchers, which are around everything, and not what computes on sharded tensors."""
_COMMUNICATION = {"_ddp_init_helper", "_sync_module_states", "_sync_params_and_buffers"}
_CALLS = {"forward", "_call_impl", "_wrapped_call_impl"}
_RECOMPUTES = {"unpack_hook", "recompute_fn", "backward"}
_BACKWARDS = {"backward", "_engine_run_backward"}
_MAIN_FILES = re.compile(r"^<frozen runpy>|(^|/)runpy\.py$")
_THREAD_FILE = re.compile(r"(^|/)threading\.py$")


_ELSEWHERE = {
    Evidence.JOB: Evidence.BACKWARD,
    Evidence.OPTIMIZER: Evidence.STEP_IN_BACKWARD,
    Evidence.FORWARD: Evidence.RECOMPUTE,
}
"""What it is on a thread of the autograd engine."""


def read_stacks(stacks: Stacks) -> list[Evidence]:
    """Say of each stack of a snapshot who asked, in the order of their numbers."""
    python = [[_plain(each) for each in frames if is_python(each)] for frames in stacks.known]
    has_python = any(python)
    around = _around_training(python)
    has_main = any(frames and _is_main(frames[-1]) for frames in python)
    found = []
    for frames, mine in zip(stacks.known, python, strict=True):
        native = " ".join(frame.name for frame in frames if not is_python(frame))
        evidence = (
            _of_native(native, has_python=has_python) if not mine else _of_python(mine, around)
        )
        if _WORKSPACE.search(native):
            evidence = Evidence.WORKSPACE
        elif _NATIVE_COMMUNICATION.search(native):
            evidence = Evidence.COMMUNICATION
        elif evidence in _ELSEWHERE and not _is_main(mine[-1]):
            if _THREAD_FILE.search(mine[-1].filename):
                evidence = Evidence.ASIDE if evidence is Evidence.JOB else evidence
            elif has_main or _ENGINE.search(native):  # a hook that the engine has called
                evidence = _ELSEWHERE[evidence]
        elif evidence is Evidence.FORWARD and _ENGINE.search(native):
            evidence = Evidence.RECOMPUTE
        found.append(evidence)
    return found


def _plain(frame: Frame) -> Frame:
    # Of a qualified name, Linear.forward or main.<locals>.closure, the last word.
    return Frame(frame.name.rpartition(".")[2], frame.filename.replace("\\", "/"), frame.line)


def _around_training(python: list[list[Frame]]) -> set[tuple[str, str]]:
    """Functions that call modules or backward: whatever their names, they are no optimizer's."""
    around = set()
    for frames in python:
        for place, frame in enumerate(frames):
            if frame.name in _CALLS | _BACKWARDS:
                around |= {(each.name, each.filename) for each in frames[place:]}
                break
    return around


def _is_main(outermost: Frame) -> bool:
    """Whether a stack is of the script's own thread, and not of one that torch has made."""
    return outermost.name == "<module>" or bool(_MAIN_FILES.search(outermost.filename))


def _of_native(native: str, *, has_python: bool) -> Evidence:
    # The engine's threads have no frames of Python. Where all have none, that says nothing.
    if _ENGINE.search(native) or (has_python and not native):
        return Evidence.BACKWARD
    return Evidence.NOTHING


def _of_python(frames: list[Frame], around: set[tuple[str, str]]) -> Evidence:
    for place, frame in enumerate(frames):
        evidence = _of_frame(frame, frames[:place])
        if _is_step(frame, frames[place + 1 : place + 4], around):
            # The closure that a step was given is none of its work.
            is_closure = any((each.name, each.filename) in around for each in frames[:place])
            return Evidence.JOB if is_closure else Evidence.OPTIMIZER
        if evidence is Evidence.FORWARD:
            outer = frames[place + 1 :]
            is_recomputed = any(each.name in _RECOMPUTES | _BACKWARDS for each in outer)
            return Evidence.RECOMPUTE if is_recomputed else evidence
        if evidence is not None:
            return evidence
    return Evidence.JOB


def _of_frame(frame: Frame, inner: list[Frame]) -> Evidence | None:
    name, file = frame.name, frame.filename
    if name == "zero_grad":
        return Evidence.ZEROING
    if name in _BACKWARDS:
        return Evidence.BACKWARD
    if name in _CALLS:
        return Evidence.FORWARD
    if name in _MAKING or file.endswith("torch/nn/init.py"):
        return Evidence.MAKING
    if _COMMUNICATION_FILE.search(file):
        is_making = "/fsdp/" in file and name.startswith(("_init", "__init__"))
        return Evidence.MAKING if is_making else Evidence.COMMUNICATION
    if name in _COMMUNICATION:
        return Evidence.COMMUNICATION
    if _LOADING_FILE.search(file) or _LOADING.fullmatch(name):
        return Evidence.LOADING
    # A trainer's __init__ may run a whole training; only what makes modules is called from such ones.
    if name == "__init__" and all(_makes(each) for each in inner):
        return Evidence.MAKING
    return None


def _makes(frame: Frame) -> bool:
    return "torch/" in frame.filename or bool(_HELPS_MAKING.fullmatch(frame.name))


def _is_step(frame: Frame, callers: list[Frame], around: set[tuple[str, str]]) -> bool:
    """A function of an optimizer, as its name and file tell, or torch's wrapper around it."""
    name, file = frame.name, frame.filename
    if "torch/optim/" in file:
        return name not in _NO_STEP and not file.endswith(("lr_scheduler.py", "swa_utils.py"))
    # torch wraps each Optimizer.step: `wrapper` of profile_hook_step in torch/optim/optimizer.py. Other
    # wrappers may be in between, those of no_grad for one.
    if name == "step" and any(c.filename.endswith("torch/optim/optimizer.py") for c in callers):
        return True
    if (name, file) in around:
        return False
    if _OPTIMIZER_FUNCTION.fullmatch(name):
        return True
    if not _STEP.fullmatch(name):
        return False
    place = "/".join(file.split("/")[-2:])
    return bool(_OPTIMIZER_FILE.search(place) or _OPTIMIZER_LIBRARY.search(file))
