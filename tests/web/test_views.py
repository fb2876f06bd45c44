"""Each question's totals are the capture's, to the byte."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.pages import Pages

import memlens
from memlens.analysis.diff import diff
from memlens.capture import RankCapture
from memlens.palette import CATEGORY_SERIES

LONG: dict[str, Any] = {"run": "long", "rank": 0}


def present(categories: Any) -> dict[str, int]:
    return {category.value: size for category, size in categories.items() if size}


def origin_of(rank: RankCapture) -> int:
    return int(rank.timeline().time_ns[0])


# -- alive ---------------------------------------------------------------------------------------


def all_rows(pages: Pages, **given: Any) -> list[dict[str, Any]]:
    """Every page of the list."""
    rows: list[dict[str, Any]] = []
    while True:
        answer = pages.ask("alive", **LONG, **given, offset=len(rows), limit=200)
        rows += answer["rows"]
        if not answer["rows"] or len(rows) == answer["matching"]["count"]:
            assert len(rows) == answer["matching"]["count"]
            assert sum(row["size_bytes"] for row in rows) == answer["matching"]["size_bytes"]
            return rows


def test_what_is_alive_at_the_peak(pages: Pages, rank: RankCapture) -> None:
    answer = pages.ask("alive", **LONG)
    peak = rank.peak()
    assert answer["allocated_bytes"] == peak.allocated_bytes == answer["matching"]["size_bytes"]
    assert answer["time"] == peak.time_ns - origin_of(rank)
    assert len(answer["rows"]) == 100
    rows = all_rows(pages)
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row["category"]] += row["size_bytes"]
    assert dict(sums) == present(peak.categories)
    expected = rank.allocations_at(top=None)
    assert [row["size_bytes"] for row in rows] == [block.size_bytes for block in expected]
    assert len({row["row"] for row in rows}) == len(rows) == answer["count"]
    for row in rows[::50]:
        block = rank.allocation(row["row"])
        assert (row["name"], row["module"], row["step"]) == (block.name, block.module, block.step)
        assert row["born"] == block.alloc_ns - origin_of(rank)
        assert row["freed"] == (block.free_ns and block.free_ns - origin_of(rank))
        assert row["op"] == block.stack[-1].function


@settings(deadline=None, max_examples=25)
@given(when=st.integers(0, 1_000_000))
def test_what_is_alive_at_any_moment(pages: Pages, rank: RankCapture, when: int) -> None:
    every = rank.timeline()
    at = int(every.time_ns[-1] - every.time_ns[0]) * when // 1_000_000
    answer = pages.ask("alive", **LONG, time=at)
    assert answer["time"] == at
    categories = rank.categories_at(origin_of(rank) + at)
    assert answer["allocated_bytes"] == sum(categories.values())
    assert answer["count"] == len(rank.allocations_at(origin_of(rank) + at, top=None))
    modules = pages.ask("modules", **LONG, time=at)
    sums: Counter[str] = Counter()
    for module in modules["modules"]:
        sums.update(module["categories"])
    assert modules["left_out"] == {"count": 0, "size_bytes": 0}
    assert dict(sums) == present(categories)
    assert modules["allocated_bytes"] == answer["allocated_bytes"]


@pytest.mark.parametrize("descending", [0, 1])
@pytest.mark.parametrize(
    "sort", ["size", "category", "name", "module", "step", "phase", "born", "op"]
)
def test_every_order(pages: Pages, sort: str, descending: int) -> None:
    rows = all_rows(pages, sort=sort, descending=descending)
    key = {"size": "size_bytes", "born": "born"}.get(sort, sort)
    values = [row[key] for row in rows]
    if sort == "category":
        stacking = [series.key for series in CATEGORY_SERIES]
        values = [stacking.index(value) for value in values]
    elif sort == "phase":
        values = [["init", "forward", "backward", "optimizer", "other"].index(v) for v in values]
    assert values == sorted(values, reverse=bool(descending))
    if sort == "size":
        assert values != sorted(values, reverse=not descending)


def test_filter_and_search(pages: Pages, rank: RankCapture) -> None:
    rows = all_rows(pages)
    weights = all_rows(pages, category="weight")
    assert weights == [row for row in rows if row["category"] == "weight"] != []
    for text, columns in {
        "LAYERS.7.": ("module", "name"),
        "exp_avg of": ("name",),
        "optimizer_STATE": ("category",),
    }.items():
        found = all_rows(pages, search=text)
        hits = {
            row["row"] for row in rows if any(text.lower() in row[column] for column in columns)
        }
        assert {row["row"] for row in found} >= hits != set()
        assert 0 < len(found) < len(rows)
    assert all_rows(pages, search="act_67_3 /home/ada")  # in the middle of a stack
    nothing = pages.ask("alive", **LONG, search="no such text")
    assert nothing["rows"] == []
    assert nothing["matching"] == {"count": 0, "size_bytes": 0}
    assert nothing["count"] == len(rows)


def test_stacks_come_innermost_first(pages: Pages, rank: RankCapture) -> None:
    answer = pages.ask("alive", **LONG, limit=5)
    for row in answer["rows"]:
        frames = answer["stacks"][str(row["stack"])]
        expected = rank.allocation(row["row"]).stack[::-1][: len(frames)]
        assert frames == [f"{frame.function} {frame.file}:{frame.line}" for frame in expected]


@pytest.mark.parametrize("given", [{"sort": "colour"}, {"descending": "yes"}, {"category": "x"},
    {"limit": "-1"}, {"offset": "1.5"}, {"time": "NaN"}, {"search": "x" * 301}])  # fmt: skip
def test_what_alive_refuses(pages: Pages, given: dict[str, str]) -> None:
    assert set(pages.ask("alive", 400, **LONG, **given)) == {"error"}


# -- modules, lifetimes, steps ---------------------------------------------------------------------


def test_modules_at_the_peak(pages: Pages, rank: RankCapture) -> None:
    answer = pages.ask("modules", **LONG)
    usages = rank.modules_at(top=None)
    assert answer["allocated_bytes"] == rank.peak().allocated_bytes
    assert [
        (each["module"], each["class_name"], each["categories"]) for each in answer["modules"]
    ] == [(usage.module, usage.class_name, present(usage.categories)) for usage in usages]


@settings(deadline=None, max_examples=25)
@given(ends=st.tuples(st.integers(0, 1_000_000), st.integers(0, 1_000_000)))
def test_lifetimes_in_any_window(pages: Pages, rank: RankCapture, ends: tuple[int, int]) -> None:
    blocks = rank.to_arrow()
    born = blocks["alloc_ns"].to_numpy() - origin_of(rank)
    freed = blocks["free_ns"].fill_null(2**62).to_numpy() - origin_of(rank)
    size = blocks["size_bytes"].to_numpy()
    low, high = (int(born[-1]) * end // 1_000_000 for end in sorted(ends))
    answer = pages.ask("lifetimes", **LONG, from_=low, to=high, limit=50)
    inside = (born <= high) & (freed > low)
    assert answer["count"] == np.count_nonzero(inside)
    assert answer["size_bytes"] == size[inside].sum()
    assert sum(count for _, count, _ in answer["histogram"]) == answer["count"]
    assert sum(held for _, _, held in answer["histogram"]) == answer["size_bytes"]
    shown = answer["blocks"]
    assert len(shown) == min(50, answer["count"])
    assert answer["shown_bytes"] == sum(block[3] for block in shown)
    assert sorted(block[3] for block in shown) == sorted(size[inside])[-50:]
    assert [block[1] for block in shown] == sorted(block[1] for block in shown)
    for row, at, end, bytes_, category, module, name in shown[::10]:
        block = rank.allocation(row)
        assert (at, bytes_) == (block.alloc_ns - origin_of(rank), block.size_bytes)
        assert end == (block.free_ns and block.free_ns - origin_of(rank))
        assert CATEGORY_SERIES[category].key == block.category.value
        assert answer["modules"][module] == block.module
        assert answer["names"][name] == block.name


def test_lifetimes_of_one_category(pages: Pages, rank: RankCapture) -> None:
    blocks = rank.to_arrow()
    chosen = np.array(blocks["category"].to_pylist()) == "optimizer_state"
    answer = pages.ask("lifetimes", **LONG, category="optimizer_state")
    assert answer["count"] == np.count_nonzero(chosen)
    assert answer["size_bytes"] == blocks["size_bytes"].to_numpy()[chosen].sum()
    # State stays to the end.
    assert answer["histogram"] == [[None, answer["count"], answer["size_bytes"]]]


def test_steps_and_growth(pages: Pages, rank: RankCapture) -> None:
    answer, every = pages.ask("steps", **LONG), rank.steps()
    assert answer["count"] == len(every)
    assert [
        (
            each["step"],
            each["peak_bytes"],
            each["categories"],
            each["end_bytes"],
            each["end_categories"],
        )
        for each in answer["steps"]
    ] == [
        (
            step.step,
            step.peak_bytes,
            present(step.categories),
            step.end_bytes,
            present(step.end_categories),
        )
        for step in every
    ]
    [leak] = answer["growth"]
    [suspect] = rank.growth()
    assert (leak["module"], leak["bytes_per_step"]) == (suspect.module, suspect.bytes_per_step)
    assert leak["stack"][0].startswith(suspect.stack[-1].function)


# -- several ranks, several runs -------------------------------------------------------------------


def ranks_of(pages: Pages, run: str) -> dict[str, Any]:
    """What is answered once all ranks are read."""
    deadline = time.monotonic() + 60
    while True:
        answer: dict[str, Any] = pages.ask("ranks", run=run)
        if answer["ready"]:
            return answer
        assert answer["done"] <= answer["of"]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_ranks_beside_each_other(pages: Pages, runs: Path) -> None:
    answer = ranks_of(pages, "long")
    capture = memlens.load(runs / "long")
    assert answer["done"] == answer["of"] == len(capture.ranks) == 2
    for row, rank in zip(answer["ranks"], capture.ranks, strict=True):
        peak, steps = rank.peak(), rank.steps()
        assert (row["rank"], row["peak_bytes"]) == (rank.rank, peak.allocated_bytes)
        assert (row["peak_step"], row["peak_phase"]) == (peak.step, peak.phase.value)
        assert row["categories"] == present(peak.categories)
        assert max(size for _, size in row["steps"]) == max(step.peak_bytes for step in steps)
        assert [step for step, _ in row["steps"]] == answer["columns"]
        assert len(row["steps"]) == min(len(steps), 40)
    page = pages.ask("ranks", run="long", offset=1, limit=1)
    assert [row["rank"] for row in page["ranks"]] == [1]


def test_ranks_over_each_other(pages: Pages, runs: Path) -> None:
    answer = pages.ask("overlay", run="long")
    capture = memlens.load(runs / "long")
    lines = {rank.rank: rank.timeline() for rank in capture.ranks}
    origin_ns = min(int(line.time_ns[0]) for line in lines.values())
    assert answer["origin_ns"] == str(origin_ns)
    assert answer["span"][1] == max(int(line.time_ns[-1]) for line in lines.values()) - origin_ns
    for shown in answer["ranks"]:
        line = lines[shown["rank"]]
        assert max(shown["allocated"]) == line.allocated_bytes.max()
        assert shown["allocated"][-1] == line.allocated_bytes[-1]
        levels = dict(zip((line.time_ns - origin_ns).tolist(), line.allocated_bytes, strict=True))
        assert all(
            levels[when] == size
            for when, size in zip(shown["time"][1:], shown["allocated"][1:], strict=True)
        )
    one = pages.ask("overlay", run="long", ranks="1", points=50)
    assert [each["key"] for each in one["ranks"]] == ["1"]
    assert len(one["ranks"][0]["time"]) <= 54
    pages.ask("overlay", 404, run="long", ranks="0,7")
    pages.ask("overlay", 400, run="long", ranks=",".join(map(str, range(17))))


def test_two_runs(pages: Pages, runs: Path, rank: RankCapture) -> None:
    answer = pages.ask("difference", **LONG, with_run="inner/short", with_rank=0)
    expected = diff(rank, memlens.load(runs / "inner" / "short").rank(0))
    assert answer["a"]["peak_bytes"] == expected.peak.a_bytes
    assert answer["b"]["peak_bytes"] == expected.peak.b_bytes
    assert {each["key"]: (each["a"], each["b"]) for each in answer["categories"]} == {
        category.value: (change.a_bytes, change.b_bytes)
        for category, change in expected.categories.items()
        if change.a_bytes or change.b_bytes
    }
    for which in ("a", "b"):
        held = sum(sum(module[which].values()) for module in answer["modules"])
        assert held + answer["left_out"][f"{which}_bytes"] == answer[which]["peak_bytes"]
    names = [change.module for change in expected.modules]
    assert [module["module"] for module in answer["modules"]] == names[: len(answer["modules"])]
    pages.ask("difference", 400, **LONG)
    pages.ask("difference", 404, **LONG, with_run="long", with_rank=9)


def test_a_rank_beside_itself(pages: Pages) -> None:
    answer = pages.ask("difference", **LONG, with_run="long", with_rank=0)
    assert answer["a"]["peak"] == answer["b"]["peak"]
    assert all(each["a"] == each["b"] for each in (*answer["categories"], *answer["modules"]))


def test_an_unknown_question(pages: Pages) -> None:
    assert pages.ask("__class__", 404) == {"error": "there is no question '__class__'"}
    assert pages.ask("timeline", 400)["error"] == "the parameter run is missing"
    pages.ask("timeline", 404, run="long", rank="00")
    pages.ask("timeline", 404, run="../long", rank="0")
