"""Which rank of how many is simulated, and what is refused before anything is."""

from __future__ import annotations

from pathlib import Path

import pytest

from memlens.cli import main
from memlens.errors import UsageError
from memlens.planning.ranks import Ranks, refuse_launcher

MODEL = ("--model", "llama-60m", "--batch", "1x8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--world-size", "4", "--rank", "4", *MODEL), "there is no rank 4 of 4"),
        (("--rank", "1", *MODEL), "--rank says which of --world-size; give both"),
        (("--world-size", "4", *MODEL), "--world-size needs to know how: --zero or --fsdp"),
        (("--zero", "1,2", *MODEL), "ZeRO 1, ZeRO 2: one plan is of one of them"),
        (("--zero", "3", "--fsdp", *MODEL), "ZeRO 3, FSDP: one plan is of one of them"),
        (("--zero", "4", *MODEL), "not a stage of ZeRO: '4'"),
        (("--zero", "2", "--optimizer", "galore-adamw", *MODEL), "cannot run under ZeRO 2"),
        (
            ("--world-size", "2", "--", "torchrun", "--nproc-per-node", "2", "train.py"),
            "torchrun would start several: give the script without it",
        ),
    ],
)
def test_refused(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_rank_is_told_what_a_launcher_tells() -> None:
    told = Ranks(64, 3).environment
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"]) == ("3", "64", "0")


def test_a_launcher_is_known_by_its_name() -> None:
    refuse_launcher(())
    refuse_launcher(("python", "torchrun"))
    with pytest.raises(UsageError, match="deepspeed would start several"):
        refuse_launcher(("/opt/bin/deepspeed", "train.py"))
