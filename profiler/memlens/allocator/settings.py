"""How the allocator is set up, and what follows from it for sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.errors import UsageError

__all__ = [
    "BLOCK_BYTES",
    "SMALL_BYTES",
    "SMALL_SEGMENT_BYTES",
    "AllocatorSettings",
    "rounding",
    "segment_bytes",
]

MIB = 2**20
# Names in c10/core/AllocatorConfig.h (before torch 2.9 in c10/cuda/CUDACachingAllocator.cpp) behind each.
BLOCK_BYTES = 512
"""Every request is rounded up to a multiple of this (kMinBlockSize)."""
SMALL_BYTES = MIB
"""The largest rounded request that is served from the small pool (kSmallSize)."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""What the small pool takes from the device at once (kSmallBuffer)."""
LARGE_SEGMENT_BYTES = 20 * MIB
"""What the large pool takes for a medium request (kLargeBuffer; large_segment_size_mb since 2.10)."""
MEDIUM_BYTES = 10 * MIB
"""A request smaller than this takes a segment that it shares (kMinLargeAlloc)."""
LARGE_ROUNDING_BYTES = 2 * MIB
"""Segments for other requests are rounded up to a multiple of this (kRoundLarge)."""
INTERVALS = 16
"""Divisions are set for each power of two from 1 MiB up (kRoundUpPowerOfTwoIntervals)."""

_IGNORED = {
    "graph_capture_record_stream_reuse",
    "pinned_free_catch_all",
    "pinned_max_cached_size_mb",
    "pinned_max_round_threshold_mb",
    "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_use_background_threads",
    "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register",
    "release_lock_on_cudamalloc",
    "release_lock_on_hipmalloc",
    "throw_on_cudamalloc_oom",
}
"""Options that change neither sizes nor places of blocks on the device."""
_UNLISTED = {"large_segment_size_mb", "max_non_split_rounding_mb", "per_process_memory_fraction"}
"""Options that do, and that a snapshot tells only as text."""


@dataclass(frozen=True)
class AllocatorSettings:
    """What PYTORCH_CUDA_ALLOC_CONF sets; the defaults are torch's."""

    max_split_size_bytes: int | None = None
    """Blocks at least as large are never split, nor handed out for smaller requests; None: all are."""
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    """By how much a block that is never split may be larger than the request that it serves."""
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    """What the large pool takes from the device for a medium request, and its expandable page."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    """Into how many steps each interval between powers of two is divided, from 1 MiB up (the first
    holds for smaller requests as well); 0 and 1: round to 512 bytes."""
    garbage_collection_threshold: float = 0.0
    """Fraction of the capacity from which on cached blocks are freed by age; 0: never."""
    expandable_segments: bool = False
    """Segments grow page by page instead of being taken as a whole."""
    per_process_memory_fraction: float = 1.0
    """Of the device's memory, what this process may take."""

    @classmethod
    def from_text(cls, text: str) -> AllocatorSettings:
        """Read the form of PYTORCH_CUDA_ALLOC_CONF.

        Raises:
            UsageError: torch would refuse it as well, or its allocator is another one.
        """
        return _from_options(cls(), _options(text))

    @classmethod
    def from_snapshot(cls, settings: Mapping[str, Any]) -> AllocatorSettings:
        """Read `allocator_settings` of a torch memory snapshot; an empty one means the defaults.

        Raises:
            UsageError: a value is none that torch writes.
        """
        try:
            # What has no entry of its own; the rest of the text was understood by torch, if not by us.
            text = settings.get("PYTORCH_CUDA_ALLOC_CONF") or ""
            made = _from_options(cls(), (each for each in _options(text) if each[0] in _UNLISTED))
            split = int(settings.get("max_split_size", made.max_split_size_bytes or -1))
            divisions = settings.get("roundup_power2_divisions")
            if divisions is not None:
                table = {int(key): int(value) for key, value in divisions.items()}
                made = replace(
                    made,
                    roundup_power2_divisions=tuple(table.get(2**i, 0) for i in range(INTERVALS)),
                )
            return replace(
                made,
                # Torch writes -1 for "unlimited", or what its largest size_t becomes.
                max_split_size_bytes=split if 0 < split < 2**62 else None,
                garbage_collection_threshold=float(
                    settings.get("garbage_collection_threshold", made.garbage_collection_threshold)
                ),
                expandable_segments=bool(
                    settings.get("expandable_segments", made.expandable_segments)
                ),
            )
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"the allocator's settings in the snapshot make no sense ({error}); "
                "were they written by torch?"
            ) from error

    def to_snapshot(self) -> dict[str, Any]:
        """The same in the form of a torch memory snapshot."""
        extra = []
        if self.large_segment_bytes != LARGE_SEGMENT_BYTES:
            extra.append(f"large_segment_size_mb:{self.large_segment_bytes // MIB}")
        if self.max_non_split_rounding_bytes != self.large_segment_bytes:
            extra.append(f"max_non_split_rounding_mb:{self.max_non_split_rounding_bytes // MIB}")
        if self.per_process_memory_fraction != 1.0:
            extra.append(f"per_process_memory_fraction:{self.per_process_memory_fraction}")
        return {
            "PYTORCH_CUDA_ALLOC_CONF": ",".join(extra),
            "max_split_size": self.max_split_size_bytes or -1,
            "garbage_collection_threshold": self.garbage_collection_threshold,
            "expandable_segments": self.expandable_segments,
            "roundup_power2_divisions": {
                str(2**i): value for i, value in enumerate(self.roundup_power2_divisions)
            },
        }

    def round_bytes(self, requested_bytes: int) -> int:
        """Size of the block that a request needs (`round_size`)."""
        if requested_bytes < BLOCK_BYTES:
            return BLOCK_BYTES
        interval = min(max(requested_bytes.bit_length() - 21, 0), INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        if divisions > 1 and requested_bytes > BLOCK_BYTES * divisions:
            # At least 512: the request is larger than 512 times the divisions.
            step = (1 << (requested_bytes.bit_length() - 1)) // divisions
            return -(-requested_bytes // step) * step
        return -(-requested_bytes // BLOCK_BYTES) * BLOCK_BYTES

    def segment_bytes(self, block_bytes: int) -> int:
        """What is taken from the device for a block, unless segments expand."""
        return segment_bytes(block_bytes, self.large_segment_bytes)

    def page_bytes(self, *, is_small: bool) -> int:
        """By what an expandable segment of a pool grows."""
        return SMALL_SEGMENT_BYTES if is_small else self.large_segment_bytes

    def least_rest_bytes(self, block_bytes: int) -> int | None:
        """How much must be left of a piece for it to be split; None: it is never (`should_split`)."""
        if block_bytes <= SMALL_BYTES or self.expandable_segments:
            return BLOCK_BYTES
        if self.max_split_size_bytes is not None and block_bytes >= self.max_split_size_bytes:
            return None
        return SMALL_BYTES + 1


def segment_bytes(block_bytes: int, large_segment_bytes: int = LARGE_SEGMENT_BYTES) -> int:
    """What is taken from the device for a block (`get_allocation_size`)."""
    if block_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < MEDIUM_BYTES:
        return large_segment_bytes
    return -(-block_bytes // LARGE_ROUNDING_BYTES) * LARGE_ROUNDING_BYTES


def rounding(
    settings: AllocatorSettings, requested_bytes: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """`AllocatorSettings.round_bytes` of many."""
    requested = np.maximum(requested_bytes.astype(np.int64), 1)
    rounded = (requested + (BLOCK_BYTES - 1)) // BLOCK_BYTES * BLOCK_BYTES
    if max(settings.roundup_power2_divisions) > 1:
        sizes, where = np.unique(requested, return_inverse=True)
        exact = np.array([settings.round_bytes(size) for size in sizes.tolist()], np.int64)
        rounded = exact[where.reshape(-1)]
    return rounded


# -- PYTORCH_CUDA_ALLOC_CONF ---------------------------------------------------------------------


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values; a list in brackets stays one value. Blanks mean nothing."""
    rest = "".join(text.split())
    while rest:
        key, colon, rest = rest.partition(":")
        if not colon:
            raise _bad(text, f"{key!r} has no value")
        if rest.startswith("["):
            value, closed, rest = rest.partition("]")
            if not closed:
                raise _bad(text, f"the list of {key} does not end")
            value += "]"
            if rest and not rest.startswith(","):
                raise _bad(text, f"a comma is missing behind the list of {key}")
            rest = rest[1:]
        else:
            value, _, rest = rest.partition(",")
        yield key, value


def _from_options(
    settings: AllocatorSettings, options: Iterator[tuple[str, str]]
) -> AllocatorSettings:
    # As torch, begin with the one on which limits of others depend.
    for key, value in sorted(options, key=lambda option: option[0] != "large_segment_size_mb"):
        if key == "large_segment_size_mb":
            size = _mebibytes(key, value, at_least_bytes=MEDIUM_BYTES + MIB)
            settings = replace(
                settings, large_segment_bytes=size, max_non_split_rounding_bytes=size
            )
        elif key == "max_split_size_mb":
            size = _mebibytes(key, value, at_least_bytes=settings.large_segment_bytes)
            settings = replace(settings, max_split_size_bytes=size)
        elif key == "max_non_split_rounding_mb":
            size = _mebibytes(key, value, at_least_bytes=settings.large_segment_bytes)
            settings = replace(settings, max_non_split_rounding_bytes=size)
        elif key == "garbage_collection_threshold":
            settings = replace(settings, garbage_collection_threshold=_fraction(key, value))
        elif key == "per_process_memory_fraction":
            fraction = _fraction(key, value, one=True)
            settings = replace(settings, per_process_memory_fraction=fraction)
        elif key == "roundup_power2_divisions":
            settings = replace(settings, roundup_power2_divisions=_divisions(value))
        elif key == "expandable_segments":
            if value not in ("True", "False"):
                raise _bad(f"{key}:{value}", "it is True or False")
            settings = replace(settings, expandable_segments=value == "True")
        elif key == "backend":
            if value != "native":
                raise _bad(f"{key}:{value}", "only torch's own allocator is known here")
        elif key not in _IGNORED:
            raise _bad(f"{key}:{value}", f"torch has no option {key!r}")
    return settings


def _divisions(value: str) -> tuple[int, ...]:
    key = "roundup_power2_divisions"
    if not value.startswith("["):
        return (_power_of_2(key, value),) * INTERVALS
    table = [0] * INTERVALS
    place, is_first = 0, True
    for item in filter(None, value[1:-1].split(",")):
        start, colon, divisions_text = item.partition(":")
        if not colon:
            raise _bad(f"{key}:{value}", f"{item!r} is no pair of size and divisions")
        divisions = 0 if divisions_text == "0" else _power_of_2(key, divisions_text)
        if start == ">":
            table[place + 1 :] = [divisions] * (INTERVALS - place - 1)
            continue
        place = min(_power_of_2(key, start).bit_length() - 1, INTERVALS - 1)
        if is_first:  # smaller sizes go with the first
            table[:place] = [divisions] * place
            is_first = False
        table[place] = divisions
    return tuple(table)


def _power_of_2(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1 or int(value) & (int(value) - 1):
        raise _bad(f"{key}:{value}", "sizes and divisions are powers of 2")
    return int(value)


def _mebibytes(key: str, value: str, *, at_least_bytes: int) -> int:
    if not value.isdecimal():
        raise _bad(f"{key}:{value}", "it is a whole number of MiB")
    size = int(value) * MIB
    if size < at_least_bytes:
        raise _bad(f"{key}:{value}", f"torch takes {at_least_bytes // MIB} or more")
    return size


def _fraction(key: str, value: str, *, one: bool = False) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = math.nan
    if not (0 < fraction < 1 or (one and fraction == 1)):
        raise _bad(f"{key}:{value}", "it is a number between 0 and 1")
    return fraction


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f"not a setting of torch's CUDA allocator: {text!r}: {why}")
