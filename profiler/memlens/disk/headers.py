"""Reads `run.json` and `rank.json`: ours, of this version, and every field of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memlens.disk.format import FORMAT_NAME, FORMAT_VERSION, READABLE_VERSIONS, read_json
from memlens.errors import CaptureError

__all__ = ["MOST", "PARTIAL", "RANK_FIELDS", "RUN_FIELDS", "one_line", "read_header"]

MOST = 2**62
"""Every number in a capture is smaller; sums and differences of two then fit into 64 bits."""

PARTIAL = "the capture is partial"
"""Ends a problem that has stopped the recording; what the job did afterwards is not in the capture."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_rank(value: object) -> bool:
    return value is None or _is_number(value)


def _is_size(value: object) -> bool:
    return _is_number(value) and value != 0


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_devices(value: object) -> bool:
    return _is_texts(value) and bool(value)


def _is_count_if_there(value: object) -> bool:
    return value is None or _is_number(value)


def _is_text_if_there(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_object_if_there(value: object) -> bool:
    return value is None or isinstance(value, dict)


def _is_texts_if_there(value: object) -> bool:
    return value is None or _is_texts(value)


def _is_counts_if_there(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_number, value)))


Fields = Mapping[str, Callable[[object], bool]]

RUN_FIELDS: Fields = {"memlens": _is_text, "command": _is_texts, "created_ns": _is_number}
RANK_FIELDS: Fields = {
    "id": _is_text,
    "rank": _is_rank,
    "world_size": _is_size,
    "source": _is_text,
    "devices": _is_devices,
    "started_ns": _is_number,
    "torch": _is_text,
    "problems": _is_texts,
    "notes": _is_texts,
    "trains": _is_flag,
    "closed": _is_flag,
    "lost_events": _is_count_if_there,
    "allocator": _is_object_if_there,
    "workspaces": _is_counts_if_there,
    "lt_workspace_bytes": _is_count_if_there,
    "capacity_bytes": _is_counts_if_there,
    "sharding": _is_texts_if_there,
    "device_events": _is_counts_if_there,
    "ended_ns": _is_count_if_there,
    "launch": _is_text_if_there,
    "restart": _is_count_if_there,
    "error": _is_text_if_there,
}
"""What readers rely on; the files hold more, for people."""


def read_header(path: Path, fields: Fields, *, what: str) -> dict[str, Any]:
    """Read one of the two files.

    Args:
        path: the file.
        fields: what it must hold, and how each value is checked.
        what: what the file's folder is, for messages.

    Raises:
        CaptureError: it is not ours, has another version, or is damaged.
    """
    try:
        header, is_as_written = read_json(path)
    except FileNotFoundError:
        raise CaptureError(f"not a memlens {what}: {path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CaptureError(f"damaged memlens {what}: {path}: {one_line(error)}") from None
    if header.get("format") != FORMAT_NAME:
        raise CaptureError(f"not a memlens {what}: {path} has format {header.get('format')!r:.40}")
    if header.get("version") not in READABLE_VERSIONS:
        raise CaptureError(
            f"{path} has format version {header.get('version')!r:.40}, and this memlens reads "
            f"version {FORMAT_VERSION}; read it with the memlens that wrote it "
            f"({header.get('memlens', 'unknown')!r:.40})"
        )
    if not is_as_written:
        raise CaptureError(f"damaged memlens {what}: {path}: its checksum does not fit its content")
    for name, is_valid in fields.items():
        if not is_valid(header.get(name)):
            raise CaptureError(
                f"damaged memlens {what}: {path} has {name} = {header.get(name)!r:.40}"
            )
    return header


def one_line(error: BaseException) -> str:
    """Name and text of an error, short enough for a message of ours."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
