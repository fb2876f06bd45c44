"""DDP, ZeroRedundancyOptimizer, FSDP1 and FSDP2 on one, two and four ranks: what each rank holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest
from tests.fsdp.conftest import Run
from tests.fsdp.job import MISSING, WAYS
from tests.fsdp.layouts import expected, groups_of, state_bytes, zero_redundancy_buckets
from tests.support.training import assert_sound

from memlens import Category
from memlens.answers import Allocation
from memlens.rank import RankCapture
from memlens.sharding.layout import Held

pytestmark = pytest.mark.slow

Parts = tuple[tuple[str, int, int], ...]

_ALL = [way for way in WAYS if way not in MISSING]
_FSDP2 = [way for way in _ALL if way.startswith("fsdp2")]


def at_the_end(rank: RankCapture) -> list[Allocation]:
    """What is alive when the last step is done: its gradients are still there."""
    last = int(rank.timeline().time_ns[-1])
    # A mesh of the job's first round, without memlens, may still be there.
    return [each for each in rank.allocations_at(last, top=None) if not each.preexisting]


def of(category: Category, blocks: Iterable[Allocation]) -> list[Allocation]:
    return [each for each in blocks if each.category is category]


def contents(blocks: Iterable[Allocation]) -> Counter[tuple[int, Parts]]:
    """Size of each block, and what lies where in it."""
    found: Counter[tuple[int, Parts]] = Counter()
    for block in blocks:
        parts = [(part.name, part.offset_bytes, part.size_bytes) for part in block.parts]
        found[block.size_bytes, tuple(parts or [(block.name, 0, block.size_bytes)])] += 1
    return found


def as_contents(storages: Iterable[Held], elements: dict[str, int]) -> Counter[tuple[int, Parts]]:
    """The same of a layout."""
    found: Counter[tuple[int, Parts]] = Counter()
    for storage in storages:
        size, parts = storage.element_bytes, []
        for each in storage.pieces:
            first, end = each.parameter_start, each.parameter_start + each.count
            is_whole = each.count == elements[each.parameter]
            name = each.parameter if is_whole else f"{each.parameter}[{first}:{end}]"
            parts.append((name, each.start * size, each.count * size))
        if not parts:
            parts = [(f"padding of {storage.name}", 0, storage.size_bytes)]
        found[storage.size_bytes, tuple(parts)] += 1
    return found


def sizes(storages: Iterable[Allocation] | Iterable[Held]) -> Counter[int]:
    return Counter(each.size_bytes for each in storages)


def unordered(
    found: Counter[tuple[int, Parts]],
) -> Counter[tuple[int, tuple[tuple[str, int], ...]]]:
    """Without the places within the blocks."""
    return Counter(
        (size, tuple(sorted((name, part) for name, _, part in parts)))
        for size, parts in found.elements()
    )


@pytest.mark.parametrize("way", WAYS)
def test_training_is_the_same(run: Run, way: str) -> None:
    for seen in run.seen:
        assert seen[way]["losses"] == seen[way]["expected"]
        assert len(set(seen[way]["losses"])) >= 3
        assert seen[way]["restored"]


@pytest.mark.parametrize("way", _ALL)
def test_captures_are_sound(run: Run, way: str) -> None:
    for number in range(run.world_size):
        rank = run.rank(way, number)
        assert_sound(rank)
        assert len(rank.steps()) == 3


@pytest.mark.parametrize("way", _ALL)
def test_bytes(run: Run, way: str) -> None:
    """Weights, gradients and state are what arithmetic says, and each part has its name."""
    for number in range(run.world_size):
        layout = expected(way, number, run.world_size)
        blocks = at_the_end(run.rank(way, number))
        elements = layout_elements(way)
        weights: Iterable[Held] = layout.weights
        if way == "zro-views":
            weights = zero_redundancy_buckets(way, run.world_size)
        gradients = layout.gradients_after_backward
        if way == "ddp-views":  # the buckets are the gradients
            gradients = layout.communication
        found = of(Category.WEIGHT, blocks), of(Category.GRADIENT, blocks)
        for mine, theirs in zip(found, (weights, gradients), strict=True):
            if way == "fsdp2-columns":  # columns of a matrix are no range of its elements
                assert sizes(mine) == sizes(theirs)
            elif way == "ddp-views":  # in the order in which they came
                assert unordered(contents(mine)) == unordered(as_contents(theirs, elements))
            else:
                assert contents(mine) == as_contents(theirs, elements)
        state = of(Category.OPTIMIZER_STATE, blocks)
        assert sum(each.size_bytes for each in state) == state_bytes(way, layout)
        assert all(" of " in each.name for each in state)


def layout_elements(way: str) -> dict[str, int]:
    from tests.fsdp.layouts import parameters

    return {each.name: each.elements for each in parameters(way)}


@pytest.mark.parametrize("way", _ALL)
def test_communication_has_names(run: Run, way: str) -> None:
    for number in range(run.world_size):
        rows = run.rank(way, number).to_arrow().to_pylist()
        names = {each["name"] for each in rows if each["category"] == "communication"}
        assert "" not in names
        # Alone, FSDP1 does not shard.
        assert names or way == "ddp-views" or (way.startswith("fsdp1") and run.world_size == 1)
        assert not any("_fsdp_wrapped_module" in each["name"] for each in rows)
        modules = {each["module"] for each in rows}
        assert {"layers.0.up", "layers.1.down", "last"} <= modules
        assert not any("_fsdp_wrapped_module" in module for module in modules)


@pytest.mark.parametrize("way", ["ddp", "ddp-bf16", "zro", "zro-views", "zro-bf16"])
def test_ddp_buckets(run: Run, way: str) -> None:
    for number in range(run.world_size):
        layout = expected(way, number, run.world_size)
        blocks = of(Category.COMMUNICATION, at_the_end(run.rank(way, number)))
        assert sorted(each.size_bytes for each in blocks) == sorted(
            each.size_bytes for each in layout.communication
        )
        assert {each.name for each in blocks} == {"DDP bucket of gradients"}


@pytest.mark.parametrize("way", [each for each in _FSDP2 if each != "fsdp2-columns"])
def test_fsdp2_buffers(run: Run, way: str) -> None:
    """Gathered parameters and the buffers of collectives have the sizes of the padded parameters."""
    places = ["layers.0", "layers.1", ""]
    if way == "fsdp2-groups":
        places = [*places[:2], *places]
    for number in range(run.world_size):
        found = defaultdict(set)
        for each in run.rank(way, number).to_arrow().to_pylist():
            if each["category"] == "communication" and each["certainty"] == "declared":
                found[each["name"]].add(each["size_bytes"])
        wanted = defaultdict(set)
        for place, group in zip(places, groups_of(way, run.world_size), strict=True):
            end = f" of {place}" if place else ""
            if group.all_gather.elements:
                wanted[f"all-gather buffer{end}"].add(group.all_gather.size_bytes)
            wanted[f"reduce-scatter buffer{end}"].add(group.reduce_scatter.size_bytes)
            for each in group.gathered:
                wanted[f"all-gathered {each.name}"].add(each.size_bytes)
                if way == "fsdp2-fewer" and run.world_size == 4:
                    wanted[f"resharded {each.name}"].add(each.size_bytes // 2)
        assert found == wanted


@pytest.mark.parametrize("way", _FSDP2)
def test_fsdp2_gradients_before_they_are_reduced(run: Run, way: str) -> None:
    size = 2 if way == "fsdp2-bf16" else 4
    wanted = {f"unsharded {name}": {count * size} for name, count in layout_elements(way).items()}
    for number in range(run.world_size):
        found = defaultdict(set)
        for each in run.rank(way, number).to_arrow().to_pylist():
            if each["category"] == "gradient" and each["name"].startswith("unsharded "):
                found[each["name"]].add(each["size_bytes"])
        assert found == wanted


@pytest.mark.parametrize("way", MISSING)
def test_a_torch_that_lacks_a_private_name(run: Run, way: str) -> None:
    """It is said once, and the rest is known as before; what depended on it is inferred."""
    for number in range(run.world_size):
        rank = run.rank(way, number)
        [problem] = rank.coverage.problems
        assert MISSING[way] in problem
        assert problem.endswith("inferred")
        assert_sound(rank, complete=False)
        layout = expected(way.rpartition("-no-")[0], number, run.world_size)
        blocks = at_the_end(rank)
        weights = layout.weights
        if way == "fsdp2-no-group":  # where a rank has no row, nothing tells what the padding is
            weights = tuple(each for each in weights if each.pieces)
        assert sizes(of(Category.WEIGHT, blocks)) == sizes(weights)
        gradients, wanted = (
            sizes(of(Category.GRADIENT, blocks)),
            sizes(layout.gradients_after_backward),
        )
        if way == "fsdp2-no-group":
            # Buffers of reduce-scatters hold gradients, and are taken for such where nothing tells whose
            # they are. A thread of gloo lets go of the last ones some time after the step, if it does.
            groups = groups_of("fsdp2", run.world_size)
            wanted += (gradients - wanted) & sizes(each.reduce_scatter for each in groups)
        assert gradients == wanted
        if way == "fsdp2-no-outputs":
            rows = rank.to_arrow().to_pylist()
            gathered = [each for each in rows if each["name"] == "all-gathered parameters"]
            assert {each["category"] for each in gathered} == {"communication"}
            assert {each["certainty"] for each in gathered} == {"inferred"}
