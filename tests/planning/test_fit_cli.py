"""`memlens plan --fit`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.jobs import run_memlens, write_script
from tests.support.plan_jobs import TINY

MODEL = ("--model", "llama-60m", "--batch", "1x16", "--dtype", "bf16", "--steps", "2")


@pytest.mark.slow
def test_the_fewest_are_verified(tmp_path: Path) -> None:
    words = ["plan", "--fit", "--capacity", "700MiB", *MODEL, "--zero", "2", "--fsdp"]
    words += ["--optimizer", "adamw,galore-adamw", "--out", "fit"]
    # One of the two kinds of sharding is simulated, and one optimizer under it.
    done = run_memlens(*words, "--json", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    found = {
        (each["optimizer"], each["sharding"]): each for each in json.loads(done.stdout)["answers"]
    }
    assert len(found) == 4

    # DeepSpeed's bucket alone is 5e8 elements of two bytes, on every GPU.
    never = found["adamw", "zero2"]
    assert (never["gpus"], never["tries"]) == (None, [])
    assert never["stays_bytes"]["communication"] == 10**9
    assert "flat partitions have none" in found["galore-adamw", "zero2"]["refused"]

    for name in ("adamw", "galore-adamw"):
        answer = found[name, "fsdp"]
        tries = {each["size"]: each for each in answer["tries"]}
        fewest = answer["gpus"]
        assert fewest > 1
        assert tries[fewest]["fits"]
        assert not tries[fewest - 1]["fits"]
        assert answer["reserved_peak_bytes"] == tries[fewest]["verdict"]["reserved_peak_bytes"]

    # The same for people; all of it is on disk by now.
    done = run_memlens(*words, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0].startswith("700MiB, 700.00 MiB usable: the fewest on which --model llama-60m ")
    assert (
        "ZeRO 2 adamw - does not fit on any number: each holds communication 953.67 MiB, "
        "weight 110.77 MiB" in lines
    )
    assert any(line.startswith(f"FSDP adamw {found['adamw', 'fsdp']['gpus']} ") for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fit", *MODEL), "--fit needs a card; name one with --gpu or --capacity"),
        (
            ("--fit", "--gpu", "24GB", "--world-size", "4", *MODEL),
            "--fit finds the number of GPUs; leave --world-size out",
        ),
        (
            ("--fit", "--gpu", "24GB", "--zero", "2,4", *MODEL),
            "not a stage of ZeRO: '4'",
        ),
        (("--zero", "1,2", *MODEL), "one plan is of one of them; several go with --fit"),
        (
            ("--fit", "--gpu", "24GB", "--", "torchrun", "tiny.py"),
            "--world-size simulates one rank, and torchrun would start several",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    write_script(tmp_path / "tiny.py", TINY)
    done = run_memlens("plan", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
