"""`memlens export`: what all targets have in common."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.small_runs import two_ranks

from memlens.cli import main
from memlens.errors import UsageError
from memlens.exporters import EXPORTERS, export


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["export", *arguments])
    told = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, told.out, told.err


def test_help_has_a_line_for_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 80 columns, so that nothing wraps."""
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    targets = out.split("Targets:\n")[1].splitlines()
    assert [re.split(r"\s{2,}", line.strip()) for line in targets] == [
        [name, each.text] for name, each in EXPORTERS.items()
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--to", "parquet"], "there is no run nowhere"),
        (["nowhere", "--to", "excel"], "'excel' is not one of"),
        (["nowhere"], "Missing option '--to'"),
        ([".", "--to", "csv"], "not a memlens run"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(arguments, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


@pytest.mark.parametrize("to", EXPORTERS)
def test_no_target_overwrites_or_leaves_half_a_result(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = two_ranks(tmp_path / "run")
    (tmp_path / "mine").write_text("mine")
    code, _, err = run([str(capture.path), "--to", to, "--out", str(tmp_path / "mine")], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(UsageError, match="cannot write to"):
        export(capture, to, tmp_path / "mine" / "below")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "mine"}
