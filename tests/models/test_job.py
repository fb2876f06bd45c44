"""The built-in job trains every kind of model, and memlens records it as any other job."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from tests.support.jobs import run_memlens, run_plain
from tests.support.small_models import SMALL

import memlens
from memlens.models.job import main
from memlens.models.table import MODELS


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in SMALL.items():
        monkeypatch.setitem(MODELS, name, shape)


def losses(output: str) -> list[float]:
    lines = [re.fullmatch(r"step (\d+) loss (\S+)", line) for line in output.splitlines()]
    assert [match and match[1] for match in lines] == [str(step) for step in range(len(lines))]
    return [float(match[2]) for match in lines if match]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_loss_falls(name: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    batch = "2" if SMALL[name].kind == "image" else "2x16"
    main(["--model", name, "--batch", batch, "--dtype", dtype, "--steps", "4", "--lr", "1e-2"])
    values = losses(capsys.readouterr().out)
    assert len(values) == 4
    assert all(math.isfinite(value) for value in values)
    assert values[-1] < 0.99 * values[0]


def test_the_seed_decides(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("1", "1", "2"):
        main(["--model", "gpt2", "--batch", "1x8", "--steps", "2", "--seed", seed])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "gpt3", "--batch", "1x8"], "no built-in model 'gpt3'; did you mean gpt2"),
        (["--model", "gpt2", "--batch", "8"], "a batch for gpt2 is samples x tokens"),
        (["--model", "gpt2", "--batch", "1x8", "--device", "tpux"], "torch knows no device 'tpux'"),
        (
            ["--model", "convnext-t", "--batch", "1", "--checkpointing"],
            "convnext-t cannot recompute",
        ),
        (
            ["--model", "gpt2", "--batch", "1x8", "--zero", "3", "--fsdp"],
            "--zero and --fsdp both spread the training state; give one of them",
        ),
        (
            ["--model", "gpt2", "--batch", "1x8", "--offload", "optimizer"],
            "--offload goes with --zero or --fsdp",
        ),
        (
            ["--model", "gpt2", "--batch", "1x8", "--zero", "2", "--offload", "all"],
            "--offload all moves parameters, which takes --zero 3",
        ),
    ],
)
def test_what_cannot_be_trained(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"memlens: {message}")
    assert output.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--fsdp", "--dtype", "bf16", "--checkpointing"),
        ("--zero", "1", "--accumulate", "2"),
        ("--zero", "3", "--offload", "all", "--dtype", "bf16"),
    ],
    ids=" ".join,
)
def test_the_loss_falls_on_two_ranks(words: tuple[str, ...], tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    job = ("-m", "memlens.models.job", "--model", "llama-60m", "--batch", "2x8", "--steps", "2")
    done = run_plain(sys.executable, *launcher, *job, *words, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    # The first rank speaks for all; DeepSpeed speaks as well.
    said = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    first, second = losses("\n".join(said))
    assert second < first


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "gpt2", "--batch", "1x8", "--device", "cuda:1"])
    assert "torch finds no CUDA device here, so not 'cuda:1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "must be a number from 1 on, not '0'"),
        ("--steps", "1.5", "must be a number from 1 on, not '1.5'"),
        ("--lr", "nan", "must be a number from 0 on, not 'nan'"),
        ("--lr", "fast", "must be a number from 0 on, not 'fast'"),
        ("--lr", "-1", "must be a number from 0 on, not '-1'"),
        ("--dtype", "fp8", "invalid choice: 'fp8'"),
    ],
)
def test_wrong_options(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--model", "gpt2", "--batch", "1x8", option, value])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_memlens_accounts_for_llama_60m_to_the_byte(tmp_path: Path) -> None:
    job = ("-m", "memlens.models.job", "--model", "llama-60m", "--batch", "1x8", "--steps", "2")
    done = run_memlens("run", "--no-stacks", "--out", "run", *job, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = losses(done.stdout)
    assert second < first

    (rank,) = memlens.load(tmp_path / "run").ranks
    peak = rank.peak()
    categories = {category.value: size for category, size in peak.categories.items()}
    assert sum(categories.values()) == peak.allocated_bytes
    parameters, tensors = 58_073_600, 8 * 9 + 3
    # Rotary frequencies: 32 in fp32, and as many kept as they were at first.
    assert categories["weight"] == 4 * parameters + 2 * 32 * 4
    # Two moments, and a count of steps for each tensor, in fp32.
    assert categories["optimizer_state"] == 2 * 4 * parameters + 4 * tensors
    assert categories["gradient"] == 4 * parameters
    assert categories["input"] == 8 * 8
    # AdamW goes tensor by tensor on the CPU: two copies of the largest weight (the head, the last
    # one), while that of the tensor before it (a norm) is still bound, and a few scalars.
    largest_bytes, norm_bytes = 4 * 32_000 * 512, 4 * 512
    assert 0 <= categories["optimizer_temporary"] - 2 * largest_bytes - norm_bytes < 64
    assert categories["unknown"] == 0
