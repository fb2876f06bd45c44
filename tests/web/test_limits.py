"""Large runs: answers stay small and quick, and what is left out is counted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.jobs import clean_environment
from tests.support.large import make_capture
from tests.support.pages import Pages
from tests.support.written_job import FORWARD, MIB, Job

import memlens
from memlens.disk.format import RANK_FILE, read_json, write_json
from memlens.web.sizes import MOST_BYTES, brief, dump, within

ASK = """
import json, sys, time
from pathlib import Path
from memlens.web.library import Library
from memlens.web.questions import answer
from memlens.web.scan import Folder
from tests.support.memory import most_memory_bytes

library = Library([Folder(Path(sys.argv[1]))])
library.search(wait=True)

def ask(name, **given):
    cpu = time.process_time()
    status, content = answer(library, name, {"run": "run", "rank": "0", **given})
    assert status == 200, content
    return time.process_time() - cpu, len(content), json.loads(content)

idle = most_memory_bytes()
opening, size, first = ask("timeline")
total = first["span"][1]
zooms = [
    ask("timeline", **{"from": str(total // 3), "to": str(total // 3 + total // 2**zoom)})
    for zoom in range(1, 16)
]
print(json.dumps({
    "opening_s": opening,
    "zoom_s": max(each[0] for each in zooms),
    "bytes": [size, *(each[1] for each in zooms), *(ask(name)[1] for name in
              ("alive", "modules", "lifetimes", "steps"))],
    "taken_mb": (most_memory_bytes() - idle) / 1e6,
}))
"""


@pytest.mark.slow
def test_a_million_events(tmp_path: Path) -> None:
    make_capture(tmp_path / "run", events=1_000_000, ranks=1)
    process = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
    )
    figures = json.loads(process.stdout)
    # CPU seconds: what a machine that does nothing else takes on the clock, or less.
    assert figures["opening_s"] <= 2
    assert figures["zoom_s"] <= 0.1
    assert max(figures["bytes"]) <= 200_000
    # A tenth of what ten million events may take, which were measured at 1.5 GB.
    assert figures["taken_mb"] <= 400


def test_very_many_modules(tmp_path: Path) -> None:
    make_capture(tmp_path / "run", events=1, ranks=1, layers=1_500)
    pages = Pages(tmp_path)
    rank = memlens.load(tmp_path / "run").rank(0)
    answer = pages.ask("modules", run="run", rank=0)
    assert answer["left_out"]["count"] > 0
    shown: Counter[str] = Counter()
    for module in answer["modules"]:
        shown.update(module["categories"])
    held = sum(shown.values()) + answer["left_out"]["size_bytes"]
    assert held == answer["allocated_bytes"] == rank.peak().allocated_bytes
    count = len(answer["modules"]) + answer["left_out"]["count"]
    assert count == len(rank.modules_at(top=None))
    difference = pages.ask("difference", run="run", rank=0, with_run="run", with_rank=0)
    assert difference["left_out"]["count"] + len(difference["modules"]) == count
    left_out = difference["left_out"]["a_bytes"]
    assert left_out + sum(sum(each["a"].values()) for each in difference["modules"]) == held
    for name in ("timeline", "lifetimes", "steps"):
        pages.ask(name, run="run", rank=0)
    pages.ask("alive", run="run", rank=0, limit=200)


def test_very_many_ranks_and_runs(tmp_path: Path) -> None:
    make_capture(tmp_path / "first", events=1, ranks=1, layers=1)
    rank = tmp_path / "first" / "rank-00000"
    header = read_json(rank / RANK_FILE)[0]
    for number in range(1, 1_500):
        folder = rank.with_name(f"rank-{number:05}")
        folder.mkdir()
        write_json(folder / RANK_FILE, {**header, "rank": number, "world_size": 1_500})
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    answer = Pages(tmp_path).ask("runs")
    assert [run["run"] for run in answer["runs"]] == ["first", "second"]
    assert answer["left_out"] == 0
    for run in answer["runs"]:
        assert len(run["ranks"]) > 500
        assert len(run["ranks"]) + run["ranks_left_out"] == 1_500


def test_answers_are_cut_until_they_fit() -> None:
    def build(count: int) -> dict[str, Any]:
        return {"entries": ["x" * 1_000] * count}

    answer = within(build, 1_000)
    assert MOST_BYTES * 0.8 < len(dump(answer)) <= MOST_BYTES
    assert within(build, 5) == build(5)
    assert within(lambda count: {"entries": ["x" * 500_000] * count}, 3) == {
        "entries": ["x" * 500_000]
    }


def test_names_that_are_none() -> None:
    assert brief("layers.0") == "layers.0"
    cut = brief("a" * 1_000 + "b" * 1_000)
    assert len(cut) == 300
    assert cut.startswith("aaa")
    assert cut.endswith("bbb")


def test_reserved_memory_and_capacity(tmp_path: Path) -> None:
    job = Job()
    blocks = job.malloc(FORWARD, *[3 * MIB, 30 * MIB, 600_000, 90 * MIB] * 5)
    job.free(FORWARD, blocks[::2])
    job.malloc(FORWARD, *[5 * MIB] * 40)
    capture = job.imported(tmp_path)
    pages = Pages(tmp_path)
    answer = pages.ask("timeline", run="run", rank=0)
    [rank] = capture.ranks
    origin_ns = int(rank.timeline().time_ns[0])
    expected = []
    for time in answer["time"]:
        slack = rank.slack_at(origin_ns + time)
        assert slack is not None
        expected.append(slack.reserved_bytes)
    assert answer["reserved"] == expected
    assert np.all(np.array(answer["reserved"]) >= answer["allocated"])
    assert answer["exact"]
    # Of fewer entries than there are events, none misses what was reserved meanwhile.
    few = pages.ask("timeline", run="run", rank=0, points=10)
    assert not few["exact"]
    assert max(few["reserved"]) == rank.reserved_peak_bytes
    for begin, end, most in zip(few["time"], few["time"][1:], few["reserved"], strict=False):
        slacks = [
            rank.slack_at(origin_ns + at)
            for at in (begin, *answer["time"], end - 1)
            if begin <= at < end
        ]
        assert most == max(slack.reserved_bytes for slack in slacks if slack is not None)
    assert answer["capacity_bytes"] is None
    header = next((tmp_path / "run").glob(f"*/{RANK_FILE}"))
    write_json(header, {**read_json(header)[0], "capacity_bytes": [24 << 30]})
    assert Pages(tmp_path).ask("timeline", run="run", rank=0)["capacity_bytes"] == 24 << 30
