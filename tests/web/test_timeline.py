"""The timeline that pages draw is what the capture says, to the byte, in any window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.pages import Pages

from memlens.capture import RankCapture


def check_levels(answer: dict[str, Any], rank: RankCapture) -> None:
    """Each entry is the level after the last of the events of its time, or one of those before it."""
    every = rank.timeline()
    time = every.time_ns - every.time_ns[0]
    assert answer["time"] == sorted(answer["time"])
    assert answer["time"][0] == answer["from"]
    assert answer["time"][-1] <= answer["to"]
    held = {category.value: levels for category, levels in every.categories.items()}
    at = np.searchsorted(time, answer["time"], side="right") - 1
    exact = every.allocated_bytes[at]
    shared = time[np.maximum(at - 1, 0)] == time[at]
    wrong = (np.array(answer["allocated"]) != exact) & ~shared
    assert not np.any(wrong)
    for key, levels in held.items():
        shown = answer["categories"].get(key, [0] * len(at))
        assert not np.any((np.array(shown) != levels[at]) & ~shared)
    sums = np.sum(list(answer["categories"].values()), axis=0)
    assert sums.tolist() == answer["allocated"]


def test_the_whole_run(pages: Pages, rank: RankCapture) -> None:
    answer = pages.ask("timeline", run="long", rank=0)
    check_levels(answer, rank)
    every, peak = rank.timeline(), rank.peak()
    origin_ns = int(every.time_ns[0])
    assert answer["span"] == [0, int(every.time_ns[-1]) - origin_ns]
    assert max(answer["allocated"]) == peak.allocated_bytes
    assert answer["peak"] == answer["window_peak"]
    assert answer["peak"] == {
        "time": peak.time_ns - origin_ns,
        "allocated_bytes": peak.allocated_bytes,
        "step": peak.step,
        "phase": peak.phase.value,
        "module": peak.module,
    }
    assert not answer["exact"]
    assert len(answer["time"]) <= 1_004
    assert dict(answer["steps"]) == {
        step: start_ns - origin_ns for step, start_ns in every.step_start_ns.items()
    }
    assert answer["reserved"] is None
    assert answer["capacity_bytes"] is None


@settings(deadline=None, max_examples=60)
@given(
    ends=st.tuples(st.integers(0, 1_000_000), st.integers(0, 1_000_000)),
    points=st.integers(0, 3_000),
)
def test_any_window(pages: Pages, rank: RankCapture, ends: tuple[int, int], points: int) -> None:
    every = rank.timeline()
    time = every.time_ns - every.time_ns[0]
    low, high = (int(time[-1]) * end // 1_000_000 for end in sorted(ends))
    answer = pages.ask("timeline", run="long", rank=0, from_=low, to=high, points=points)
    check_levels(answer, rank)
    inside = (time >= low) & (time <= high)
    before = every.allocated_bytes[time <= low][-1]
    highest = max(before, every.allocated_bytes[inside].max(initial=0))
    assert max(answer["allocated"]) == answer["window_peak"]["allocated_bytes"] == highest
    assert low <= answer["window_peak"]["time"] <= high
    assert answer["allocated"][0] in (before, *every.allocated_bytes[time == low])
    assert answer["allocated"][-1] == every.allocated_bytes[time <= high][-1]
    if answer["exact"]:
        assert answer["time"][1:] == time[(time > low) & (time <= high)].tolist()
    assert len(answer["time"]) <= max(min(points, 2_000), 10) + 4


def test_phases_and_steps_of_a_short_window(pages: Pages, rank: RankCapture) -> None:
    steps = rank.steps()
    origin_ns = int(rank.timeline().time_ns[0])
    low, high = steps[3].start_ns - origin_ns, steps[4].end_ns - origin_ns
    answer = pages.ask("timeline", run="long", rank=0, from_=low, to=high)
    assert [step for step, _ in answer["steps"]] == [3, 4, 5]
    assert answer["phases"][0][0] == low
    for (begin, phase), following in zip(answer["phases"], answer["phases"][1:], strict=False):
        assert phase == rank.place_at(origin_ns + begin).phase.value
        assert phase == rank.place_at(origin_ns + following[0] - 1).phase.value
        assert phase != following[1]
    assert {phase for _, phase in answer["phases"]} >= {"forward", "backward", "optimizer"}


def test_very_many_phases_are_left_out(pages: Pages, rank: RankCapture) -> None:
    answer = pages.ask("timeline", run="long", rank=0)
    changes = len(answer["phases"]) + answer["phases_left_out"]
    assert changes >= 3 * (len(rank.steps()) - 1)
    assert len(answer["phases"]) == (changes if changes <= 400 else 0)


@pytest.mark.parametrize("given", [{"from_": "nan"}, {"to": "inf"}, {"from_": "-1"}, {"to": "1e9"},
    {"points": "9" * 40}, {"points": "0x10"}, {"from_": ""}, {"from_": "5", "to": "4"},
    {"form": "1"}, {"from_": "١"}])  # fmt: skip
def test_parameters_that_are_refused(pages: Pages, given: dict[str, str]) -> None:
    answer = pages.ask("timeline", 400, run="long", rank=0, **given)
    assert set(answer) == {"error"}


def test_windows_beyond_the_end_are_cut(pages: Pages) -> None:
    answer = pages.ask("timeline", run="long", rank=0, from_=10**17, to=10**17 + 1)
    assert answer["from"] == answer["to"] == answer["span"][1]
    assert answer["time"] == [answer["to"]]
