"""A session: when it begins and ends, what it refuses, and what its capture answers."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.traces import differences, leftover_hooks, torch_state
from tests.support.training import (
    Outcome,
    Recording,
    assert_adds_up,
    assert_sound,
    held,
    now,
    run_both,
)
from torch import nn

import memlens
from memlens.answers import Allocation
from memlens.capture import RankCapture
from memlens.errors import OutputExistsError, SessionActiveError, UsageError
from memlens.events import Category, Phase
from memlens.recording.session import current_session

BATCH, WIDTH = 6, 16
FLOAT = 4
ROW = FLOAT * BATCH * WIDTH
LAYER = FLOAT * (WIDTH * WIDTH + WIDTH)


def stack(layers: int = 2) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))


class Job:
    """A model that learns to give back its batch, and its optimizer; `step` trains once."""

    def __init__(self) -> None:
        self.model = stack()
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.x = torch.randn(BATCH, WIDTH)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(self.x), self.x)
        loss.backward()
        self.optimizer.step()
        return loss


AFTER_STEP = {
    Category.WEIGHT: 2 * LAYER,
    Category.GRADIENT: 2 * LAYER,
    Category.OPTIMIZER_STATE: 2 * 2 * LAYER + 4 * FLOAT,
    Category.INPUT: ROW,
}
"""What a Job holds after a step."""


def alive(rank: RankCapture, time_ns: int, category: Category) -> list[Allocation]:
    return [block for block in rank.allocations_at(time_ns, None) if block.category is category]


# -- beginning and end -------------------------------------------------------------------------


def test_a_second_session_is_refused_and_the_first_goes_on(source: str, tmp_path: Path) -> None:
    job = Job()
    with memlens.profile(out=tmp_path / "first") as first:
        job.step()
        with pytest.raises(SessionActiveError, match="already recording"):
            memlens.profile(out=tmp_path / "second").start()
        assert not (tmp_path / "second").exists()
        assert current_session() is first
        with pytest.raises(SessionActiveError, match="started before"):
            first.start()
        job.step()

    assert_sound(first.capture.ranks[0])
    assert len(first.capture.ranks[0].steps()) == 2
    with pytest.raises(SessionActiveError, match="started before"):
        first.start()


def test_sessions_one_after_the_other(source: str, tmp_path: Path) -> None:
    job = Job()
    moments = []
    sessions = []
    for number in range(3):
        session = memlens.profile(out=tmp_path / f"run {number}")
        with session:
            job.step()
            job.step()
            moments.append(now())
        sessions.append(session)
        job.step()  # not recorded

    for session, moment in zip(sessions, moments, strict=True):
        rank = session.capture.ranks[0]
        assert_sound(rank)
        assert held(rank, moment) == AFTER_STEP
        assert [step.step for step in rank.steps()] == [0, 1]


def test_stopping_twice_does_no_harm(tmp_path: Path) -> None:
    session = memlens.profile(out=tmp_path / "run")
    session.start()
    Job().step()
    session.stop()
    session.stop()

    assert_sound(session.capture.ranks[0])


def test_a_capture_is_there_only_after_the_end(tmp_path: Path) -> None:
    session = memlens.profile(out=tmp_path / "run")
    with pytest.raises(UsageError, match="not called"):
        _ = session.capture
    with session, pytest.raises(UsageError, match="still records"):
        _ = session.capture
    assert session.capture.ranks


def test_an_output_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.txt").write_text("precious")
    before = torch_state()

    with pytest.raises(OutputExistsError, match="exists already"):
        memlens.profile(out=tmp_path / "run").start()

    assert differences(before, torch_state()) == []
    assert current_session() is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.txt"]
    with memlens.profile(out=tmp_path / "other") as session:
        Job().step()
    with pytest.raises(OutputExistsError):
        memlens.profile(out=tmp_path / "other").start()
    assert_sound(session.capture.ranks[0])


def test_memlens_disable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", "1")
    before = torch_state()
    with memlens.profile(out=tmp_path / "run") as session:
        assert differences(before, torch_state()) == []
        assert current_session() is None
        Job().step()

    assert not (tmp_path / "run").exists()
    assert session.run is None
    with pytest.raises(UsageError, match="MEMLENS_DISABLE"):
        _ = session.capture


def test_a_session_in_another_thread(source: str, tmp_path: Path) -> None:
    sessions: list[memlens.Session] = []
    moments: list[int] = []

    def work() -> None:
        torch.set_num_threads(1)
        with memlens.profile(out=tmp_path / "run") as session:
            job = Job()
            job.step()
            moments.append(now())
        sessions.append(session)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    rank = sessions[0].capture.ranks[0]
    assert_sound(rank)
    assert held(rank, moments[0]) == AFTER_STEP


def test_work_of_other_threads_has_no_meaning_and_does_no_harm(tmp_path: Path) -> None:
    """The session is this thread's; a model that another one trains is counted, and not named."""
    other = Job()
    error: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            while not done.is_set():
                other.step()
        except BaseException as caught:
            error.append(caught)

    with memlens.profile(out=tmp_path / "run") as session:
        job = Job()
        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(200):
            job.step()
        done.set()
        thread.join()
        end = now()
    rank = session.capture.ranks[0]

    assert error == []
    assert rank.coverage.complete
    assert_adds_up(rank)
    assert [step.step for step in rank.steps()] == list(range(200))
    ours = {block.name for block in alive(rank, end, Category.OPTIMIZER_STATE)}
    assert "exp_avg of 0.weight" in ours


def test_a_fork_in_the_middle(source: str, tmp_path: Path) -> None:
    """The child goes on without us; the parent's capture is complete."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        clean = torch_state()
        with record():
            work = Job()
            done.losses.append(work.step().item())
            child = os.fork()
            if not child:
                status = 1
                try:
                    assert current_session() is None
                    assert differences(clean, torch_state()) == []
                    for _ in range(3):
                        work.step()
                    status = 0
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            done.losses.append(work.step().item())
            done.moments["end"] = now()
        done.values = [value.detach() for value in work.model.parameters()]
        done.models = [work.model]
        return done

    recorded = run_both(job, tmp_path)

    assert recorded.at("end") == AFTER_STEP
    assert len(recorded.rank.steps()) == 2


# -- some steps only ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(3, 8), "3:8"])
def test_only_some_steps(source: str, steps: Any, tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            work = Job()
            for step in range(10):
                done.losses.append(work.step().item())
                done.moments[f"step {step}"] = now()
        done.values = [value.detach() for value in work.model.parameters()]
        done.models = [work.model]
        return done

    recorded = run_both(job, tmp_path, steps=steps)

    found = recorded.rank.steps()
    assert [step.step for step in found] == [3, 4, 5, 6, 7]
    for step in range(3, 7):
        assert recorded.at(f"step {step}") == AFTER_STEP
    # Every one of these steps is like the others.
    for one in found:
        ends = {category: size for category, size in one.end_categories.items() if size}
        loss = {Category.ACTIVATION: ROW}  # what the job's own function has not yet given back
        assert ends == AFTER_STEP | loss
        assert one.peak_bytes == found[0].peak_bytes
        assert one.categories == found[0].categories
    # What was tagged before and after is not taken for memory that nobody told of.
    assert recorded.rank.coverage.uncovered_bytes == 0
    assert recorded.outcome.moments["step 2"] < found[0].peak_ns
    assert found[-1].peak_ns < recorded.outcome.moments["step 7"]


def test_the_first_steps_only(source: str, tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run", steps=(0, 2)) as session:
        job = Job()
        for _ in range(4):
            job.step()
    rank = session.capture.ranks[0]

    assert_sound(rank)
    assert [step.step for step in rank.steps()] == [0, 1]
    assert rank.coverage.uncovered_bytes == 0


def test_steps_that_never_come(source: str, tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run", steps=(5, 8)) as session:
        job = Job()
        for _ in range(2):
            job.step()
    rank = session.capture.ranks[0]

    assert rank.steps() == ()
    assert rank.peak().allocated_bytes == 0
    assert rank.coverage.uncovered_bytes == 0
    assert rank.coverage.problems == ()
    assert len(rank.timeline().time_ns) == 0


@pytest.mark.parametrize("text", ["", "8:3", "a", "3:8:2", "-1"])
def test_steps_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="step"):
        memlens.profile(steps=text)


# -- what was there before ---------------------------------------------------------------------


def test_the_census_counts_each_block_once_until_its_end(source: str, tmp_path: Path) -> None:
    whole = torch.empty(1000, dtype=torch.uint8)
    view = whole[10:20]
    other = torch.empty(300, dtype=torch.uint8)
    moments = []
    with memlens.profile(out=tmp_path / "run") as session:
        moments.append(now())
        del other
        moments.append(now())
        del whole
        moments.append(now())  # the view still holds it
        del view
        moments.append(now())
    rank = session.capture.ranks[0]

    totals = [sum(rank.categories_at(moment).values()) for moment in moments]
    assert [totals[0] - total for total in totals] == [0, 300, 300, 1300]
    assert rank.coverage.lost_events == 0
    assert_adds_up(rank)


def test_a_block_from_before_that_only_autograd_holds(source: str, tmp_path: Path) -> None:
    """Saved for backward before the session, freed by the backward within it."""
    layer = nn.Linear(WIDTH, WIDTH)
    kept = torch.randn(BATCH, WIDTH)
    loss = layer(kept).sum()
    moments = []
    with memlens.profile(out=tmp_path / "run") as session:
        moments.append(now())
        del kept
        moments.append(now())
        loss.backward()
        moments.append(now())
    rank = session.capture.ranks[0]

    before, held_by_autograd, after = (
        sum(rank.categories_at(moment).values()) for moment in moments
    )
    assert held_by_autograd == before
    assert after == before - ROW + LAYER  # the input is gone, the gradients have come
    assert rank.coverage.lost_events == 0


def test_a_gradient_from_before_that_nobody_has_asked_for(source: str, tmp_path: Path) -> None:
    """As long as no Python code reads `.grad`, it has no Python object to be found by."""
    layer = nn.Linear(WIDTH, WIDTH)
    x = torch.randn(BATCH, WIDTH)
    layer(x).sum().backward()
    with memlens.profile(out=tmp_path / "run") as session:
        moment = now()
        layer(x)
    rank = session.capture.ranks[0]

    assert held(rank, moment) == {
        Category.WEIGHT: LAYER,
        Category.GRADIENT: LAYER,
        Category.INPUT: ROW,
    }
    assert rank.coverage.uncovered_bytes == 0


def test_borrowed_and_shared_memory_from_before_is_not_the_allocators(
    source: str, tmp_path: Path
) -> None:
    array = np.zeros(5000, np.float32)
    borrowed = torch.from_numpy(array)
    shared = torch.zeros(5000).share_memory_()
    owned = torch.zeros(10)
    with memlens.profile(out=tmp_path / "run") as session:
        moment = now()
        torch.empty(1)
    rank = session.capture.ranks[0]

    assert sum(rank.categories_at(moment).values()) == FLOAT * 10
    assert borrowed.numel() + shared.numel() + owned.numel() == 10_010


def test_a_tensor_that_was_looked_at_as_an_array(source: str, tmp_path: Path) -> None:
    """Torch marks its storage as if it were borrowed. Only the allocator hook can tell."""
    layer = nn.Linear(WIDTH, WIDTH)
    total = float(layer.weight.detach().numpy().sum())
    with memlens.profile(out=tmp_path / "run") as session:
        moment = now()
        layer(torch.zeros(1, WIDTH))
    rank = session.capture.ranks[0]

    weight = FLOAT * WIDTH * WIDTH
    if source == "hook":
        assert held(rank, moment) == {Category.WEIGHT: LAYER}
        assert rank.coverage.uncovered_bytes == 0
    else:
        assert held(rank, moment) == {Category.WEIGHT: LAYER - weight}
        assert rank.coverage.uncovered_bytes == weight
    assert np.isfinite(total)


def test_a_file_that_is_mapped_is_not_the_allocators(source: str, tmp_path: Path) -> None:
    torch.save(torch.ones(5000), tmp_path / "weights")
    mapped = torch.load(tmp_path / "weights", mmap=True)
    with memlens.profile(out=tmp_path / "run") as session:
        moment = now()
        torch.empty(1)
    rank = session.capture.ranks[0]

    assert held(rank, moment) == {}
    assert mapped.numel() == 5000


def test_memory_that_the_allocator_did_not_hand_out_is_reported(tmp_path: Path) -> None:
    size = 4000
    with memlens.profile(out=tmp_path / "run") as session:
        layer = nn.Linear(size // FLOAT // 10, 3)
        array = np.zeros((10, size // FLOAT // 10), np.float32)
        layer(torch.from_numpy(array)).sum().backward()
    rank = session.capture.ranks[0]

    assert rank.coverage.uncovered_bytes == size
    assert rank.coverage.complete  # it is known and told, not lost
    assert_sound(rank)


def test_all_that_a_tag_speaks_of_is_covered_in_a_plain_job(source: str, tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run") as session:
        job = Job()
        for _ in range(3):
            job.step()

    assert session.capture.ranks[0].coverage.uncovered_bytes == 0


def test_objects_that_the_job_has_frozen_out_of_the_collector(tmp_path: Path) -> None:
    """`gc.freeze()` after the start-up is common advice; the walk over live objects then sees none."""
    job = Job()
    job.step()
    gc.collect()
    gc.freeze()
    try:
        with memlens.profile(job.model, job.optimizer, out=tmp_path / "run") as session:
            job.step()
            moment = now()
    finally:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    rank = session.capture.ranks[0]

    known = AFTER_STEP[Category.WEIGHT], AFTER_STEP[Category.OPTIMIZER_STATE]
    found = held(rank, moment)
    assert (found[Category.WEIGHT], found[Category.OPTIMIZER_STATE]) == known


# -- stacks ------------------------------------------------------------------------------------

HERE = str(Path(__file__))


def here(offset: int = 0) -> int:
    """Line of the caller, plus some."""
    # In a variable, the frame would hold itself, and all that its callers hold.
    return sys._getframe(1).f_lineno + offset


def own_lines(block: Allocation) -> list[int]:
    """Lines of this file on a block's stack, innermost first."""
    return [frame.line for frame in reversed(block.stack) if frame.file == HERE]


class Scaled(nn.Module):
    line = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).line = here(1)
        return x * 2


@pytest.mark.parametrize("stacks", [True, False])
def test_the_innermost_frame_of_the_user_is_the_line_that_allocates(
    stacks: bool, tmp_path: Path
) -> None:
    lines: dict[str, int] = {}
    with memlens.profile(out=tmp_path / "run", stacks=stacks) as session:
        lines["weight"] = here(1)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), Scaled(), nn.Tanh())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        lines["input"] = here(1)
        x = torch.randn(BATCH, WIDTH)
        for _ in range(3):
            lines["call"] = here(1)
            loss = model(x).sum()
            forward = now()
            lines["backward"] = here(1)
            loss.backward()
            backward = now()
            lines["step"] = here(1)
            optimizer.step()
        end = now()
    rank = session.capture.ranks[0]
    assert_sound(rank)

    weights = alive(rank, end, Category.WEIGHT)
    inputs = alive(rank, end, Category.INPUT)
    activations = alive(rank, forward, Category.ACTIVATION)
    gradients = alive(rank, backward, Category.GRADIENT)
    states = alive(rank, end, Category.OPTIMIZER_STATE)
    counts = [len(found) for found in (weights, inputs, activations, gradients, states)]
    assert counts == [1, 1, 3, 1, 1]
    if not stacks:
        every = [*weights, *inputs, *activations, *gradients, *states]
        assert all(block.stack == () for block in every)
        return
    assert own_lines(weights[0]) == [lines["weight"]]
    assert own_lines(inputs[0]) == [lines["input"]]
    assert weights[0].stack[-1].file.endswith("linear.py")
    # tanh saves its result, x * 2 the number two (as a float64); the loss is the third.
    tanh, two, loss_block = sorted(activations, key=lambda block: -block.size_bytes)
    assert [tanh.size_bytes, two.size_bytes, loss_block.size_bytes] == [ROW, 8, FLOAT]
    assert own_lines(tanh) == [lines["call"]]
    assert tanh.stack[-1].file.endswith("activation.py")
    assert own_lines(two) == [Scaled.line, lines["call"]]
    assert own_lines(loss_block) == [lines["call"]]
    assert own_lines(gradients[0]) == [lines["backward"]]
    assert own_lines(states[0]) == [lines["step"]]
    assert states[0].stack[-1].file.endswith("sgd.py")


def test_a_frame_of_the_users_own_module(tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run") as session:
        model = Scaled()
        line = here(1)
        result = model(torch.randn(BATCH, WIDTH))
        moment = now()
    rank = session.capture.ranks[0]
    blocks = [block for block in rank.allocations_at(moment, None) if not block.preexisting]

    assert result.shape == (BATCH, WIDTH)
    assert [own_lines(block) for block in blocks] == [[Scaled.line, line]]


@pytest.mark.parametrize("depth", [1, 3])
def test_stacks_are_cut_to_their_innermost_frames(depth: int, tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run", stack_depth=depth) as session:
        job = Job()
        job.step()
        moment = now()
    blocks = session.capture.ranks[0].allocations_at(moment, None)

    assert blocks
    recorded = [block for block in blocks if block.stack]
    assert recorded
    assert all(len(block.stack) <= depth for block in recorded)
    assert max(len(block.stack) for block in recorded) == depth
    weight = next(block for block in recorded if block.category is Category.WEIGHT)
    assert weight.stack[-1].function.endswith("__init__")


def test_torch_s_profiler_knows_no_stacks_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", "profiler")
    with memlens.profile(out=tmp_path / "run", stacks=True) as session:
        Job().step()
    rank = session.capture.ranks[0]

    assert all(block.stack == () for block in rank.allocations_at(None, None))
    assert any("stacks" in note for note in rank.coverage.notes)


# -- names -------------------------------------------------------------------------------------


class DistributedDataParallel(nn.Module):
    """Stands for torch's: the model is inside, as `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.module(x)
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = stack()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.body(x))
        return result


NET = {
    "body.0.weight",
    "body.0.bias",
    "body.1.weight",
    "body.1.bias",
    "norm.weight",
    "norm.bias",
    "norm.running_mean",
    "norm.running_var",
    "norm.num_batches_tracked",
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_names_of_modules_and_tensors(wrapped: bool, before: bool, tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model: nn.Module = Net()
        if wrapped:
            model = DistributedDataParallel(model)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    made = make() if before else None
    with memlens.profile(out=tmp_path / "run") as session:
        model, optimizer = made or make()
        model(torch.randn(BATCH, WIDTH)).sum().backward()
        optimizer.step()
        moment = now()
    rank = session.capture.ranks[0]

    learned = {name for name in NET if name.endswith(("weight", "bias"))}
    assert {block.name for block in alive(rank, moment, Category.WEIGHT)} == NET
    assert {block.name for block in alive(rank, moment, Category.GRADIENT)} == learned
    states = alive(rank, moment, Category.OPTIMIZER_STATE)
    assert {block.name for block in states} == {f"momentum_buffer of {name}" for name in learned}
    assert {block.module for block in states} == {"body.0", "body.1", "norm"}
    usage = {item.module: item for item in rank.modules_at(moment, None)}
    for layer in ("body.0", "body.1"):
        assert usage[layer].class_name == "Linear"
        assert usage[layer].categories == {
            Category.WEIGHT: LAYER,
            Category.GRADIENT: LAYER,
            Category.OPTIMIZER_STATE: LAYER,
        }
        assert usage[layer].total_bytes == 3 * LAYER
    total = sum(item.total_bytes for item in usage.values())
    assert total == sum(rank.categories_at(moment).values())


def test_the_first_model_that_is_called_stands_alone(tmp_path: Path) -> None:
    """Others are told apart by their class; one that is not called does not take the place."""
    idle = Net()
    with memlens.profile(out=tmp_path / "run") as session:
        teacher, student, twin = Net(), stack(), stack()
        x = torch.randn(BATCH, WIDTH)
        student(x)
        teacher(x)
        twin(x)
        moment = now()
    rank = session.capture.ranks[0]

    names = {block.name for block in alive(rank, moment, Category.WEIGHT)}
    assert {"0.weight", "1.weight", "Net.body.0.weight", "Sequential.0.weight"} <= names
    assert {"Net#2.body.0.weight", "Net#2.norm.running_var"} <= names
    assert len(list(idle.parameters())) == 6


def test_a_model_that_is_named_comes_first(tmp_path: Path) -> None:
    other, chosen = Net(), stack()
    with memlens.profile(chosen, out=tmp_path / "run") as session:
        x = torch.randn(BATCH, WIDTH)
        other(x)
        chosen(x)
        moment = now()
    names = {block.name for block in alive(session.capture.ranks[0], moment, Category.WEIGHT)}

    assert {"0.weight", "1.bias", "Net.body.0.weight"} <= names


def test_nothing_of_the_job_is_kept_alive(source: str, tmp_path: Path) -> None:
    """Also a model that was handed to us is freed when the job lets go of it."""
    job = Job()
    references: list[weakref.ref[Any]] = [weakref.ref(job.model), weakref.ref(job.optimizer)]
    references += [weakref.ref(value) for value in job.model.parameters()]
    with memlens.profile(job.model, job.optimizer, out=tmp_path / "run") as session:
        job.step()
        full = now()
        del job
        gc.collect()
        empty = now()
        assert [reference() is None for reference in references] == [True] * 6
    rank = session.capture.ranks[0]

    freed = sum(AFTER_STEP.values())
    before, after = (sum(rank.categories_at(moment).values()) for moment in (full, empty))
    assert before - after == freed


def test_something_else_than_a_model_is_refused() -> None:
    with pytest.raises((UsageError, TypeError)):
        memlens.profile("model")  # type: ignore[arg-type]


def test_temporaries_belong_to_the_innermost_module(tmp_path: Path) -> None:
    """Forward and backward; what hands on a result as its own (Sequential, Identity) does not count."""
    with memlens.profile(out=tmp_path / "run") as session:
        model = nn.Sequential(stack(), nn.Identity(), nn.Softplus())
        for _ in range(2):
            model(torch.randn(BATCH, WIDTH, requires_grad=True)).sum().backward()
    rank = session.capture.ranks[0]

    table = rank.to_arrow()
    columns = (table[name].to_pylist() for name in ("module", "phase", "size_bytes"))
    at_work = Counter(
        (phase, module) for module, phase, size in zip(*columns, strict=True) if size == ROW
    )
    # Each layer makes a row forward, and backward the gradient of its input; all of it twice.
    assert {place: count for place, count in at_work.items() if place[1]} == {
        (phase.value, module): 2
        for phase in (Phase.FORWARD, Phase.BACKWARD)
        for module in ("0.0", "0.1", "2")
    }


def test_a_module_without_a_parent_is_named_when_it_is_called(tmp_path: Path) -> None:
    """Layers kept in a plain list: torch does not know that they belong to the model."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    with memlens.profile(out=tmp_path / "run") as session:
        model = Hidden()
        model(torch.randn(BATCH, WIDTH)).sum().backward()
        moment = now()
    weights = alive(session.capture.ranks[0], moment, Category.WEIGHT)
    names = {block.name for block in weights if not block.preexisting}

    assert names == {
        f"Linear{number}.{name}" for number in ("", "#2") for name in ("weight", "bias")
    }


# -- questions ---------------------------------------------------------------------------------


def leaking(kept: list[Any], leak: str, steps: int, tmp_path: Path) -> RankCapture:
    with memlens.profile(out=tmp_path / "run") as session:
        job = Job()
        for step in range(steps):
            loss = job.step()
            if leak == "losses with their graphs":
                kept.append(nn.functional.mse_loss(job.model(job.x), job.x))
            elif leak == "a cache":
                kept.append(torch.zeros(100 + step))
            elif leak == "a buffer that is made anew":
                kept[:] = [torch.cat([*kept, torch.zeros(100)])]
            elif leak == "every second step" and step % 2:
                kept.append(torch.zeros(100))
            elif leak == "the last three losses":
                kept.append(loss.detach())
                del kept[:-3]
            elif leak == "a list that is emptied":
                kept.append(torch.zeros(100))
                if step == 5:
                    kept.clear()
            del loss
    return session.capture.ranks[0]


@pytest.mark.parametrize(
    "leak",
    ["losses with their graphs", "a cache", "a buffer that is made anew", "every second step"],
)
def test_growth_finds_a_leak(leak: str, tmp_path: Path) -> None:
    kept: list[Any] = []
    rank = leaking(kept, leak, 8, tmp_path)

    found = rank.growth()

    assert found
    assert all(item.bytes_per_step > 0 for item in found)
    assert all(item.last_bytes > item.first_bytes for item in found)
    assert any(frame.function.endswith("leaking") for item in found for frame in item.stack)
    if leak == "a cache":
        assert len(found) == 1
        # Kept after step 1 (the first that is looked at) up to step 7: one more each time.
        assert found[0].last_bytes >= FLOAT * sum(100 + step for step in range(1, 7))
        assert FLOAT * 100 < found[0].bytes_per_step < FLOAT * 108
    if leak == "a buffer that is made anew":
        assert [item.bytes_per_step for item in found] == [FLOAT * 100]
    if leak == "losses with their graphs":
        # x, the batch, is not part of it: kept are a hidden activation, y and mse_loss's own.
        assert sum(item.bytes_per_step for item in found) == 3 * ROW


@pytest.mark.parametrize("leak", ["none", "the last three losses", "a list that is emptied"])
def test_growth_finds_nothing_in_a_clean_job(leak: str, tmp_path: Path) -> None:
    assert leaking([], leak, 8, tmp_path).growth() == ()


def test_growth_needs_some_steps(tmp_path: Path) -> None:
    assert leaking([], "a cache", 2, tmp_path).growth() == ()


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> RankCapture:
    """A capture of six steps."""
    folder = tmp_path_factory.mktemp("session")
    with memlens.profile(out=folder / "run") as session:
        job = Job()
        for _ in range(6):
            job.step()
    return session.capture.ranks[0]


def test_peak_and_steps_agree(rank: RankCapture) -> None:
    peak, steps = rank.peak(), rank.steps()

    assert peak.allocated_bytes == max(step.peak_bytes for step in steps)
    first = next(step for step in steps if step.peak_bytes == peak.allocated_bytes)
    assert peak.step == first.step
    assert peak.time_ns == first.peak_ns
    assert peak.categories == first.categories == rank.categories_at(peak.time_ns)
    assert peak.reserved_bytes is None
    for one, other in pairwise(steps):
        assert one.start_ns <= one.peak_ns <= one.end_ns == other.start_ns
        assert rank.categories_at(one.end_ns) == one.end_categories
    blocks = rank.allocations_at(None, None)
    assert sum(block.size_bytes for block in blocks) == peak.allocated_bytes
    assert rank.allocations_at(None, 3) == blocks[:3]
    assert [block.size_bytes for block in blocks] == sorted(
        (block.size_bytes for block in blocks), reverse=True
    )


def test_a_step_that_only_frees_has_its_peak_at_its_beginning(tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run") as session:
        job = Job()
        job.step()
        job.step()
        large = torch.empty(1_000_000, dtype=torch.uint8)
        job.optimizer.step()
        begin = now()
        del large
        job.step()
    rank = session.capture.ranks[0]

    step = rank.steps()[3]
    assert step.start_ns < begin < step.end_ns
    assert step.peak_bytes == sum(rank.categories_at(begin).values()) > 1_000_000


@pytest.mark.parametrize("points", [1, 2, 3, 10, 50, 10_000])
def test_a_thinned_timeline_keeps_peak_and_levels(rank: RankCapture, points: int) -> None:
    whole, thin = rank.timeline(), rank.timeline(points)

    assert len(thin.time_ns) <= max(points, 2)
    assert bool(np.all(np.diff(thin.time_ns) >= 0))
    assert int(thin.allocated_bytes.max()) == rank.peak().allocated_bytes
    assert int(thin.allocated_bytes[-1]) == int(whole.allocated_bytes[-1])
    total = np.sum([thin.categories[category] for category in Category], axis=0)
    np.testing.assert_array_equal(total, thin.allocated_bytes)
    # Each entry is one of the whole timeline's.
    entries = set(zip(whole.time_ns.tolist(), whole.allocated_bytes.tolist(), strict=True))
    assert set(zip(thin.time_ns.tolist(), thin.allocated_bytes.tolist(), strict=True)) <= entries
    assert thin.step_start_ns == whole.step_start_ns
    assert list(thin.step_start_ns) == [0, 1, 2, 3, 4, 5]


def test_a_moment_before_and_after_everything(rank: RankCapture) -> None:
    assert set(rank.categories_at(0).values()) == {0}
    assert rank.allocations_at(0) == ()
    assert rank.modules_at(0) == ()
    last = int(rank.timeline().allocated_bytes[-1])
    assert sum(rank.categories_at(2**62).values()) == last


def test_hooks_are_gone_from_models(tmp_path: Path) -> None:
    job = Job()
    with memlens.profile(out=tmp_path / "run"):
        job.step()
        assert leftover_hooks(job.model) != []
    assert leftover_hooks(job.model) == []


@pytest.mark.parametrize(
    ("device", "way_out"),
    [
        ("mps", "torch keeps no history of Apple's GPUs"),
        ("xpu", "`memlens import` reads what torch.xpu.memory._dump_snapshot() writes"),
        ("hip", "AMD's GPUs are 'cuda' in torch's ROCm build"),
        ("cuda:1", "'cuda', without a number"),
    ],
)
def test_of_devices_that_are_not_recorded_it_is_said_what_works(device: str, way_out: str) -> None:
    with pytest.raises(UsageError, match="can not be recorded, only auto, cpu, cuda") as caught:
        memlens.profile(device=device)
    assert way_out in str(caught.value)
