"""Workspaces of cuBLAS, where no stack names them: tensors have their size as well.

32 MiB is what torch takes on Hopper, and a matrix of 4096 x 4096 in bfloat16.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.written_job import (
    BACKWARD,
    FORWARD,
    MAIN,
    MAKING,
    MIB,
    STEP,
    ZERO,
    Frames,
    Job,
    categories,
    stack,
)

MATRIX = 32 * MIB
OTHERS = (4096 * 2 + 16 * 8) * 1024
NOTHING: Frames = []
"""Of what was there before stacks were recorded."""
EMBEDDING = stack("forward /job/embedding.py", "_call_impl /venv/torch/nn/modules/module.py")


def found(job: Job, folder: Path) -> dict[str, list[int]]:
    (rank,) = job.imported(folder).ranks
    return categories(rank)


def train(job: Job, *, forward: tuple[int, ...] = (), backward: tuple[int, ...] = ()) -> None:
    """One step with one weight of 3 MiB; what is given is made behind the first result, and stays."""
    kept = job.malloc(FORWARD, 2 * MIB)
    job.malloc(FORWARD, *forward)
    gradients = job.malloc(BACKWARD, 3 * MIB)
    job.malloc(BACKWARD, *backward)
    job.free(BACKWARD, kept)
    job.free(STEP, job.malloc(STEP, 4 * MIB))
    job.free(ZERO, gradients)


def test_among_weights_gradients_and_states_of_its_size(tmp_path: Path) -> None:
    job = Job()
    job.malloc(MAKING, *[MATRIX] * 4)
    kept = job.malloc(FORWARD, 3 * MIB, MATRIX, 3 * MIB)  # the second is made by the first product
    del kept[1]
    job.malloc(BACKWARD, *[MATRIX] * 4)
    job.free(BACKWARD, kept)
    job.malloc(STEP, *[MATRIX] * 8)
    assert found(job, tmp_path) == {
        "weight": [32] * 4,
        "workspace": [32],
        "activation": [3, 3],
        "gradient": [32] * 4,
        "optimizer_state": [32] * 8,
    }


def test_one_of_each_thread(tmp_path: Path) -> None:
    job = Job()
    job.malloc(MAKING, 3 * MIB)
    for number in range(2):
        extra = (MATRIX,) if number == 0 else ()
        train(job, forward=extra, backward=extra)
    assert found(job, tmp_path)["workspace"] == [32, 32]


def test_of_backward_among_gradients_that_are_given_back(tmp_path: Path) -> None:
    job = Job()
    job.malloc(MAKING, *[MATRIX] * 2)
    for number in range(2):
        kept = job.malloc(FORWARD, 2 * MIB)
        if number == 0:
            job.malloc(BACKWARD, MATRIX)
        gradients = job.malloc(BACKWARD, MATRIX, MATRIX)
        job.free(BACKWARD, kept)
        job.free(ZERO, gradients)
    assert found(job, tmp_path) == {
        "weight": [32] * 2,
        "activation": [2] * 2,
        "workspace": [32],
        "gradient": [32] * 4,
    }


def test_gradients_of_weights_that_no_stack_tells_are_none(tmp_path: Path) -> None:
    job = Job()
    job.malloc(MAIN, *[MATRIX] * 2)
    kept = job.malloc(FORWARD, 2 * MIB)
    job.malloc(BACKWARD, MATRIX, MATRIX)
    job.free(BACKWARD, kept)
    job.malloc(FORWARD, 2 * MIB)
    assert found(job, tmp_path) == {
        "weight": [32] * 2,
        "activation": [2] * 2,
        "gradient": [32] * 2,
    }


def test_what_a_forward_keeps_is_none_unless_a_product_made_it(tmp_path: Path) -> None:
    """The result of an embedding, which is kept, has nothing of its own stack before it."""
    job = Job()
    job.malloc(MAKING, 3 * MIB)
    job.malloc(EMBEDDING, MATRIX)
    train(job)
    assert "workspace" not in found(job, tmp_path)


def test_where_a_history_ends_in_forward_it_is_not_told_from_results(tmp_path: Path) -> None:
    job = Job()
    job.malloc(MAKING, 3 * MIB)
    job.malloc(FORWARD, 2 * MIB, MATRIX, MATRIX)
    assert found(job, tmp_path) == {"weight": [3], "activation": [2, 32], "unknown": [32]}


def test_on_other_devices_its_size_is_nobody_elses(tmp_path: Path) -> None:
    job = Job()
    job.malloc(NOTHING, MATRIX)
    job.forget()
    job.malloc(FORWARD, 2 * MIB, OTHERS, MATRIX)
    assert found(job, tmp_path) == {"unknown": [32], "activation": [2, 32], "workspace": [8]}


def test_frozen_weights_that_were_there_are_none(tmp_path: Path) -> None:
    """The history shows how the workspaces are made, so that they were not there before."""
    job = Job()
    job.malloc(NOTHING, MATRIX, MATRIX, 3 * MIB)
    job.forget()
    train(job, forward=(MATRIX,), backward=(MATRIX,))
    train(job)
    told = found(job, tmp_path)
    assert told["unknown"] == [32, 32]
    assert told["workspace"] == [32, 32]
    assert told["weight"] == [3]


def early(*sizes: int, frames: Frames = NOTHING) -> Job:
    """The first of the sizes is made where the frames say, the others where none does."""
    job = Job()
    job.malloc(MAIN, 3 * MIB)
    job.malloc(frames, *sizes[:1])
    job.malloc(NOTHING, *sizes[1:])
    job.forget()
    train(job)
    train(job)
    return job


def test_those_of_a_history_that_began_late_were_there(tmp_path: Path) -> None:
    assert found(early(MATRIX, MATRIX), tmp_path)["workspace"] == [32, 32]


def test_those_of_a_ring_that_has_wrapped_have_their_stacks(tmp_path: Path) -> None:
    told = found(early(MATRIX, MATRIX, frames=FORWARD), tmp_path)
    assert told["workspace"] == [32, 32]


def test_others_beside_them_are_not_told_apart(tmp_path: Path) -> None:
    told = found(early(*[MATRIX] * 3), tmp_path)
    assert told["unknown"] == [32] * 3
    assert "workspace" not in told


def test_a_device_has_workspaces_of_one_size(tmp_path: Path) -> None:
    told = found(early(MATRIX, MATRIX, OTHERS), tmp_path)
    assert told["workspace"] == [8]
    assert told["unknown"] == [32, 32]


def test_where_nothing_is_multiplied_there_is_none(tmp_path: Path) -> None:
    job = Job()
    job.malloc(NOTHING, MATRIX)
    job.forget()
    job.malloc(MAIN, 2 * MIB)
    assert found(job, tmp_path) == {"unknown": [2, 32]}


def test_stacks_that_reach_into_cpp_would_name_it(tmp_path: Path) -> None:
    native: Frames = [{"name": "at::native::empty_cuda", "filename": "??", "line": 0}]
    job = Job()
    job.malloc(MAKING, 3 * MIB)
    job.malloc(native + FORWARD, 2 * MIB, MATRIX)
    job.malloc(BACKWARD, 3 * MIB)
    job.malloc(native + STEP, 4 * MIB)
    assert "workspace" not in found(job, tmp_path)
