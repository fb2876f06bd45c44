"""Runs behind a URL: each rank copies its own folder there, and reports read it from there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from tests.support.jobs import STEPS, ours, run_memlens, run_plain, write_script
from tests.support.large import make_capture

import memlens
from memlens.cli import _exit_code
from memlens.disk.remote import claim_remote_run, fetch_run, upload_rank
from memlens.disk.upload import Upload
from memlens.errors import CaptureError, MissingDependencyError, OutputExistsError, UsageError
from memlens.options import Options

URL = "memory://bucket/team/run-7"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in memory, as a bucket would be: no folders, only keys."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "run"
    make_capture(folder, 600, ranks=3, layers=8)
    return folder


def upload_all(run: Path, url: str = URL) -> None:
    claim_remote_run(url, run, join=False)
    for rank in range(3):
        upload_rank(run / f"rank-{rank:05d}", url)


def test_what_is_read_is_what_was_recorded(
    run: Path, memory: fsspec.AbstractFileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    upload_all(run)
    there, here = memlens.load(URL), memlens.load(run)
    assert there.info.name == "run-7"
    assert [rank.peak() for rank in there.ranks] == [rank.peak() for rank in here.ranks]
    assert _exit_code(["report", URL, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (len(printed["ranks"]), printed["warnings"]) == (3, [])


def test_only_what_has_changed_is_fetched_again(
    run: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_remote_run(URL, run, join=False)
    upload_rank(run / "rank-00000", URL)
    fetched: list[str] = []
    original = type(memory).get_file

    def counted(self: object, path: str, *args: object, **options: object) -> None:
        fetched.append(path.rpartition("run-7/")[2])
        original(self, path, *args, **options)

    monkeypatch.setattr(type(memory), "get_file", counted)
    folder = fetch_run(URL)
    assert "run.json" in fetched
    fetched.clear()
    assert fetch_run(URL) == folder
    assert fetched == []

    upload_rank(run / "rank-00001", URL)
    fetch_run(URL)
    assert {path.partition("/")[0] for path in fetched} == {"rank-00001"}
    assert [rank.rank for rank in memlens.load(folder).ranks] == [0, 1]

    memory.rm("/bucket/team/run-7/rank-00000", recursive=True)
    assert [rank.rank for rank in memlens.load(URL).ranks] == [1]


def test_files_that_are_not_ours_stay_where_they_are(
    run: Path, memory: fsspec.AbstractFileSystem
) -> None:
    upload_all(run)
    for name in ("model.bin", "rank-00000/checkpoint.pt", "a/b/rank.json", "../../evil/run.json"):
        memory.pipe(f"/bucket/team/run-7/{name}", b"large")
    folder = fetch_run(URL)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {".memlens-fetched.json", "run.json"} | {
        f"rank-{rank:05d}/{name}"
        for rank in range(3)
        for name in ("rank.json", *(f"{table}.arrow" for table in ("names", "marks", "tags", "events")))
    }  # fmt: skip


def test_a_run_is_never_overwritten(run: Path, memory: fsspec.AbstractFileSystem) -> None:
    claim_remote_run(URL, run, join=False)
    with pytest.raises(OutputExistsError, match="holds a run already"):
        claim_remote_run(URL, run, join=False)
    claim_remote_run(URL, run, join=True)  # another host of the same job
    upload_rank(run / "rank-00000", URL)
    with pytest.raises(OutputExistsError, match="holds a run already"):
        claim_remote_run(URL, run, join=True)  # a rank has ended, so it is an earlier job
    # A rank that was started again on another host gets a folder of its own.
    assert upload_rank(run / "rank-00000", URL) != f"{URL}/rank-00000"
    assert len(memlens.load(URL).ranks) == 2


def test_a_rank_that_never_came(run: Path, memory: fsspec.AbstractFileSystem) -> None:
    upload_all(run)
    memory.rm("/bucket/team/run-7/rank-00001", recursive=True)
    assert memlens.load(URL).problems == ("no capture of rank 1",)


def test_half_a_rank_is_none(run: Path, memory: fsspec.AbstractFileSystem) -> None:
    """`rank.json` is copied last."""
    upload_all(run)
    memory.rm("/bucket/team/run-7/rank-00002/rank.json")
    capture = memlens.load(URL)
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    assert [each.rank for each in capture.unreadable] == [2]
    assert not capture.is_whole


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("memory://nothing/here", CaptureError, "not a memlens run: .*run.json is missing"),
        ("file:///no/such/folder", CaptureError, "not a memlens run"),
        ("nonsense://bucket/run", UsageError, "cannot reach nonsense://bucket/run"),
    ],
)
def test_nothing_is_there(url: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        memlens.load(url)
    assert _exit_code(["report", url]) == 2


def test_a_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "memlens\[s3\]"'):
        memlens.load("s3://bucket/run")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "memlens\[fsspec\]"'):
        memlens.load("s3://bucket/run")


def test_options_know_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options().with_out("s3://bucket/run")
    assert (options.out, options.upload) == (None, "s3://bucket/run")
    assert Options.from_environment(options.to_environment()).upload == "s3://bucket/run"
    assert Options.from_environment({"MEMLENS_OUT": "gs://b/r"}).upload == "gs://b/r"
    options = options.with_out("runs/a")
    assert (options.out, options.upload) == (Path("runs/a"), None)
    assert Options().with_out("c:/runs").upload is None


def test_a_copy_that_fails_says_where_the_folder_lies(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    Upload(run / "rank-00001", f"file://{tmp_path}/file/run").wait()
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert out == ""
    assert line.startswith("memlens: this rank's capture is not at file://")
    assert line.endswith(f"; it lies in {run / 'rank-00001'}")


def test_a_copy_that_hangs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("memlens.disk.upload.TIMEOUT_S", 0)
    Upload(run / "rank-00001", f"file://{tmp_path}/elsewhere").wait()
    assert "it took more than 0 s" in capfd.readouterr().err


def test_a_job_under_memlens_run(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", STEPS + "train(3)")
    url = f"file://{tmp_path}/bucket/run"
    job = run_memlens("run", "--out", url, "train.py", cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    [line] = ours(job.stderr)
    assert line.endswith(f"read them with: memlens report {url}")
    [local] = (tmp_path / "memlens-runs").iterdir()
    assert memlens.load(url).ranks[0].peak() == memlens.load(local).ranks[0].peak()

    again = run_memlens("run", "--out", url, "train.py", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    [line] = again.stderr.splitlines()
    assert line.startswith(f"memlens: {url} holds a run already")


def test_a_place_that_can_not_be_written_to_is_told_before_the_job(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "print('must not run')")
    (tmp_path / "file").write_text("not a folder")
    job = run_memlens("run", "--out", f"file://{tmp_path}/file/run", "train.py", cwd=tmp_path)
    assert (job.returncode, job.stdout) == (2, "")
    [line] = job.stderr.splitlines()
    assert line.startswith("memlens: cannot write to file://")


def test_a_job_whose_place_goes_away_trains_to_its_end(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        STEPS
        + """
import pathlib, shutil
train(3)
shutil.rmtree("bucket")
pathlib.Path("bucket").write_text("a file")
print("trained")
""",
    )
    job = run_memlens("run", "--out", f"file://{tmp_path}/bucket/run", "train.py", cwd=tmp_path)
    assert (job.returncode, job.stdout) == (0, "trained\n")
    [local] = (tmp_path / "memlens-runs").iterdir()
    assert f"it lies in {local / 'rank-00000'}" in job.stderr
    assert memlens.load(local).ranks[0].coverage.complete


def test_recording_from_code(tmp_path: Path) -> None:
    """The block ends at once, and the process waits for the copy when it ends itself."""
    write_script(
        tmp_path / "train.py",
        STEPS
        + """
import memlens
with memlens.profile() as session:
    train(2)
assert session.capture.ranks[0].peak().allocated_bytes
train(2)
""",
    )
    url = f"file://{tmp_path}/bucket/run"
    job = run_plain(sys.executable, "train.py", cwd=tmp_path, env={"MEMLENS_OUT": url})
    assert (job.returncode, job.stderr) == (0, "")
    assert memlens.load(url).ranks[0].coverage.complete
