"""Damaged captures: the right numbers or one line of error, never a traceback, a hang, wrong numbers."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tests.support.jobs import run_memlens
from tests.support.large import make_capture

import memlens
from memlens.cli import _exit_code
from memlens.disk.format import FORMAT_VERSION, read_json, write_json
from memlens.errors import CaptureError
from memlens.events import Category

Array = npt.NDArray[np.int64]

STREAMS = ["rank-00000/" + name for name in
           ("names.arrow", "marks.arrow", "tags.arrow", "events.arrow")]  # fmt: skip
FILES = ["run.json", "rank-00000/rank.json", *STREAMS]


@dataclass(frozen=True)
class Good:
    """A valid capture, and a copy of it that is damaged and mended again."""

    folder: Path
    closed: bool
    time_ns: Array
    allocated_bytes: Array


def report(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `memlens report FOLDER --json`."""
    code = _exit_code(["report", str(folder), "--json"])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module", params=["closed", "killed"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("damage") / "run"
    closed = request.param == "closed"
    [expected] = make_capture(folder, 1200, layers=8, batch_events=200, close=closed)
    rank = memlens.load(folder).ranks[0]
    assert rank.coverage.complete == closed
    timeline = rank.timeline()
    np.testing.assert_array_equal(timeline.allocated_bytes, expected.totals().sum(axis=1))
    return Good(folder, closed, timeline.time_ns, timeline.allocated_bytes)


def assert_right_or_refused(good: Good, capsys: pytest.CaptureFixture[str], original: str) -> str:
    """Look at the damaged folder. Returns "same", "prefix" or "refused"."""
    code, out, err = report(good.folder, capsys)
    if code == 2:
        assert out == ""
        [line] = err.splitlines()
        assert line.startswith("memlens: ")
        assert len(line) < 1000
        with pytest.raises(CaptureError):
            memlens.load(good.folder)
        return "refused"
    assert (code, err) == (0, "")
    if out == original:
        return "same"
    # A process that was killed leaves a beginning; another one may be left of that.
    assert not good.closed
    content = json.loads(out)
    [rank] = content["ranks"]
    assert not rank["coverage"]["complete"]
    assert content["warnings"] or rank["coverage"]["problems"]
    timeline = memlens.load(good.folder).ranks[0].timeline()
    count = len(timeline.time_ns)
    assert rank["events"] == count
    np.testing.assert_array_equal(timeline.time_ns, good.time_ns[:count])
    np.testing.assert_array_equal(timeline.allocated_bytes, good.allocated_bytes[:count])
    total = np.sum([timeline.categories[category] for category in Category], axis=0)
    np.testing.assert_array_equal(total, timeline.allocated_bytes)
    assert rank["peak"]["allocated_bytes"] == int(timeline.allocated_bytes.max(initial=0))
    assert sum(rank["peak"]["categories"].values()) == rank["peak"]["allocated_bytes"]
    return "prefix"


damages = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("overwrite"), st.floats(0, 1), st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("delete"), st.floats(0, 1), st.integers(1, 300)),
    st.tuples(st.just("truncate"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("zero"), st.floats(0, 1), st.integers(1, 4096)),
    st.tuples(st.just("swap"), st.floats(0, 1), st.floats(0, 1)),
)


def damage(data: bytes, kind: str, where: float, how: object) -> bytes:
    place = int(where * len(data))
    if kind == "flip":
        assert isinstance(how, int)
        return data[:place] + bytes([data[place] ^ 1 << how]) + data[place + 1 :]
    if kind == "overwrite":
        assert isinstance(how, bytes)
        return data[:place] + how + data[place + len(how) :]
    if kind == "insert":
        assert isinstance(how, bytes)
        return data[:place] + how + data[place:]
    if kind == "delete":
        assert isinstance(how, int)
        return data[:place] + data[place + how :]
    if kind == "zero":
        assert isinstance(how, int)
        return data[:place] + bytes(min(how, len(data) - place)) + data[place + how :]
    if kind == "swap":  # two stretches change places
        assert isinstance(how, float)
        first, second = sorted((place, int(how * len(data))))
        return data[:first] + data[second:] + data[first:second]
    return data[:place]


@given(name=st.sampled_from(FILES), change=damages)
@example(name="rank-00000/rank.json", change=("overwrite", 0.0, b'{"a": NaN}'))
@settings(
    max_examples=400,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damage_anywhere(
    good: Good,
    name: str,
    change: tuple[str, float, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = good.folder / name
    data = path.read_bytes()
    original = originals(good, capsys)
    try:
        path.write_bytes(damage(data, *change))
        assert_right_or_refused(good, capsys, original)
    finally:
        path.write_bytes(data)


_originals: dict[Path, str] = {}


def originals(good: Good, capsys: pytest.CaptureFixture[str]) -> str:
    """What `memlens report --json` prints of the whole capture."""
    if good.folder not in _originals:
        code, out, err = report(good.folder, capsys)
        assert (code, err) == (0, "")
        _originals[good.folder] = out
    return _originals[good.folder]


@pytest.mark.parametrize("name", FILES)
def test_truncated_to_any_length(good: Good, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = good.folder / name
    data = path.read_bytes()
    original = originals(good, capsys)
    seen = set()
    events = []
    try:
        # The last byte of the JSON files is a line feed, which may be missing.
        for length in sorted({*range(0, len(data) - 1, max(1, len(data) // 60)), *range(9)}):
            path.write_bytes(data[:length])
            outcome = assert_right_or_refused(good, capsys, original)
            seen.add(outcome)
            if outcome == "prefix":
                events.append(memlens.load(good.folder).ranks[0].events)
    finally:
        path.write_bytes(data)
    if good.closed or name not in STREAMS:
        assert seen == {"refused"}
    else:
        assert seen == {"prefix"}  # the more is left, the more can be read
        assert events == sorted(events)
        # All names are in the first batch, without which nothing can be told.
        assert events[-1] > 500 or name.endswith("names.arrow")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_missing(good: Good, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = good.folder / name
    data = path.read_bytes()
    original = originals(good, capsys)
    path.unlink()
    try:
        outcome = assert_right_or_refused(good, capsys, original)
    finally:
        path.write_bytes(data)
    # A killed process may have had no time to make all of them.
    assert outcome == ("refused" if good.closed or name not in STREAMS else "prefix")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "endless device", "link to itself", "link to nothing", "empty"]
)
def test_something_else_than_a_file(
    good: Good, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good.folder / name
    data = path.read_bytes()
    original = originals(good, capsys)
    path.unlink()
    try:
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "endless device":
            path.symlink_to("/dev/zero")
        elif kind == "link to itself":
            path.symlink_to(path)
        elif kind == "link to nothing":
            path.symlink_to(path.with_name("nothing"))
        else:
            path.write_bytes(b"")
        outcome = assert_right_or_refused(good, capsys, original)
    finally:
        shutil.rmtree(path) if kind == "folder" else path.unlink()
        path.write_bytes(data)
    if good.closed or name not in STREAMS or kind in ("folder", "pipe", "endless device"):
        assert outcome == "refused"


def test_a_link_to_a_file_is_as_good_as_the_file(
    good: Good, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    original = originals(good, capsys)
    (tmp_path / "link").symlink_to(good.folder)
    code, out, err = report(tmp_path / "link", capsys)
    assert (code, err) == (0, "")
    assert json.loads(out)["ranks"] == json.loads(original)["ranks"]


@pytest.mark.parametrize("source", STREAMS)
@pytest.mark.parametrize("target", STREAMS)
def test_files_in_each_others_place(
    good: Good, source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good.folder / target
    data = path.read_bytes()
    original = originals(good, capsys)
    try:
        path.write_bytes((good.folder / source).read_bytes())
        outcome = assert_right_or_refused(good, capsys, original)
    finally:
        path.write_bytes(data)
    assert outcome == ("same" if source == target else "refused")


@pytest.mark.parametrize("name", ["run.json", "rank-00000/rank.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"NaN",
        b"{'format': 'memlens-capture'}",
        b'{"format": "memlens-capture", "version": 1, "checksum": 0}',
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"version": ' + b"9" * 5_000 + b"}",
        b'{"version": 1e999}',
        b"\xff\xfe{\x00}\x00",
        b"\x00" * 10_000,
        b" " * 20_000_000 + b"{}",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_json_that_is_none_of_ours(
    good: Good, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good.folder / name
    data = path.read_bytes()
    original = originals(good, capsys)
    try:
        path.write_bytes(content)
        outcome = assert_right_or_refused(good, capsys, original)
    finally:
        path.write_bytes(data)
    assert outcome == "refused"


def test_lengths_in_arrows_own_headers(good: Good, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of rows and sizes of buffers, wherever they stand, made huge or negative."""
    original = originals(good, capsys)
    for name in STREAMS:
        path = good.folder / name
        data = path.read_bytes()
        places = [
            place
            for place in range(0, len(data) - 8, 8)
            if 0 < int.from_bytes(data[place : place + 8], "little") < 100_000
        ]
        assert len(places) > 5
        try:
            for place in places[:: max(1, len(places) // 40)]:
                for value in (2**40, 2**62, -1, -(2**63), 0):
                    changed = value.to_bytes(8, "little", signed=True)
                    path.write_bytes(data[:place] + changed + data[place + 8 :])
                    assert_right_or_refused(good, capsys, original)
        finally:
            path.write_bytes(data)


# -- no capture at all -------------------------------------------------------------------------


def test_folders_that_are_no_captures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/run.json").write_text('{"camera": "x"}')
    (tmp_path / "file").write_text("x")
    (tmp_path / "pickles/rank-00000").mkdir(parents=True)
    (tmp_path / "pickles/rank-00000/events.arrow").write_bytes(b"x")
    for name, text in {
        "empty": "not a memlens run",
        "photos": "not a memlens run",
        "file": "no such run folder",
        "pickles": "not a memlens run",
        "missing": "there is no run",
        "": "",
        "x" * 300: "",
        "nul\0": "",
    }.items():
        code, out, err = report(tmp_path / name if name else Path(), capsys)
        assert (code, out) == (2, ""), name
        [line] = err.splitlines()
        assert line.startswith("memlens: ")
        assert text in line


def test_a_folder_whose_name_is_no_text(
    good: Good, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of files are bytes; arrow opens only those that are UTF-8."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(good.folder, folder)
    code, out, err = report(folder, capsys)
    assert (code, out) == (2, "")
    assert "its name is not UTF-8" in err
    assert len(err.splitlines()) == 1


def test_another_version_says_both(good: Good, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run.json", "rank-00000/rank.json"):
        path = good.folder / name
        data = path.read_bytes()
        try:
            write_json(path, {**read_json(path)[0], "version": 7, "memlens": "9.9"})
            code, out, err = report(good.folder, capsys)
        finally:
            path.write_bytes(data)
        assert (code, out) == (2, "")
        assert f"has format version 7, and this memlens reads version {FORMAT_VERSION}" in err
        assert "9.9" in err


def test_real_processes_say_the_same(good: Good, tmp_path: Path) -> None:
    assert run_memlens("report", str(good.folder), "--json", cwd=tmp_path).returncode == 0
    path = good.folder / "rank-00000/events.arrow"
    data = path.read_bytes()
    try:
        path.write_bytes(data[:5000] + bytes(100) + data[5100:])
        for words in (["report"], ["report", "--json"], ["export", "--to", "tensorboard"]):
            job = run_memlens(words[0], str(good.folder), *words[1:], cwd=tmp_path)
            assert (job.returncode, job.stdout) == (2, "")
            [line] = job.stderr.splitlines()
            assert line.startswith("memlens: damaged capture: ")
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_can_not_be_opened(
    good: Good, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A link to itself, which refuses root as well; permissions would not."""
    path = good.folder / name
    aside = path.rename(tmp_path / "aside")
    path.symlink_to(path.name)
    try:
        assert assert_right_or_refused(good, capsys, "") == "refused"
    finally:
        path.unlink()
        aside.rename(path)
