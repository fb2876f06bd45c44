"""Addresses as CUDA's driver gave them on an H200 (driver 580), in a job of tools/gpu_plans.md."""

from __future__ import annotations

from memlens.allocator.addresses import DriverAddresses
from memlens.allocator.caching import CachingAllocator

MIB = 2**20
LARGE, LOGITS = 180_355_072, 4_194_304_000
RECORDED = [
    *zip(
        [LARGE] * 4, [0x7FF252000000, 0x7FF246000000, 0x7FF23A000000, 0x7FF22E000000], strict=True
    ),
    *zip([LOGITS] * 3, [0x7FF134000000, 0x7FF03A000000, 0x7FEF3A000000], strict=True),
    # 20 MiB are left of each stretch for 172 MiB; the lowest come first.
    *((2 * MIB, 0x7FF238C00000 + place * 2 * MIB) for place in range(10)),
    *((2 * MIB, 0x7FF244C00000 + place * 2 * MIB) for place in range(10)),
    (2 * MIB, 0x7FF250C00000),
]


def test_addresses_are_those_of_a_real_job() -> None:
    """But for 96 MiB between the logits, which something else had taken."""
    place = DriverAddresses(top=0x7FF25E000000)
    for size, address in RECORDED:
        given = place(size, 0)
        assert address in (given, given - 96 * MIB)


def test_what_is_asked_for_is_rounded_to_pages() -> None:
    place = DriverAddresses(top=1 << 40)
    first = place(1, 0)
    assert first == (1 << 40) - 32 * MIB
    assert place(30 * MIB, 0) == first + 2 * MIB
    assert place(2 * MIB, 0) == first - 32 * MIB
    assert place(33 * MIB, 0) == first - 96 * MIB
    assert place(31 * MIB, 0) == first - 128 * MIB
    assert place(31 * MIB, 0) == first - 160 * MIB  # the stretch was full: 31 take as much as 32


def test_best_fit_takes_the_lowest_of_one_size() -> None:
    """So that which of three equal segments is cut depends on where the driver put them."""
    for place, expected in ((None, 0), (DriverAddresses(), 2)):
        allocator = CachingAllocator(place=place)
        segments = [allocator.malloc(64 * MIB) for _ in range(3)]
        for address in segments:
            allocator.free(address)
        assert allocator.malloc(32 * MIB) == segments[expected]
