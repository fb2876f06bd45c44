"""Captures whose checksums are right and whose content is not: made by somebody, not by damage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.large import make_capture

import memlens
from memlens.cli import _exit_code
from memlens.disk.format import FORMAT_VERSION, SCHEMAS, codes, read_json, write_json
from memlens.disk.writer import RankWriter, make_batch
from memlens.errors import CaptureError
from memlens.events import Action, Category, Certainty, MarkKind, NameKind

HEADER: dict[str, Any] = {
    "rank": 0, "world_size": 1, "source": "cpu", "devices": ["cpu"], "started_ns": 1, "trains": True,
    "torch": "2.13.0", "problems": [], "notes": [],
}  # fmt: skip
RUN = {
    "format": "memlens-capture",
    "version": FORMAT_VERSION,
    "memlens": "0.1.0",
    "command": [],
    "created_ns": 1,
}

ALLOC, FREE = codes(Action)["alloc"], codes(Action)["free"]
MODULE, STACK, TENSOR = (codes(NameKind)[kind] for kind in ("module", "stack", "tensor"))
ON, ENTER, EXIT, STEP, TOTAL = (
    codes(MarkKind)[kind]
    for kind in ("recording_on", "module_enter", "module_exit", "step", "allocator_total")
)
WEIGHT, DECLARED = codes(Category)["weight"], codes(Certainty)["declared"]

Rows = list[tuple[Any, ...]]
EVENTS: Rows = [(10, ALLOC, 0, 64, 8, 8, 0, -1), (20, FREE, 0, 64, 8, 8, 0, -1)]
MARKS: Rows = [(1, ON, -1, 0), (5, ENTER, 0, 0), (15, EXIT, 0, 0)]
TAGS: Rows = [(12, 0, 64, 8, WEIGHT, DECLARED, 0, 0, 0)]
NAMES: Rows = [(MODULE, 0, -1, "layer", "Linear"), (TENSOR, 0, -1, "layer.weight", "")]


def write(
    folder: Path,
    tables: Mapping[str, Rows] | None = None,
    *,
    header: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """A capture of these rows."""
    folder.mkdir()
    write_json(folder / "run.json", RUN | dict(run or {}))
    writer = RankWriter(folder / "rank-00000", HEADER | dict(header or {}))
    rows = {"names": NAMES, "marks": MARKS, "tags": TAGS, "events": EVENTS} | dict(tables or {})
    for table in SCHEMAS:
        if rows[table]:
            writer.write(table, make_batch(table, list(zip(*rows[table], strict=True))))
    writer.close()
    return folder


def ask_everything(folder: Path) -> memlens.Capture:
    capture = memlens.load(folder)
    for rank in capture.ranks:
        assert sum(rank.peak().categories.values()) == rank.peak().allocated_bytes
        timeline = rank.timeline()
        total = np.sum([timeline.categories[category] for category in Category], axis=0)
        np.testing.assert_array_equal(total, timeline.allocated_bytes)
        for step in rank.steps():
            assert sum(step.categories.values()) == step.peak_bytes
        assert rank.timeline(3) is not None
        assert rank.coverage is not None
        assert rank.categories_at(15) is not None
        assert rank.to_arrow().num_rows == len(rank.blocks.first)
        for moment in (None, 0, 15, 10**18):
            rank.allocations_at(moment, top=None)
            rank.modules_at(moment, top=None)
        rank.growth()
    return capture


def report(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = _exit_code(["report", str(folder), *options])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_capture_that_the_others_vary_is_good(tmp_path: Path) -> None:
    [rank] = ask_everything(write(tmp_path / "run")).ranks
    assert rank.coverage.complete
    assert rank.peak().categories[Category.WEIGHT] == 8


def test_version_2_does_not_say_where_in_its_storage_a_tensor_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = SCHEMAS["tags"]
    monkeypatch.setitem(SCHEMAS, "tags", schema.remove(schema.get_field_index("offset_bytes")))
    monkeypatch.setattr("memlens.disk.writer.FORMAT_VERSION", 2)
    part = (13, 0, 64, 4, WEIGHT, DECLARED, 0, 0)
    write(tmp_path / "run", {"tags": [(*TAGS[0][:-1],), part]}, run={"version": 2})
    monkeypatch.undo()

    [rank] = ask_everything(tmp_path / "run").ranks
    [block] = rank.allocations_at(15)
    assert (block.category, block.name, block.parts) == (Category.WEIGHT, "layer.weight", ())
    assert rank.coverage.complete


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"rank": -1}, "rank"),
        ({"rank": "0"}, "rank"),
        ({"rank": 0.5}, "rank"),
        ({"rank": True}, "rank"),
        ({"rank": 10**30}, "rank"),
        ({"world_size": 0}, "world_size"),
        ({"world_size": -3}, "world_size"),
        ({"world_size": None}, "world_size"),
        ({"world_size": [1]}, "world_size"),
        ({"world_size": 2**62}, "world_size"),
        ({"source": 7}, "source"),
        ({"devices": []}, "devices"),
        ({"devices": "cpu"}, "devices"),
        ({"devices": [1]}, "devices"),
        ({"devices": {"cpu": 1}}, "devices"),
        ({"started_ns": -1}, "started_ns"),
        ({"started_ns": float("nan")}, "started_ns"),
        ({"started_ns": float("inf")}, "started_ns"),
        ({"torch": None}, "torch"),
        ({"problems": "none"}, "problems"),
        ({"problems": [None]}, "problems"),
        ({"notes": {"a": "b"}}, "notes"),
        ({"trains": "yes"}, "trains"),
        ({"trains": 1}, "trains"),
    ],
    ids=str,
)
def test_a_rank_with_a_strange_header(
    header: dict[str, Any], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run", header=header)
    with pytest.raises(CaptureError, match=f"damaged memlens rank folder: .* has {word} = "):
        memlens.load(folder)
    code, out, err = report(folder, capsys, "--json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    "run",
    [
        {"command": "train.py"},
        {"command": [1]},
        {"created_ns": "now"},
        {"created_ns": 2**63},
        {"memlens": None},
    ],
    ids=str,
)
def test_a_run_with_a_strange_header(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"damaged memlens run: .*run\.json has"):
        memlens.load(write(tmp_path / "run", run=run))


@pytest.mark.parametrize("rows", [None, {}, {"events": 2}, [2], {"events": 3}, "many"], ids=str)
def test_a_rank_that_promises_other_rows(rows: object, tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    path = folder / "rank-00000/rank.json"
    write_json(path, {**read_json(path)[0], "rows": rows})
    with pytest.raises(CaptureError, match="promises"):
        memlens.load(folder)


def test_a_world_of_a_million_million_ranks(tmp_path: Path) -> None:
    """Counting them takes no memory."""
    capture = ask_everything(write(tmp_path / "run", header={"world_size": 10**12, "rank": 10**11}))
    assert capture.problems == ("no capture of rank 0, 1, 2, 3, 4 and 999999999994 more",)


def event(**changes: Any) -> Rows:
    names = SCHEMAS["events"].names
    rows = [dict(zip(names, row, strict=True)) for row in EVENTS]
    rows[1] |= changes
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ({"events": event(allocated_bytes=-8)}, "allocated_bytes"),
        ({"events": event(allocated_bytes=2**62)}, "allocated_bytes"),
        ({"events": event(requested_bytes=-1)}, "requested_bytes"),
        ({"events": event(device=1)}, "device"),
        ({"events": event(device=-1)}, "device"),
        ({"events": event(time_ns=-1)}, "time_ns"),
        ({"events": event(time_ns=2**63 - 1)}, "time_ns"),
        ({"events": event(time_ns=None)}, "time_ns"),
        ({"events": event(action=None)}, "action"),
        ({"events": event(stack=None)}, "stack"),
        (
            {"events": [(10, ALLOC, 0, n, 8, 2**61, 0, -1) for n in range(4)]},
            "more than any machine",
        ),
        ({"marks": [(5, ENTER, 0, 2**63 - 1)]}, "value"),
        ({"marks": [(-5, ENTER, 0, 0)]}, "time_ns"),
        ({"marks": [(5, None, 0, 0)]}, "kind"),
        ({"tags": [(12, 9, 64, 8, WEIGHT, DECLARED, 0, 0, 0)]}, "device"),
        ({"tags": [(12, 0, 64, -8, WEIGHT, DECLARED, 0, 0, 0)]}, "size_bytes"),
        ({"tags": [(12, 0, 64, 8, WEIGHT, DECLARED, 0, 0, -2)]}, "offset_bytes"),
        ({"names": [(MODULE, 0, -1, None, "x")]}, "text"),
        ({"names": [(MODULE, None, -1, "x", "x")]}, "id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_nothing_can_have(
    tables: dict[str, Rows], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run", tables)
    with pytest.raises(CaptureError, match=f"damaged capture: .*{word}"):
        memlens.load(folder)
    code, out, err = report(folder, capsys, "--json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    "tables",
    [
        {"names": []},
        {"marks": []},
        {"tags": []},
        {"events": []},
        {"names": [], "marks": [], "tags": [], "events": []},
        {"events": event(stack=2**31 - 1)},
        {"events": event(stack=-(2**31))},
        {"events": event(address=2**64 - 1)},
        {"events": [EVENTS[1], EVENTS[0]]},  # backwards in time
        {"events": [EVENTS[1]] * 3},  # freed three times
        {"events": [EVENTS[0]] * 3},  # allocated three times
        {"tags": [(12, 0, 64, 8, WEIGHT, DECLARED, 10**9, 10**9, 0)]},
        {"tags": [(12, 0, 64, 8, WEIGHT, DECLARED, -5, -5, 0)]},
        {"tags": [(0, 0, 2**64 - 1, 2**61, WEIGHT, DECLARED, 0, 0, 0)]},
        {"tags": [(12, 0, 64, 8, WEIGHT, DECLARED, 0, 0, 2**61)]},
        {
            "tags": [
                (12, 0, 64, 4, WEIGHT, DECLARED, 0, 0, 2),
                (12, 0, 64, 6, WEIGHT, DECLARED, 0, 0, 0),
            ]
        },
        {"marks": [(5, ENTER, 10**9, 0), (6, EXIT, -7, 5), (7, EXIT, 10**9, -1)]},
        {"marks": [(5, EXIT, 0, 0)] * 5},
        {"marks": [(5, STEP, -1, -(10**18)), (6, STEP, -1, 10**18), (7, STEP, -1, 10**18)]},
        {"marks": [(15, TOTAL, -1, 2**61), (16, TOTAL, -1, -(2**61))]},
        {"marks": [(n, kind, 0, 0) for n, kind in enumerate(range(len(MarkKind)))] * 3},
        {"names": [(STACK, 3, 3, "f", "x:1")], "events": event(stack=3)},  # calls itself
        {"names": [(STACK, 1, 2, "f", "x"), (STACK, 2, 1, "g", ":")], "events": event(stack=2)},
        {"names": [(STACK, 1, -9, "f", "x:" + "9" * 5000)], "events": event(stack=1)},
        {"names": [(kind, 0, 0, "", "") for kind in range(len(NameKind))]},
    ],
    ids=lambda tables: "+".join(tables),
)
def test_content_that_makes_no_sense_is_answered_all_the_same(
    tables: dict[str, Rows], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run", tables)
    ask_everything(folder)
    code, out, err = report(folder, capsys, "--json")
    assert (code, err) == (0, "")
    [rank] = json.loads(out)["ranks"]
    assert sum(rank["peak"]["categories"].values()) == rank["peak"]["allocated_bytes"]
    assert report(folder, capsys)[0] == 0


EVIL = "\x1b[2J\x1b]0;owned\x07\r\nmemlens: \x00 \u202e \ud7ff <script> | `x` [bold]" + "x" * 5000


def test_names_cannot_draw_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(
        tmp_path / "run",
        header={
            "devices": [EVIL],
            "source": EVIL,
            "torch": EVIL,
            "problems": [EVIL],
            "notes": [EVIL],
        },
        run={"command": [EVIL], "memlens": EVIL},
        tables={
            "names": [
                (MODULE, 0, -1, EVIL, EVIL),
                (TENSOR, 0, -1, EVIL, ""),
                (STACK, 0, -1, EVIL, EVIL),
            ],
            "events": [(10, ALLOC, 0, 64, 8, 8, 0, 0)],
        },
    )
    ask_everything(folder)

    code, out, err = report(folder, capsys)

    assert (code, err) == (0, "")
    assert not set(out) & set("\x1b\x07\r\x00\u202e")
    code, out, err = report(folder, capsys, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["command"] == [EVIL]  # whole, for programs
    # And not in an error either.
    write_json(folder / "run.json", RUN | {"version": EVIL, "memlens": EVIL})
    code, out, err = report(folder, capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not set(err) & set("\x1b\x07\r\x00\u202e")


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write a stream anew by other means than ours."""
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_stream(file).read_all()
    changed = change(table)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, changed.schema) as stream:
        stream.write_table(changed)


@pytest.mark.parametrize("table", SCHEMAS)
def test_streams_that_other_programs_have_written(table: str, tmp_path: Path) -> None:
    def without(data: pa.Table) -> pa.Table:
        return data.drop_columns([data.column_names[-1]])

    def with_more(data: pa.Table) -> pa.Table:
        return data.append_column("more", pa.array([1] * data.num_rows))

    def renamed(data: pa.Table) -> pa.Table:
        return data.rename_columns([name.upper() for name in data.column_names])

    def same(data: pa.Table) -> pa.Table:
        return data  # without checksums

    for number, change in enumerate((without, with_more, renamed, same)):
        folder = write(tmp_path / f"run-{number}")
        rewrite(folder / f"rank-00000/{table}.arrow", change)
        with pytest.raises(CaptureError, match="damaged capture"):
            memlens.load(folder)


def test_enumerators_that_we_do_not_know(tmp_path: Path) -> None:
    """A later version may have more of them; it would have another number, but who knows."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "run.json", RUN)
    writer = RankWriter(folder / "rank-00000", HEADER)
    batch = make_batch("events", list(zip(*EVENTS, strict=True)))
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["alloc", "melt"]))
    writer.write("events", batch.set_column(1, "action", words))
    writer.close()
    with pytest.raises(CaptureError, match="no Action is called 'melt'"):
        memlens.load(folder)


def test_the_same_enumerators_in_another_order(tmp_path: Path) -> None:
    """They are read by name: a later version may sort them in another way."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "run.json", RUN)
    writer = RankWriter(folder / "rank-00000", HEADER)
    batch = make_batch("events", list(zip(*EVENTS[:1], strict=True)))
    words = pa.DictionaryArray.from_arrays(pa.array([1], pa.int8()), pa.array(["free", "alloc"]))
    writer.write("events", batch.set_column(1, "action", words))
    writer.close()
    assert memlens.load(folder).ranks[0].peak().allocated_bytes == 8


def test_ranks_of_one_run_are_not_mixed_up(tmp_path: Path) -> None:
    """A file of one rank in the folder of another, which is as long."""
    make_capture(tmp_path / "run", 1200, ranks=2, layers=8, batch_events=200)
    first, second = (tmp_path / "run" / name for name in ("rank-00000", "rank-00001"))
    (first / "events.arrow").write_bytes((second / "events.arrow").read_bytes())
    ranks = memlens.load(tmp_path / "run").ranks  # nothing was read yet
    with pytest.raises(CaptureError, match="damaged capture"):
        ranks[0].peak()
    assert ranks[1].peak().allocated_bytes > 0
