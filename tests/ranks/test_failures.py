"""Ranks that fail, die, disagree or are missing: said in one line each, and never a wrong total."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import run_memlens, write_script
from tests.support.large import make_capture

import memlens
from memlens.cli import _exit_code
from memlens.disk.format import read_json, write_json

RANKS = 4


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    make_capture(folder, 600, ranks=RANKS, layers=8)
    return folder


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "run")


Report = Callable[[Path], tuple[dict[str, Any], str]]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """What the command line prints of a run: as JSON, and for people in one long line."""

    def printed(run: Path) -> tuple[dict[str, Any], str]:
        assert _exit_code(["report", str(run), "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert _exit_code(["report", str(run)]) == 0
        return content, " ".join(capsys.readouterr().out.split())

    return printed


def peaks(run: Path) -> dict[int, int]:
    return {rank.rank: rank.peak().allocated_bytes for rank in memlens.load(run).ranks}


def change(run: Path, rank: int, **changes: Any) -> None:
    path = run / f"rank-{rank:05d}/rank.json"
    write_json(path, {**read_json(path)[0], **changes})


def test_all_is_well(good: Path, report: Report) -> None:
    content, text = report(good)
    total = content["across_ranks"]["total"]
    assert (total["ranks"], total["of_ranks"], total["partial"]) == (4, 4, [])
    assert total["size_bytes"] == sum(peaks(good).values())
    assert content["warnings"] == content["across_ranks"]["ended"] == []
    assert "All 4 ranks together: " in text


def test_a_folder_is_missing(run: Path, report: Report) -> None:
    shutil.rmtree(run / "rank-00002")
    content, text = report(run)
    total = content["across_ranks"]["total"]
    assert (total["ranks"], total["of_ranks"]) == (3, 4)
    assert total["size_bytes"] == sum(peaks(run).values())
    assert total["partial"] == ["the others have no capture"]
    assert content["warnings"] == ["no capture of rank 2"]
    assert "! no capture of rank 2 " in text
    assert "3 of 4 ranks together: " in text
    assert "All 4 ranks" not in text


def test_one_rank_is_left(run: Path, report: Report) -> None:
    for rank in range(1, 4):
        shutil.rmtree(run / f"rank-{rank:05d}")
    content, text = report(run)
    assert content["warnings"] == ["no capture of rank 1, 2, 3"]
    total = content["across_ranks"]["total"]
    assert (total["ranks"], total["of_ranks"]) == (1, 4)
    assert "1 of 4 ranks together: " in text
    assert "same peak" not in text


@pytest.mark.parametrize("name", ["rank.json", "events.arrow"])
def test_a_rank_that_can_not_be_read(name: str, run: Path, report: Report) -> None:
    whole = peaks(run)
    (run / "rank-00001" / name).write_bytes(b"{}")
    content, text = report(run)
    [warning] = content["warnings"]
    assert warning.startswith("rank 1 is left out: ")
    assert [rank["rank"] for rank in content["ranks"]] == [0, 2, 3]
    [unreadable] = content["across_ranks"]["unreadable"]
    assert unreadable["rank"] == 1
    total = content["across_ranks"]["total"]
    assert (total["ranks"], total["of_ranks"]) == (3, 4)
    assert total["size_bytes"] == whole[0] + whole[2] + whole[3]
    assert total["partial"] == ["rank 1 can not be read"]
    assert "3 of 4 ranks together: " in text


def test_no_rank_can_be_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.glob("*/events.arrow"):
        path.write_bytes(b"broken")
    assert _exit_code(["report", str(run)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("memlens: damaged capture: ")


def test_ranks_disagree_on_how_many_there_are(run: Path, report: Report) -> None:
    change(run, 3, world_size=2)
    content, text = report(run)
    [warning] = content["warnings"]
    assert warning == (
        "processes disagree on how many ranks there are: rank 3 of 2; rank 0, 1, 2 of 4"
    )
    total = content["across_ranks"]["total"]
    assert total["partial"] == ["ranks disagree on how many there are"]
    assert "4 of 4 ranks together: " in text
    assert "That is not the whole job: ranks disagree" in text


def test_a_rank_of_a_larger_world(run: Path, report: Report) -> None:
    change(run, 0, world_size=6)
    content, _ = report(run)
    assert content["warnings"] == [
        "no capture of rank 4, 5",
        "processes disagree on how many ranks there are: rank 1, 2, 3 of 4; rank 0 of 6",
    ]
    total = content["across_ranks"]["total"]
    assert (total["ranks"], total["of_ranks"]) == (4, 6)


def test_folders_of_an_earlier_start_are_not_summed(run: Path, report: Report) -> None:
    whole = sum(peaks(run).values())
    for rank in range(2):
        shutil.copytree(run / f"rank-{rank:05d}", run / f"rank-{rank:05d}-old")
        path = run / f"rank-{rank:05d}-old/rank.json"
        write_json(path, {**read_json(path)[0], "started_ns": 1, "ended_ns": 9, "world_size": 2})
    content, text = report(run)
    assert content["warnings"] == [
        "several processes had the same rank; shown as rank 4, 5: those that began later"
    ]
    across = content["across_ranks"]
    assert across["starts"] == 2
    assert len(content["ranks"]) == 6
    total = across["total"]
    assert (total["size_bytes"], total["ranks"], total["partial"]) == (whole, 4, [])
    assert "Of the last of 2 starts of the job:" in text


def test_starts_that_the_launcher_counts(run: Path, report: Report) -> None:
    """torchrun says which start a process belongs to, also where a rank of the first left nothing."""
    for rank in range(4):
        folder = shutil.copytree(run / f"rank-{rank:05d}", run / f"rank-{rank:05d}-2")
        header = read_json(folder / "rank.json")[0]
        begun = header["started_ns"]
        write_json(
            folder / "rank.json",
            {**header, "launch": "job", "restart": 1, "started_ns": begun + 1},
        )
        change(run, rank, launch="job", restart=0)
    shutil.rmtree(run / "rank-00001")
    content, _ = report(run)
    assert content["warnings"] == [
        "the job was started 2 times; shown as rank 4, 5, 6: the processes of the last start",
        "no capture of rank 1 in start 1 of 2",
    ]
    assert {rank["rank"]: rank["launch"] for rank in content["ranks"]} == {
        0: 0, 2: 0, 3: 0, 1: 1, 4: 1, 5: 1, 6: 1,
    }  # fmt: skip
    total = content["across_ranks"]["total"]
    assert (total["ranks"], total["of_ranks"], total["partial"]) == (4, 4, [])
    every = peaks(run)
    assert total["size_bytes"] == every[1] + every[4] + every[5] + every[6]


def test_a_rank_that_was_killed_and_one_that_still_runs(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import socket

    make_capture(tmp_path / "run", 600, ranks=3, layers=8, close=False)
    change(tmp_path / "run", 0, host=socket.gethostname(), pid=os.getpid())
    change(tmp_path / "run", 1, host="elsewhere", pid=os.getpid())
    content, text = report(tmp_path / "run")
    ended = {each["rank"]: each["how"] for each in content["across_ranks"]["ended"]}
    assert ended == {0: "running", 1: "died", 2: "died"}
    assert content["across_ranks"]["total"]["partial"] == [
        "ranks 1, 2 died", "rank 0 still running",
    ]  # fmt: skip
    assert "rank 0 is still running: the numbers are those of so far" in text
    assert "rank 1 died (it was killed, or crashed); last seen in step " in text
    assert "3 of 3 ranks together: " in text


# Both starts train, so that each leaves a folder. In the first, a rank raises; in the second, one is
# killed, as the kernel would do it for want of memory. The ranks wait for each other by files: gloo
# sometimes refuses the connections of a second start, and that would be a third kind of failure.
JOB = """
import os, signal, time
from pathlib import Path
import torch
torch.set_num_threads(1)
rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
model = torch.nn.Sequential(torch.nn.Linear(64, 64 * (1 + rank)), torch.nn.ReLU())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 64)).sum().backward()
    optimizer.step()
Path(f"trained-{start}-{rank}").touch()
while not Path(f"trained-{start}-{1 - rank}").exists():
    time.sleep(0.05)
if rank == 1 and start == 0:
    raise ValueError("no such batch")
time.sleep(1.2)  # what was recorded is written at least once a second
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_rank_raises_and_after_the_restart_one_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: Report
) -> None:
    write_script(tmp_path / "train.py", JOB)
    job = run_memlens(
        "run", "--out", "run", "--", "torchrun", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "1", "train.py",
        cwd=tmp_path,
    )  # fmt: skip
    assert job.returncode == 1, job.stderr

    content, text = report(tmp_path / "run")

    across = content["across_ranks"]
    assert (content["world_size"], across["starts"]) == (2, 2)
    assert content["warnings"][0] == (
        "the job was started 2 times; shown as rank 2, 3: the processes of the last start"
    )
    launches = {rank["rank"]: rank["launch"] for rank in content["ranks"]}
    assert launches == {0: 0, 1: 0, 2: 1, 3: 1}
    ended = {each["rank"]: each for each in across["ended"]}
    assert ended[1]["how"] == "raised"
    assert ended[1]["error"] == "ValueError: no such batch"
    # The launcher ended the others with a signal.
    assert {ended[rank]["how"] for rank in (0, 2, 3)} == {"died"}
    assert ended[3]["step"] == 2
    assert "rank 1 failed: ValueError: no such batch; last seen in step 2" in text
    assert "rank 3 died (it was killed, or crashed); last seen in step 2" in text

    total = across["total"]
    assert (total["ranks"], total["of_ranks"]) == (2, 2)
    of_last = [rank["peak"]["allocated_bytes"] for rank in content["ranks"] if rank["launch"] == 1]
    assert total["size_bytes"] == sum(of_last)
    assert total["partial"] == ["ranks 2, 3 died"]
    # The second rank's layer is twice as wide.
    assert across["highest"]["rank"] in (1, 3)
    assert across["difference"]["module"] == "0"
