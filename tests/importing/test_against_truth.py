"""What is concluded from stacks is held against what was true: of real jobs, with real stacks.

The jobs run on the CPU, where memlens knows what each block is, since the objects that hold it say so.
What CUDA would have recorded of them is imported. See `tests.support.as_snapshot`.
"""

from __future__ import annotations

import gc
import pickle
from collections import Counter
from collections.abc import Callable

import pytest
from tests.support.as_snapshot import as_snapshot, noting_zero_grad
from tests.support.import_jobs import JOBS
from tests.support.training import assert_adds_up

import memlens
from memlens.capture import RankCapture
from memlens.events import Category
from memlens.importing.convert import import_snapshots
from memlens.options import Options

Import = Callable[[float], tuple[RankCapture, list[Category], RankCapture]]

UNKNOWN_SHARE = {"copies_weights": 0.4, "lbfgs": 0.3}
"""By sizes, neither two sets of weights nor states of a shape of their own can be told apart."""


@pytest.fixture(scope="module", params=JOBS, ids=lambda job: job.__name__)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Import:
    """Imports a job's history, the whole of it or its end."""
    folder = tmp_path_factory.mktemp("truth")
    gc.collect()
    with (
        noting_zero_grad() as zeroed,
        memlens.profile(out=folder / "true", stack_depth=200, device="cpu") as session,
    ):
        request.param()
    (told,) = session.capture.ranks

    def get(late_by: float) -> tuple[RankCapture, list[Category], RankCapture]:
        snapshot, truth = as_snapshot(told, zeroed, late_by=late_by)
        path = folder / f"{late_by}.pickle"
        path.write_bytes(pickle.dumps(snapshot))
        run = import_snapshots([path], Options(out=folder / f"run-{late_by}"))
        (rank,) = memlens.load(run).ranks
        return rank, truth, told

    return get


def at_peak(rank: RankCapture, truth: list[Category]) -> Counter[tuple[Category, Category]]:
    """Bytes at the peak, by what they are for and what they are said to be for."""
    blocks, peak_ns = rank.blocks, rank.peak().time_ns
    early = [number for number in range(len(truth)) if blocks.preexisting[number]]
    early.sort(key=lambda number: int(blocks.address[number]))
    order = early + [number for number in range(len(truth)) if not blocks.preexisting[number]]
    assert len(order) == len(blocks.first)
    found: Counter[tuple[Category, Category]] = Counter()
    for number, true in zip(order, truth, strict=True):
        if blocks.alloc_ns[number] <= peak_ns < blocks.free_ns[number]:
            said = list(Category)[rank.attribution.category[number]]
            found[true, said] += int(blocks.size_bytes[number])
    return found


def test_a_whole_history(imported: Import) -> None:
    rank, truth, told = imported(0)
    assert_adds_up(rank)
    assert rank.coverage.problems == ()
    assert rank.coverage.witness_difference_bytes == 0
    found = at_peak(rank, truth)
    wrong = {pair: size for pair, size in found.items() if pair[0] is not pair[1]}
    assert sum(wrong.values()) <= 0.005 * sum(found.values()), wrong
    assert [step.step for step in rank.steps()] == [step.step for step in told.steps()]


def test_the_end_of_a_history(imported: Import, request: pytest.FixtureRequest) -> None:
    rank, truth, _ = imported(0.5)
    assert_adds_up(rank)
    assert rank.coverage.problems == ()
    assert rank.coverage.witness_difference_bytes == 0
    found = at_peak(rank, truth)
    # What cannot be told is unknown. It is never taken for something else.
    wrong = {pair: n for pair, n in found.items() if pair[1] not in (pair[0], Category.UNKNOWN)}
    assert sum(wrong.values()) <= 0.005 * sum(found.values()), wrong
    unknown = sum(size for (_, said), size in found.items() if said is Category.UNKNOWN)
    share = UNKNOWN_SHARE.get(request.node.callspec.id, 0.01)
    assert unknown <= share * sum(found.values())
