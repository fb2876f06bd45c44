"""A logdir behind a URL: what is copied, when, and what it says when it can not be reached."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.large import make_capture

import memlens
from memlens.errors import CaptureError
from memlens.web import library as library_module
from memlens.web.library import Library
from memlens.web.questions import answer
from memlens.web.scan import Folder

pytest.importorskip("fsspec")
remote = pytest.importorskip("memlens_integrations.tensorboard.remote")
files = remote._files()  # imported here: it leaves traces in the interpreter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies go here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    make_capture(folder / "exp 1" / "run", events=9_000, ranks=2)
    (folder / "exp 1" / "run" / "rank-00000" / "notes.txt").write_text("not ours")
    (folder / "exp 1" / "run" / ".hidden").mkdir()
    (folder / "other" / "deeper").mkdir(parents=True)
    return folder


def copied(folder: Path) -> list[str]:
    """Names of all files that were copied so far."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_streams_are_copied_when_a_rank_is_opened(
    runs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "LOOK_EVERY_S", 0)
    place = remote.RemoteFolder(f"file://{runs}")
    library = Library([place])
    library.search(wait=True)
    assert library.keys() == ["exp 1/run"]
    assert copied(cache) == []
    assert answer(library, "runs", {})[0] == 200
    assert copied(cache) == ["rank.json", "rank.json", "run.json"]
    opened = library.rank("exp 1/run", "1")
    streams = ["events.arrow", "marks.arrow", "names.arrow", "tags.arrow"]
    assert copied(cache) == sorted([*streams * 2, "rank.json", "rank.json", "run.json"])
    expected = memlens.load(runs / "exp 1" / "run").rank(1).peak()
    assert opened.peak["allocated_bytes"] == expected.allocated_bytes

    def no_stream(url: str, *arguments: Any) -> Any:
        assert not url.endswith(".arrow")
        return files.GFile(url, *arguments)

    monkeypatch.setattr(
        remote,
        "_files",
        lambda: type(
            "Files",
            (),
            {
                "GFile": staticmethod(no_stream),
                "stat": staticmethod(files.stat),
                "listdir": staticmethod(files.listdir),
                "isdir": staticmethod(files.isdir),
            },
        ),
    )
    assert library.rank("exp 1/run", "1") is opened  # looked at again, and nothing copied


@pytest.mark.parametrize("events", [20_000, 9_000])
def test_what_has_changed_is_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    monkeypatch.setattr(library_module, "LOOK_EVERY_S", 0)
    monkeypatch.setattr(library_module, "RELOAD_AFTER_S", 0)
    monkeypatch.setattr(library_module, "_LOADS_BETWEEN", 0)
    make_capture(tmp_path / "runs" / "run", events=9_000, ranks=1, close=False)
    library = Library([remote.RemoteFolder(f"file://{tmp_path}/runs", "name")])
    library.search(wait=True)
    before = library.rank("name/run", "0").rank.header
    shutil.rmtree(tmp_path / "runs" / "run")
    # Also where the streams are as long as before, but of another process.
    make_capture(tmp_path / "runs" / "run", events=events, ranks=1)
    library._looked_s["name/run"] = float("-inf")
    after = library.rank("name/run", "0")
    assert after.rank.header != before
    expected = memlens.load(tmp_path / "runs" / "run").rank(0)
    assert after.peak["allocated_bytes"] == expected.peak().allocated_bytes
    assert len(after.blocks.time_ns) == expected.events


def test_what_can_not_be_reached_is_a_sentence(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/nowhere", "nothing-like-this://x/y", "gs://bucket/logs"):
        found = remote.RemoteFolder(url).find()
        assert found.runs == {}
        assert found.problems[0].startswith(f"cannot read {url}: ")
    with pytest.raises(CaptureError, match="cannot read file://"):
        remote.RemoteFolder(f"file://{tmp_path}").bring(f"file://{tmp_path}/gone", whole=True)


def test_a_wide_tree_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_FOLDERS", 10)
    for number in range(20):
        (tmp_path / str(number)).mkdir()
    assert "was not looked at" in remote.RemoteFolder(f"file://{tmp_path}").find().problems[0]


def test_where_tensorboard_looks() -> None:
    places = pytest.importorskip("memlens_integrations.tensorboard.places")

    def parts(logdir: str, spec: str | None) -> list[Any]:
        context = type(
            "Context", (), {"logdir": logdir, "flags": type("F", (), {"logdir_spec": spec})}
        )
        return list(places.places_of(context))

    assert parts("/logs", None) == [Folder(Path("/logs"))]
    assert parts("", "a:/x,/y:z,b:c:d") == [
        Folder(Path("/x"), "a"),
        Folder(Path("/y:z")),
        Folder(Path("c:d").resolve(), "b"),
    ]
    [place] = parts("s3://bucket/logs", None)
    assert isinstance(place, remote.RemoteFolder)
    assert parts("", None) == parts("", "") == []
