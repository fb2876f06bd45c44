"""Replays: the model does what the real allocator did; under other settings, what it would have done."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.allocator_jobs import MIB, run_random_job
from tests.support.torch_traces import SNAPSHOTS, joined, recorded

from memlens.allocator.caching import CachingAllocator
from memlens.allocator.follow import as_census, follow, starting_state
from memlens.allocator.replay import Difference, Replayed, replay
from memlens.allocator.settings import AllocatorSettings
from memlens.allocator.snapshot import end_state, trace_columns
from memlens.cli import main

PLAIN = AllocatorSettings()


def replay_model(allocator: CachingAllocator, **options: Any) -> Replayed:
    trace = trace_columns(allocator.snapshot()["device_traces"][0])
    return replay(trace, allocator.settings, **options)


@pytest.mark.parametrize(
    "name", ["adam_mlp_complete", "linear_forward_complete", "transformer_full_step"]
)
def test_the_model_does_what_the_real_allocator_did(name: str) -> None:
    """Same segments, same places, entry by entry; and reserved bytes after every request."""
    snapshot = recorded(name)
    settings = AllocatorSettings.from_snapshot(snapshot["allocator_settings"])
    trace = trace_columns(snapshot["device_traces"][0])
    columns = joined(as_census(*starting_state(trace, snapshot["segments"], settings)), trace)
    replayed = replay(columns, settings)
    assert replayed.is_compared
    assert replayed.first_difference is None
    assert replayed.events == len(snapshot["device_traces"][0])
    assert replayed.totals == replayed.recorded
    assert replayed.totals.segments == len(snapshot["segments"])
    real = follow(columns, settings)
    takes = real.reserved_bytes > np.append(0, real.reserved_bytes[:-1])
    # The model takes memory only when the request comes, which is the row thereafter.
    assert np.array_equal(replayed.reserved_bytes[~takes], real.reserved_bytes[~takes])


@pytest.mark.parametrize(
    "text",
    ["", "max_split_size_mb:20", "roundup_power2_divisions:4", "expandable_segments:True"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_of_the_model_is_the_same(text: str, seed: int) -> None:
    allocator, _ = run_random_job(seed, text)
    replayed = replay_model(allocator)
    assert replayed.first_difference is None
    assert replayed.totals == replayed.recorded
    assert replayed.totals.reserved_peak_bytes == allocator.peak_reserved_bytes
    assert replayed.totals.allocated_peak_bytes == allocator.peak_allocated_bytes
    assert replayed.reserved_bytes[-1] == allocator.reserved_bytes


@pytest.mark.parametrize("text", ["", "garbage_collection_threshold:0.5", "max_split_size_mb:20"])
@pytest.mark.parametrize("seed", range(3))
def test_on_the_same_device_the_model_runs_out_in_the_same_way(text: str, seed: int) -> None:
    capacity = 800 * MIB
    allocator, _ = run_random_job(seed, text, capacity_bytes=capacity, is_simple=True)
    replayed = replay_model(allocator, capacity_bytes=capacity)
    assert replayed.first_difference is None
    assert replayed.totals.reserved_peak_bytes == allocator.peak_reserved_bytes
    assert (replayed.out_of_memory is not None) == (allocator.out_of_memories > 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_late_history_goes_on_from_its_beginning(seed: int) -> None:
    allocator, early = run_random_job(seed, snapshot_at=250)
    snapshot = allocator.snapshot()
    late = trace_columns(snapshot["device_traces"][0][len(early["device_traces"][0]) :])
    census = as_census(*starting_state(late, snapshot["segments"], PLAIN))
    replayed = replay(joined(census, late), PLAIN)
    assert replayed.first_difference is None
    assert replayed.events == len(late["action"])
    assert replayed.totals.segments == len(snapshot["segments"])


def test_after_a_loss_the_model_goes_on_from_the_census() -> None:
    allocator, early = run_random_job(1, snapshot_at=300)
    entries = allocator.snapshot()["device_traces"][0]
    seen, missed = len(early["device_traces"][0]) - 100, len(early["device_traces"][0])
    columns = joined(
        trace_columns(entries[:seen]),
        as_census(*end_state(early["segments"])),
        trace_columns(entries[missed:]),
    )
    replayed = replay(columns, PLAIN)
    assert replayed.first_difference is None
    assert replayed.events == len(entries) - 100
    assert len(replayed.reserved_bytes) == len(columns["action"])
    assert replayed.reserved_bytes[-1] == allocator.reserved_bytes


def test_a_difference_is_told_where_it_is() -> None:
    allocator = CachingAllocator()
    first, second = allocator.malloc(5 * MIB), allocator.malloc(5 * MIB)
    entries = allocator.snapshot()["device_traces"][0]
    entries[2]["addr"] = second + 512  # where no allocator would have put it
    replayed = replay(trace_columns(entries), PLAIN)
    assert replayed.first_difference == Difference(
        2, ("alloc", second + 512, 5 * MIB), ("alloc", second, 5 * MIB)
    )
    del entries[1:]  # memory that was taken for nobody
    assert replay(trace_columns(entries), PLAIN).first_difference == Difference(
        0, ("segment_alloc", first, 20 * MIB), None
    )


def waves(allocator: CachingAllocator) -> None:
    """Sizes that grow by a little: each wave fits none of the segments of the one before."""
    for size in (20, 22, 24, 26):
        for address in [allocator.malloc(size * MIB) for _ in range(5)]:
            allocator.free(address)


def test_other_settings_need_other_memory() -> None:
    allocator = CachingAllocator()
    waves(allocator)
    assert allocator.reserved_bytes == 460 * MIB
    expandable = replay_model(
        allocator, settings=AllocatorSettings.from_text("expandable_segments:True")
    )
    assert expandable.totals.reserved_peak_bytes == 140 * MIB  # 130 in pages of 20
    assert expandable.totals.segments == 1
    assert expandable.recorded is not None
    assert expandable.recorded.reserved_peak_bytes == 460 * MIB
    assert not expandable.is_compared
    assert expandable.first_difference is None


def test_a_smaller_device_may_do() -> None:
    allocator = CachingAllocator()
    waves(allocator)
    small = replay_model(allocator, capacity_bytes=150 * MIB)
    assert small.out_of_memory is None
    assert small.totals.reserved_peak_bytes <= 150 * MIB
    # The first segment that was given back, to take another one.
    assert small.first_difference is not None
    assert small.first_difference.got is not None
    assert small.first_difference.got[0] == "segment_free"
    smaller = replay_model(allocator, capacity_bytes=125 * MIB)
    assert smaller.out_of_memory is not None
    assert smaller.out_of_memory.requested_bytes == 26 * MIB
    assert smaller.out_of_memory.allocated_bytes == 4 * 26 * MIB


def test_a_request_that_failed_is_made_again_on_a_larger_device() -> None:
    allocator = CachingAllocator(capacity_bytes=50 * MIB)
    allocator.malloc(30 * MIB)
    with pytest.raises(MemoryError):
        allocator.malloc(40 * MIB)
    assert replay_model(allocator).totals.reserved_peak_bytes == 30 * MIB
    larger = replay_model(allocator, capacity_bytes=100 * MIB)
    assert larger.totals.reserved_peak_bytes == 70 * MIB
    assert larger.out_of_memory is None
    same = replay_model(allocator, capacity_bytes=50 * MIB)
    assert same.first_difference is None
    assert same.out_of_memory is not None


def test_without_segments_nothing_is_compared() -> None:
    """As in a history of the CPU's allocator; what was there before counts as asked for."""
    columns = trace_columns(
        [
            {"action": name, "addr": address, "size": size, "stream": 0}
            for name, address, size in (
                ("census", 64, 3 * MIB),
                ("alloc", 96, 700),
                ("free", 96, 700),
                ("census_free", 64, 3 * MIB),
            )
        ]
    )
    replayed = replay(columns, PLAIN)
    assert replayed.recorded is None
    assert not replayed.is_compared
    assert replayed.totals.reserved_peak_bytes == 22 * MIB
    assert replayed.totals.allocated_peak_bytes == 3 * MIB + 1024


# -- the command ---------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["replay", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


def write(path: Path, content: Any) -> str:
    path.write_bytes(pickle.dumps(content))
    return str(path)


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allocator = CachingAllocator()
    waves(allocator)
    file = write(tmp_path / "snapshot.pickle", allocator.snapshot())
    code, out, err = call(capsys, file, "--json")
    totals = {
        "reserved_peak_bytes": 460 * MIB,
        "allocated_peak_bytes": 130 * MIB,
        "segments": 20,
    }
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "events": 80,
        **totals,
        "recorded": totals,
        "first_difference": None,
        "out_of_memory": None,
    }
    code, out, _ = call(capsys, file, "--json", "--capacity", "125MiB")
    answer = json.loads(out)
    assert code == 0
    assert answer["out_of_memory"]["requested_bytes"] == 26 * MIB
    assert answer["first_difference"]["expected"]["action"] == "segment_alloc"
    assert set(answer["first_difference"]["got"]) == {"action", "address", "bytes"}


def test_command_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allocator = CachingAllocator()
    waves(allocator)
    file = write(tmp_path / "snapshot.pickle", allocator.snapshot())
    assert call(capsys, file)[1] == (
        "80 events replayed with the recorded settings\n"
        "  reserved at most       460.00 MiB  (recorded: 460.00 MiB)\n"
        "  allocated at most      130.00 MiB  (recorded: 130.00 MiB)\n"
        "  segments at the end            20  (recorded: 20)\n"
        "the model did what the real allocator did, event by event\n"
    )
    _, out, _ = call(
        capsys, file, "--settings", "expandable_segments:True", "--capacity", "120 MiB"
    )
    assert "replayed under other settings, on a device with 120.00 MiB" in out
    assert "out of memory at event" in out
    assert "the model did" not in out


def test_command_replays_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose history begins late, so that its rows begin with a census."""
    allocator, early = run_random_job(2, "max_split_size_mb:32", snapshot_at=250)
    snapshot = allocator.snapshot()
    del snapshot["device_traces"][0][: len(early["device_traces"][0])]
    run = str(tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["import", write(tmp_path / "snapshot.pickle", snapshot), "--out", run])
    capsys.readouterr()
    code, out, err = call(capsys, run, "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert answer["first_difference"] is None
    assert answer["reserved_peak_bytes"] == answer["recorded"]["reserved_peak_bytes"]
    assert answer["segments"] == len(snapshot["segments"])
    for arguments, words in (
        (["--rank", "3"], "no rank 3"),
        (["--device", "3"], "nothing of device 3"),
    ):
        code, _, err = call(capsys, run, *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err


def test_without_segments_the_settings_are_the_default_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"action": "alloc", "addr": 64, "size": 700, "stream": 0}
    file = write(tmp_path / "odd.pickle", {"segments": [], "device_traces": [[entry]]})
    assert call(capsys, file)[1].splitlines() == [
        "1 events replayed with the default settings",
        "  reserved at most         2.00 MiB",
        "  allocated at most        1.00 KiB",
        "  segments at the end             1",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"segments": []}, "holds no history"),
        ({"segments": [], "device_traces": [[]]}, "holds no history"),
        ({"segments": [], "device_traces": [[{"action": "alloc"}]]}, "no torch memory snapshot"),
        ({"segments": [{}], "device_traces": [[{}]]}, "no torch memory snapshot"),
        ({"segments": [], "device_traces": 7}, "no torch memory snapshot"),
        (
            {"segments": [], "device_traces": [[{"action": "alloc"}]], "allocator_settings": 1},
            "make no sense",
        ),
        ("text", "holds a str"),
    ],
)
def test_what_is_no_snapshot_is_one_line(
    content: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, write(tmp_path / "odd.pickle", content))
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allocator = CachingAllocator()
    allocator.malloc(1)
    file = write(tmp_path / "snapshot.pickle", allocator.snapshot())
    for arguments, words in (
        (["--settings", "max_split_size_mb:3"], "torch takes 20 or more"),
        (["--capacity", "much"], "not a size"),
        (["--device", "2"], "device 2 of it holds no history"),
    ):
        code, _, err = call(capsys, file, *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    code, _, err = call(capsys, str(tmp_path / "nowhere"))
    assert code == 2
    assert "there is no such file" in err


def test_command_replays_a_recorded_snapshot(capsys: pytest.CaptureFixture[str]) -> None:
    recorded("transformer_full_step")
    code, out, _ = call(capsys, str(SNAPSHOTS / "transformer_full_step.pickle"), "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["events"] == 19_342
    assert answer["first_difference"] is None
    assert answer["reserved_peak_bytes"] == answer["recorded"]["reserved_peak_bytes"]
