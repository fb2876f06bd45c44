"""The largest size that fits: found in few tries, and the next one does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memlens.catalogue.gpus import CONTEXT_BYTES, Gpu
from memlens.comparing.results import PeakResult, Result, Status
from memlens.errors import SimulationError
from memlens.events import Category
from memlens.planning.search import Found, Try, search
from memlens.planning.sizes import JobWords, Ladder
from memlens.planning.verdict import Verdict

MIB, GIB = 2**20, 2**30


def find(
    peak_bytes: Callable[[int], int],
    usable_bytes: int,
    *,
    rungs: int | None = None,
    reclaimed: float = 1.0,
    fails_from: int | None = None,
    influence: bool = True,
) -> Found:
    """Search where the peak is a function; the card holds `reclaimed` times its memory, with retries."""
    gpu = Gpu("a card", usable_bytes + CONTEXT_BYTES)

    def measure(rung: int) -> Try:
        if fails_from is not None and rung >= fails_from:
            return Try(rung, str(rung), Result("", Status.FAILED, "ValueError: too large"), None)
        peak = peak_bytes(rung)
        fits = peak <= usable_bytes * reclaimed
        verdict = Verdict(gpu, fits, peak, retries=peak > usable_bytes, shortage=None)
        held = {Category.INPUT: rung if influence else 1}
        at_peak = PeakResult(0, 0, "optimizer", "", peak, peak, held)
        result = Result("", Status.OK, peak=at_peak, reserved_peak_bytes=peak)
        return Try(rung, str(rung), result, verdict)

    ladder = Ladder("batch", lambda _: JobWords(()), str, rungs, "no more" if rungs else "")
    return search(ladder, gpu, measure)


def test_an_affine_peak_takes_four_tries() -> None:
    found = find(lambda n: 500 * MIB + 37 * MIB * n, 4 * GIB)
    assert found.largest is not None
    assert found.next is not None
    assert (found.largest.rung, found.next.rung) == (97, 98)
    assert [each.rung for each in found.tries] == [1, 2, 98, 97]


@pytest.mark.parametrize("usable", [2 * GIB, 3 * GIB + 12345, 24 * GIB])
@pytest.mark.parametrize("page", [1, 20 * MIB])
@pytest.mark.parametrize("flat", [0, GIB + 1])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("per_sample", [70_000, 3 * MIB, 300 * MIB])
@pytest.mark.parametrize("reclaimed", [1.0, 1.07])
def test_the_answer_is_the_boundary(
    usable: int, page: int, flat: int, power: int, per_sample: int, reclaimed: float
) -> None:
    def peak(n: int) -> int:
        return -(-max(flat, 100 * MIB + per_sample * int(n**power)) // page) * page

    found = find(peak, usable, reclaimed=reclaimed)
    assert found.largest is not None
    assert found.next is not None
    assert found.next.rung == found.largest.rung + 1
    assert peak(found.largest.rung) <= usable * reclaimed < peak(found.next.rung)
    tried = [each.rung for each in found.tries]
    # To one of 340,000 samples; of samples that are worth a segment, it is a few.
    assert len(tried) == len(set(tried)) <= 28


def test_not_even_one_fits() -> None:
    found = find(lambda n: GIB * (n + 1), GIB)
    assert found.largest is None
    assert found.next is not None
    assert found.next.rung == 1
    assert found.to_json()["largest"] is None
    assert len(found.tries) == 1


def test_all_of_a_ladder_that_ends_fit() -> None:
    found = find(lambda n: MIB * n, GIB, rungs=9)
    assert found.largest is not None
    assert (found.largest.rung, found.next, found.end) == (9, None, "no more")
    found = find(lambda n: MIB * n, 7 * MIB, rungs=9)
    assert found.largest is not None
    assert found.largest.rung == 7


def test_a_size_without_influence_is_said_so() -> None:
    with pytest.raises(
        SimulationError, match="no influence: the peak is the same with 8192 as with 1"
    ):
        find(lambda n: 5 * MIB, GIB, influence=False)


def test_a_size_that_makes_the_job_fail_does_not_fit() -> None:
    found = find(lambda n: MIB * n, GIB, fails_from=100)
    assert found.largest is not None
    assert found.next is not None
    assert (found.largest.rung, found.next.rung) == (99, 100)
    assert found.next.to_json()["reason"] == "ValueError: too large"
    with pytest.raises(
        SimulationError, match="the job failed in simulation: ValueError: too large"
    ):
        find(lambda n: MIB * n, GIB, fails_from=1)
