"""What a process took of memory at most, asked by the process itself."""

from __future__ import annotations

import re
from pathlib import Path


def most_memory_bytes() -> int:
    """The largest resident size of this program since it started.

    Not `ru_maxrss`: that begins with the size of the process that started this one, which under pytest is
    whatever earlier tests took.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024
