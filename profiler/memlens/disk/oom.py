"""Bundles: the circumstances of a request for memory that failed, beside the capture.

What was alive stands in the capture itself; a bundle says what the allocator and the device had left.
`oom.json`, `oom-2.json`, ... in a rank's folder: a job may catch the error and go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memlens.answers import Frame, OutOfMemory
from memlens.disk.format import read_json, write_json
from memlens.disk.headers import MOST, one_line

__all__ = ["BUNDLE_PATTERN", "read_bundles", "write_bundle"]

BUNDLE_PATTERN = "oom*.json"
MOST_BUNDLES = 10
_FORMAT = "memlens-oom"
_VERSION = 1


def write_bundle(folder: Path, **fields: Any) -> Path | None:
    """Write one bundle; never over another, unless two threads come here at once.

    Args:
        folder: the rank's.
        fields: see `memlens.answers.OutOfMemory`; `stack` as lists of function, file, line.

    Returns:
        The file, or None when there are ten already.

    Raises:
        OSError: it can not be written.
    """
    for number in range(1, MOST_BUNDLES + 1):
        path = folder / ("oom.json" if number == 1 else f"oom-{number}.json")
        if not path.exists():
            write_json(path, {"format": _FORMAT, "version": _VERSION, **fields})
            return path
    return None


def read_bundles(folder: Path) -> tuple[tuple[OutOfMemory, ...], tuple[str, ...]]:
    """Read all bundles of a rank, the first one first.

    Returns:
        Those that can be read, and a sentence about each that can not.
    """
    found: list[OutOfMemory] = []
    problems = []
    for path in sorted(folder.glob(BUNDLE_PATTERN)):
        try:
            found.append(_read(path))
        except (ValueError, OSError, RecursionError) as error:
            problems.append(f"{path.name} can not be read: {one_line(error)}")
    return tuple(sorted(found, key=lambda bundle: bundle.time_ns)), tuple(problems)


def _read(path: Path) -> OutOfMemory:
    content, is_as_written = read_json(path)
    if content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise ValueError(
            f"it is {content.get('format')!r:.40} of version {content.get('version')!r:.40}, not "
            f"{_FORMAT!r} of version {_VERSION}"
        )
    if not is_as_written:
        raise ValueError("its checksum does not fit its content")
    for name, is_valid in _FIELDS.items():
        if not is_valid(content.get(name)):
            raise ValueError(f"it has {name} = {content.get(name)!r:.40}")
    if (content["reason"] == "own") != (content.get("requested_bytes") is not None):
        raise ValueError(
            f"it has reason = {content['reason']!r} and requested_bytes = "
            f"{content.get('requested_bytes')!r}"
        )
    values: dict[str, Any] = {name: content.get(name) for name in _FIELDS}
    values["free_pieces"] = tuple(map(tuple, content["free_pieces"]))
    values["stack"] = tuple(Frame(name, file, line) for name, file, line in content["stack"])
    return OutOfMemory(**values)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_number(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_reason(value: object) -> bool:
    return value in ("own", "peer")


def _is_settings(value: object) -> bool:
    return isinstance(value, dict)


def _is_pieces(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list)
        and len(each) == 3
        and _is_number(each[0])
        and _is_text(each[1])
        and _is_stream(each[2])
        for each in value
    )


def _is_stream(value: object) -> bool:
    return type(value) is int and abs(value) < 2**64  # a small number, or an address


def _is_stream_or_none(value: object) -> bool:
    return value is None or _is_stream(value)


def _is_stack(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list)
        and len(each) == 3
        and _is_text(each[0])
        and _is_text(each[1])
        and _is_number(each[2])
        for each in value
    )


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    "time_ns": _is_number,
    "reason": _is_reason,
    "peer_rank": _is_number_or_none,
    "device": _is_text,
    "device_index": _is_number,
    "step": _is_number,
    "requested_bytes": _is_number_or_none,
    "stream": _is_stream_or_none,
    "device_total_bytes": _is_number,
    "device_free_bytes": _is_number,
    "limit_bytes": _is_number_or_none,
    "allocated_bytes": _is_number,
    "reserved_bytes": _is_number,
    "private_pool_bytes": _is_number,
    "pending_bytes": _is_number,
    "free_pieces": _is_pieces,
    "free_pieces_bytes": _is_number,
    "largest_free_bytes": _is_number,
    "allocator_settings": _is_settings,
    "stack": _is_stack,
}
