"""Sizes of blocks are worked out exactly, from histories of real allocators and of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.allocator_jobs import MIB, run_random_job
from tests.support.torch_traces import ACTION, joined, recorded

from memlens.allocator.caching import CachingAllocator
from memlens.allocator.follow import Followed, State, as_census, follow, starting_state
from memlens.allocator.settings import AllocatorSettings
from memlens.allocator.snapshot import end_state, trace_columns

PLAIN = AllocatorSettings()
SETTINGS = [
    "",
    "max_split_size_mb:20",
    "max_split_size_mb:32,roundup_power2_divisions:4",
    "expandable_segments:True",
    "expandable_segments:True,roundup_power2_divisions:2",
    "garbage_collection_threshold:0.5",
]
Row = tuple[str, int, int]


def history(*rows: Row, told: int = 0) -> dict[str, Any]:
    """Rows of action, address and bytes; of segments and of a census, sizes are told."""
    exact = [
        size if name.startswith("segment") or "census" in name else told for name, _, size in rows
    ]
    return {
        "action": np.array([ACTION[row[0]] for row in rows], np.int8),
        "address": np.array([row[1] for row in rows], np.uint64),
        "requested_bytes": np.array([row[2] for row in rows], np.int64),
        "allocated_bytes": np.array(exact, np.int64),
        "stream": np.zeros(len(rows), np.int64),
    }


def end_of(followed: Followed) -> State:
    return followed.state_after(len(followed.allocated_bytes) - 1)


def assert_is_end(state: State, snapshot: dict[str, Any]) -> None:
    """Every piece is where the snapshot has it: address, size, free or in use."""
    segments, blocks = end_state(snapshot["segments"])
    assert [(each.address, each.size_bytes) for each in state.segments] == [
        (each.address, each.size_bytes) for each in segments
    ]
    assert state.blocks == {block.address: block.size_bytes for block in blocks}
    assert state.pending == {block.address for block in blocks if block.is_pending}
    assert [(piece.address, piece.size_bytes) for piece in state.free] == [
        (block["address"], block["size"])
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] == "inactive"
    ]


@pytest.mark.parametrize(
    "name", ["adam_mlp_complete", "linear_forward_complete", "transformer_full_step"]
)
def test_recorded_histories_end_in_what_was_recorded(name: str) -> None:
    snapshot = recorded(name)
    settings = AllocatorSettings.from_snapshot(snapshot["allocator_settings"])
    trace = trace_columns(snapshot["device_traces"][0])
    segments, blocks = starting_state(trace, snapshot["segments"], settings)
    assert bool(blocks) == (name == "transformer_full_step")
    followed = follow(joined(as_census(segments, blocks), trace), settings)
    assert followed.mismatches == 0
    assert_is_end(end_of(followed), snapshot)
    total = sum(segment["total_size"] for segment in snapshot["segments"])
    assert followed.reserved_bytes[-1] == total
    assert end_of(followed).reserved_bytes == total


@pytest.mark.parametrize("text", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_the_models_histories_end_in_what_it_holds(text: str, seed: int) -> None:
    allocator, _ = run_random_job(seed, text, capacity_bytes=900 * MIB)
    snapshot = allocator.snapshot()
    trace = trace_columns(snapshot["device_traces"][0])
    followed = follow(trace, allocator.settings)
    assert followed.mismatches == 0
    assert_is_end(end_of(followed), snapshot)
    assert followed.reserved_bytes.max() == allocator.peak_reserved_bytes
    sign = {"alloc": 1, "free_requested": -1}
    signs = [sign.get(entry[0], 0) for entry in allocator.history]
    running = np.cumsum(np.array(signs) * followed.allocated_bytes)
    assert running.max() == allocator.peak_allocated_bytes
    assert running[-1] == allocator.allocated_bytes


@pytest.mark.parametrize("text", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_a_late_history_is_rewound_to_its_beginning(text: str, seed: int) -> None:
    allocator, early = run_random_job(seed, text, capacity_bytes=900 * MIB, snapshot_at=250)
    snapshot = allocator.snapshot()
    late = trace_columns(snapshot["device_traces"][0][len(early["device_traces"][0]) :])
    segments, blocks = starting_state(late, snapshot["segments"], allocator.settings)
    known_segments, known_blocks = end_state(early["segments"])
    assert [(each.address, each.size_bytes) for each in segments] == [
        (each.address, each.size_bytes) for each in known_segments
    ]
    assert [(each.address, each.requested_bytes, each.is_pending) for each in blocks] == [
        (each.address, each.requested_bytes, each.is_pending) for each in known_blocks
    ]
    # Slack behind a block cannot be told from free memory, if nothing ever comes to lie behind it.
    off = [
        known.size_bytes - block.size_bytes
        for block, known in zip(blocks, known_blocks, strict=True)
    ]
    assert sum(map(bool, off)) <= 1
    assert all(0 <= each <= MIB for each in off)
    followed = follow(joined(as_census(segments, blocks), late), allocator.settings)
    assert followed.mismatches == 0
    assert_is_end(end_of(followed), snapshot)


def test_slack_of_a_block_that_is_gone_is_found_by_what_came_behind_it() -> None:
    allocator = CachingAllocator()
    # Of the 16 MiB behind the first, half a MiB is too little to be split off: it counts as allocated.
    whole = allocator.malloc(26 * MIB)
    allocator.free(whole)
    first, second = allocator.malloc(10 * MIB), allocator.malloc(15 * MIB + 512 * 1024)
    assert allocator.blocks[second].size == 16 * MIB
    third = allocator.malloc(30 * MIB)
    allocator.free(third)
    begin = len(allocator.history)
    for address in (first, second):
        allocator.free(address)
    snapshot = allocator.snapshot()
    late = trace_columns(snapshot["device_traces"][0][begin:])
    _, blocks = starting_state(late, snapshot["segments"], PLAIN)
    assert [(block.address, block.size_bytes) for block in blocks] == [
        (first, 10 * MIB),
        (second, 16 * MIB),
    ]


def test_slack_is_found_where_the_block_behind_was_gone_first() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(26 * MIB))
    _, hole, behind = (allocator.malloc(size * MIB) for size in (10, 10, 6))
    allocator.free(hole)
    assert allocator.malloc(9 * MIB + 512 * 1024) == hole  # all of the 10 MiB
    begin = len(allocator.history)
    allocator.free(behind)
    allocator.free(hole)
    snapshot = allocator.snapshot()
    late = trace_columns(snapshot["device_traces"][0][begin:])
    _, blocks = starting_state(late, snapshot["segments"], PLAIN)
    assert [block.size_bytes for block in blocks] == [10 * MIB, 10 * MIB, 6 * MIB]


def test_pieces_merge_where_segments_met_before() -> None:
    state = end_of(
        follow(
            history(
                ("segment_alloc", 0, 20 * MIB),
                ("segment_free", 0, 20 * MIB),
                ("segment_alloc", 0, 40 * MIB),
                ("alloc", 0, 20 * MIB),
                ("free", 0, 20 * MIB),
            ),
            PLAIN,
        )
    )
    assert [piece.size_bytes for piece in state.free] == [40 * MIB]


def test_what_is_not_split_off_counts() -> None:
    followed = follow(
        history(
            ("segment_alloc", 0, 12 * MIB),
            ("alloc", 0, 11 * MIB),
            ("segment_alloc", 12 * MIB, 2 * MIB),
            ("alloc", 12 * MIB, MIB + 1 - 512),
            ("free", 0, 11 * MIB),
            ("alloc", 13 * MIB, MIB),
        ),
        PLAIN,
    )
    sizes = [12 * MIB, 12 * MIB, 2 * MIB, MIB, 12 * MIB, MIB]
    assert followed.allocated_bytes.tolist() == sizes
    assert followed.reserved_bytes.tolist() == [12 * MIB] * 2 + [14 * MIB] * 4
    assert followed.mismatches == 0


def test_told_sizes_are_exact() -> None:
    rows = [("segment_alloc", 0, 20 * MIB), ("alloc", 0, 7 * MIB), ("free", 0, 7 * MIB)]
    followed = follow(history(*rows, told=8 * MIB), PLAIN)
    assert followed.allocated_bytes.tolist() == [20 * MIB, 8 * MIB, 8 * MIB]


def test_a_block_that_waits_can_not_be_reused() -> None:
    rows = [
        ("segment_alloc", 0, 2 * MIB),
        ("alloc", 0, 1000),
        ("alloc", 1024, 1000),
        ("free", 1024, 1000),
        ("free_requested", 0, 1000),
    ]
    state = end_of(follow(history(*rows), PLAIN))
    assert state.pending == {0}
    assert state.blocks == {0: 1024}
    assert [(piece.address, piece.size_bytes) for piece in state.free] == [(1024, 2 * MIB - 1024)]
    state = end_of(follow(history(*rows, ("free_completed", 0, 1000)), PLAIN))
    assert not state.pending
    assert [(piece.size_bytes, piece.is_whole) for piece in state.free] == [(2 * MIB, True)]


def test_state_at_any_row_tells_free_pieces_by_pool_and_stream() -> None:
    columns = history(
        ("segment_alloc", 0, 2 * MIB),
        ("alloc", 0, 512),
        ("segment_alloc", 2 * MIB, 20 * MIB),
        ("alloc", 2 * MIB, 5 * MIB),
        ("alloc", 7 * MIB, 5 * MIB),
        ("free", 2 * MIB, 5 * MIB),
    )
    columns["stream"][2:] = 4
    followed = follow(columns, PLAIN)
    assert followed.state_after(-1) == State((), (), {}, frozenset())
    assert [piece.size_bytes for piece in followed.state_after(0).free] == [2 * MIB]
    state = followed.state_after(5)
    assert [piece.size_bytes for piece in state.free_in(is_small=False)] == [10 * MIB, 5 * MIB]
    assert [piece.size_bytes for piece in state.free_in(stream=0)] == [2 * MIB - 512]
    assert state.free_in(is_small=True, stream=4) == []
    assert [piece.segment.address for piece in state.free] == [0, 2 * MIB, 2 * MIB]


def test_a_census_after_a_loss_is_the_truth() -> None:
    allocator, early = run_random_job(5, snapshot_at=300)
    snapshot = allocator.snapshot()
    entries = snapshot["device_traces"][0]
    seen, missed = len(early["device_traces"][0]) - 200, len(early["device_traces"][0])
    columns = joined(
        trace_columns(entries[:seen]),
        as_census(*end_state(early["segments"])),
        trace_columns(entries[missed:]),
    )
    followed = follow(columns, PLAIN)
    assert followed.mismatches == 0
    assert_is_end(end_of(followed), snapshot)
    # The census is one moment: what is reserved does not fall to nothing in between.
    census = slice(seen, len(columns["action"]) - len(entries[missed:]))
    held = sum(segment["total_size"] for segment in early["segments"])
    assert set(followed.reserved_bytes[census].tolist()) == {held}
    assert followed.reserved_bytes[-1] == allocator.reserved_bytes


def test_one_block_of_a_census_is_the_truth_at_its_place() -> None:
    followed = follow(
        history(
            ("segment_alloc", 0, 2 * MIB),
            ("alloc", 0, 512),
            ("alloc", 512, 512),
            ("census", 0, 2048),
            ("alloc", 2048, 512),
        ),
        PLAIN,
    )
    assert followed.mismatches == 0
    assert end_of(followed).blocks == {0: 2048, 2048: 512}


def assert_tiled(state: State) -> None:
    """Pieces lie side by side, from the beginning to the end of each segment."""
    for segment in state.segments:
        pieces = sorted(
            [(piece.address, piece.size_bytes) for piece in state.free if piece.segment == segment]
            + [
                (address, size)
                for address, size in state.blocks.items()
                if segment.address <= address < segment.end
            ]
        )
        place = segment.address
        for address, size in pieces:
            assert address == place
            place += size
        assert place == segment.end


@pytest.mark.parametrize("text", ["", "expandable_segments:True"])
@pytest.mark.parametrize("seed", range(5))
def test_a_history_with_holes_is_followed_without_fail(text: str, seed: int) -> None:
    allocator, _ = run_random_job(seed, text, capacity_bytes=900 * MIB)
    entries = allocator.snapshot()["device_traces"][0]
    kept = [entry for place, entry in enumerate(entries) if (place * 7 + seed) % 11]
    followed = follow(trace_columns(kept), allocator.settings)
    assert followed.mismatches > 0
    for row in range(0, len(kept), 50):
        assert_tiled(followed.state_after(row))
    sizes = allocator.settings
    for entry, size in zip(kept, followed.allocated_bytes.tolist(), strict=True):
        if entry["action"] == "alloc":
            assert size >= sizes.round_bytes(entry["size"])


def test_without_segments_sizes_are_rounded() -> None:
    followed = follow(
        history(("alloc", 4096, 700), ("free", 4096, 700), ("free", 9000, 513)), PLAIN
    )
    assert followed.allocated_bytes.tolist() == [1024, 1024, 1024]
    assert followed.reserved_bytes.tolist() == [0, 0, 0]
    assert followed.mismatches == 2
    assert end_of(followed).blocks == {}


def test_an_empty_history() -> None:
    followed = follow(history(), PLAIN)
    assert len(followed.allocated_bytes) == len(followed.reserved_bytes) == followed.mismatches == 0
    assert starting_state(history(), [], PLAIN) == ([], [])
    assert all(len(column) == 0 for column in as_census([], []).values())
