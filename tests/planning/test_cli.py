"""`memlens plan`, `memlens compare --plan` and `memlens advise`, as a user calls them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from tests.support.jobs import run_memlens, write_script
from tests.support.plan_jobs import NO_WORKSPACE, TINY, WITHOUT_CUDA

MIB = 2**20


def memlens(*words: str, cwd: Path) -> CompletedProcess[str]:
    return run_memlens(*words, cwd=cwd, env=NO_WORKSPACE, timeout=600)


def answer(*words: str, cwd: Path, code: int = 0) -> Any:
    done = memlens(*words, cwd=cwd)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def plan(*words: str, cwd: Path, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = answer("plan", "--json", *words, cwd=cwd, code=code)
    return found


def refused(*words: str, cwd: Path) -> str:
    """The only line that it says."""
    done = memlens(*words, cwd=cwd)
    assert done.returncode in (1, 2), done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("memlens: ")]
    assert len(lines) == 1, done.stderr
    assert "internal error" not in lines[0]
    assert "Traceback" not in done.stderr
    return lines[0]


def test_where_a_card_would_run_out(tmp_path: Path) -> None:
    write_script(tmp_path / "tiny.py", TINY)
    words = ("--capacity", "30MiB", "--steps", "2", "--out", "p", "tiny.py", "8")
    found = plan(*words, cwd=tmp_path)["plan"]

    # Weights, gradients, two moments and the temporary of foreach fill a segment of 20 MiB each; all the
    # rest is in a small one of 2 MiB.
    assert found["steps"] == 2
    assert found["reserved_peak_bytes"] == 102 * MIB
    verdict = found["verdict"]
    assert verdict["usable_bytes"] == 30 * MIB
    assert verdict["fits"] is False
    assert verdict["headroom_bytes"] == -72 * MIB
    short = verdict["shortage"]
    assert (short["step"], short["phase"], short["module"]) == (0, "backward", "4")
    assert (short["name"], short["category"]) == ("4.weight", "gradient")
    assert short["requested_bytes"] == 4 * MIB
    assert short["reserved_bytes"] == 22 * MIB
    assert short["categories"]["weight"] == 20 * MIB
    assert short["categories"]["gradient"] == 0
    assert short["categories"]["unknown"] == 0
    assert sum(short["categories"].values()) == short["allocated_bytes"] < 21 * MIB
    assert [each["line"] for each in short["stack"] if "tiny.py" in each["file"]] == [12]

    # The same for people, and one segment further.
    done = memlens(
        "plan", "--capacity", "50MiB", *words[2:4], "--out", "q", "tiny.py", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("50MiB, 50.00 MiB usable: does not fit, 52.00 MiB are missing\n")
    assert (
        "out in step 0, optimizer: 4.00 MiB for the optimizer's exp_avg of 0.weight" in done.stdout
    )
    assert "tiny.py:13 in <module>" in done.stdout


@pytest.mark.slow
def test_the_largest_batch_is_verified(tmp_path: Path) -> None:
    write_script(tmp_path / "tiny.py", TINY)
    words = ("--capacity", "150MiB", "--steps", "1", "--no-stacks")
    found = plan("--max-batch", "--multiple-of", "256", *words, "tiny.py", "{}", cwd=tmp_path)

    assert set(found) == {
        "what", "gpu", "total_bytes", "usable_bytes", "largest", "next", "end", "tries",
    }  # fmt: skip
    assert found["what"] == "batch"
    largest, after = found["largest"], found["next"]
    assert largest > 0
    assert after == largest + 256
    assert {each["size"] % 256 for each in found["tries"]} == {0}
    by_size = {each["size"]: each for each in found["tries"]}
    assert by_size[largest]["fits"]
    assert not by_size[after]["fits"]
    # The update is the peak of small batches, so the peak is flat at first, and then affine.
    assert len(by_size) == len(found["tries"]) <= 12
    for size in (largest, after):
        one = plan(*words, "--out", f"at-{size}", "tiny.py", str(size), cwd=tmp_path)["plan"]
        assert one["verdict"] == by_size[size]["verdict"]
        assert one["reserved_peak_bytes"] == by_size[size]["reserved_peak_bytes"]

    # All is on disk now; nothing is simulated again.
    done = memlens(
        "plan", "--max-batch", "--multiple-of", "256", *words, "tiny.py", "{}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert f"the largest that fits is a batch of {largest}" in done.stdout
    assert done.stdout.count("(from an earlier call)") == len(by_size)


def test_a_simulated_comparison(tmp_path: Path) -> None:
    write_script(tmp_path / "tiny.py", TINY)
    words = ("compare", "--plan", "--gpu", "1174MiB", "--steps", "1", "tiny.py", "--optimizer")
    found = answer(*words, "adamw,adamw-r", "--json", cwd=tmp_path)

    assert (found["device"], found["simulated"]) == ("simulated 1174MiB", True)
    adamw, reuse = found["variants"]
    assert adamw["reserved_peak_bytes"] == 102 * MIB
    assert reuse["reserved_peak_bytes"] == 82 * MIB
    assert adamw["peak"]["categories"]["optimizer_temporary"] == 20 * MIB
    for each in found["variants"]:
        assert each["status"] == "ok"
        assert each["replaced"] == ["AdamW"]
        assert each["step_time_ns"] is each["final_loss"] is each["step_time_ratio"] is None
        assert each["verdict"]["fits"] is True
        assert each["verdict"]["usable_bytes"] == 150 * MIB
    folder = Path(found["folder"])
    assert "simulated 1174MiB" in (folder / "chart.svg").read_text()
    with (folder / "comparison.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["reserved_peak_bytes"], row["fits"]) == ("106954752", "true")

    # Kept for the same card and settings, and for no others.
    again = answer(*words, "adamw,adamw-r", "--json", cwd=tmp_path)
    assert [each["reused"] for each in again["variants"]] == [True, True]
    other = [*words]
    other[other.index("1174MiB")] = "1104MiB"
    done = memlens(*other, "adamw-r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "from an earlier call" not in done.stdout
    assert "it runs out in step 0, " in done.stdout
    assert "Time and loss" not in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("plan --max-batch tiny.py {}", "needs a card; name one with --gpu"),
        ("plan --max-batch --gpu 24GB tiny.py 8", "write {} in its place"),
        ("plan --gpu RTX4091 tiny.py", "no card 'RTX4091'; did you mean RTX 4090"),
        ("plan --settings nonsense:1 tiny.py", "nonsense"),
        ("plan --multiple-of 8 tiny.py", "--multiple-of goes with --max-batch"),
        ("plan --no-retain-grad tiny.py", "--no-retain-grad goes with --optimizer"),
        ("plan --optimizer adanw tiny.py", "no optimizer 'adanw'"),
        ("plan there-is-none.py", "there-is-none.py"),
        ("advise tiny.py", "name one with --gpu or --capacity"),
        ("advise --gpu T5 tiny.py", "no card 'T5'"),
        ("compare --gpu T4 tiny.py", "--gpu goes with --plan"),
        ("compare --plan --gpu T5 tiny.py", "no card 'T5'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words: str, says: str, tmp_path: Path) -> None:
    write_script(tmp_path / "tiny.py", TINY)
    assert says in refused(*words.split(), cwd=tmp_path)
    assert not (tmp_path / "memlens-runs").exists()


def test_a_job_that_never_uses_cuda(tmp_path: Path) -> None:
    write_script(tmp_path / "cpu.py", WITHOUT_CUDA)
    assert "allocated nothing on a CUDA device" in refused("plan", "cpu.py", cwd=tmp_path)


def test_a_job_that_fails(tmp_path: Path) -> None:
    write_script(tmp_path / "bad.py", TINY + "\nraise ValueError('in vain')")
    line = refused("plan", "--max-batch", "--gpu", "T4", "bad.py", "{}x", cwd=tmp_path)
    assert "ValueError: invalid literal for int()" in line


def test_options_of_a_job_stay_its_own(tmp_path: Path) -> None:
    """A script's own --steps and --gpu, behind its name, are no business of ours."""
    write_script(tmp_path / "echo.py", "import sys\nraise SystemExit(' '.join(sys.argv[1:]))")
    words = ("echo.py", "--steps", "7", "--gpu=3", "--plan", "--optimizer", "adamw")
    done = memlens("compare", *words, "--json", cwd=tmp_path)
    (variant,) = json.loads(done.stdout)["variants"]
    assert variant["reason"].endswith("--steps 7 --gpu=3 --plan")
    done = memlens("compare", "--plan", "--steps", "2", *words, "--json", cwd=tmp_path)
    (variant,) = json.loads(done.stdout)["variants"]
    assert variant["reason"].endswith("--steps 7 --gpu=3 --plan")


def test_advice_for_a_script(tmp_path: Path) -> None:
    write_script(tmp_path / "tiny.py", TINY)
    words = ("advise", "--json", "--steps", "1", "tiny.py")
    found = answer(*words[:2], "--capacity", "90MiB", *words[2:], cwd=tmp_path)

    assert set(found) == {"job", "verdict", "recommended", "options"}
    assert found["verdict"]["fits"] is False
    options = {" + ".join(c["name"] for c in each["changes"]): each for each in found["options"]}
    unchanged = options[""]
    assert unchanged["reserved_peak_bytes"] == 102 * MIB
    # Segments that expand do so by 20 MiB, which is no less. Without the temporary there is one less.
    assert found["recommended"] == ["adamw-fused"]
    fused = options["adamw-fused"]
    assert fused["fits"] is True
    assert (fused["reserved_peak_bytes"], fused["saving_bytes"]) == (82 * MIB, 20 * MIB)
    assert options["expandable-segments"]["fits"] is False
    assert fused["changes"][0]["price"] == "nothing"
    assert "optim.html" in fused["changes"][0]["source"]
    assert options["adamw8bit"]["reason"] == "not tried, as something cheaper is enough"
    # The peak is in step(): there are no activations to give up.
    assert options["checkpointing"]["reason"].startswith("no use")
    assert options["adamw-fused"]["bound_bytes"] <= fused["allocated_peak_bytes"]

    # On a card that holds it, there is nothing to change, and nothing is tried.
    fits = answer(*words[:2], "--capacity", "110MiB", *words[2:], cwd=tmp_path)
    assert fits["recommended"] == []
    assert len(fits["options"]) == 1


@pytest.mark.slow
def test_advice_takes_two_changes_where_one_is_not_enough(tmp_path: Path) -> None:
    words = ("--model", "llama-60m", "--batch", "4x256", "--steps", "2", "--json")
    found = answer("advise", "--capacity", "800MiB", *words, cwd=tmp_path)
    assert len(found["recommended"]) >= 2
    best = next(
        each
        for each in found["options"]
        if [change["name"] for change in each["changes"]] == found["recommended"]
    )
    assert best["fits"]
    assert best["reserved_peak_bytes"] < found["options"][0]["reserved_peak_bytes"]
    # Nothing fits on next to nothing; that is an answer, too.
    none = answer("advise", "--capacity", "100MiB", *words, cwd=tmp_path)
    assert none["recommended"] is None
    done = memlens("advise", "--capacity", "100MiB", *words[:-1], cwd=tmp_path)
    assert done.returncode == 0
    assert "Nothing that was tried makes it fit." in done.stdout


@pytest.mark.slow
def test_the_largest_of_a_built_in_job(tmp_path: Path) -> None:
    words = ("--model", "llama-60m", "--batch", "1x256", "--steps", "2", "--no-stacks")
    found = plan("--max-tokens", "--gpu", "RTX 3060", *words, cwd=tmp_path)
    assert found["next"] == found["largest"] + 64
    models = plan("--max-model", "--gpu", "RTX 3060", *words, cwd=tmp_path)
    assert (models["largest"], models["next"]) == ("llama-350m", "llama-1b")
