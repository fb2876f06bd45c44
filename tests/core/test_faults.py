"""A fault of ours, wherever it is, does not reach the job: it is told once, and the capture says so."""

from __future__ import annotations

import copy
import errno
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.traces import differences, leftover_hooks, process_state, torch_state
from tests.support.training import Outcome, Recording, assert_adds_up, fingerprint
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import memlens
from memlens.disk.writer import RankWriter
from memlens.observers.backward import BackwardObserver
from memlens.observers.inputs import InputObserver
from memlens.observers.job_profiler import JobProfilerObserver
from memlens.observers.modules import ModuleObserver
from memlens.observers.optimizers import OptimizerObserver
from memlens.observers.parameters import Parameters
from memlens.recording.heartbeat import Heartbeat
from memlens.recording.names import Names
from memlens.recording.recorder import Recorder
from memlens.recording.session import Session, current_session
from memlens.sources.allocator_hook import AllocatorHookSource
from memlens.sources.torch_profiler import TorchProfilerSource

BATCH, WIDTH = 6, 16


class Injected(Exception):
    """Raised by a function of ours that a test has broken."""


class Model(nn.Module):
    """Uses what observers look at: nested modules, buffers, checkpoints, parameters made late."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        self.again = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self.again, self.body(x), use_reentrant=True)
        result: torch.Tensor = self.head(hidden)
        return result


@contextmanager
def hooks_of_another_library() -> Iterator[None]:
    """Called after ours, by loops of torch that do not expect ours to be removed meanwhile."""
    handles = [
        register(lambda *_: None)
        for register in (
            torch_module.register_module_forward_pre_hook,
            torch_module.register_module_forward_hook,
            torch_module.register_module_module_registration_hook,
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_buffer_registration_hook,
            torch_optimizer.register_optimizer_step_pre_hook,
            torch_optimizer.register_optimizer_step_post_hook,
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def job(record: Recording) -> Outcome:
    """Everything that calls an observer: data, modules, copies, backward, hooks, optimizers, profiler."""
    done = Outcome()
    with record(), hooks_of_another_library():
        data = TensorDataset(torch.randn(4 * BATCH, WIDTH), torch.randn(4 * BATCH, WIDTH))
        model = Model()
        average = copy.deepcopy(model)
        handle = model.head.weight.register_post_accumulate_grad_hook(lambda weight: None)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            for x, target in DataLoader(data, BATCH):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), target)
                loss.backward()
                done.losses.append(loss.item())
                optimizer.step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            model(x)
        late = nn.Linear(WIDTH, WIDTH)
        done.losses.append(late(x).sum().item())
        handle.remove()
    done.values = [value.detach() for value in [*model.parameters(), *average.parameters()]]
    done.models = [model, average, late]
    return done


@dataclass(frozen=True)
class Fault:
    """A function that raises, from some call on."""

    owner: type
    name: str
    calls_before: int = 0
    """So many calls go well."""
    error: Callable[[], Exception] = lambda: Injected("on purpose")
    source: str = "hook"
    once: bool = False

    def inject(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Break the function. The list gets an entry for each call that raised."""
        monkeypatch.setenv("MEMLENS_CPU_SOURCE", self.source)
        original = getattr(self.owner, self.name)
        calls = [0]
        raised: list[int] = []

        def broken(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] > self.calls_before and not (self.once and raised):
                raised.append(calls[0])
                raise self.error()
            return original(*args, **kwargs)

        monkeypatch.setattr(self.owner, self.name, broken)
        return raised


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


FAULTS = {
    f"{fault.owner.__name__}.{fault.name} after {fault.calls_before} ({fault.source})": fault
    for fault in [
        *(
            Fault(ModuleObserver, name, calls)
            for name in (
                "_enter",
                "_exit",
                "_flow_hook",
                "_add_child",
                "_add_parameter",
                "_add_copy",
                "_learn",
            )
            for calls in (0, 5)
        ),
        Fault(ModuleObserver, "_name_tree"),
        Fault(ModuleObserver, "name_all"),
        Fault(ModuleObserver, "forget_calls", 1),  # the first call is made by start()
        Fault(BackwardObserver, "_enter"),
        Fault(BackwardObserver, "_enter", 3),  # a nested run: inside of the engine
        Fault(BackwardObserver, "_leave"),
        Fault(BackwardObserver, "_leave", 3),
        Fault(BackwardObserver, "_enter", 3, source="profiler"),
        Fault(BackwardObserver, "_leave", 2, source="profiler"),
        Fault(OptimizerObserver, "_learn"),
        Fault(OptimizerObserver, "_enter"),
        Fault(OptimizerObserver, "_leave"),
        Fault(OptimizerObserver, "_enter", 3),
        Fault(OptimizerObserver, "_leave", 3),
        Fault(OptimizerObserver, "_tag_state", 3),
        Fault(OptimizerObserver, "_end_step", 2),
        Fault(InputObserver, "on_root"),
        Fault(InputObserver, "_tag_batch"),
        Fault(InputObserver, "_tag_batch", 3),
        Fault(InputObserver, "_tag_arguments"),
        Fault(InputObserver, "_tag_arguments", 3),
        Fault(JobProfilerObserver, "_yield", source="profiler"),
        Fault(JobProfilerObserver, "_resume", source="profiler"),
        Fault(Parameters, "learn", 2),
        Fault(Parameters, "tag_gradients", 4),
        Fault(Parameters, "tag_early_gradient"),
        Fault(Parameters, "tag_weights", 3),
        Fault(Session, "_on_root"),
        Fault(Session, "_on_step", 2),
        Fault(Recorder, "mark", 10),
        Fault(Recorder, "mark", 11),
        Fault(Recorder, "mark", 40, source="profiler"),
        Fault(Recorder, "tag", 8),
        Fault(Recorder, "_store", 2),
        Fault(Names, "intern", 6),
        Fault(AllocatorHookSource, "drain"),
        Fault(AllocatorHookSource, "drain", 3),
        Fault(AllocatorHookSource, "_number_stacks"),
        Fault(AllocatorHookSource, "stop", once=True),
        Fault(TorchProfilerSource, "drain", 1, source="profiler"),
        Fault(TorchProfilerSource, "_read", 1, source="profiler"),
        Fault(RankWriter, "write", 0, no_space),
        Fault(RankWriter, "write", 7, no_space),
        Fault(RankWriter, "write", 30, no_space),
        Fault(RankWriter, "write", 12, no_space, source="profiler"),
        Fault(Heartbeat, "beat", once=True),
    ]
}


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], list[str]]:
    """What the job gives without memlens."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return fingerprint(job(nullcontext))


@pytest.fixture
def always_draining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every mark drain, so that source and writer are called throughout the job."""
    original = Recorder.mark

    def mark(recorder: Recorder, *args: Any, **kwargs: Any) -> None:
        recorder.next_drain_ns = 0
        original(recorder, *args, **kwargs)

    monkeypatch.setattr(Recorder, "mark", mark)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.usefixtures("always_draining")
def test_a_fault_does_not_reach_the_job(
    name: str,
    plain: tuple[list[float], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fault = FAULTS[name]
    gc.collect()  # models of other tests would be met at the start already
    process, torch_before = process_state(), torch_state()
    with monkeypatch.context() as patched:
        raised = fault.inject(patched)
        torch.manual_seed(0)
        session = memlens.profile(out=tmp_path / "run")
        begin = waiting if fault.owner is Heartbeat else Session.__enter__
        outcome = job(lambda: Ending(begin(session)))
    assert raised, "the fault was never met"

    same = fingerprint(outcome) == plain
    assert same, "the job differs"
    assert_reported_once(capfd.readouterr().err)
    assert differences(process, process_state()) == []
    assert differences(torch_before, torch_state()) == []
    assert current_session() is None
    for model in outcome.models:
        assert leftover_hooks(model) == []
    rank = session.capture.ranks[0]
    assert not rank.coverage.complete
    assert len(rank.coverage.problems) >= 1
    assert_adds_up_if_any(rank)


def waiting(session: Session) -> Session:
    """Start the session, and wait until its heart has beaten."""
    session.start()
    recorder = session._recorder
    assert recorder is not None
    limit = time.monotonic() + 5
    while recorder.active and time.monotonic() < limit:
        recorder.next_drain_ns = 0
        time.sleep(0.01)
    return session


class Ending(AbstractContextManager[Session]):
    """Stops a session that has been started."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __exit__(self, *_: object) -> None:
        self.session.stop()


def assert_reported_once(errors: str) -> None:
    """One line of ours on stderr. (Kineto has lines of its own.)"""
    ours = [line for line in errors.splitlines() if "memlens" in line.lower()]
    assert len(ours) == 1, errors
    assert ours[0].startswith("memlens: ")
    assert "Traceback" not in errors


def assert_adds_up_if_any(rank: Any) -> None:
    if len(rank.timeline().time_ns):
        assert_adds_up(rank)


@pytest.mark.parametrize("name", ["update", "close"])
def test_a_header_that_cannot_be_written(
    name: str,
    plain: tuple[list[float], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The disk is full when the session ends: what is there opens, as a capture without an end."""
    calls_before = 2 if name == "update" else 0
    with monkeypatch.context() as patched:
        raised = Fault(RankWriter, name, calls_before, no_space).inject(patched)
        torch.manual_seed(0)
        session = memlens.profile(out=tmp_path / "run")
        outcome = job(lambda: session)
    assert raised

    same = fingerprint(outcome) == plain
    assert same, "the job differs"
    assert_reported_once(capfd.readouterr().err)
    rank = session.capture.ranks[0]
    assert not rank.coverage.complete
    assert rank.coverage.problems
    assert_adds_up(rank)


START_FAULTS = {
    f"{owner.__name__}.{name}": (owner, name)
    for owner, name in [
        (ModuleObserver, "install"),
        (ModuleObserver, "learn_existing"),
        (OptimizerObserver, "install"),
        (InputObserver, "install"),
        (Heartbeat, "install"),
        (AllocatorHookSource, "watch"),
        (Parameters, "retag"),
        (Recorder, "add_census"),
    ]
}


@pytest.mark.parametrize("name", START_FAULTS)
def test_a_fault_at_the_start_leaves_the_job_alone(
    name: str,
    plain: tuple[list[float], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    owner, function = START_FAULTS[name]
    process, torch_before = process_state(), torch_state()
    there_before = [nn.Linear(WIDTH, WIDTH)]
    with monkeypatch.context() as patched:
        raised = Fault(owner, function).inject(patched)
        torch.manual_seed(0)
        session = memlens.profile(out=tmp_path / "run")
        outcome = job(lambda: session)
    assert raised

    same = fingerprint(outcome) == plain
    assert same, "the job differs"
    assert_reported_once(capfd.readouterr().err)
    assert differences(process, process_state()) == []
    assert differences(torch_before, torch_state()) == []
    assert current_session() is None
    assert leftover_hooks(there_before[0]) == []
    with pytest.raises(memlens.MemlensError, match="nothing was recorded"):
        _ = session.capture


def test_a_fault_of_an_observer_during_the_start_ends_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def learn(modules: ModuleObserver, optimizers: OptimizerObserver) -> None:
        modules._recorder.fail("module observer", Injected("on purpose"))

    monkeypatch.setattr("memlens.recording.session.learn_existing_objects", learn)
    with memlens.profile(out=tmp_path / "run") as session:
        recorder = session._recorder
        assert recorder is not None
        assert not recorder.active
        assert not recorder.recording
        nn.Linear(WIDTH, WIDTH)

    assert_reported_once(capfd.readouterr().err)
    rank = session.capture.ranks[0]
    assert not rank.coverage.complete
    assert current_session() is None


def test_an_adapter_that_cannot_be_installed_is_told_of(
    plain: tuple[list[float], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        library = "torch"

        def install(self, recorder: Recorder, undo: Any) -> None:
            raise Injected("on purpose")

    monkeypatch.setattr("memlens.adapters.load_adapters", lambda recorder: [Broken()])
    torch.manual_seed(0)
    session = memlens.profile(out=tmp_path / "run")
    outcome = job(lambda: session)

    assert fingerprint(outcome) == plain
    rank = session.capture.ranks[0]
    assert rank.coverage.problems == ("adapter for torch failed (Injected: on purpose)",)
    assert len(rank.steps()) == 8  # all else works
    assert_adds_up(rank)
