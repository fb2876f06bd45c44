"""`memlens estimate`: the table, the JSON and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from rich.cells import cell_len

from memlens.cli import main
from memlens.models.table import MODELS

PROBE = """
import sys
from memlens.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted(set(sys.modules) & {"torch", "transformers", "bitsandbytes"}), file=sys.stderr)
"""


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `memlens estimate …`."""
    with pytest.raises(SystemExit) as exit_:
        main(["estimate", *words])
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


@pytest.mark.parametrize("words", [("--params", "7B"), ("--model", "llama-7b", "--json")])
def test_it_is_quick_and_imports_no_library(words: tuple[str, ...]) -> None:
    def answer(*arguments: str) -> tuple[float, str]:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=60
        )
        return time.perf_counter() - start, done.stderr

    # The best of five, because other tests may be busy beside us.
    bare = min(answer("-c", "pass")[0] for _ in range(5))
    answers = [answer("-c", PROBE, "estimate", *words) for _ in range(5)]
    assert {stderr for _, stderr in answers} == {"[]\n"}
    assert min(seconds for seconds, _ in answers) - bare < 1.0


def test_the_published_table_of_7b(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    names = "adamw,adamw8bit,adafactor,sgd-momentum"
    code, out, err = call(capsys, "--params", "7B", "--optimizer", names, "--gpu", "80GB")
    assert (code, err) == (0, "")
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["adamw"] == ["14.00", "28.00", "14.00", "56.00", "112.0", "104.31", "GiB", "2"]
    assert rows["adamw8bit"][3:5] == ["14.23", "70.23"]
    assert rows["adafactor"][3:5] == ["0.05", "56.05"]
    assert rows["sgd-momentum"][3:5] == ["28.00", "84.00"]
    assert [rows[name][-1] for name in names.split(",")] == ["2", "1", "1", "2"]
    assert max(map(cell_len, out.splitlines())) <= 100


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--params", "7e9", "--optimizer", "adamw-foreach", "--zero", "2", "--gpus", "8")
    code, out, _ = call(capsys, *words, "--gpu", "A100 80GB", "--json")
    assert code == 0
    payload = json.loads(out)
    (adamw,) = payload.pop("optimizers")
    assert payload == {
        "estimate": True,
        "parameters": 7_000_000_000,
        "precision": "mixed",
        "zero": 2,
        "gpus": 8,
        "gpu": "A100 80GB",
        "usable_bytes": 79 << 30,
    }
    assert adamw == {
        "name": "adamw-foreach",
        "precision": "mixed",
        "no_retain_grad": False,
        "weight_bytes": 14_000_000_000,
        "master_weight_bytes": 3_500_000_000,
        "gradient_bytes": 1_750_000_000,
        "optimizer_state_bytes": adamw["optimizer_state_bytes"],
        "optimizer_temporary_bytes": adamw["optimizer_temporary_bytes"],
        "total_without_activations_bytes": 19_250_000_000 + adamw["optimizer_state_bytes"],
        "state_source": "measured",
        "cards": 2,
    }
    # Its counters, of 4 bytes per tensor, come on top.
    assert adamw["optimizer_state_bytes"] == pytest.approx(7_000_000_000, rel=1e-6)
    assert adamw["optimizer_temporary_bytes"] == pytest.approx(3_500_000_000, rel=1e-4)


@pytest.mark.parametrize("name", ["llama-7b", "llama-60m"])
def test_a_model_by_its_name(capsys: pytest.CaptureFixture[str], name: str) -> None:
    _, out, _ = call(capsys, "--model", name, "--json")
    assert json.loads(out)["parameters"] == MODELS[name].published_parameters
    assert name in call(capsys, "--model", name)[1]


def test_without_retained_gradients_where_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "--params", "7B", "--no-retain-grad", "--json")
    found = {each["name"]: each["no_retain_grad"] for each in json.loads(out)["optimizers"]}
    assert found == {
        "adamw": True, "adamw8bit": True, "adafactor": True, "lion": False, "sgd": True,
    }  # fmt: skip
    _, out, _ = call(capsys, "--params", "7B", "--optimizer", "adamw,adamw+no-retain-grad")
    lines = [line.split() for line in out.splitlines() if line.startswith("adamw")]
    assert [words[0] for words in lines] == ["adamw", "adamw+no-retain-grad"]
    assert lines[1][3] == "-"


def test_a_card_that_never_holds_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--params", "70B", "--zero", "2", "--gpus", "8", "--gpu", "4090")
    _, out, _ = call(capsys, *words)
    assert "never" in out and "partitions are flat" in out
    _, out, _ = call(capsys, *words, "--json")
    assert {each["cards"] for each in json.loads(out)["optimizers"]} == {None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --params"),
        (("--params", "7B", "--model", "llama-7b"), "give either --params"),
        (("--params", "seven"), "not a number of parameters: 'seven'"),
        (("--params", "0"), "at least one parameter"),
        (("--model", "llama-7x"), "no built-in model 'llama-7x'; did you mean llama-7b"),
        (("--params", "7B", "--gpus", "8"), "--gpus shares memory only with --zero"),
        (("--params", "7B", "--zero", "4"), "4 is not in the range"),
        (("--params", "7B", "--precision", "fp8"), "'fp8' is not one of"),
        (("--params", "7B", "--gpu", "a100"), "did you mean A100 40GB or A100 80GB?"),
        (("--params", "7B", "--gpu", "1MB"), "too small"),
        (("--params", "7B", "--optimizer", "adamm"), "no optimizer 'adamm'"),
        (("--params", "7B", "--optimizer", "galore-adamw:rank=4"), "default options"),
        (("--params", "7B", "--optimizer", "as-is"), "default options"),
        (("--params", "7B", "--optimizer", "muon", "--zero", "1"), "muon cannot run under ZeRO 1"),
        (("--params", "7B", "--optimizer", "lion+no-retain-grad"), "lion cannot update within"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("memlens: ") and err.count("\n") == 1
    assert message in err
