"""Snapshots that others have recorded on real GPUs."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.training import assert_adds_up

import memlens
from memlens.capture import RankCapture
from memlens.events import Category, Certainty
from memlens.importing.convert import import_snapshots
from memlens.importing.pickles import read_snapshot
from memlens.options import Options

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "snapshots"
NAMES = ("adam_mlp_complete", "linear_forward_complete", "transformer_full_step")
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/snapshots is not here")
Import = Callable[[str], tuple[RankCapture, dict[str, Any]]]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Import:
    known: dict[str, tuple[RankCapture, dict[str, Any]]] = {}

    def get(name: str) -> tuple[RankCapture, dict[str, Any]]:
        if name not in known:
            path = SHARED / f"{name}.pickle"
            run = import_snapshots([path], Options(out=tmp_path_factory.mktemp(name) / "run"))
            (rank,) = memlens.load(run).ranks
            known[name] = rank, read_snapshot(path)
        return known[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_is_there(imported: Import, name: str) -> None:
    rank, snapshot = imported(name)
    assert_adds_up(rank)
    assert rank.coverage.problems == ()
    assert rank.coverage.lost_events == 0
    assert rank.coverage.witness_difference_bytes == 0
    blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
    at_end = {
        (block.address, block.size_bytes) for block in rank.allocations_at(2**62 - 1, top=None)
    }
    place: dict[int, int] = {}
    for segment in snapshot["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"] == "active_allocated":
                place[address] = block["size"]
            address += block["size"]
    assert at_end == set(place.items())
    slack = rank.slack_at(2**62 - 1)
    assert slack is not None
    assert slack.reserved_bytes == sum(each["total_size"] for each in snapshot["segments"])
    assert slack.cached_bytes == sum(
        block["size"] for block in blocks if block["state"] == "inactive"
    )


@pytest.mark.parametrize("name", NAMES)
def test_all_is_marked_as_inferred(imported: Import, name: str) -> None:
    rank, _ = imported(name)
    assert {block.certainty for block in rank.allocations_at(top=None)} == {Certainty.INFERRED}
    assert any("imported from" in note for note in rank.coverage.notes)


def said_by_stack(frames: list[dict[str, Any]]) -> set[Category] | None:
    """A second opinion, by other means than the importer's: what the stack allows a block to be."""
    python = [frame for frame in frames if frame["filename"].endswith(".py")]
    native = " ".join(frame["name"] for frame in frames)
    if any(frame["name"] == "step" for frame in python):
        return {Category.OPTIMIZER_STATE, Category.OPTIMIZER_TEMPORARY}
    if "autograd::Engine" in native or "Backward0" in native or "evaluate_function" in native:
        return {Category.GRADIENT, Category.TEMPORARY, Category.WORKSPACE}
    if any(frame["name"] == "forward" for frame in python):
        return {Category.ACTIVATION, Category.TEMPORARY, Category.WORKSPACE}
    return None


def test_stacks_confirm_nine_tenths_at_the_peak(imported: Import) -> None:
    rank, snapshot = imported("transformer_full_step")
    made: dict[tuple[int, int], list[list[dict[str, Any]]]] = {}
    for entry in snapshot["device_traces"][0]:
        if entry["action"] == "alloc":
            made.setdefault((entry["addr"], entry["time_us"]), []).append(entry["frames"])
    peak = rank.peak()
    confirmed = contradicted = 0
    gradients: Counter[int] = Counter()
    weights: list[tuple[int, int]] = []
    for number in range(len(rank.blocks.first)):
        block = rank.allocation(number)
        if not (block.alloc_ns <= peak.time_ns and (block.free_ns or 2**63) > peak.time_ns):
            continue
        requested = int(rank.blocks.requested_bytes[number])
        if block.category is Category.GRADIENT:
            gradients[requested] += 1
        if block.preexisting:
            if block.category is Category.WEIGHT:
                weights.append((requested, block.size_bytes))
            continue
        (frames,) = made[block.address, block.alloc_ns // 1000]
        allowed = said_by_stack(frames)
        if allowed is not None and block.category in allowed:
            confirmed += block.size_bytes
        elif allowed is not None:
            contradicted += block.size_bytes
    # What was there before has no stack. For each gradient, which stacks confirm, there is a weight.
    for requested, size in weights:
        if gradients[requested] > 0:
            gradients[requested] -= 1
            confirmed += size
    assert confirmed >= 0.9 * peak.allocated_bytes
    assert contradicted <= 0.01 * peak.allocated_bytes
    assert peak.categories[Category.UNKNOWN] <= 0.01 * peak.allocated_bytes


def test_phases_are_told_apart(imported: Import) -> None:
    rank, _ = imported("adam_mlp_complete")
    phases = [rank.allocation(number).phase.value for number in range(len(rank.blocks.first))]
    order = list(dict.fromkeys(phases))
    assert order == ["init", "forward", "backward", "optimizer"]
    # A network of one matrix of 38 MiB: AdamW keeps two, and foreach needs one more in its step.
    peak = rank.peak().categories
    weight = peak[Category.WEIGHT]
    assert peak[Category.OPTIMIZER_STATE] == pytest.approx(2 * weight, rel=0.001)
    assert peak[Category.GRADIENT] == weight
    assert peak[Category.OPTIMIZER_TEMPORARY] == pytest.approx(weight, rel=0.001)


def without_cpp(told: Any) -> Any:
    """As recorded with `stacks="python"`."""
    if isinstance(told, dict):
        return {
            key: [frame for frame in value if frame["filename"].endswith(".py")]
            if key == "frames"
            else without_cpp(value)
            for key, value in told.items()
        }
    return [without_cpp(each) for each in told] if isinstance(told, list) else told


@pytest.mark.parametrize("name", ["adam_mlp_complete", "transformer_full_step"])
def test_workspaces_are_found_without_the_frames_that_name_them(
    imported: Import, tmp_path: Path, name: str
) -> None:
    rank, snapshot = imported(name)
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(without_cpp(snapshot)))
    run = import_snapshots([path], Options(out=tmp_path / "run"))
    (guessed,) = memlens.load(run).ranks
    expected = rank.peak().categories[Category.WORKSPACE]
    assert guessed.peak().categories[Category.WORKSPACE] == expected > 0
