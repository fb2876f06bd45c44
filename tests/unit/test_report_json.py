"""What a report says to machines: the contract of `memlens report --json`."""

from __future__ import annotations

import json
import re

import pytest
from tests.support.fake_capture import START_NS, Block, FakeRank, make_capture
from tests.support.llama_job import llama_job
from tests.support.small_job import HOSTILE, small_rank

from memlens.answers import Frame
from memlens.errors import UsageError
from memlens.events import ROLLUP, Category
from memlens.report.payload import payload
from memlens.report.view import ReportOptions


def test_the_contract_of_the_json() -> None:
    made = payload(make_capture(small_rank(reserved_bytes=200)), ReportOptions())
    assert made["format_version"] == 1
    assert made["source"] == "cpu"
    assert made["world_size"] == 1
    (rank,) = made["ranks"]
    zero = {category.value: 0 for category in Category}
    at_peak = zero | {"weight": 100, "activation": 50, "optimizer_state": 7}
    assert rank["rank"] == 0
    assert rank["device"] == "cpu"
    assert rank["events"] == 6
    assert rank["lost_events"] == 0
    peak = rank["peak"]
    assert {key: peak[key] for key in ("time_ns", "step", "phase", "allocated_bytes")} == {
        "time_ns": START_NS + 50,
        "step": 1,
        "phase": "forward",
        "allocated_bytes": 157,
    }
    assert peak["reserved_bytes"] == 200
    assert peak["categories"] == at_peak
    assert peak["elapsed_ns"] == 40
    contract = ("step", "peak_bytes", "end_bytes", "categories")
    assert [{key: step[key] for key in contract} for step in rank["steps"]] == [
        {
            "step": 0,
            "peak_bytes": 150,
            "end_bytes": 107,
            "categories": zero | {"weight": 100, "activation": 50},
        },
        {"step": 1, "peak_bytes": 157, "end_bytes": 107, "categories": at_peak},
    ]


def test_what_is_not_known_is_null() -> None:
    made = payload(make_capture(small_rank()), ReportOptions(step=0))
    assert made["ranks"][0]["peak"]["reserved_bytes"] is None
    assert made["ranks"][0]["at"]["phase"] is None
    assert made["ranks"][0]["at"]["allocated_bytes"] == 150
    # The contract's own keys do not move with the options.
    assert made["ranks"][0]["peak"]["allocated_bytes"] == 157


@pytest.mark.parametrize("rollup", [False, True])
def test_categories_sum_to_the_total_beside_them(rollup: bool) -> None:
    made = payload(llama_job(steps=3, leak_bytes=999), ReportOptions(rollup=rollup, top=100))
    names = set(ROLLUP) if rollup else {category.value for category in Category}
    checked = 0
    for rank in made["ranks"]:
        totals = [
            (rank["peak"]["categories"], rank["peak"]["allocated_bytes"]),
            (rank["at"]["categories"], rank["at"]["allocated_bytes"]),
            *((usage["categories"], usage["total_bytes"]) for usage in rank["modules"]),
            *((step["categories"], step["peak_bytes"]) for step in rank["steps"]),
            *((step["end_categories"], step["end_bytes"]) for step in rank["steps"]),
        ]
        for categories, total in totals:
            assert set(categories) == names
            assert sum(categories.values()) == total > 0
            checked += 1
        assert (
            sum(block["size_bytes"] for block in rank["allocations"])
            == (rank["at"]["allocated_bytes"])
        )
        assert {each["category"] for each in rank["allocations"] + rank["growth"]} <= names
    assert checked == 2 * (2 + 11 + 6)


def test_the_five_names_are_sums_of_their_categories() -> None:
    plain, rolled = (
        payload(llama_job(steps=2), ReportOptions(rollup=rollup))["ranks"][0]["peak"]["categories"]
        for rollup in (False, True)
    )
    assert rolled == {
        name: sum(plain[member.value] for member in members) for name, members in ROLLUP.items()
    }


def test_what_was_inferred_is_counted() -> None:
    at = payload(make_capture(small_rank()), ReportOptions())["ranks"][0]["at"]
    assert at["inferred"] == {category.value: 0 for category in Category} | {"activation": 50}


def test_the_json_is_plain_even_when_names_are_not() -> None:
    block = Block(8, Category.WEIGHT, 1, None, HOSTILE, HOSTILE, stack=(Frame(HOSTILE, "f", 1),))
    capture = make_capture(FakeRank(0, [block]), command=(HOSTILE,), name=HOSTILE)
    text = json.dumps(payload(capture, ReportOptions()))
    assert text.isascii()
    back = json.loads(text)
    # Escaped for the wire only: a program gets the real name.
    assert back["ranks"][0]["allocations"][0]["name"] == HOSTILE
    assert back["command"] == [HOSTILE]


def test_top_and_rank_choose() -> None:
    made = payload(llama_job(steps=2), ReportOptions(rank=1, top=3))
    (rank,) = made["ranks"]
    assert rank["rank"] == 1
    assert len(rank["modules"]) == len(rank["allocations"]) == 3
    assert rank["allocations_count"] == 42
    sizes = [block["size_bytes"] for block in rank["allocations"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ReportOptions(rank=7),
            "there is no rank 7 in memlens-runs/20250615-142640-train; it holds rank 0",
        ),
        (ReportOptions(step=9), "step 9 was not recorded; the capture holds steps 0 to 1"),
    ],
)
def test_what_was_not_recorded_is_refused(options: ReportOptions, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        payload(make_capture(small_rank()), options)


def test_a_run_without_ranks_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no rank"):
        payload(make_capture(), ReportOptions())
