"""A rank with a million events, for each viewer: in bounded time, memory and size, and to the byte."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.large import make_capture

import memlens

pytestmark = pytest.mark.slow

EXPORT = """
import sys
from pathlib import Path
import memlens
from memlens.exporters import export
from tests.support.memory import most_memory_bytes

export(memlens.load(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
print(most_memory_bytes() // 2**20)
"""
LIMITS = {
    "speedscope": (700, 5),
    "folded": (700, 5),
    "torch-tb-profiler": (700, 5),
    "perfetto": (900, 25),
    "memory-viz": (1500, 150),
}
"""MiB of memory and MB of files, about half as much again as was measured (README)."""
SECONDS = 120
"""Ten times what it takes on two quiet cores."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "run"
    make_capture(folder, events=1_000_000)
    return folder


@pytest.mark.parametrize("to", list(LIMITS))
def test_a_million_events(large: Path, to: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = subprocess.run(
        [sys.executable, "-c", EXPORT, str(large), to, str(out)],
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    files = [out] if out.is_file() else list(out.iterdir())
    most_memory_mib, most_mb = LIMITS[to]
    assert int(answer.stdout) < most_memory_mib
    assert sum(path.stat().st_size for path in files) < most_mb * 1e6
    peak_bytes = memlens.load(large).ranks[0].peak().allocated_bytes
    if to == "speedscope":
        content = json.loads(out.read_text())
        assert [sum(each["weights"]) for each in content["profiles"]] == [peak_bytes] * 2
    elif to == "perfetto":
        assert max(_allocated(out)) == peak_bytes
    elif to == "torch-tb-profiler":
        trace: Any = json.loads(gzip.decompress(files[0].read_bytes()))
        events = [each["args"] for each in trace["traceEvents"] if each["name"] == "[memory]"]
        assert 90_000 < len(events) <= 100_000
        assert max(each["Total Allocated"] for each in events) == peak_bytes


def _allocated(path: Path) -> list[int]:
    """Line by line: as a whole it would take gigabytes."""
    line = re.compile(r'\{"ph":"C",.*"name":"allocated",.*"bytes":(\d+)\}')
    with gzip.open(path, "rt") as file:
        return [int(match[1]) for text in file if (match := line.search(text))]
