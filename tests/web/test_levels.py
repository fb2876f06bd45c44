"""Levels and the choice of events, against running totals worked out one event at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.attribution.lifetimes import Lifetimes
from memlens.events import Category
from memlens.web.pyramid import BUCKET, Pyramid
from memlens.web.sampling import sample

Array = npt.NDArray[Any]


def history(seed: int, events: int, burst: int = 1) -> tuple[Lifetimes, Array, Array]:
    """Random blocks: their lifetimes, categories, and bytes per event (rows) and category."""
    random = np.random.default_rng(seed)
    time = np.cumsum(random.integers(0, 5, events) ** burst) + 1_750_000_000_000_000_000
    delta = np.zeros((events, len(Category)), np.int64)
    first: list[int] = []
    last: list[int] = []
    size: list[int] = []
    category: list[int] = []
    alive: list[int] = []
    for event in range(events):
        if alive and random.random() < 0.48:
            # Some events end several blocks, as the end of a recording does.
            for _ in range(1 if random.random() < 0.98 else len(alive)):
                block = alive.pop(int(random.integers(len(alive))))
                last[block] = event
                delta[event, category[block]] -= size[block]
        else:
            alive.append(len(first))
            first.append(event)
            last.append(events)
            size.append(int(random.integers(0, 1 << 40)))
            category.append(int(random.choice([0, 2, 4, 10])))
            delta[event, category[-1]] += size[-1]
    blocks = SimpleNamespace(  # all that a pyramid looks at
        time_ns=time,
        first=np.array(first, np.int64),
        last=np.array(last, np.int64),
        size_bytes=np.array(size, np.int64),
    )
    return cast(Lifetimes, blocks), np.array(category, np.int8), np.cumsum(delta, axis=0)


@pytest.mark.parametrize("events", [0, 1, 63, 64, 65, 128, 5_000, 140_000])
def test_a_pyramid_holds_what_each_bucket_comes_to(events: int) -> None:
    blocks, category, running = history(events, events)
    pyramid = Pyramid(blocks, category)
    total = running.sum(axis=1)
    assert (pyramid.peak_event == np.argmax(total)) if events else pyramid.peak_event == -1
    for bucket in range(-(-events // BUCKET)):
        inside = slice(bucket * BUCKET, min((bucket + 1) * BUCKET, events))
        highest = inside.start + int(np.argmax(total[inside]))
        assert pyramid.high_event[bucket] == highest
        assert pyramid.high_bytes[bucket] == total[highest]
        assert list(pyramid.at_high[bucket]) == list(running[highest, pyramid.categories])
        assert list(pyramid.at_end[bucket]) == list(running[inside.stop - 1, pyramid.categories])
    for event in range(-1, events, 997):
        expected = running[event, pyramid.categories] if event >= 0 else 0
        assert np.all(pyramid.after(event) == expected)
    # Three bytes per event, and a few more per block.
    assert pyramid.size_bytes <= 10 * events + 4_096


WINDOWS = {burst: history(burst, 60_000, burst) for burst in (1, 9)}
"""Events that come evenly, and events that come in bursts."""
PYRAMIDS = {burst: Pyramid(blocks, category) for burst, (blocks, category, _) in WINDOWS.items()}


@given(
    burst=st.sampled_from([1, 9]),
    ends=st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)),
    most=st.integers(4, 2_000),
)
def test_a_sample_keeps_levels_and_peaks(burst: int, ends: tuple[int, int], most: int) -> None:
    begin, end = sorted(ends)
    blocks, _, running = WINDOWS[burst]
    pyramid = PYRAMIDS[burst]
    found = sample(pyramid, blocks.time_ns, begin, end, most)
    total = running.sum(axis=1)
    assert len(found.event) <= most + 4
    assert np.all(np.diff(found.event) > 0)
    assert np.all(found.categories == running[found.event][:, pyramid.categories])
    assert found.exact == (end - begin <= most)
    if found.exact:
        assert found.event.tolist() == list(range(begin, end))
        return
    assert found.event[0] >= begin
    assert found.event[-1] == end - 1
    # The highest event of the window, and of what lies between any two chosen ones: never higher than
    # both, since each column's highest and last event are chosen.
    assert total[found.event].max() == total[begin:end].max()
    edges = np.append(begin - 1, found.event)
    highest = np.maximum.reduceat(total[begin:end], edges[:-1] + 1 - begin)
    held = np.append(0, total[found.event])
    assert np.all(highest[1:] <= np.maximum(held[1:-1], held[2:]))
