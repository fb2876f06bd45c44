"""The fewest GPUs: found in few tries, and one less does not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.gpus import CONTEXT_BYTES, Gpu
from memlens.catalogue.variant import Variant, parse_variant
from memlens.comparing.results import PeakResult, Result, Status
from memlens.events import Category
from memlens.planning.fit import MOST, Fewest, fewest_gpus
from memlens.planning.floor import Floor
from memlens.planning.search import Try
from memlens.planning.verdict import Verdict
from memlens.report.plan.fit import fit_lines
from memlens.sharding.layout import Parameter

MIB, GIB = 2**20, 2**30
CARD = Gpu("card", 24 * GIB + CONTEXT_BYTES)
SIZES = Callable[[int], float]


def search(
    peak: SIZES, floor: Any = None, mode: ShardingMode = ShardingMode.ZERO_2
) -> tuple[Fewest, list[int]]:
    """Search with a peak in GiB for each number of GPUs; also what was tried, in order."""
    order = []

    def measure(gpus: int) -> Try:
        order.append(gpus)
        size = int(peak(gpus) * GIB)
        categories = {Category.ACTIVATION: size}
        highest = PeakResult(0, 0, "forward", "", size, size, categories)
        result = Result("x", Status.OK, peak=highest, reserved_peak_bytes=size)
        verdict = Verdict(CARD, size <= CARD.usable_bytes, size, retries=False, shortage=None)
        return Try(gpus, str(gpus), result, verdict)

    return fewest_gpus("adamw", mode, CARD, measure, floor), order


class TestSearch:
    def test_one_is_enough(self) -> None:
        found, order = search(lambda gpus: 20)
        assert found.fewest is not None and found.fewest.rung == 1
        assert order == [1]

    def test_both_sides_are_tried(self) -> None:
        """4 + 100 / n GiB on 24: 5."""
        found, order = search(lambda gpus: 4 + 100 / gpus)
        assert found.fewest is not None and found.fewest.rung == 5
        assert {4, 5} <= set(order)
        assert len(order) <= 4

    def test_no_number_will_do(self) -> None:
        found, order = search(lambda gpus: 25 + 1 / gpus)
        assert found.fewest is None
        assert found.stays is not None and found.stays[Category.ACTIVATION] > 25 * GIB
        assert order == [1, MOST]

    def test_without_sharding_more_are_of_no_use(self) -> None:
        found, order = search(lambda gpus: 30, mode=ShardingMode.ZERO_0)
        assert found.fewest is None
        assert order == [1]

    def test_a_floor_spares_tries(self) -> None:
        """The layout excludes all below 5, where it fits: one try is enough."""
        found, order = search(lambda gpus: 4 + 100 / gpus, lower(lambda gpus: 3.9 + 100 / gpus))
        assert found.fewest is not None and found.fewest.rung == 5
        assert order == [5]
        assert found.next_is_bound

    def test_a_floor_that_is_low(self) -> None:
        found, order = search(lambda gpus: 14 + 100 / gpus, lower(lambda gpus: 100 / gpus))
        assert found.fewest is not None and found.fewest.rung == 10
        assert order == [5, 10, 9]

    def test_a_floor_that_is_too_much(self) -> None:
        """What no number of GPUs takes off is seen without a simulation."""
        found, order = search(lambda gpus: 40, lower(lambda gpus: 30))
        assert found.fewest is None
        assert found.stays == {Category.WEIGHT: 30 * GIB}
        assert order == []

    @given(
        st.floats(0, 23.9), st.floats(0, 3000), st.floats(0, 40), st.sampled_from([None, 0.5, 1.0])
    )
    def test_is_right_whatever_the_peak_is(
        self, stays: float, shared: float, bend: float, share: float | None
    ) -> None:
        """Also where it is not affine in 1 / n, as where the peak moves elsewhere."""

        def peak(gpus: int) -> float:
            return max(stays + shared / gpus, min(23.9, bend) + shared / 2 / gpus)

        floor = None if share is None else lower(lambda gpus: share * shared / gpus)
        found, order = search(peak, floor)
        fitting = [gpus for gpus in range(1, MOST + 1) if int(peak(gpus) * GIB) <= 24 * GIB]
        assert (found.fewest and found.fewest.rung) == (fitting[0] if fitting else None)
        assert len(order) == len(set(order)) <= 12

    def test_a_job_that_fails(self) -> None:
        broken = Try(1, "1", Result("x", Status.FAILED, "exit code 1"), None)
        found = fewest_gpus("adamw", None, CARD, lambda gpus: broken)
        assert (found.failed, found.refused) == ("exit code 1", "")
        broken = replace(broken, result=Result("x", Status.REFUSED, "a package is missing"))
        found = fewest_gpus("adamw", None, CARD, lambda gpus: broken)
        assert (found.failed, found.refused) == ("", "a package is missing")


def lower(size: SIZES) -> Floor:
    """A floor that says so many GiB."""

    def bytes_at(gpus: int, rank: int = 0) -> int:
        return int(size(gpus) * GIB)

    def fewest(usable: int, most: int) -> int | None:
        return next((gpus for gpus in range(1, most + 1) if bytes_at(gpus) <= usable), None)

    said = SimpleNamespace(
        bytes_at=bytes_at,
        fewest=fewest,
        categories_at=lambda gpus: {Category.WEIGHT: bytes_at(gpus)},
    )
    return cast(Floor, said)


BF16: dict[str, Any] = {"bf16": {"enabled": True}, "zero_optimization": {"reduce_bucket_size": 100}}
SMALL = (Parameter("a", (30, 30)), Parameter("b", (100,)))


def floor_of(mode: ShardingMode, name: str = "adamw", config: Any = None) -> Floor:
    return Floor(SMALL, mode, parse_variant(name), BF16 if config is None else config)


class TestFloor:
    def test_by_hand(self) -> None:
        """1000 elements on two ranks at stage 2: 2 + 4/2 + 8/2 bytes each, and the gradients.

        The first rank has 500 of a's 900 elements, and so its whole gradient. In bf16 beside the
        bucket that is 2000 bytes, and as much in step: the part in fp32.
        """
        found = floor_of(ShardingMode.ZERO_2).categories_at(2)
        assert found == {
            Category.WEIGHT: 2000,
            Category.MASTER_WEIGHT: 2000,
            Category.OPTIMIZER_STATE: 4000,
            Category.GRADIENT: 1800,
            Category.COMMUNICATION: 200,
        }

    def test_gradients_in_step(self) -> None:
        """On one rank, fp32 gradients in step are more than bf16 ones and the bucket."""
        found = floor_of(ShardingMode.ZERO_2).categories_at(1)
        assert (found[Category.GRADIENT], found[Category.COMMUNICATION]) == (4000, 0)
        # This optimizer puts its state where they were.
        found = floor_of(ShardingMode.ZERO_2, "adamw-r").categories_at(1)
        assert (found[Category.GRADIENT], found[Category.COMMUNICATION]) == (2000, 200)

    def test_offloaded_is_not_counted(self) -> None:
        config = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
        found = floor_of(ShardingMode.ZERO_2, config=config).categories_at(2)
        assert found[Category.MASTER_WEIGHT] == found[Category.OPTIMIZER_STATE] == 0

    def test_fsdp(self) -> None:
        found = floor_of(ShardingMode.FSDP).categories_at(4)
        # a has 8 of 30 rows on the first rank; all in fp32.
        assert found[Category.WEIGHT] == found[Category.GRADIENT] == (8 * 30 + 25) * 4
        assert found[Category.OPTIMIZER_STATE] == (8 * 30 + 25) * 8

    def test_the_fullest_rank(self) -> None:
        """The second of three holds what is left of a and all of b."""
        assert floor_of(ShardingMode.ZERO_2).fullest_rank(2) == 1
        assert floor_of(ShardingMode.ZERO_3).fullest_rank(2) == 0

    def test_fewest(self) -> None:
        floor = floor_of(ShardingMode.ZERO_3)
        needed = floor.bytes_at(7)
        assert floor.fewest(needed, MOST) == 7
        assert floor_of(ShardingMode.ZERO_1).fewest(1999, MOST) is None

    @pytest.mark.parametrize("mode", list(ShardingMode))
    def test_shrinks(self, mode: ShardingMode) -> None:
        floor = floor_of(mode)
        sizes = [floor.bytes_at(2**power) for power in range(8)]
        assert sizes == sorted(sizes, reverse=True)
        assert (sizes[0] == sizes[-1]) == (mode is ShardingMode.ZERO_0)


def test_the_job_s_own_optimizer_is_adamw() -> None:
    own = Floor(SMALL, ShardingMode.ZERO_1, Variant(None), BF16)
    assert own.categories_at(2) == floor_of(ShardingMode.ZERO_1).categories_at(2)


def test_lines() -> None:
    fits, _ = search(lambda gpus: 4 + 100 / gpus)
    never, _ = search(lambda gpus: 30, mode=ShardingMode.ZERO_0)
    refused = Fewest("galore-adamw", ShardingMode.ZERO_3, refused="flat partitions")
    failed = Fewest("lion", None, failed="exit code 1")
    text = fit_lines([fits, never, refused, failed], CARD, "llama-60m")
    assert text[0].startswith("card, ") and text[0].endswith("the fewest on which llama-60m fits")
    rows = [" ".join(line.split()) for line in text[2:7]]
    assert rows == [
        "sharding optimizer GPUs reserved each headroom",
        "ZeRO 2 adamw 5 24.00 GiB 0 B",
        "ZeRO 0 adamw - does not fit on any number: each holds activation 30.00 GiB",
        "ZeRO 3 galore-adamw - refused: flat partitions",
        "as the job has it lion - failed: exit code 1",
    ]
