"""What memlens could leave behind in a process, and how to see that it did not.

Nothing here imports torch: a test that does without it must stay without it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["differences", "leftover_hooks", "nothing_left_behind", "process_state", "torch_state"]

_PATCHED = (
    ("torch.optim.optimizer", "Optimizer.__init__"),
    ("torch.optim.optimizer", "Optimizer.step"),
    ("torch.autograd", "_engine_run_backward"),
    ("torch.autograd", "backward"),
    ("torch.autograd", "grad"),
    ("torch.autograd.graph", "_engine_run_backward"),
    ("torch.autograd.profiler", "_prepare_profiler"),
    ("torch.autograd.profiler", "_enable_profiler"),
    ("torch.autograd.profiler", "_disable_profiler"),
    ("torch.cuda.memory", "_record_memory_history"),
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter.__next__"),
    ("torch.nn.modules.module", "Module.__call__"),
    ("torch.nn.modules.module", "Module.__init__"),
    ("torch.nn.modules.module", "Module.__setattr__"),
    ("torch.nn.modules.module", "Module.__setstate__"),
    ("torch.nn.modules.module", "Module.register_parameter"),
    ("torch.utils", "swap_tensors"),
    ("torch", "Tensor.backward"),
    ("torch", "Tensor.__setattr__"),
)
"""What memlens patches, and what it would be tempting to patch: (module, attribute)."""


def process_state() -> dict[str, Any]:
    """What can be compared without torch; values are compared with `==`."""
    return {
        "sys.getprofile()": sys.getprofile(),
        "sys.gettrace()": sys.gettrace(),
        "sys.excepthook": sys.excepthook,
        "threading.excepthook": threading.excepthook,
        "sys.meta_path": _finders(),
        "gc.isenabled()": gc.isenabled(),
        "gc.callbacks": _collector_callbacks(),
        "threads of memlens": _threads(),
        "open files of a capture": _capture_files(),
        "os.environ": _environment(),
        "memlens' current session": _session(),
    }


def _finders() -> list[Any]:
    """Who finds modules; those of six and absl add themselves when they are first imported, and stay."""
    return [
        each for each in sys.meta_path if type(each).__module__.split(".")[0] not in ("six", "absl")
    ]


def torch_state() -> dict[str, Any] | None:
    """Hooks, patched functions, modes and the profiler of torch; None where it is not imported."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "optim"):
        return None
    state: dict[str, Any] = {}
    for module_name in ("torch.nn.modules.module", "torch.optim.optimizer"):
        for name, value in vars(sys.modules[module_name]).items():
            if name.startswith("_global_") and isinstance(value, dict):
                state[f"{module_name}.{name}"] = list(value.values())
    for module_name, path in _PATCHED:
        found: Any = sys.modules.get(module_name)
        for part in path.split("."):
            # Through the class, so that a function put in its place shows as another object.
            found = getattr(found, part, None)
        state[f"{module_name}.{path}"] = found
    state["a profiler of torch is running"] = torch._C._autograd._profiler_enabled()
    state["calls that wait for CUDA"] = [call for call, _ in torch.cuda._queued_calls]
    if torch.cuda.is_initialized():
        state["CUDA's history is recorded"] = torch._C._cuda_isHistoryEnabled()
    state["torch function modes"] = torch._C._len_torch_function_stack()
    state["torch dispatch modes"] = torch._C._len_torch_dispatch_stack()
    state["gradients are on"] = torch.is_grad_enabled()
    state["saved tensor hooks"] = torch._C._autograd._top_saved_tensors_default_hooks(True)
    state["anomaly detection is on"] = torch.is_anomaly_enabled()
    return state


def _pristine(state: dict[str, Any]) -> list[str]:
    """What is wrong with a torch that was imported since, so that no earlier state is known."""
    wrong = []
    for name, value in state.items():
        if "._global_" in name or name.startswith(
            ("a profiler", "torch function", "torch dispatch")
        ):
            if value:
                wrong.append(f"{name}: {value!r}")
        elif callable(value) and not str(getattr(value, "__module__", "torch")).startswith("torch"):
            wrong.append(f"{name} is {value!r}")
    return wrong


def differences(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    """One sentence for everything that is not as it was."""
    if after is None:
        return []
    if before is None:
        return _pristine(after)
    return [
        f"{name} was {before[name]!r:.200} and is {value!r:.200}"
        for name, value in after.items()
        if name in before and before[name] != value
    ]


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """See that the process and torch are at the end as they were at the beginning.

    Raises:
        AssertionError: they are not.
    """
    process, torch = process_state(), torch_state()
    yield
    for thread in threading.enumerate():
        if thread.name == "memlens-scan":  # a search for runs ends by itself, a moment later
            thread.join(10)
    left = differences(process, process_state()) + differences(torch, torch_state())
    assert not left, "left behind: " + "; ".join(left)


def leftover_hooks(model: Any) -> list[str]:
    """Hooks on the modules, parameters and buffers of a model."""
    found = []
    for name, module in model.named_modules():
        found += [
            f"{name or 'the model'}.{attribute}"
            for attribute, value in vars(module).items()
            if "_hooks" in attribute and value
        ]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found += [
            f"{name}.{attribute}"
            for attribute in ("_backward_hooks", "_post_accumulate_grad_hooks")
            if getattr(tensor, attribute)
        ]
    return found


def _collector_callbacks() -> list[Any]:
    # Hypothesis measures with one of its own, and keeps it.
    return [
        call
        for call in gc.callbacks
        if not str(getattr(call, "__module__", "")).startswith("hypothesis")
    ]


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("memlens")]


def _capture_files() -> list[str]:
    """Links of our open descriptors that point into a run's folder."""
    found = []
    for link in Path("/proc/self/fd").glob("*"):
        try:
            target = os.readlink(link)
        except OSError:  # the descriptor with which this folder is being read
            continue
        name = Path(target.removesuffix(" (deleted)")).name
        if name.endswith(".arrow") or name.lstrip(".").startswith(("rank.json", "run.json")):
            found.append(target)
    return sorted(found)


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("KINETO", "MEMLENS", "PYTHON", "RANK", "WORLD_SIZE"))
    }


def _session() -> object:
    module = sys.modules.get("memlens.recording.session")
    return None if module is None else module.current_session()
