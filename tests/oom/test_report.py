"""Trainings on the CPU, beside which a bundle with chosen figures is written: what the report says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
import torch
from torch import nn

import memlens
from memlens.cli import cli
from memlens.disk.format import read_json, write_json
from memlens.disk.oom import read_bundles, write_bundle
from memlens.report.oom.section import out_of_memory_lines
from memlens.report.payload import payload
from memlens.report.view import ReportOptions
from memlens.units import format_bytes

MIB = 2**20
GIB = 2**30
WIDTH, ROWS = 512, 1024
ACTIVATION = ROWS * WIDTH * 4  # 2 MiB


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.act = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.up(x))
        return x + y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass
class Trained:
    run: Path
    folder: Path
    """Of its rank."""
    forward_ns: int
    """The end of the last forward."""
    held_bytes: int


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = tmp_path_factory.mktemp("oom") / "run"
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), foreach=True)
    forward_ns = 0
    with memlens.profile(out=run, device="cpu") as session:
        for _ in range(3):
            loss = net(torch.rand(ROWS, WIDTH)).square().mean()
            forward_ns = time_ns()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
    held = sum(session.capture.ranks[0].categories_at(forward_ns).values())
    (file,) = run.glob("*/rank.json")
    return Trained(run, file.parent, forward_ns, held)


@pytest.fixture
def trained(recorded: Trained) -> Iterator[Trained]:
    """Without any bundle, before and afterwards."""
    yield recorded
    for path in recorded.folder.glob("oom*.json"):
        path.unlink()


def fields(trained: Trained, **changes: Any) -> dict[str, Any]:
    return {
        "time_ns": trained.forward_ns,
        "reason": "own",
        "peer_rank": None,
        "device": "cuda:0",
        "device_index": 0,
        "step": 2,
        "requested_bytes": 20 * MIB,
        "stream": 0,
        "device_total_bytes": GIB,
        "device_free_bytes": 4 * MIB,
        "limit_bytes": None,
        "allocated_bytes": trained.held_bytes,
        "reserved_bytes": trained.held_bytes + 30 * MIB,
        "private_pool_bytes": 0,
        "pending_bytes": 0,
        "free_pieces": [[8 * MIB, "large", 0]] * 3 + [[6 * MIB, "large", 0]],
        "free_pieces_bytes": 30 * MIB,
        "largest_free_bytes": 8 * MIB,
        "allocator_settings": {},
        "stack": [["main", "/job/train.py", 3], ["forward", "/job/model.py", 5]],
    } | changes


def told(trained: Trained, **changes: Any) -> dict[str, Any]:
    write_bundle(trained.folder, **fields(trained, **changes))
    (event,) = out_of_memory(trained)
    return event


def out_of_memory(trained: Trained) -> list[dict[str, Any]]:
    content = json.loads(json.dumps(payload(memlens.load(trained.run), ReportOptions())))
    found: list[dict[str, Any]] = content["ranks"][0]["out_of_memory"]
    return found


def printed(trained: Trained, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The section, line by line."""
    capsys.readouterr()
    cli(["report", str(trained.run)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("Out of memory"))
    end = next(place for place, line in enumerate(lines) if line.startswith("Peak"))
    return [line.rstrip() for line in lines[start + 1 : end]]


def joined(trained: Trained, capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(" ".join(printed(trained, capsys)).split())


def test_it_is_said_before_all_else(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(trained.folder, **fields(trained))
    lines = printed(trained, capsys)
    assert lines[:2] == [
        "step 2, forward: 20.00 MiB more were asked for",
        "  by job/model.py:5 forward < job/train.py:3 main",
    ]
    text = " ".join(" ".join(lines).split())
    outside = GIB - 4 * MIB - trained.held_bytes - 30 * MIB
    assert (
        f"cuda:0 has 1.00 GiB: {format_bytes(trained.held_bytes)} allocated, 30.00 MiB reserved "
        f"beyond that, 4.00 MiB free, {format_bytes(outside)} outside of PyTorch" in text
    )
    assert (
        "It would have fitted but for fragmentation: 30.00 MiB lie free for it in the cache, in 4 "
        "pieces, the largest of 8.00 MiB." in text
    )
    assert "alive: activation " in text
    assert "16.00 MiB more had to be free. Each of these alone would have let it through" in text
    assert "- PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: frees 30.00 MiB" in text


def test_what_was_alive_is_that_of_the_moment(trained: Trained) -> None:
    event = told(trained)
    assert sum(event["categories"].values()) == trained.held_bytes
    # Moments of four weights; the gradients were given back before this forward.
    assert event["categories"]["optimizer_state"] >= 2 * 4 * WIDTH * WIDTH * 4
    assert event["categories"]["gradient"] == 0
    assert event["phase"] == "forward"
    layers = [usage for usage in event["modules"] if usage["module"].startswith("layers.")]
    made = sum(usage["categories"]["activation"] for usage in layers)
    assert made > 0
    assert made % ACTIVATION == 0
    sizes = [block["size_bytes"] for block in event["allocations"]]
    assert sizes == sorted(sizes, reverse=True)
    ends = [block["free_ns"] for block in event["allocations"]]
    assert all(end is None or end > event["time_ns"] for end in ends)


def test_remedies_are_computed_from_the_capture(trained: Trained) -> None:
    event = told(trained, requested_bytes=12 * MIB, free_pieces=[], free_pieces_bytes=0)
    rank = memlens.load(trained.run).ranks[0]
    blocks = rank.allocations_at(trained.forward_ns, top=None)
    held = event["categories"]
    remedies = {remedy["change"].split(" ")[0]: remedy for remedy in event["remedies"]}
    assert remedies["half"]["parts"] == {
        name: held[name] // 2 for name in ("activation", "input", "temporary") if held[name] // 2
    }
    moments = sum(block.size_bytes for block in blocks if block.name.startswith("exp_avg"))
    assert moments == 2 * 4 * WIDTH * WIDTH * 4
    assert remedies["an"]["frees_bytes"] == int(moments * (1 - 2131968 / 4194308))
    assert remedies["half"]["suffices"] == (remedies["half"]["frees_bytes"] >= 8 * MIB)
    # A layer keeps what sigmoid hands on; what it makes itself is the next one's input.
    kept = {
        number: sum(
            block.size_bytes
            for block in blocks
            if block.category.value == "activation" and block.module == f"layers.{number}.act"
        )
        for number in range(4)
    }
    assert set(kept.values()) == {ACTIVATION}
    assert remedies["activation"]["frees_bytes"] == 3 * ACTIVATION


def test_json_tells_all_of_the_bundle(trained: Trained) -> None:
    event = told(trained)
    for name, value in fields(trained).items():
        if name != "stack":
            assert event[name] == value, name
    assert event["stack"][0] == {"function": "main", "file": "/job/train.py", "line": 3}
    assert (event["obstacle"], event["missing_bytes"], event["short_bytes"]) == (
        "fragmentation",
        16 * MIB,
        0,
    )
    assert event["together"] is None


def test_two_together_are_named(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    # 30 MiB in pieces, and what half the batch frees.
    event = told(trained, requested_bytes=38 * MIB)
    assert event["together"] == [
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        "half the batch, with gradients accumulated over two",
    ]
    text = joined(trained, capsys)
    assert "No change alone suffices; these two together do" in text
    assert text.count("frees") == 2


def test_where_no_two_suffice(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(trained.folder, **fields(trained, requested_bytes=900 * MIB))
    text = joined(trained, capsys)
    assert "866.00 MiB short, even if all were in one piece" in text
    assert "No two of these changes suffice" in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"largest_free_bytes": 24 * MIB, "free_pieces": [[24 * MIB, "large", 7]]},
            "It would have fitted but for streams and pools: nothing lies free for it in the cache; "
            "24.00 MiB more are kept for other streams, or for requests of another size.",
        ),
        (
            {"free_pieces": [[8 * MIB, "large", 0], [6 * MIB, "large", 7]]},
            "8.00 MiB short, even if all were in one piece; 8.00 MiB lie free for it in the cache, in "
            "1 piece, the largest of 8.00 MiB; 6.00 MiB more are kept for other streams, or for "
            "requests of another size.",
        ),
        (
            {"free_pieces": [[30, "large", 0]] * 1000},
            "at least 29.30 KiB lie free for it in the cache, in 1,000 pieces, the largest of 30 B",
        ),
        (
            {"free_pieces": [], "free_pieces_bytes": 0, "pending_bytes": 16 * MIB},
            "which still use 16.00 MiB that were given back.",
        ),
        (
            {"limit_bytes": 500 * MIB, "device_free_bytes": 300 * MIB, "reserved_bytes": 490 * MIB},
            "It would have fitted but for the limit of this process, 500.00 MiB.",
        ),
        (
            {"limit_bytes": 500 * MIB, "device_free_bytes": 300 * MIB},
            "cuda:0 has 1.00 GiB, of which this process may reserve 500.00 MiB: ",
        ),
        ({"private_pool_bytes": 5 * MIB}, "5.00 MiB of what is reserved belong to private pools"),
        (
            {"free_pieces": [], "free_pieces_bytes": 0},
            "16.00 MiB short, even if all were in one piece; nothing lies free in the cache.",
        ),
        ({"device_free_bytes": 20 * MIB}, "By now the device has room for it"),
    ],
)
def test_the_verdict(
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    sentence: str,
) -> None:
    write_bundle(trained.folder, **fields(trained, **changes))
    assert sentence in joined(trained, capsys)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_lines_fit_and_are_plain(
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    evil = [["\x1b[31mred", "a" * 70 + "/" + "b" * 70 + "/train.py", 3]]
    write_bundle(trained.folder, **fields(trained, stack=evil, device="cuda:0\x1b[2J"))
    lines = printed(trained, capsys)
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 140])
def test_what_goes_on_in_a_next_line_is_indented(trained: Trained, width: int) -> None:
    write_bundle(trained.folder, **fields(trained))
    lines = out_of_memory_lines(memlens.load(trained.run).ranks, 1, width)
    assert max(map(len, lines)) <= width
    starts = ("step ", "cuda:0 ", "It would ", "alive: ", "largest ", "16.00 MiB more", "- ", "  ")
    assert all(line.startswith(starts) for line in lines)


def test_failures_at_the_same_place_are_explained_once(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        changes = {"time_ns": trained.forward_ns - number, "requested_bytes": (20 + number) * MIB}
        write_bundle(trained.folder, **fields(trained, **changes))
    text = joined(trained, capsys)
    assert text.count("more were asked for") == 1
    assert "24.00 MiB more were asked for" in text
    assert "4 more requests for 20.00 MiB to 23.00 MiB failed there too." in text
    times = [event["time_ns"] for event in out_of_memory(trained)]
    assert times == [trained.forward_ns - number for number in (4, 3, 2, 1, 0)]


def test_of_many_failures_the_later_ones_are_told_in_short(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in range(5):
        write_bundle(
            trained.folder, **fields(trained, time_ns=trained.forward_ns + step, step=step)
        )
    text = joined(trained, capsys)
    assert text.count("more were asked for") == 3
    for step in (3, 4):
        assert (
            f"step {step}, forward: 1 request for 20.00 MiB failed, 16.00 MiB were missing "
            "(fragmentation)"
        ) in text


@pytest.fixture
def ranks(trained: Trained, tmp_path: Path) -> list[Path]:
    """Folders of twenty ranks, that all recorded the same."""
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    (first,) = run.glob("rank-*")
    folders = [first]
    for number in range(1, 20):
        folder = run / f"rank-{number:05}"
        shutil.copytree(first, folder)
        header, _ = read_json(folder / "rank.json")
        write_json(folder / "rank.json", header | {"rank": number})
        folders.append(folder)
    return folders


def lines_of(ranks: list[Path]) -> list[str]:
    return out_of_memory_lines(memlens.load(ranks[0].parent).ranks, len(ranks), 1000)


def test_every_rank_that_failed_is_told_of(trained: Trained, ranks: list[Path]) -> None:
    # Not in the order of the ranks; one of them ran out somewhere else.
    for number in (7, 2, 3):
        changes = {"time_ns": trained.forward_ns - number, "requested_bytes": (10 + number) * MIB}
        write_bundle(ranks[number], **fields(trained, **changes))
    write_bundle(ranks[5], **fields(trained, step=1, time_ns=trained.forward_ns))
    lines = lines_of(ranks)
    (full, other) = (line for line in lines if "more were asked for" in line)
    assert full == "rank 7, step 2, forward: 17.00 MiB more were asked for"
    assert "2 more requests of ranks 2, 3 for 12.00 MiB to 13.00 MiB failed there too." in lines
    assert other == "rank 5, step 1, forward: 20.00 MiB more were asked for"


def test_thousands_of_ranks_do_not_fill_the_screen(trained: Trained, ranks: list[Path]) -> None:
    for number, folder in enumerate(ranks):
        write_bundle(folder, **fields(trained, step=2))
        place = {"step": 100 + number, "time_ns": trained.forward_ns + 1 + number}
        write_bundle(folder, **fields(trained, **place))
    lines = lines_of(ranks)
    assert (
        "19 more requests of ranks 1, 2, 3, 4, 5, 6, 7, 8 and 11 more for 20.00 MiB failed there too."
        in lines
    )
    in_short = [line for line in lines if "1 request of rank" in line]
    assert in_short[0] == (
        "step 102, forward: 1 request of rank 2 for 20.00 MiB failed, 16.00 MiB were missing "
        "(fragmentation)"
    )
    assert len(in_short) == 12
    assert lines[-1] == "6 requests failed later; --json tells of all."


def peer(trained: Trained, **changes: Any) -> dict[str, Any]:
    return fields(trained, reason="peer", peer_rank=3, requested_bytes=None, stack=[], **changes)


def test_another_ranks_failure(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(trained.folder, **peer(trained))
    lines = printed(trained, capsys)
    assert lines[0] == "rank 3 ran out of memory; this rank was then in step 2, forward"
    assert not any("had to be free" in line for line in lines)


def test_others_are_summed_up_where_the_own_is_known(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(trained.folder, **fields(trained))
    write_bundle(trained.folder, **peer(trained, allocated_bytes=3 * MIB))
    write_bundle(trained.folder, **peer(trained, allocated_bytes=5 * MIB))
    text = joined(trained, capsys)
    assert "ran out of memory; this rank" not in text
    assert (
        "What others held when a rank ran out (2 bundles): 3.00 MiB to 5.00 MiB allocated." in text
    )


@pytest.mark.parametrize("time", [0, 2**61])
def test_a_moment_outside_of_the_capture(
    trained: Trained, capsys: pytest.CaptureFixture[str], time: int
) -> None:
    write_bundle(trained.folder, **fields(trained, time_ns=time))
    assert "more were asked for" in joined(trained, capsys)


# -- damage ----------------------------------------------------------------------------------------

WRONG: dict[str, list[Any]] = {
    "time_ns": [None, -1, 1.5, "1", True, 2**62],
    "reason": [None, "mine", "peer", []],
    "peer_rank": [-1, "3"],
    "device": [None, 3],
    "device_index": [None, -1],
    "step": [None, -1, 2.5],
    "requested_bytes": [None, -1, "1", 2**62],
    "stream": ["0", 1.5, 2**64],
    "device_total_bytes": [None, -1],
    "device_free_bytes": [None, -1],
    "limit_bytes": [-1, "none"],
    "allocated_bytes": [None, -1],
    "reserved_bytes": [None, -1],
    "private_pool_bytes": [None, -1],
    "pending_bytes": [None, -1],
    "free_pieces": [
        None,
        [1],
        [[1, "large"]],
        [[1, 2, 3]],
        [["1", "large", 0]],
        [[1, "large", "0"]],
    ],
    "free_pieces_bytes": [None, -1],
    "largest_free_bytes": [None, -1],
    "allocator_settings": [None, []],
    "stack": [None, [["f", "g"]], [["f", "g", "1"]], [[None, "g", 1]]],
    "format": [None, "memlens-capture"],
    "version": [None, 2, "1"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_every_field_is_checked(trained: Trained, name: str, value: Any) -> None:
    path = write_bundle(trained.folder, **fields(trained))
    assert path is not None
    content, _ = read_json(path)
    write_json(path, content | {name: value})
    found, (problem,) = read_bundles(trained.folder)
    assert found == ()
    assert problem.startswith("oom.json can not be read: ValueError: ")


def damage(trained: Trained, how: str) -> None:
    path = write_bundle(trained.folder, **fields(trained))
    assert path is not None
    whole = path.read_bytes()
    content, _ = read_json(path)
    if how == "changed":
        path.write_bytes(whole.replace(b'"cuda:0"', b'"cuda:1"'))
    elif how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "binary":
        path.write_bytes(bytes(range(256)))
    elif how == "nested":
        path.write_bytes(b"[" * 100_000)
    elif how == "huge":
        path.write_bytes(b" " * (17 * MIB))
    elif how == "long number":
        path.write_bytes(b'{"time_ns": ' + b"9" * 10_000 + b"}")
    else:
        assert how == "later version"
        write_json(path, content | {"version": 2})


@pytest.mark.parametrize(
    "how",
    ["changed", "truncated", "empty", "binary", "nested", "huge", "long number", "later version"],
)
def test_the_report_works_without_what_can_not_be_read(
    trained: Trained, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    damage(trained, how)
    write_bundle(trained.folder, **fields(trained, step=1))
    text = joined(trained, capsys)
    assert "step 1, forward: 20.00 MiB more were asked for" in text
    cli(["report", str(trained.run)], standalone_mode=False)
    out = " ".join(capsys.readouterr().out.split())
    assert "oom.json can not be read" in out
    assert "By category" in out
    # The other one was not written over.
    assert sorted(path.name for path in trained.folder.glob("oom*")) == ["oom-2.json", "oom.json"]


def test_a_folder_in_the_place_of_a_bundle(trained: Trained) -> None:
    (trained.folder / "oom.json").mkdir()
    found, (problem,) = read_bundles(trained.folder)
    (trained.folder / "oom.json").rmdir()
    assert found == ()
    assert "it is a folder" in problem


# -- writing ---------------------------------------------------------------------------------------


def test_what_is_written_is_read(trained: Trained) -> None:
    write_bundle(trained.folder, **fields(trained, free_pieces=[[5, "small", 2**63]]))
    ((event,), problems) = read_bundles(trained.folder)
    assert problems == ()
    assert event.free_pieces == ((5, "small", 2**63),)
    assert event.stack[-1].file == "/job/model.py"
