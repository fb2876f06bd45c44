"""A capture of a million events: the right answers, in how long and with how much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.jobs import clean_environment
from tests.support.large import LAYERS, LEAK_BYTES, LEAK_MODULE, Expected, make_capture

from memlens.events import Category

CATEGORIES = list(Category)

# In a process of its own, so that the memory is that of reading, and of nothing else.
ASK = """
import json, sys, time
import memlens
from tests.support.memory import most_memory_bytes

began, cpu = time.perf_counter(), time.process_time()
capture = memlens.load(sys.argv[1])
[rank] = capture.ranks
coverage, peak, steps = rank.coverage, rank.peak(), rank.steps()
timeline = rank.timeline(2000)
allocations, modules, growth = rank.allocations_at(top=20), rank.modules_at(top=None), rank.growth()
wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu

print(json.dumps({
    "wall_s": wall_s, "cpu_s": cpu_s,
    "rss_mb": most_memory_bytes() / 1e6,
    "events": rank.events,
    "coverage": [coverage.complete, coverage.lost_events, coverage.witness_difference_bytes,
                 coverage.uncovered_bytes],
    "peak": [peak.time_ns, peak.step, peak.phase.value, list(peak.categories.values())],
    "steps": [[step.step, step.peak_ns, step.peak_bytes, list(step.categories.values()),
               list(step.end_categories.values())] for step in steps],
    "timeline": [timeline.time_ns.tolist(), timeline.allocated_bytes.tolist(),
                 [held.tolist() for held in timeline.categories.values()]],
    "allocations": [[item.size_bytes, item.category.value, item.name, item.module,
                     len(item.stack)] for item in allocations],
    "modules": [[usage.module, usage.total_bytes] for usage in modules],
    "growth": [[item.category.value, item.module, item.bytes_per_step, item.steps,
                item.stack[-1].function] for item in growth],
}))
"""


def ask(run: Path) -> dict[str, Any]:
    job = subprocess.run(
        [sys.executable, "-c", ASK, str(run)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert job.returncode == 0, job.stderr
    answers: dict[str, Any] = json.loads(job.stdout)
    return answers


def assert_right(answers: dict[str, Any], expected: Expected) -> None:
    """Every answer is what the generator knows, to the byte and the nanosecond."""
    totals = expected.totals()
    running = totals.sum(axis=1)
    assert answers["events"] == len(running)
    assert answers["coverage"] == [True, 0, 0, 0]

    top = int(running.argmax())
    time_ns, step, phase, at_peak = answers["peak"]
    assert time_ns == int(expected.time_ns[top])
    assert at_peak == totals[top].tolist()
    assert (step, phase) == (expected.steps - 1, "backward")  # the last, because of the leak

    assert [row[0] for row in answers["steps"]] == list(range(expected.steps))
    starts = [0, *expected.step_events, len(running)]
    for (_, peak_ns, peak_bytes, categories, end), begin, until in zip(
        answers["steps"], starts[:-1], starts[1:], strict=False
    ):
        within = begin + int(running[begin:until].argmax())
        assert peak_bytes == int(running[within])
        assert peak_ns == int(expected.time_ns[within])
        assert categories == totals[within].tolist()
        assert end == totals[until - 1].tolist()

    times, allocated, columns = answers["timeline"]
    assert 1000 <= len(times) <= 2000
    index = np.searchsorted(expected.time_ns, times)
    np.testing.assert_array_equal(expected.time_ns[index], times)
    np.testing.assert_array_equal(running[index], allocated)
    np.testing.assert_array_equal(totals[index], np.array(columns).T)
    assert max(allocated) == int(running.max())

    sizes = [row[0] for row in answers["allocations"]]
    kinds = {tuple(row[1:]) for row in answers["allocations"]}
    assert kinds == {("activation", "", f"layers.{n}.act", 12) for n in range(4, LAYERS, 5)}
    assert sizes == sorted(expected.alive_at(top), reverse=True)[:20]
    held = 3 * 4 * 64 * (512 + 7)  # the weight and two moments
    held += 64 * (1000 + 13 * 2 + 700)  # an activation
    assert dict(answers["modules"])[LEAK_MODULE] == held + LEAK_BYTES * expected.steps
    assert answers["growth"] == [
        ["activation", LEAK_MODULE, LEAK_BYTES, expected.steps - 1, "attention_7_7"]
    ]


def test_small(tmp_path: Path) -> None:
    [expected] = make_capture(tmp_path / "run", 30_000)
    assert_right(ask(tmp_path / "run"), expected)


def test_two_ranks(tmp_path: Path) -> None:
    import memlens

    expected = make_capture(tmp_path / "run", 2_000, ranks=2, layers=8)
    for rank, known in zip(memlens.load(tmp_path / "run").ranks, expected, strict=True):
        timeline = rank.timeline()
        np.testing.assert_array_equal(timeline.time_ns, known.time_ns)
        np.testing.assert_array_equal(
            np.stack([timeline.categories[category] for category in CATEGORIES], axis=1),
            known.totals(),
        )
    assert not np.array_equal(expected[0].totals(), expected[1].totals())


@pytest.mark.slow
def test_a_million_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [expected] = make_capture(tmp_path / "run", 1_000_000)

    answers = ask(tmp_path / "run")

    with capsys.disabled():
        print(
            f"\n{answers['events']:,} events: {answers['wall_s']:.2f} s "
            f"({answers['cpu_s']:.2f} s CPU), {answers['rss_mb']:.0f} MB"
        )
    assert_right(answers, expected)
