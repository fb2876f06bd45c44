"""The recorder when it is interrupted: a heartbeat may drain between any two lines of Python."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.training import assert_sound
from torch import nn

import memlens
from memlens.disk.format import batch_checksum
from memlens.recording import heartbeat
from memlens.recording.recorder import Recorder
from memlens.recording.session import Session

WIDTH = 16


def recorder_of(session: Session) -> Recorder:
    recorder = session._recorder
    assert recorder is not None
    return recorder


@pytest.fixture
def beating_while_writing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A heartbeat comes while a batch is being made ready to be written."""
    original = batch_checksum
    beats: list[int] = []

    def checksum(*args: Any) -> Any:
        current = heartbeat._current
        if current is not None and len(beats) < 100:
            beats.append(len(beats))
            current.recorder.next_drain_ns = 0
            current.beat()
        return original(*args)

    monkeypatch.setattr("memlens.disk.writer.batch_checksum", checksum)
    return beats


@pytest.mark.usefixtures("source")
def test_a_heartbeat_during_the_census(beating_while_writing: list[int], tmp_path: Path) -> None:
    there_before = nn.Linear(WIDTH, WIDTH)
    with memlens.profile(out=tmp_path / "run") as session:
        there_before(torch.zeros(2, WIDTH)).sum().backward()

    assert beating_while_writing
    assert_sound(session.capture.ranks[0])


def test_a_heartbeat_while_what_was_held_back_is_written(
    beating_while_writing: list[int], tmp_path: Path
) -> None:
    """A process of which it shows late that it trains; `memlens run` starts all but the first so."""
    (tmp_path / "run").mkdir()
    options = memlens.profile(out=tmp_path / "run")._options
    session = Session(options, wait=True)
    with session:
        made = [torch.zeros(WIDTH) for _ in range(5)]
        recorder_of(session).drain()
        made.clear()
        recorder_of(session).drain()
        assert not recorder_of(session).is_open
        model = nn.Linear(WIDTH, WIDTH)
        model(torch.zeros(2, WIDTH)).sum().backward()
        assert recorder_of(session).is_open

    assert beating_while_writing
    rank = session.capture.ranks[0]
    assert_sound(rank)
    assert rank.coverage.lost_events == 0


@pytest.mark.parametrize("rows", ["_marks", "_tags", "names.pending"])
def test_a_row_that_is_noted_while_a_heartbeat_drains(rows: str, tmp_path: Path) -> None:
    """The list to append to is looked up, the heartbeat empties it, and then the row is appended."""
    with memlens.profile(out=tmp_path / "run") as session:
        recorder = recorder_of(session)
        owner: Any = recorder.names if "." in rows else recorder
        name = rows.rpartition(".")[2]
        nn.Linear(WIDTH, WIDTH)
        noted = getattr(owner, name)
        assert noted

        recorder.drain()

        assert noted == []
        assert getattr(owner, name) is noted


def test_a_free_that_is_noted_while_a_heartbeat_drains(tmp_path: Path) -> None:
    before = torch.zeros(WIDTH)
    with memlens.profile(out=tmp_path / "run") as session:
        recorder = recorder_of(session)
        watch: Any = recorder.source._watch  # type: ignore[attr-defined]
        del before
        noted = watch._freed
        assert len(noted) == 1

        recorder.drain()

        assert noted == []
        assert watch._freed is noted


def test_threads_of_the_engine_work_for_the_session_within_its_backward(tmp_path: Path) -> None:
    """On a GPU, hooks of autograd run on threads that Python has not started."""
    answers: dict[str, bool] = {}

    def ask(name: str) -> None:
        done = _thread.allocate_lock()
        done.acquire()

        def run() -> None:
            answers[name] = recorder.is_ours()
            done.release()

        _thread.start_new_thread(run, ())
        done.acquire()

    with memlens.profile(out=tmp_path / "run") as session:
        recorder = recorder_of(session)
        ask("outside")
        recorder.begin_backward(1)
        ask("within")
        recorder.begin_backward(2)
        pythons = threading.Thread(target=lambda: answers.update(python=recorder.is_ours()))
        pythons.start()
        pythons.join()
        recorder.backward = 0
        ask("after")
        assert recorder.is_ours()
    assert answers == {"outside": False, "within": True, "python": False, "after": False}
