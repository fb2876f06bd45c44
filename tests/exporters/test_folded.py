"""Folded stacks: what flamegraph.pl, inferno and speedscope make of a line."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.fake_capture import Block, FakeRank, make_capture
from tests.support.small_runs import cuda_run, hostile_run

from memlens.answers import Frame
from memlens.capture import Capture
from memlens.events import Category
from memlens.exporters import export
from memlens.palette import label

LINE = re.compile(r"(.*) (\d+)")
"""How all of them take a line apart; what is not of this form they skip, or refuse."""


def read(path: Path) -> dict[tuple[str, ...], int]:
    held: dict[tuple[str, ...], int] = {}
    for line in path.read_text().splitlines():
        match = LINE.fullmatch(line)
        assert match is not None
        frames = tuple(match[1].split(";"))
        assert frames not in held
        held[frames] = int(match[2])
    return held


def test_the_lines_sum_to_the_peak(any_run: Capture, tmp_path: Path) -> None:
    folder = export(any_run, "folded", tmp_path / "folded")
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2 * len(any_run.ranks)
    whole = {"by-stack": 0, "by-module": 0}
    for name in names:
        whole[name.split(".")[1]] += sum(read(folder / name).values())
    total_bytes = sum(rank.peak().allocated_bytes for rank in any_run.ranks)
    assert whole == {"by-stack": total_bytes, "by-module": total_bytes}


def test_each_category_has_its_bytes(any_run: Capture, tmp_path: Path) -> None:
    folder = export(any_run, "folded", tmp_path / "folded")
    found = dict.fromkeys(map(label, Category), 0)
    for path in folder.glob("*.by-stack.folded"):
        for frames, size_bytes in read(path).items():
            found[frames[-1]] += size_bytes
    for category in Category:
        expected = sum(rank.peak().categories[category] for rank in any_run.ranks)
        assert found[label(category)] == expected


def test_lines_are_readable(tmp_path: Path) -> None:
    blocks = [
        Block(7, Category.INPUT, 3, stack=(Frame("main", "a b.py", 3), Frame("f", "c.py", 4))),
        Block(5, Category.WEIGHT, 3, name="x.weight", module="layers.0.x"),
    ]
    folder = export(make_capture(FakeRank(2, blocks)), "folded", tmp_path / "folded")
    assert (folder / "rank-2.by-stack.folded").read_text() == (
        "rank 2;main a b.py:3;f c.py:4;input 7\nrank 2;(no stack was recorded);weight 5\n"
    )
    assert (folder / "rank-2.by-module.folded").read_text() == (
        "rank 2;(outside of modules);input 7\nrank 2;layers;0;x;weight;x.weight 5\n"
    )


def test_devices_of_one_process_have_files_of_their_own(tmp_path: Path) -> None:
    folder = export(cuda_run(tmp_path / "run"), "folded", tmp_path / "folded")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"rank-0-cuda-{device}.by-{what}.folded"
        for device in (0, 1)
        for what in ("module", "stack")
    ]


def test_hostile_names_stay_within_their_frame(tmp_path: Path) -> None:
    folder = export(hostile_run(tmp_path / "run"), "folded", tmp_path / "folded")
    ((frames, size_bytes), *_) = read(folder / "rank-0.by-stack.folded").items()
    assert len(frames) == 3
    assert frames[0] == "rank 0"
    assert "\\x1b" in frames[1]
    assert size_bytes == 100
