"""What differs between two captures, from built blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fake_capture import Block, FakeRank
from tests.support.small_job import small_rank

from memlens.analysis.change import Change, total
from memlens.analysis.diff import Diff, StepChange
from memlens.analysis.diff import diff as diff_captures
from memlens.analysis.frames import user_frames
from memlens.answers import Frame
from memlens.errors import UsageError
from memlens.events import Category

if TYPE_CHECKING:
    from memlens.analysis.sites import SiteChange
    from memlens.capture import RankCapture

LINEAR = Frame("Linear.forward", "/v/lib/python3.11/site-packages/torch/nn/modules/linear.py", 134)


def diff(a: FakeRank, b: FakeRank, step: int | None = None) -> Diff:
    return diff_captures(cast("RankCapture", a), cast("RankCapture", b), step=step)


def made_at(*places: tuple[str, int], function: str = "main", size: int = 8) -> FakeRank:
    """A capture with one block from each of these files and lines."""
    blocks = [
        Block(size, Category.WEIGHT, at, stack=(Frame(function, file, line), LINEAR))
        for at, (file, line) in enumerate(places, start=1)
    ]
    return FakeRank(0, blocks)


def pairs(sites: Sequence[SiteChange]) -> set[tuple[str | None, str | None]]:
    """`file:line` in A and in B of every site."""
    return {
        (
            f"{site.a_frame.file}:{site.a_frame.line}" if site.a_frame else None,
            f"{site.b_frame.file}:{site.b_frame.line}" if site.b_frame else None,
        )
        for site in sites
    }


def test_bytes_and_per_cent() -> None:
    assert Change(80, 100).difference_bytes == 20
    assert Change(80, 100).difference_percent == 25.0
    assert Change(80, 0).difference_percent == -100.0
    assert Change(0, 5).difference_percent is None
    assert Change(0, 0).difference_percent == 0.0
    assert total([Change(1, 2), Change(10, 20)]) == Change(11, 22)
    assert total([]) == Change(0, 0)


def test_what_grew_is_found_in_every_table() -> None:
    extra = Block(30, Category.WEIGHT, 5, None, "fc2.weight", "fc2")
    b = small_rank(class_names={"fc": "Linear", "fc2": "Linear"})
    b = small_rank(blocks=[*b.blocks, extra], class_names=b.class_names)
    found = diff(small_rank(), b)

    assert found.peak == found.size == Change(157, 187)
    assert found.categories[Category.WEIGHT] == Change(100, 130)
    assert found.categories[Category.ACTIVATION] == Change(50, 50)
    assert set(found.categories) == set(Category)
    assert found.steps == (StepChange(0, 150, 180), StepChange(1, 157, 187))
    first, second = found.modules
    assert (first.module, first.a_class_name, first.b_class_name) == ("fc2", "", "Linear")
    assert first.categories == {Category.WEIGHT: Change(0, 30)}
    assert (second.module, second.size, second.differs) == ("fc", Change(157, 157), False)
    site = found.sites[0]
    assert (site.category, site.name, site.size) == (
        Category.WEIGHT,
        "fc2.weight",
        Change(0, 30),
    )
    assert (site.a_blocks, site.b_blocks) == (0, 1)
    assert not any(each.differs for each in found.sites[1:])
    assert not found.identical


def test_a_capture_does_not_differ_from_itself() -> None:
    found = diff(small_rank(), small_rank())
    assert found.identical
    assert all(each.difference_bytes == 0 for each in found.categories.values())


@pytest.mark.parametrize(
    "blocks",
    [
        # The same bytes for another purpose, in another module, from another line, in other steps.
        [Block(8, Category.GRADIENT, 1, None, "w", "fc")],
        [Block(8, Category.WEIGHT, 1, None, "w", "other")],
        [Block(8, Category.WEIGHT, 1, None, "v", "fc")],
        [Block(4, Category.WEIGHT, 1, None, "w", "fc"), Block(4, Category.WEIGHT, 1, None, "w", "fc")],
        [Block(4, Category.WEIGHT, 1, 25, "w", "fc"), Block(4, Category.WEIGHT, 1, None, "w", "fc")],
    ],
    ids=["category", "module", "site", "blocks", "steps"],
)  # fmt: skip
def test_the_same_peak_is_not_yet_the_same(blocks: list[Block]) -> None:
    a = FakeRank(0, [Block(8, Category.WEIGHT, 1, None, "w", "fc")], [20, 40])
    found = diff(a, FakeRank(0, blocks, [20, 40]))
    assert found.peak.difference_bytes == 0
    assert not found.identical


def test_a_step_can_be_compared() -> None:
    late = Block(1000, Category.UNKNOWN, 50, 60)
    b = small_rank(blocks=[*small_rank().blocks, late])
    found = diff(small_rank(), b, step=0)
    assert found.size == Change(150, 150)
    assert found.peak == Change(157, 1157)
    assert total(found.categories.values()) == total(each.size for each in found.sites)
    assert not found.identical
    assert diff(small_rank(), b, step=1).size == Change(157, 1157)


def test_a_step_that_only_one_run_has() -> None:
    short = small_rank(step_ends=[40])
    assert diff(short, small_rank()).steps == (
        StepChange(0, 150, 150),
        StepChange(1, None, 157),
    )
    assert StepChange(1, None, 157).size is None
    with pytest.raises(UsageError, match="step 1 was not recorded in the first run; it holds"):
        diff(short, small_rank(), step=1)
    with pytest.raises(UsageError, match="the second run; it holds no complete step"):
        diff(small_rank(), small_rank(step_ends=[]), step=1)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # The same script in two folders.
        (["/x/exp1/train.py"], ["/y/exp2/train.py"], {("/x/exp1/train.py", "/y/exp2/train.py")}),
        (["C:\\job\\train.py"], ["/job/train.py"], {("C:\\job\\train.py", "/job/train.py")}),
        # Of several of one name, the longest common end decides.
        (
            ["/a/net/layer.py", "/a/loss/layer.py"],
            ["/b/loss/layer.py", "/b/net/layer.py"],
            {("/a/net/layer.py", "/b/net/layer.py"), ("/a/loss/layer.py", "/b/loss/layer.py")},
        ),
        # One file is never two: the other one is new.
        (
            ["/a/net/layer.py"],
            ["/b/loss/layer.py", "/b/net/layer.py"],
            {("/a/net/layer.py", "/b/net/layer.py"), (None, "/b/loss/layer.py")},
        ),
        # The very same path goes before a longer common end.
        (
            ["layer.py", "/q/r/layer.py"],
            ["layer.py", "/z/r/layer.py"],
            {("layer.py", "layer.py"), ("/q/r/layer.py", "/z/r/layer.py")},
        ),
        (["/a/train.py"], ["/a/main.py"], {("/a/train.py", None), (None, "/a/main.py")}),
    ],
)  # fmt: skip
def test_files_are_matched_from_their_end(
    a: list[str], b: list[str], expected: set[tuple[str | None, str | None]]
) -> None:
    found = diff(made_at(*((file, 7) for file in a)), made_at(*((file, 7) for file in b)))
    assert pairs(found.sites) == {
        (one and f"{one}:7", other and f"{other}:7") for one, other in expected
    }


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # All have moved.
        ([3, 5], [4, 6], {("t.py:3", "t.py:4"), ("t.py:5", "t.py:6")}),
        # What is the same line stays so, the rest has moved.
        ([3, 5], [3, 9], {("t.py:3", "t.py:3"), ("t.py:5", "t.py:9")}),
        # All have moved by one, and another one is new.
        ([3, 5], [4, 6, 8], {("t.py:3", "t.py:4"), ("t.py:5", "t.py:6"), (None, "t.py:8")}),
        # All have moved by two, so that some stand where others stood.
        ([3, 5, 7], [5, 7, 9], {("t.py:3", "t.py:5"), ("t.py:5", "t.py:7"), ("t.py:7", "t.py:9")}),
        # One is gone, and what follows it stays where it was.
        ([3, 5, 7], [3, 7], {("t.py:3", "t.py:3"), ("t.py:5", None), ("t.py:7", "t.py:7")}),
        # Two are left of A and one of B, and nobody knows which of the two it is.
        ([3, 5, 8, 10], [3, 5, 20], {
            ("t.py:3", "t.py:3"), ("t.py:5", "t.py:5"),
            ("t.py:8", None), ("t.py:10", None), (None, "t.py:20"),
        }),
    ],
)  # fmt: skip
def test_lines_that_moved(
    a: list[int], b: list[int], expected: set[tuple[str | None, str | None]]
) -> None:
    found = diff(made_at(*(("t.py", n) for n in a)), made_at(*(("t.py", n) for n in b)))
    assert pairs(found.sites) == expected


def test_another_function_is_another_site() -> None:
    found = diff(made_at(("t.py", 3)), made_at(("t.py", 4), function="other"))
    assert pairs(found.sites) == {("t.py:3", None), (None, "t.py:4")}


def test_blocks_of_one_line_are_one_site() -> None:
    found = diff(made_at(("t.py", 3), ("t.py", 3)), made_at(("t.py", 3), size=20))
    (site,) = found.sites
    assert (site.size, site.a_blocks, site.b_blocks) == (Change(16, 20), 2, 1)


def test_without_stacks_in_one_run_both_go_by_name() -> None:
    stack = (Frame("main", "t.py", 3),)
    a = FakeRank(0, [Block(8, Category.WEIGHT, 1, None, "w", "fc", stack=stack)])
    b = FakeRank(0, [Block(9, Category.WEIGHT, 1, None, "w", "fc")])
    (site,) = diff(a, b).sites
    assert (site.name, site.module, site.a_frame, site.b_frame) == ("w", "", None, None)
    assert site.size == Change(8, 9)
    unnamed = FakeRank(0, [Block(8, Category.TEMPORARY, 1, None, "", "fc")])
    (site,) = diff(unnamed, unnamed).sites
    assert (site.name, site.module) == ("", "fc")
    # An empty capture has no stacks either, but nothing to tell apart.
    (site,) = diff(a, FakeRank(0, [])).sites
    assert site.a_frame == stack[0]


@pytest.mark.parametrize(
    "ours",
    [
        "/home/ada/memlens/profiler/memlens/observers/backward.py",
        "/home/ada/memlens/integrations/memlens_integrations/optimizers/galore.py",
        "/v/lib/python3.11/site-packages/memlens/observers/backward.py",
    ],
)
def test_a_line_of_memlens_is_nobodys_site(ours: str) -> None:
    main = Frame("main", "/home/ada/llm/train.py", 9)
    assert user_frames((main, Frame("run_backward", ours, 50), LINEAR), 1) == (main,)


FRAMES = st.sampled_from(
    [
        Frame("main", "/a/x/train.py", 1),
        Frame("main", "/a/x/train.py", 2),
        Frame("main", "/b/x/train.py", 1),
        Frame("main", "train.py", 3),
        Frame("step", "/b/y/train.py", 1),
        LINEAR,
    ]
)
BLOCKS = st.builds(
    lambda size, category, alloc_ns, lives, name, module, stack: Block(
        size, category, alloc_ns, lives and alloc_ns + lives, name, module, stack=tuple(stack)
    ),
    st.integers(0, 1 << 45),
    st.sampled_from(Category),
    st.integers(0, 50),
    st.one_of(st.none(), st.integers(1, 50)),
    st.sampled_from(["", "a.0.w", "a.1.w"]),
    st.sampled_from(["", "a.0.fc", "a.1.fc"]),
    st.lists(FRAMES, max_size=2),
)
RANKS = st.lists(BLOCKS, max_size=10).map(lambda blocks: FakeRank(0, blocks, [30, 60]))


@settings(deadline=None, max_examples=200)
@given(RANKS, RANKS)
def test_all_parts_sum_to_the_peaks(a: FakeRank, b: FakeRank) -> None:
    found = diff(a, b)
    assert found.size == Change(a.peak().allocated_bytes, b.peak().allocated_bytes)
    assert total(found.categories.values()) == found.size
    assert total(each.size for each in found.modules) == found.size
    assert total(each.size for each in found.sites) == found.size
    for module in found.modules:
        assert total(module.categories.values()) == module.size
    assert sum(site.a_blocks for site in found.sites) == len(a.allocations_at(top=None))
    assert sum(site.b_blocks for site in found.sites) == len(b.allocations_at(top=None))
    for category, change in found.categories.items():
        of_sites = total(site.size for site in found.sites if site.category is category)
        assert of_sites == change


@settings(deadline=None, max_examples=100)
@given(RANKS)
def test_any_capture_equals_itself(rank: FakeRank) -> None:
    found = diff(rank, rank)
    assert found.identical
    assert all(site.a_frame == site.b_frame for site in found.sites)
