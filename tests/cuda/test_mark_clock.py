"""Times of events are moved to between the marks that they carry, and no further."""

from __future__ import annotations

import numpy as np

from memlens.recording.mark_clock import MarkClock


def correct(clock: MarkClock, times: list[int], marks: list[int]) -> list[int]:
    zeros = np.zeros(len(times), np.int8)
    corrected = clock.correct(np.array(times, np.int64), np.array(marks, np.int64), zeros)
    return [int(each) for each in corrected]


def test_an_event_before_its_mark_is_moved_to_it() -> None:
    clock = MarkClock()
    clock.note(0, 1500, 1)
    assert correct(clock, [1000], [0]) == [1500]


def test_an_event_after_the_next_mark_is_moved_before_it() -> None:
    clock = MarkClock()
    clock.note(0, 1000, 1)
    clock.note(1, 1500, 1)
    assert correct(clock, [2000, 2000], [0, 1]) == [1499, 2000]


def test_marks_of_other_threads_are_no_bounds() -> None:
    clock = MarkClock()
    clock.note(0, 1000, 1)
    clock.note(1, 1200, 2)
    clock.note(2, 3000, 1)
    assert correct(clock, [2000, 2500], [0, 1]) == [2000, 2500]


def test_the_last_mark_of_an_earlier_batch_counts() -> None:
    clock = MarkClock()
    clock.note(0, 1000, 1)
    assert correct(clock, [1100], [0]) == [1100]
    clock.note(1, 5000, 1)
    assert correct(clock, [6000, 4000], [0, 1]) == [4999, 5000]


def test_without_a_mark_the_time_stays() -> None:
    clock = MarkClock()
    clock.note(0, 1000, 1)
    assert correct(clock, [10, 20], [-1, -1]) == [10, 20]


def test_the_allocators_order_stays() -> None:
    clock = MarkClock()
    clock.note(0, 1500, 1)
    assert correct(clock, [1000, 1200, 1400], [0, -1, -1]) == [1500, 1500, 1500]
