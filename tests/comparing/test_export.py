"""`memlens export` of a comparison's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support.fake_comparison import COMPARISONS, SIX

from memlens.cli import main
from memlens.comparing.outputs.files import write_json
from memlens.comparing.read import is_comparison, read_comparison
from memlens.errors import CaptureError


def exported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["export", *arguments])
    told = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, told.out, told.err


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_was_written_is_read_again(name: str, tmp_path: Path) -> None:
    write_json(COMPARISONS[name], tmp_path / "comparison.json")
    assert is_comparison(tmp_path)
    ours, again = COMPARISONS[name].to_json(), read_comparison(tmp_path).to_json()
    for each in (ours, again):
        each["folder"] = None
        for variant in each["variants"]:
            variant["verdict"] = None
    assert again == ours


def test_every_variant_has_a_row_of_hyperparameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(SIX, tmp_path / "comparison.json")
    code, out, _ = exported([str(tmp_path), "--to", "tensorboard"], capsys)
    assert code == 0
    assert out.endswith(f"open with: tensorboard --logdir {tmp_path / 'tensorboard'}\n")
    [place] = (tmp_path / "tensorboard").iterdir()
    runs = [run for run in place.iterdir() if run.name != "comparison"]
    assert len(runs) == len(SIX.results)
    for run in runs:
        accumulator = EventAccumulator(str(run))
        accumulator.Reload()
        assert accumulator.PluginTagToContent("hparams")
    accumulator = EventAccumulator(str(place / "adamw"))
    accumulator.Reload()
    assert len(accumulator.Scalars("loss")) == len(SIX.result("adamw").losses) > 1


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(SIX, tmp_path / "comparison.json")
    exported([str(tmp_path), "--to", "tensorboard"], capsys)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = exported([str(tmp_path), "--to", "tensorboard"], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "already there and is never overwritten" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_other_targets_name_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(SIX, tmp_path / "comparison.json")
    code, _, err = exported([str(tmp_path), "--to", "parquet"], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "is a comparison" in err
    assert SIX.result("adamw").run in err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"variants": [{"name": 1}]}', "\udc80"])
def test_a_damaged_one_is_said_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "comparison.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CaptureError, match="cannot be read"):
        read_comparison(tmp_path)
    code, _, err = exported([str(tmp_path), "--to", "tensorboard"], capsys)
    assert (code, err.count("\n")) == (2, 1)
