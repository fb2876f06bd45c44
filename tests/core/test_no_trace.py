"""The fixture that says "torch is as it was" can fail: each thing left behind is found."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.traces import (
    differences,
    leftover_hooks,
    nothing_left_behind,
    process_state,
    torch_state,
)
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

import memlens

Cleanup = Callable[[], Any]


def leave_module_hook() -> Cleanup:
    return torch_module.register_module_forward_pre_hook(lambda *_: None).remove


def leave_registration_hook() -> Cleanup:
    return torch_module.register_module_parameter_registration_hook(lambda *_: None).remove


def leave_optimizer_hook() -> Cleanup:
    return torch_optimizer.register_optimizer_step_post_hook(lambda *_: None).remove


def patch(owner: Any, name: str) -> Cleanup:
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: original(*args, **kwargs))
    return lambda: setattr(owner, name, original)


def leave_function_mode() -> Cleanup:
    mode = torch.overrides.BaseTorchFunctionMode()
    mode.__enter__()
    return lambda: mode.__exit__(None, None, None)


def leave_dispatch_mode() -> Cleanup:
    from torch.utils._python_dispatch import TorchDispatchMode

    mode = TorchDispatchMode()
    mode.__enter__()
    return lambda: mode.__exit__(None, None, None)


def leave_profiler_running() -> Cleanup:
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    profiler.start()
    return profiler.stop


def leave_python_profiler() -> Cleanup:
    before = sys.getprofile()
    sys.setprofile(lambda *_: None)
    return lambda: sys.setprofile(before)


def leave_thread() -> Cleanup:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="memlens-heartbeat")
    thread.start()

    def end() -> None:
        done.set()
        thread.join()

    return end


def leave_file_open(folder: Path) -> Cleanup:
    return (folder / "events.arrow").open("wb").close


def leave_finder() -> Cleanup:
    finder: Any = type("Finder", (), {"find_spec": staticmethod(lambda *_: None)})
    sys.meta_path.append(finder)
    return lambda: sys.meta_path.remove(finder)


def leave_variable() -> Cleanup:
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = "99" if before != "99" else "98"

    def end() -> None:
        del os.environ["KINETO_LOG_LEVEL"]
        if before is not None:
            os.environ["KINETO_LOG_LEVEL"] = before

    return end


def leave_session(folder: Path) -> Cleanup:
    session = memlens.profile(out=folder / "run")
    session.start()
    return session.stop


def stop_collector() -> Cleanup:
    gc.disable()
    return gc.enable


DISTURBANCES: dict[str, Callable[[Path], Cleanup]] = {
    "module hook": lambda _: leave_module_hook(),
    "registration hook": lambda _: leave_registration_hook(),
    "optimizer hook": lambda _: leave_optimizer_hook(),
    "Optimizer.__init__": lambda _: patch(torch.optim.Optimizer, "__init__"),
    "autograd engine": lambda _: patch(torch.autograd, "_engine_run_backward"),
    "profiler prepare": lambda _: patch(torch.autograd.profiler, "_prepare_profiler"),
    "profiler disable": lambda _: patch(torch.autograd.profiler, "_disable_profiler"),
    "DataLoader": lambda _: patch(torch.utils.data.dataloader._BaseDataLoaderIter, "__next__"),
    "function mode": lambda _: leave_function_mode(),
    "dispatch mode": lambda _: leave_dispatch_mode(),
    "profiler": lambda _: leave_profiler_running(),
    "Python profiler": lambda _: leave_python_profiler(),
    "thread": lambda _: leave_thread(),
    "open file": leave_file_open,
    "finder": lambda _: leave_finder(),
    "variable": lambda _: leave_variable(),
    "session": leave_session,
    "garbage collector": lambda _: stop_collector(),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_what_is_left_behind_is_found(name: str, tmp_path: Path) -> None:
    cleanup: Cleanup | None = None
    try:
        with pytest.raises(AssertionError, match="left behind"), nothing_left_behind():
            cleanup = DISTURBANCES[name](tmp_path)
    finally:
        assert cleanup is not None
        cleanup()


def test_nothing_left_behind_is_nothing_found() -> None:
    with nothing_left_behind():
        leave_module_hook()()


def test_torch_imported_during_a_test_is_looked_at_as_well() -> None:
    assert differences(None, torch_state()) == []
    for name in ("module hook", "optimizer hook", "autograd engine", "Optimizer.__init__"):
        cleanup = DISTURBANCES[name](Path())
        try:
            assert len(differences(None, torch_state())) >= 1, name
        finally:
            cleanup()


def test_every_test_is_watched(request: pytest.FixtureRequest) -> None:
    assert "torch_is_as_it_was" in request.fixturenames


def test_looking_does_not_import_torch() -> None:
    """Checked in a process of its own: torch is long imported in this one."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys\n"
        "from tests.support.traces import nothing_left_behind\n"
        "with nothing_left_behind():\n"
        "    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0


def test_hooks_left_on_a_model_are_found() -> None:
    layer = torch.nn.Linear(2, 2)
    model = torch.nn.Sequential(layer)
    assert leftover_hooks(model) == []
    handles = [
        layer.register_forward_hook(lambda *_: None),
        model.register_full_backward_hook(lambda *_: None),
        layer.weight.register_hook(lambda grad: None),
        layer.bias.register_post_accumulate_grad_hook(lambda _: None),
    ]
    assert leftover_hooks(model) == [
        "the model._backward_hooks",
        "0._forward_hooks",
        "0.weight._backward_hooks",
        "0.bias._post_accumulate_grad_hooks",
    ]
    for handle in handles:
        handle.remove()
    assert leftover_hooks(model) == []


def test_state_is_compared_by_value() -> None:
    assert differences(process_state(), process_state()) == []
    assert differences(torch_state(), torch_state()) == []
