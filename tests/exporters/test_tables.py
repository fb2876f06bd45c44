"""Parquet and CSV, read by DuckDB, pandas and pyarrow: what they find is what the capture says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from tests.support.flat_library import FlatAdamW
from tests.support.large import make_capture
from tests.support.small_runs import HOSTILE, RUNS
from torch import nn

import memlens
import memlens_integrations
from memlens.analysis.frames import job_frame
from memlens.answers import Frame
from memlens.capture import Capture
from memlens.cli import main
from memlens.errors import CaptureError
from memlens.events import Category
from memlens.exporters import export
from memlens.exporters.tables import export as module
from memlens.exporters.tables.columns import TABLES, columns_markdown

EXAMPLES = Path(__file__).parents[2] / "examples" / "exported"

RUNNING = """
    WITH changes AS (
        SELECT rank, launch, device, alloc_event AS event, category, size_bytes AS change FROM blocks
        UNION ALL
        SELECT rank, launch, device, free_event, category, -size_bytes FROM blocks
        WHERE free_event IS NOT NULL
    ), per_event AS (
        SELECT rank, device, event, sum(change) AS change FROM changes WHERE {where} GROUP BY ALL
    )
    SELECT event, sum(change) OVER (ORDER BY event)::BIGINT AS total
    FROM per_event WHERE rank = {rank} AND device = '{device}' ORDER BY event
"""


class Flat(nn.Module):
    """33 + 7 elements in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 3)
        self.second = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.relu(self.first(x)))
        return result


def flat_run(folder: Path) -> Capture:
    """A real training whose optimizer keeps elements of several parameters in one tensor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            memlens_integrations.ADAPTERS, "flat", "tests.support.flat_library:FlatAdapter"
        )
        with memlens.profile(out=folder):
            model = Flat()
            optimizer = FlatAdamW(model, 20, 35)
            for _ in range(3):
                model(torch.ones(4, 10)).sum().backward()
                optimizer.step()
    return memlens.load(folder)


def paused_run(folder: Path) -> Capture:
    """A real training that was out of sight in between: blocks end there that nothing frees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMLENS_CPU_SOURCE", "profiler")
        with memlens.profile(out=folder):
            model = Flat()
            optimizer = torch.optim.SGD(model.parameters())
            for step in range(3):
                with torch.profiler.profile(profile_memory=True) if step == 1 else nullcontext():
                    model(torch.ones(4, 10)).sum().backward()
                    optimizer.step()
    capture = memlens.load(folder)
    assert capture.rank(0).coverage.blind_ns > 0
    return capture


ALL_RUNS = {**RUNS, "flat": flat_run, "paused": paused_run}


@pytest.fixture(scope="module", params=ALL_RUNS)
def capture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    return ALL_RUNS[request.param](tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def folder(capture: Capture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(capture, "parquet", tmp_path_factory.mktemp("export") / "tables")


@pytest.fixture(scope="module")
def csv_folder(capture: Capture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(capture, "csv", tmp_path_factory.mktemp("export") / "tables")


def opened(folder: Path) -> duckdb.DuckDBPyConnection:
    """Each table as a view, as people open them."""
    con = duckdb.connect()
    for path in sorted(folder.glob("*.parquet")) + sorted(folder.glob("*.csv")):
        con.execute(f"CREATE VIEW {path.stem} AS FROM '{path}'")
    return con


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return con.execute(query).fetchall()


# -- what must be equal to the byte ------------------------------------------------------------


def test_the_running_total_in_sql_is_the_captures(capture: Capture, folder: Path) -> None:
    con = opened(folder)
    for rank in capture.ranks:
        timeline = rank.timeline()
        for category, expected in timeline.categories.items():
            where = f"category = '{category.value}'"
            found = rows(con, RUNNING.format(where=where, rank=rank.rank, device=rank.device))
            events = [event for event, _ in found]
            assert [total for _, total in found] == expected[events].tolist()
            assert np.count_nonzero(np.diff(expected)) <= len(events)
        found = rows(con, RUNNING.format(where="true", rank=rank.rank, device=rank.device))
        assert max((total for _, total in found), default=0) == rank.peak().allocated_bytes


def test_peaks_by_category_in_sql(capture: Capture, folder: Path) -> None:
    con = opened(folder)
    for rank in capture.ranks:
        found = rows(
            con,
            f"""
            SELECT category, sum(size_bytes)::BIGINT FROM blocks JOIN ranks USING (rank, launch, device)
            WHERE rank = {rank.rank} AND device = '{rank.device}' AND alloc_event <= peak_event
              AND (free_event IS NULL OR free_event > peak_event)
            GROUP BY ALL
            """,
        )
        peak = rank.peak()
        held = {category.value: size for category, size in peak.categories.items() if size}
        assert {category: size for category, size in found if size} == held
        sums = ", ".join(f"peak_{each.value}_bytes" for each in Category)
        where = f"WHERE rank = {rank.rank} AND device = '{rank.device}'"
        [total] = rows(con, f"SELECT peak_bytes, peak_ns, peak_step, peak_phase FROM ranks {where}")
        assert total == (peak.allocated_bytes, peak.time_ns, peak.step, peak.phase.value)
        assert rows(con, f"SELECT {sums} FROM ranks {where}") == [tuple(peak.categories.values())]


def test_every_block_is_there_as_the_capture_tells_it(capture: Capture, folder: Path) -> None:
    blocks = pyarrow.parquet.read_table(folder / "blocks.parquet").to_pylist()
    stacks: dict[int, list[Frame]] = {}
    for row in pyarrow.parquet.read_table(folder / "stacks.parquet").to_pylist():
        assert row["depth"] == len(stacks.setdefault(row["stack"], []))
        stacks[row["stack"]].append(Frame(row["function"], row["file"], row["line"]))
    assert [row["block"] for row in blocks] == list(range(len(blocks)))
    at = 0
    for rank in capture.ranks:
        for number in range(len(rank.blocks.first)):
            row, told = blocks[at], rank.allocation(number)
            at += 1
            assert (row["rank"], row["device"]) == (rank.rank, rank.device)
            assert row["size_bytes"] == told.size_bytes
            assert row["requested_bytes"] == rank.blocks.requested_bytes[number]
            assert (row["alloc_ns"], row["free_ns"]) == (told.alloc_ns, told.free_ns)
            assert row["alloc_elapsed_ns"] == told.alloc_ns - rank.blocks.time_ns[0]
            assert row["address"] == told.address
            assert row["category"] == told.category.value
            assert row["certainty"] == told.certainty.value
            assert row["weight_kind"] == (told.weight_kind and told.weight_kind.value)
            assert (row["name"], row["module"]) == (told.name, told.module)
            assert row["module_class"] == told.module_class
            assert (row["step"], row["phase"]) == (told.step, told.phase.value)
            assert row["preexisting"] == told.preexisting
            assert tuple(stacks.get(row["stack"], ())) == told.stack
            frame = job_frame(told.stack)
            assert row["site"] == ((frame and f"{frame.file}:{frame.line} {frame.function}") or "")
    assert at == len(blocks)


def test_parts_are_the_blocks_parts(capture: Capture, folder: Path) -> None:
    con = opened(folder)
    found: dict[int, list[tuple[Any, ...]]] = {}
    for block, *part in rows(
        con, "SELECT block, name, module, offset_bytes, size_bytes FROM parts ORDER BY block, part"
    ):
        found.setdefault(block, []).append(tuple(part))
    first = 0
    for rank in capture.ranks:
        for number in range(len(rank.blocks.first)):
            told = rank.allocation(number)
            assert found.pop(first + number, []) == [
                (part.name, part.module or told.module, part.offset_bytes, part.size_bytes)
                for part in told.parts
            ]
        first += len(rank.blocks.first)
    assert not found
    different = rows(
        con,
        "SELECT count(*) FROM blocks LEFT JOIN (SELECT block, sum(size_bytes) AS size FROM parts "
        "GROUP BY block) USING (block) WHERE parts_bytes != coalesce(size, 0)",
    )
    assert different == [(0,)]


def test_the_flat_run_has_parts(tmp_path: Path) -> None:
    """Without any, the test above would show nothing."""
    con = opened(export(flat_run(tmp_path / "run"), "parquet", tmp_path / "tables"))
    assert {name for (name,) in rows(con, "SELECT name FROM parts")} >= {
        "first.weight[20:30]",
        "exp_avg of first.bias",
    }


def test_steps_are_the_captures(capture: Capture, folder: Path) -> None:
    found = pyarrow.parquet.read_table(folder / "steps.parquet").to_pylist()
    expected = [(rank, step) for rank in capture.ranks for step in rank.steps()]
    assert len(found) == len(expected)
    for row, (rank, step) in zip(found, expected, strict=True):
        assert (row["rank"], row["device"], row["step"]) == (rank.rank, rank.device, step.step)
        assert (row["start_ns"], row["end_ns"]) == (step.start_ns, step.end_ns)
        assert (row["peak_bytes"], row["end_bytes"]) == (step.peak_bytes, step.end_bytes)
        for category in Category:
            assert row[f"peak_{category.value}_bytes"] == step.categories[category]
            assert row[f"end_{category.value}_bytes"] == step.end_categories[category]


def test_segments_say_what_the_capture_says_at_every_block(capture: Capture, folder: Path) -> None:
    con = opened(folder)
    wrong = rows(
        con,
        """
        SELECT count(*) FROM blocks LEFT JOIN segments ON
            blocks.rank = segments.rank AND blocks.device = segments.device
            AND alloc_ns >= coalesce(start_ns, alloc_ns) AND alloc_ns < coalesce(end_ns, alloc_ns + 1)
        WHERE segments.step IS DISTINCT FROM blocks.step
           OR segments.phase IS DISTINCT FROM blocks.phase
        """,
    )
    assert wrong == [(0,)]
    for rank in capture.ranks:
        for start, step, phase, name in rows(
            con,
            "SELECT start_ns, step, phase, module FROM segments WHERE start_ns IS NOT NULL "
            f"AND rank = {rank.rank} AND device = '{rank.device}' USING SAMPLE 200 ROWS",
        ):
            place = rank.place_at(start)
            assert (place.step, place.phase.value, place.module) == (step, phase, name)


def test_timelines_are_the_captures(capture: Capture, folder: Path) -> None:
    table = pyarrow.parquet.read_table(folder / "timeline.parquet")
    expected = [rank.timeline() for rank in capture.ranks]
    for name, values in (
        ("time_ns", [each.time_ns for each in expected]),
        ("allocated_bytes", [each.allocated_bytes for each in expected]),
        *((f"{key.value}_bytes", [each.categories[key] for each in expected]) for key in Category),
    ):
        assert table.column(name).to_pylist() == np.concatenate(values).tolist()


def test_coverage_and_the_run(capture: Capture, folder: Path) -> None:
    con = opened(folder)
    [(name, command, world_size, problems)] = rows(
        con, "SELECT name, command, world_size, problems FROM run"
    )
    assert (name, world_size) == (capture.info.name, capture.info.world_size)
    assert shlex.split(command) == list(capture.info.command)
    assert problems == "\n".join(capture.problems)
    found = rows(con, "SELECT complete, lost_events, reserved_peak_bytes, events FROM ranks")
    assert found == [
        (
            rank.coverage.complete,
            rank.coverage.lost_events,
            rank.reserved_peak_bytes,
            rank.events,
        )
        for rank in capture.ranks
    ]


def test_reserved_memory_is_the_captures(capture: Capture, folder: Path) -> None:
    con = opened(folder)
    for rank in capture.ranks:
        for time_ns, reserved in rows(
            con,
            "SELECT time_ns, reserved_bytes FROM timeline "
            f"WHERE rank = {rank.rank} AND device = '{rank.device}' USING SAMPLE 50 ROWS",
        ):
            slack = rank.slack_at(time_ns)
            assert reserved == (slack and slack.reserved_bytes)


# -- CSV ---------------------------------------------------------------------------------------


def test_csv_and_parquet_say_the_same(folder: Path, csv_folder: Path) -> None:
    con = duckdb.connect()
    for name, table in TABLES.items():
        types = {field.name: _sql_type(str(field.type)) for field in table.schema}
        from_csv = rows(
            con,
            f"FROM read_csv('{csv_folder}/{name}.csv', header=true, columns={types}, "
            "allow_quoted_nulls=false)",
        )
        assert from_csv == rows(con, f"FROM '{folder}/{name}.parquet'")


def _sql_type(arrow: str) -> str:
    return {"string": "VARCHAR", "int64": "BIGINT", "uint64": "UBIGINT", "bool": "BOOLEAN"}[arrow]


def test_pandas_reads_csv(capture: Capture, csv_folder: Path) -> None:
    blocks = pd.read_csv(csv_folder / "blocks.csv", keep_default_na=False)
    assert len(blocks) == sum(len(rank.blocks.first) for rank in capture.ranks)
    assert blocks.size_bytes.sum() == sum(rank.blocks.size_bytes.sum() for rank in capture.ranks)
    for rank in capture.ranks:
        mine = blocks[(blocks["rank"] == rank.rank) & (blocks.device == rank.device)]
        names = [rank.allocation(number).name for number in range(len(rank.blocks.first))]
        assert mine["name"].tolist() == names


# -- columns and their documentation -----------------------------------------------------------


def test_files_have_the_columns_that_are_documented(folder: Path, csv_folder: Path) -> None:
    suffixes = {folder: ".parquet", csv_folder: ".csv"}
    for place, suffix in suffixes.items():
        assert {path.name for path in place.iterdir()} == {
            "columns.md",
            *(name + suffix for name in TABLES),
        }
        text = (place / "columns.md").read_text()
        told = {
            section.split("\n")[0]: re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
            for section in text.split("\n## ")[1:]
        }
        assert list(told) == list(TABLES)
        for name, columns in told.items():
            if suffix == ".csv":
                header = (place / f"{name}.csv").read_text().split("\n", 1)[0]
                assert json.loads(f"[{header}]") == [column for column, _ in columns]
            else:
                schema = pyarrow.parquet.read_schema(place / f"{name}.parquet")
                assert [(field.name, str(field.type)) for field in schema] == columns
                assert all(field.metadata[b"description"] for field in schema)


def test_values_are_missing_only_where_it_is_documented(folder: Path) -> None:
    for name, table in TABLES.items():
        read = pyarrow.parquet.read_table(folder / f"{name}.parquet")
        for column in table.columns:
            assert column.null or not read.column(column.name).null_count, (name, column.name)


def test_the_page_in_the_repository_is_made_from_the_table() -> None:
    """`memlens export RUN --to parquet` writes it; copy it over."""
    assert Path(module.__file__).with_name("columns.md").read_text() == columns_markdown()


def test_a_name_that_means_something_everywhere_comes_back(tmp_path: Path) -> None:
    capture = RUNS["hostile"](tmp_path / "run")
    folder = export(capture, "csv", tmp_path / "csv")
    assert pd.read_csv(folder / "blocks.csv").iloc[0]["name"] == HOSTILE
    assert rows(opened(folder), "SELECT DISTINCT name FROM blocks WHERE name != ''") == [(HOSTILE,)]


def test_tables_of_several_runs_are_one_query(tmp_path: Path) -> None:
    """As `columns.md` says."""
    peaks = []
    for name in ("a", "b"):
        capture = RUNS["cpu" if name == "a" else "stepless"](tmp_path / name)
        export(capture, "parquet")
        peaks += [(name, rank.peak().allocated_bytes) for rank in capture.ranks]
    query = re.search(r"`(FROM read_parquet.*?)`", columns_markdown())
    assert query is not None
    found = duckdb.connect().execute(query[1].replace("'*", f"'{tmp_path}/*")).fetchall()
    names = [Path(str(row[-1])).parts[-3] for row in found]
    assert sorted(names) == sorted(name for name, _ in peaks)


# -- size, portions, broken ranks, the command -------------------------------------------------


def test_portions_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = RUNS["cpu"](tmp_path / "run")
    whole = export(capture, "parquet", tmp_path / "whole")
    monkeypatch.setattr(module, "ROW_GROUP", 100)
    cut = export(memlens.load(tmp_path / "run"), "parquet", tmp_path / "cut")
    for name in TABLES:
        a, b = (pyarrow.parquet.ParquetFile(each / f"{name}.parquet") for each in (whole, cut))
        assert a.read() == b.read()
    blocks = pyarrow.parquet.ParquetFile(cut / "blocks.parquet").metadata
    groups = [blocks.row_group(at).num_rows for at in range(blocks.num_row_groups)]
    assert len(groups) > 10
    assert max(groups) < 200


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    RUNS["cpu"](tmp_path / "run")
    for to in ("parquet", "csv"):
        a, b = (export(memlens.load(tmp_path / "run"), to, tmp_path / f"{to}{n}") for n in (1, 2))
        for path in a.iterdir():
            assert path.read_bytes() == (b / path.name).read_bytes(), path.name


def test_a_rank_that_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    make_capture(tmp_path / "run", 600, ranks=3, layers=8)
    (tmp_path / "run" / "rank-00001" / "events.arrow").write_bytes(b"no stream")
    folder = export(memlens.load(tmp_path / "run"), "parquet", tmp_path / "tables")
    con = opened(folder)
    assert rows(con, "SELECT rank FROM ranks") == [(0,), (2,)]
    [(problems,)] = rows(con, "SELECT problems FROM run")
    assert "rank-00001" in problems
    for number in (0, 2):
        shutil.copy(tmp_path / "run/rank-00001/events.arrow", tmp_path / f"run/rank-{number:05}")
    with pytest.raises(CaptureError):
        export(memlens.load(tmp_path / "run"), "parquet", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RUNS["cuda"](tmp_path / "a run")
    out = tmp_path / "my tables"
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(tmp_path / "a run/run"), "--to", "parquet", "--out", str(out)])
    assert exit_.value.code == 0
    told = capsys.readouterr().out
    command = re.search(r"^open with: (.*);", told, re.MULTILINE)
    assert command is not None
    assert command[1] == f"cd '{out}' && duckdb -c \"FROM 'ranks.parquet'\""
    assert rows(opened(out), "SELECT device FROM ranks") == [("cuda:0",), ("cuda:1",)]


# -- examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["with_duckdb.py", "with_pandas.py"])
def test_examples_say_what_the_capture_says(script: str, tmp_path: Path) -> None:
    make_capture(tmp_path / "run", 4_000, ranks=2, layers=8)
    capture = memlens.load(tmp_path / "run")
    folder = export(capture, "parquet", tmp_path / "tables")
    answer = subprocess.run(
        [sys.executable, str(EXAMPLES / script), str(folder)], capture_output=True, text=True
    )
    assert answer.stderr == ""
    at_peak, rest = answer.stdout.split("Modules that hold most then")
    modules, growth = rest.split("What grows from step to step")
    for rank in capture.ranks:
        for size in rank.peak().categories.values():
            assert re.search(rf"\b{size}\b", at_peak) or not size
    held: dict[str, int] = {}
    for rank in capture.ranks:
        for usage in rank.modules_at(top=None):
            held[usage.module] = held.get(usage.module, 0) + usage.total_bytes
    for name, size in sorted(held.items(), key=lambda item: -item[1])[:8]:
        assert re.search(rf"\b{re.escape(name)}\b.*\b{size}\b", modules)
    [leak] = capture.rank(0).growth()
    assert re.search(rf"\b{re.escape(leak.module)}\b.*\b{leak.bytes_per_step}\b", growth)
    assert len(re.findall(r"layers\.", growth)) == 1
