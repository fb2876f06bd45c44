"""Flame graphs of the peak for speedscope, read by its own schema."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.support.fake_capture import Block, FakeRank, make_capture
from tests.support.small_runs import HOSTILE, cuda_run, hostile_run, two_ranks

from memlens.answers import Frame, Part
from memlens.capture import Capture
from memlens.events import Category
from memlens.exporters import export
from memlens.palette import label

SCHEMA = json.loads((Path(__file__).parent / "speedscope/file-format-schema.json").read_text())
"""As speedscope 1.25.0 ships it; its licence stands beside it."""


def exported(capture: Capture, folder: Path) -> Any:
    path = export(capture, "speedscope", folder / "peak.speedscope.json")
    content = json.loads(path.read_text())
    jsonschema.validate(content, SCHEMA)
    return content


def paths(content: Any, number: int) -> dict[tuple[str, ...], int]:
    """What a profile holds, by the names of its frames; lines of one function are summed."""
    names = [frame["name"] for frame in content["shared"]["frames"]]
    profile = content["profiles"][number]
    held: Counter[tuple[str, ...]] = Counter()
    for sample, weight in zip(profile["samples"], profile["weights"], strict=True):
        held[tuple(names[at] for at in sample)] += weight
    return held


def by_tip(held: dict[tuple[str, ...], int]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for path, size_bytes in held.items():
        sums[path[-1]] += size_bytes
    return sums


def test_the_totals_are_the_peaks(any_run: Capture, tmp_path: Path) -> None:
    content = exported(any_run, tmp_path)
    assert len(content["profiles"]) == 2 * len(any_run.ranks)
    for number, rank in enumerate(any_run.ranks):
        peak = rank.peak()
        stacks, modules = content["profiles"][2 * number : 2 * number + 2]
        for profile in (stacks, modules):
            assert profile["unit"] == "bytes"
            assert sum(profile["weights"]) == profile["endValue"] == peak.allocated_bytes
            assert all(weight > 0 for weight in profile["weights"])
        assert by_tip(paths(content, 2 * number)) == {
            label(category): size for category, size in peak.categories.items() if size
        }
        modules_held: Counter[str] = Counter()
        labels = {label(category) for category in Category}
        for path, size_bytes in paths(content, 2 * number + 1).items():
            end = next(at for at, word in enumerate(path) if word in labels)
            modules_held[".".join(path[:end])] += size_bytes
        expected = {
            usage.module or "(outside of modules)": usage.total_bytes
            for usage in rank.modules_at(top=None)
            if usage.total_bytes
        }
        if HOSTILE not in expected:
            assert modules_held == expected


def test_stacks_are_paths_with_files_and_lines(tmp_path: Path) -> None:
    content = exported(two_ranks(tmp_path / "run"), tmp_path)
    frames = content["shared"]["frames"]
    assert len({tuple(frame.items()) for frame in frames}) == len(frames)
    with_files = [frame for frame in frames if "file" in frame]
    assert with_files
    assert all(frame["line"] > 0 for frame in with_files)
    assert [profile["name"] for profile in content["profiles"]] == [
        f"rank {rank}, peak by {what}" for rank in (0, 1) for what in ("stack", "module")
    ]


def test_devices_of_one_process_are_told_apart(tmp_path: Path) -> None:
    content = exported(cuda_run(tmp_path / "run"), tmp_path)
    names = [profile["name"] for profile in content["profiles"]]
    assert names[0] == "rank 0, cuda:0, peak by stack"
    assert names[2] == "rank 0, cuda:1, peak by stack"


def test_a_shared_block_is_cut_into_its_parts(tmp_path: Path) -> None:
    parts = (Part("a.weight", "a", 0, 30), Part("b.c.weight", "b.c", 30, 60))
    blocks = [
        Block(100, Category.MASTER_WEIGHT, 1, name="flat", module="m", parts=parts),
        Block(0, Category.INPUT, 2),
        Block(7, Category.INPUT, 3, stack=(Frame("main", "train.py", 3),)),
    ]
    content = exported(make_capture(FakeRank(0, blocks)), tmp_path)
    assert paths(content, 0) == {
        ("(no stack was recorded)", "master weight"): 100,
        ("main", "input"): 7,
    }
    assert paths(content, 1) == {
        ("b", "c", "master weight", "b.c.weight"): 60,
        ("a", "master weight", "a.weight"): 30,
        ("m", "master weight", "flat"): 10,
        ("(outside of modules)", "input"): 7,
    }


def test_hostile_names_are_text(tmp_path: Path) -> None:
    content = exported(hostile_run(tmp_path / "run"), tmp_path)
    texts = [text for frame in content["shared"]["frames"] for text in frame.values()]
    assert any("<script>" in str(text) for text in texts)  # JSON: nothing that it could do
    assert not any(char in str(text) for text in texts for char in "\n\x1b\u202e")


@pytest.mark.parametrize("missing", ["weights", "unit", "samples"])
def test_the_schema_would_object(missing: str, tmp_path: Path) -> None:
    content = exported(two_ranks(tmp_path / "run"), tmp_path)
    del content["profiles"][0][missing]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
