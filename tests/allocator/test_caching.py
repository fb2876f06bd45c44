"""The model of the caching allocator, rule by rule."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.support.allocator_jobs import MIB, run_random_job

from memlens.allocator.caching import FIRST_ADDRESS, CachingAllocator, OutOfDeviceMemory
from memlens.allocator.settings import AllocatorSettings
from memlens.errors import UsageError

BASE = FIRST_ADDRESS


def allocator_with(text: str = "", capacity_mib: int | None = None) -> CachingAllocator:
    capacity = None if capacity_mib is None else capacity_mib * MIB
    return CachingAllocator(AllocatorSettings.from_text(text), capacity)


def actions(allocator: CachingAllocator) -> list[tuple[str, int, int]]:
    """Action, address from the first one on, and bytes of the whole history."""
    return [(entry[0], entry[1] - BASE, entry[2]) for entry in allocator.history]


def test_small_requests_share_a_segment() -> None:
    allocator = allocator_with()
    assert [allocator.malloc(size) - BASE for size in (1, 512, 513, MIB)] == [0, 512, 1024, 2048]
    # What is left is less than 1 MiB.
    assert allocator.malloc(MIB) - BASE == 2 * MIB
    assert allocator.reserved_bytes == 4 * MIB
    assert allocator.allocated_bytes == 2048 + 2 * MIB
    assert allocator.requested_bytes == 1 + 512 + 513 + 2 * MIB


def test_history_is_torchs() -> None:
    allocator = allocator_with()
    address = allocator.malloc(700)
    allocator.free(address)
    assert actions(allocator) == [
        ("segment_alloc", 0, 2 * MIB),
        ("alloc", 0, 700),
        ("free_requested", 0, 700),
        ("free_completed", 0, 700),
    ]


def test_a_medium_request_shares_20_mib_and_a_large_one_has_its_own() -> None:
    allocator = allocator_with()
    medium = allocator.malloc(MIB + 1)
    assert allocator.reserved_bytes == 20 * MIB
    assert allocator.malloc(9 * MIB) == medium + MIB + 512
    allocator.malloc(10 * MIB)  # 10 MiB less 1024 bytes are left
    assert allocator.reserved_bytes == 30 * MIB


def test_a_rest_of_1_mib_is_not_split_off() -> None:
    allocator = allocator_with()
    allocator.malloc(11 * MIB)
    assert (allocator.reserved_bytes, allocator.allocated_bytes) == (12 * MIB, 12 * MIB)
    allocator.malloc(11 * MIB - 512)
    assert (allocator.reserved_bytes, allocator.allocated_bytes) == (24 * MIB, 23 * MIB - 512)


def test_the_smallest_that_fits_is_taken_and_the_lowest_of_several() -> None:
    allocator = allocator_with()
    blocks = [allocator.malloc(size * MIB) for size in (40, 30, 30, 50)]
    for address in reversed(blocks):
        allocator.free(address)
    assert allocator.malloc(25 * MIB) == blocks[1]
    assert allocator.malloc(30 * MIB) == blocks[2]
    assert allocator.malloc(30 * MIB) == blocks[0]
    assert allocator.reserved_bytes == 150 * MIB


def test_neighbours_merge_but_not_across_segments() -> None:
    allocator = allocator_with()
    first, second, third = (allocator.malloc(5 * MIB) for _ in range(3))
    other = allocator.malloc(20 * MIB)  # its segment begins where the first one ends
    assert other == first + 20 * MIB
    for address in (first, third, other, second):
        allocator.free(address)
    assert allocator.malloc(15 * MIB) == first
    assert allocator.malloc(30 * MIB) == other + 20 * MIB


def test_streams_share_nothing() -> None:
    allocator = allocator_with()
    allocator.free(allocator.malloc(100, stream=1))
    assert allocator.malloc(100, stream=2) == BASE + 2 * MIB


def test_a_block_waits_for_other_streams() -> None:
    allocator = allocator_with()
    address = allocator.malloc(1000)
    allocator.record_stream(address, 0)  # its own: nothing to wait for
    allocator.record_stream(address, 5)
    allocator.free(address)
    assert (allocator.allocated_bytes, allocator.active_bytes) == (0, 1024)
    assert allocator.malloc(1000) == address + 1024
    allocator.complete(address)
    assert allocator.active_bytes == 1024
    assert allocator.malloc(1000) == address
    with pytest.raises(UsageError, match="waits for a stream"):
        allocator.complete(address)


def test_addresses_that_are_not_handed_out_cannot_be_freed() -> None:
    allocator = allocator_with()
    address = allocator.malloc(10)
    allocator.free(address)
    for wrong in (address, address + 512, 7):
        with pytest.raises(UsageError, match=f"{wrong:#x}"):
            allocator.free(wrong)
    assert allocator.malloc(0) == 0
    allocator.free(0)


def test_empty_cache_gives_back_whole_segments_large_ones_first() -> None:
    allocator = allocator_with()
    small, kept, large = (allocator.malloc(size) for size in (10, 5 * MIB, 30 * MIB))
    beside = allocator.malloc(5 * MIB)
    for address in (small, large, beside):
        allocator.free(address)
    allocator.history.clear()
    allocator.empty_cache()
    assert actions(allocator) == [
        ("segment_free", large - BASE, 30 * MIB),
        ("segment_free", small - BASE, 2 * MIB),
    ]
    assert allocator.reserved_bytes == 20 * MIB
    assert allocator.peak_reserved_bytes == 52 * MIB
    allocator.reset_peaks()
    assert allocator.peak_reserved_bytes == 20 * MIB
    assert kept in allocator.blocks


def test_running_out_it_gives_back_what_is_cached_and_then_fails() -> None:
    allocator = allocator_with(capacity_mib=100)
    kept, cached = allocator.malloc(40 * MIB), allocator.malloc(40 * MIB)
    waits = allocator.malloc(10 * MIB)
    allocator.record_stream(waits, 3)
    allocator.free(waits)
    allocator.free(cached)
    allocator.malloc(60 * MIB)
    assert (allocator.reserved_bytes, allocator.retries) == (100 * MIB, 1)
    with pytest.raises(OutOfDeviceMemory) as error:
        allocator.malloc(MIB)
    assert (error.value.requested_bytes, error.value.reserved_bytes) == (MIB, 100 * MIB)
    assert actions(allocator)[-1][0] == "oom"
    assert allocator.snapshot()["device_traces"][0][-1]["device_free"] == 0
    allocator.free(kept)  # the job goes on
    allocator.malloc(MIB)
    assert (allocator.out_of_memories, allocator.retries) == (1, 3)


def test_a_fraction_of_the_device_can_be_all_there_is() -> None:
    allocator = allocator_with("per_process_memory_fraction:0.5", capacity_mib=100)
    with pytest.raises(OutOfDeviceMemory):
        allocator.malloc(51 * MIB)
    allocator.malloc(50 * MIB)


def test_blocks_beyond_max_split_size_are_kept_for_the_like() -> None:
    allocator = allocator_with("max_split_size_mb:40")
    large = allocator.malloc(60 * MIB)
    allocator.free(large)
    assert allocator.malloc(30 * MIB) != large
    assert allocator.malloc(40 * MIB - 1) != large  # rounds to 40 MiB, but 20 MiB more is too much
    assert allocator.malloc(40 * MIB + 1) == large
    assert allocator.blocks[large].size == 60 * MIB  # not split
    exact = allocator.malloc(40 * MIB)
    allocator.free(exact)
    assert allocator.malloc(39 * MIB) != exact  # as large as the limit is beyond it
    plain = allocator_with()
    plain.free(plain.malloc(60 * MIB))
    assert plain.malloc(30 * MIB) == BASE


def test_short_of_memory_blocks_beyond_max_split_size_go_first() -> None:
    allocator = allocator_with("max_split_size_mb:40", capacity_mib=200)
    cached = [allocator.malloc(size * MIB) for size in (50, 60, 12)]
    for address in cached:
        allocator.free(address)
    allocator.history.clear()
    allocator.malloc(90 * MIB)  # no single one is large enough: from the largest on, until they are
    given = [entry[2] // MIB for entry in allocator.history if entry[0] == "segment_free"]
    assert given == [60, 50]
    assert allocator.retries == 0


def test_garbage_is_collected_by_age() -> None:
    allocator = allocator_with("garbage_collection_threshold:0.5", capacity_mib=200)
    old, young = allocator.malloc(60 * MIB), allocator.malloc(40 * MIB)
    allocator.free(old)
    for _ in range(5):
        allocator.free(allocator.malloc(30 * MIB, stream=1))
    allocator.free(young)
    allocator.history.clear()
    allocator.malloc(70 * MIB)  # 130 MiB are reserved, 100 are the threshold
    assert [entry[:1] + entry[2:3] for entry in allocator.history] == [
        ("segment_free", 60 * MIB),
        ("segment_alloc", 70 * MIB),
        ("alloc", 70 * MIB),
    ]


def test_the_only_cached_segment_is_old_enough() -> None:
    allocator = allocator_with("garbage_collection_threshold:0.5", capacity_mib=100)
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(20 * MIB, stream=1)
    assert allocator.reserved_bytes == 20 * MIB


def test_room_to_grow_counts_as_size() -> None:
    allocator = allocator_with("expandable_segments:True", capacity_mib=1000)
    _, hole, _, _ = (allocator.malloc(size * MIB) for size in (10, 15, 10, 15))
    allocator.free(hole)
    # 10 MiB are left at the end, and fit best, but could grow to nearly the whole device.
    assert allocator.malloc(8 * MIB) == hole


def test_expandable_segments_grow_and_shrink_by_pages() -> None:
    allocator = allocator_with("expandable_segments:True", capacity_mib=1000)
    first, second = allocator.malloc(30 * MIB), allocator.malloc(30 * MIB)
    assert (first, second) == (BASE, BASE + 30 * MIB)
    small = allocator.malloc(100)
    assert actions(allocator)[:4] == [
        ("segment_map", 0, 40 * MIB),
        ("alloc", 0, 30 * MIB),
        ("segment_map", 40 * MIB, 20 * MIB),
        ("alloc", 30 * MIB, 30 * MIB),
    ]
    # A range of addresses is an eighth larger than the device, in whole pages.
    assert small - BASE >= 1140 * MIB
    allocator.free(first)
    assert allocator.malloc(30 * MIB - 512) == first
    assert allocator.blocks[first].size == 30 * MIB - 512  # a rest of 512 bytes is split off
    allocator.free(first)
    allocator.history.clear()
    allocator.empty_cache()
    # The second half of the second page is in use.
    assert actions(allocator) == [("segment_unmap", 0, 20 * MIB)]
    snapshot = allocator.snapshot()
    assert [
        (s["address"] - BASE, s["total_size"], s["is_expandable"]) for s in snapshot["segments"]
    ] == [
        (20 * MIB, 40 * MIB, True),
        (small - BASE, 2 * MIB, True),
    ]
    allocator.history.clear()
    assert allocator.malloc(25 * MIB) == first
    assert actions(allocator)[0] == ("segment_map", 0, 20 * MIB)
    assert allocator.reserved_bytes == 62 * MIB


def test_expandable_segments_run_out_page_by_page() -> None:
    allocator = allocator_with("expandable_segments:True", capacity_mib=50)
    allocator.malloc(30 * MIB)
    with pytest.raises(OutOfDeviceMemory):
        allocator.malloc(12 * MIB)  # 10 MiB are left of the second page, and no third one fits
    allocator.malloc(10 * MIB)


def test_a_history_can_be_a_ring_or_none() -> None:
    ring = CachingAllocator(max_entries=3)
    none = CachingAllocator(max_entries=0)
    for allocator in (ring, none):
        allocator.free(allocator.malloc(10))
    assert [entry[0] for entry in ring.history] == ["alloc", "free_requested", "free_completed"]
    assert not none.history


def test_recorded_addresses_can_be_prescribed() -> None:
    places = iter((0x5000_0000, None))
    allocator = CachingAllocator(place=lambda size, stream: next(places))
    assert allocator.malloc(5) == 0x5000_0000
    assert allocator.malloc(MIB + 5) == BASE


def test_entries_carry_stack_text_and_time() -> None:
    allocator = CachingAllocator(clock=iter((7, 8)).__next__)
    allocator.frames = [{"name": "f", "filename": "a.py", "line": 3}]
    allocator.user_metadata = "step 2"
    allocator.malloc(5)
    snapshot = allocator.snapshot()
    assert snapshot["device_traces"][0][1] == {
        "action": "alloc",
        "addr": BASE,
        "size": 5,
        "stream": 0,
        "time_us": 8,
        "frames": [{"name": "f", "filename": "a.py", "line": 3}],
        "user_metadata": "step 2",
    }
    assert snapshot["segments"][0]["blocks"][0] == {
        "address": BASE,
        "size": 512,
        "requested_size": 5,
        "state": "active_allocated",
        "frames": [{"name": "f", "filename": "a.py", "line": 3}],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_split_size_mb:20",
        "expandable_segments:True",
        "garbage_collection_threshold:0.5,roundup_power2_divisions:4",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_its_books_balance(text: str, seed: int) -> None:
    allocator, _ = run_random_job(seed, text, capacity_bytes=900 * MIB)
    segments = allocator.snapshot()["segments"]
    for key, own in (
        ("total_size", allocator.reserved_bytes),
        ("allocated_size", allocator.allocated_bytes),
        ("active_size", allocator.active_bytes),
        ("requested_size", allocator.requested_bytes),
    ):
        assert sum(segment[key] for segment in segments) == own
    assert allocator.peak_reserved_bytes <= 900 * MIB
    for segment in segments:
        assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"]
        states = [block["state"] for block in segment["blocks"]]
        assert ("inactive", "inactive") not in pairwise(states)
    for address in list(allocator.blocks):
        if address not in allocator.pending:
            allocator.free(address)
    allocator.empty_cache()
    assert allocator.reserved_bytes == allocator.requested_bytes == allocator.active_bytes == 0
    assert allocator.snapshot()["segments"] == []


def test_torchs_own_tools_read_its_snapshots() -> None:
    from torch.cuda import _memory_viz

    allocator = allocator_with()
    allocator.free(allocator.malloc(30 * MIB))
    allocator.malloc(700_000)
    snapshot = allocator.snapshot()
    summary = _memory_viz.segsum(snapshot)
    assert "total_reserved: 32.0MiB" in summary
    assert "total_allocated: 683.6KiB" in summary
    assert "cudaMalloc" in _memory_viz.trace(snapshot)
