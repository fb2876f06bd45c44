"""Which rank is the highest, and why: worked out by hand on a few blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.support.fake_capture import Block, FakeRank, make_capture

from memlens.across.compare import Level, compare_ranks
from memlens.across.ending import End
from memlens.across.summary import RankSummary, summarize
from memlens.answers import Place
from memlens.events import Category, Phase
from memlens.palette import series_of
from memlens.report.endings import ending_sentences
from memlens.report.payload import payload
from memlens.report.view import ReportOptions


def rank(number: int, *blocks: tuple[int, Category, str]) -> FakeRank:
    return FakeRank(
        number, [Block(size, category, 1, None, "", module) for size, category, module in blocks]
    )


def summaries(*ranks: Any) -> list[RankSummary]:
    return [summarize(each) for each in ranks]


W, G, A = Category.WEIGHT, Category.GRADIENT, Category.ACTIVATION
PLAIN = (100, W, "m.0.fc"), (100, W, "m.1.fc"), (10, A, "head")


def test_levels_and_totals() -> None:
    ranks = summaries(*(rank(n, (size, W, "m")) for n, size in enumerate((30, 10, 20, 40))))
    found = compare_ranks(ranks, series_of(False))
    assert found.peak == Level(10, 20, 40, 100)
    assert found.categories["weight"] == Level(10, 20, 40, 100)
    assert found.categories["gradient"] == Level(0, 0, 0, 0)
    assert [each.rank for each in (found.highest, found.median, found.lowest)] == [3, 2, 1]
    assert found.difference_bytes == 20


def test_one_layer_that_differs_is_named() -> None:
    ranks = summaries(rank(0, *PLAIN), rank(1, *PLAIN, (64, G, "m.1.fc"), (1, A, "m.0.fc")),
                      rank(2, *PLAIN))  # fmt: skip
    found = compare_ranks(ranks, series_of(False))
    assert (found.highest.rank, found.median.rank, found.difference_bytes) == (1, 0, 65)
    assert found.category is not None
    assert (found.category.name, found.category.size_bytes) == ("gradient", 64)
    assert found.module is not None
    assert (found.module.name, found.module.size_bytes) == ("m.1.fc", 65 - 1 + 1)
    assert found.module.category == "gradient"


def test_layers_that_differ_alike_are_named_together() -> None:
    more = tuple((7, A, f"m.{n}.fc") for n in range(4))
    ranks = summaries(rank(0, *PLAIN), rank(1, *PLAIN, *more), rank(2, *PLAIN))
    found = compare_ranks(ranks, series_of(False))
    assert found.module is not None
    assert (found.module.name, found.module.size_bytes) == ("m.*.fc", 28)


def test_stages_of_a_pipeline_are_compared_layer_by_layer() -> None:
    """Each has layers of its own: that they have other numbers is no difference."""
    first = [(100, W, f"m.{n}.fc") for n in range(4)]
    second = [(100, W, f"m.{n}.fc") for n in range(4, 8)]
    ranks = summaries(rank(0, *first), rank(1, *second, (50, W, "head")), rank(2, *first))
    found = compare_ranks(ranks, series_of(False))
    assert found.module is not None
    assert (found.module.name, found.module.size_bytes) == ("head", 50)


def test_ranks_that_are_equal_have_no_difference() -> None:
    found = compare_ranks(summaries(rank(0, *PLAIN), rank(1, *PLAIN)), series_of(False))
    assert (found.category, found.module, found.difference_bytes) == (None, None, 0)


@pytest.mark.parametrize("rollup", [False, True])
def test_the_json_says_why_in_numbers_and_in_a_sentence(rollup: bool) -> None:
    capture = make_capture(
        rank(0, *PLAIN), rank(1, *PLAIN), rank(2, *PLAIN, (64, G, "m.1.fc")), rank(3, *PLAIN)
    )
    across = json.loads(json.dumps(payload(capture, ReportOptions(rollup=rollup))))["across_ranks"]
    category = "Weight Gradient" if rollup else "gradient"
    assert across["highest"]["rank"] == 2
    assert across["median"]["rank"] == 0
    assert across["peak"] == {
        "lowest_bytes": 210, "median_bytes": 210, "highest_bytes": 274, "sum_bytes": 904,
    }  # fmt: skip
    difference = across["difference"]
    sentence = difference.pop("sentence")
    assert difference == {
        "size_bytes": 64,
        "category": category,
        "category_bytes": 64,
        "module": "m.1.fc",
        "module_bytes": 64,
        "module_category": category,
    }
    assert sentence == (
        "Rank 2 is 64 B above the median rank (0): most of it is "
        f"{category}, +64 B, and most of it in m.1.fc, +64 B."
    )
    total = across["total"]
    assert (total["size_bytes"], total["ranks"], total["of_ranks"]) == (904, 4, 4)
    assert total["partial"] == []
    assert total["categories"][category] == 64
    assert sum(total["categories"].values()) == 904


def test_a_rank_that_was_asked_for_is_not_compared() -> None:
    capture = make_capture(rank(0, *PLAIN), rank(1, *PLAIN))
    made = payload(capture, ReportOptions(rank=1))
    assert made["across_ranks"] is None
    assert [each["rank"] for each in made["ranks"]] == [1]


def test_starts_of_a_job_are_not_summed() -> None:
    ranks = [rank(n, (10 + n, W, "m")) for n in range(4)]
    capture: Any = make_capture(*(replace(each, launch=each.rank // 2) for each in ranks))
    capture.info = replace(capture.info, world_size=2)
    capture.launches = 2
    across = payload(capture, ReportOptions())["across_ranks"]
    assert across["starts"] == 2
    assert across["total"]["size_bytes"] == 12 + 13
    assert (across["total"]["ranks"], across["total"]["partial"]) == (2, [])


def test_how_ranks_ended_in_one_sentence_each() -> None:
    """The first one first: it may be the reason for the others."""
    place = Place(3, Phase.BACKWARD, "m.1.fc")
    good, *others = summaries(*(rank(n, *PLAIN) for n in range(4)))
    last = good.end.time_ns
    assert last is not None
    raised, out, killed = (
        replace(each, end=replace(good.end, how=how, error=error, out_of_memory=is_out,
                                  time_ns=last - before, place=place))
        for each, how, error, is_out, before in zip(
            others,
            (End.RAISED, End.DIED, End.DIED),
            ("ValueError: no such batch", None, None),
            (False, True, False),
            (0, 2_000_000_000, 1_000_000_000),
            strict=True,
        )
    )  # fmt: skip
    where = "last seen in step 3, backward, in m.1.fc"
    assert ending_sentences([good, raised, out, killed]) == [
        f"rank 2 ran out of memory and did not end in good order; {where}, 2.00 s before the last rank",
        f"rank 3 died (it was killed, or crashed); {where}, 1.00 s before the last rank",
        f"rank 1 failed: ValueError: no such batch; {where}",
    ]
    nothing = replace(killed, end=replace(killed.end, time_ns=None, place=None))
    assert ending_sentences([good, nothing]) == [
        "rank 3 died (it was killed, or crashed); nothing of it was recorded"
    ]
    many = [replace(killed, rank=number) for number in range(100)]
    assert ending_sentences(many)[5:] == ["95 more ranks failed or died afterwards"]
