"""`memlens compare` on real scripts, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import run_memlens, start_memlens, write_script

import memlens
from memlens.events import Category

FLOAT = 4
WIDTH, LAYERS = 128, 6
ELEMENTS = LAYERS * (WIDTH * WIDTH + WIDTH)
MODEL = FLOAT * ELEMENTS

SCRIPT = f"""
import sys
import torch
from torch.optim import AdamW

torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear({WIDTH}, {WIDTH}) for _ in range({LAYERS})))
optimizer = AdamW(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 10)
x = torch.randn(2, {WIDTH})
for step in range(5):
    loss = (model(x) - x).square().mean()
    loss.backward()
    EXTRA
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    print("step", step, sys.argv[1:])
"""


def script(folder: Path, extra: str = "pass", name: str = "train.py") -> Path:
    return write_script(folder / name, SCRIPT.replace("EXTRA", extra))


def compare(*words: str, cwd: Path, code: int = 0) -> dict[str, Any]:
    done = run_memlens("compare", "--json", *words, cwd=cwd)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def by_name(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in comparison["variants"]}


def test_an_unchanged_script_under_several_optimizers(tmp_path: Path) -> None:
    script(tmp_path)
    words = ("train.py", "--mine", "7", "--optimizer", "adamw-foreach", "--optimizer")
    found = compare(*words, "adamw-loop,sgd,adamw-r", cwd=tmp_path)

    assert found["baseline"] == "adamw-foreach"
    variants = by_name(found)
    assert list(variants) == ["adamw-foreach", "adamw-loop", "sgd", "adamw-r"]
    for each in variants.values():
        assert each["status"] == "ok"
        assert each["replaced"] == ["AdamW"]
        assert each["steps"] == 5
        assert sum(each["peak"]["categories"].values()) == each["peak"]["allocated_bytes"]
        assert each["peak"]["categories"]["unknown"] == 0
        base = variants["adamw-foreach"]
        change = each["peak"]["allocated_bytes"] - base["peak"]["allocated_bytes"]
        assert each["peak_difference_bytes"] == change
        assert each["step_time_ratio"] == each["step_time_ns"] / base["step_time_ns"]
    # foreach copies the model once within step(), a loop a layer at most three times, -R nothing.
    at_peak = {name: each["peak"]["categories"] for name, each in variants.items()}
    assert MODEL <= at_peak["adamw-foreach"]["optimizer_temporary"] < MODEL + 1024
    assert at_peak["adamw-loop"]["optimizer_temporary"] <= 3 * MODEL // LAYERS
    assert at_peak["adamw-r"]["optimizer_temporary"] < 1024
    assert at_peak["sgd"]["optimizer_state"] == 0
    # The same arithmetic, so the same losses; the job's own arguments are the job's own.
    losses = {each["final_loss"] for name, each in variants.items() if name != "sgd"}
    assert len(losses) == 1
    assert "['--mine', '7']" in (Path(variants["sgd"]["run"]).parent / "output.txt").read_text()


def test_a_variant_is_the_job_with_another_line(tmp_path: Path) -> None:
    """The peak is what the script has that constructs this very optimizer, to the byte."""
    plain = SCRIPT.replace("AdamW(model.parameters(), lr=1e-3)", "CLASS").replace("EXTRA", "pass")
    write_script(tmp_path / "train.py", SCRIPT.replace("EXTRA", "pass"))
    write_script(
        tmp_path / "by_hand.py",
        plain.replace("CLASS", "torch.optim.Adagrad(model.parameters(), lr=1e-2, foreach=True)"),
    )
    variants = by_name(compare("train.py", "--optimizer", "adagrad-foreach,as-is", cwd=tmp_path))
    for name, by_hand in (("adagrad-foreach", "by_hand.py"), ("as-is", "train.py")):
        done = run_memlens("run", "--out", name, by_hand, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        peak = memlens.load(tmp_path / name).ranks[0].peak()
        assert variants[name]["peak"]["allocated_bytes"] == peak.allocated_bytes
        assert variants[name]["peak"]["categories"] == {
            category.value: size for category, size in peak.categories.items()
        }


def test_no_retained_gradients(tmp_path: Path) -> None:
    script(tmp_path)
    names = "adamw-loop,adamw-loop+no-retain-grad,sophia"
    variants = by_name(compare("train.py", "--optimizer", names, cwd=tmp_path))

    retained, freed, _ = variants.values()
    assert retained["peak"]["categories"]["gradient"] == MODEL
    assert 0 < freed["peak"]["categories"]["gradient"] <= 2 * MODEL // LAYERS
    assert freed["final_loss"] == retained["final_loss"]
    # The flag means all that can.
    named = compare("train.py", "--no-retain-grad", "--optimizer", "adamw-loop,adan", cwd=tmp_path)
    assert list(by_name(named)) == ["adamw-loop+no-retain-grad", "adan"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)", "clips its gradients"),
        ("((model(x) - x).abs().mean()).backward()", "cannot accumulate"),
    ],
)
def test_what_this_mode_cannot_do_is_refused(extra: str, words: str, tmp_path: Path) -> None:
    script(tmp_path, extra)
    variants = by_name(
        compare("train.py", "--optimizer", "adamw,adamw+no-retain-grad", cwd=tmp_path)
    )
    assert variants["adamw"]["status"] == "ok"
    refused = variants["adamw+no-retain-grad"]
    assert refused["status"] == "refused"
    assert words in refused["reason"]
    assert refused["peak"] is None


def test_a_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    script(tmp_path, "assert type(optimizer).__name__ != 'RMSprop', 'not with this one'")
    done = run_memlens(
        "compare", "train.py", "--optimizer", "adamw,rmsprop,sgd", "--out", "all", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "AssertionError: not with this one" in done.stdout
    saved = by_name(json.loads((tmp_path / "all" / "comparison.json").read_text()))
    assert [each["status"] for each in saved.values()] == ["ok", "failed", "ok"]
    assert {"comparison.csv", "chart.svg", "chart.png"} <= set(os.listdir(tmp_path / "all"))


def test_the_reason_is_the_job_s_and_not_its_launcher_s(tmp_path: Path) -> None:
    script(tmp_path, "raise ValueError('the reason')")
    words = ("torchrun", "--standalone", "--nproc-per-node", "1", "train.py")
    found = compare("--optimizer", "sgd", "--", *words, cwd=tmp_path, code=1)
    assert found["variants"][0]["reason"] == "ValueError: the reason"
    usage = "import argparse; argparse.ArgumentParser('job').error('a word too many')"
    write_script(tmp_path / "usage.py", usage)
    found = compare("usage.py", "--optimizer", "sgd", cwd=tmp_path, code=1)
    assert found["variants"][0]["reason"] == "error: a word too many"


@pytest.mark.parametrize("launcher", [(), ("torchrun", "--standalone", "--nproc-per-node", "2")])
def test_a_crash_on_the_way_out_is_no_failure(launcher: tuple[str, ...], tmp_path: Path) -> None:
    """Some of gloo's processes are aborted when they have done everything; others before that."""
    script(
        tmp_path,
        "import ctypes, os; libc = ctypes.CDLL(None); "
        "os.environ.get('EARLY') and os.abort(); "
        "step or libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)",
    )
    job = ("--", *(launcher or (sys.executable,)), "train.py")
    (late,) = compare("--optimizer", "sgd", *job, cwd=tmp_path)["variants"]
    assert (late["status"], late["steps"]) == ("ok", 5)
    assert len(late["ranks"]) == (2 if launcher else 1)
    assert "crashed on its way out" in late["notes"][0]
    job = ("--", "env", "EARLY=1", *job[1:])
    (early,) = compare("--optimizer", "sgd", *job, cwd=tmp_path, code=1)["variants"]
    assert early["status"] == "failed"
    assert early["peak"] is None


def test_a_recording_that_stopped_is_no_result(tmp_path: Path) -> None:
    """The job goes on without us, and its peak is not known."""
    script(
        tmp_path,
        "from memlens.recording.session import current_session; "
        "current_session()._recorder.fail('an observer', ValueError('a fault of ours'))",
    )
    found = compare("train.py", "--optimizer", "sgd", cwd=tmp_path, code=1)
    (variant,) = found["variants"]
    assert variant["status"] == "failed"
    assert variant["reason"].startswith("an observer failed (ValueError: a fault of ours)")
    assert variant["peak"] is None


def test_results_are_used_again_until_the_job_changes(tmp_path: Path) -> None:
    script(tmp_path)
    words = ("train.py", "--optimizer", "adamw,sgd")
    first = by_name(compare(*words, cwd=tmp_path))
    second = by_name(compare(*words, "--optimizer", "rmsprop", cwd=tmp_path))
    assert [each["reused"] for each in second.values()] == [True, True, False]
    assert second["sgd"]["peak"] == first["sgd"]["peak"]
    assert second["sgd"]["run"] == first["sgd"]["run"]

    fresh = by_name(compare("train.py", "--optimizer", "sgd", "--fresh", cwd=tmp_path))
    assert not fresh["sgd"]["reused"]
    assert fresh["sgd"]["run"] != first["sgd"]["run"]
    script(tmp_path, "print('changed')")
    changed = by_name(compare("train.py", "--optimizer", "sgd", cwd=tmp_path))
    assert not changed["sgd"]["reused"]
    assert Path(first["sgd"]["run"]).is_dir()  # what was found before is kept


def test_what_was_found_before_an_interruption_is_kept(tmp_path: Path) -> None:
    script(tmp_path, "import time; time.sleep(60 if 'RMS' in type(optimizer).__name__ else 0)")
    words = ("compare", "train.py", "--optimizer", "sgd,rmsprop", "--out", "all")
    process = start_memlens(*words, cwd=tmp_path)
    deadline = time.time() + 60
    while not list((tmp_path / "all").glob("rmsprop-*/output.txt")) and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "memlens: interrupted"
    variants = by_name(compare("train.py", "--optimizer", "sgd", "--out", "all", cwd=tmp_path))
    assert variants["sgd"]["reused"]


def test_a_job_without_an_optimizer(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        """
        import torch
        weight = torch.nn.Linear(4, 4).weight
        weight.sum().backward()
        """,
    )
    done = run_memlens("compare", "train.py", "--optimizer", "adamw,sgd", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("memlens: cannot compare train.py: the job constructs no torch.optim")


def test_an_optimizer_that_cannot_be_replaced(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        """
        import torch
        class Own(torch.optim.Optimizer):
            def __init__(self, network):
                super().__init__(network.parameters(), {})
            def step(self): pass
        model = torch.nn.Linear(4, 4)
        optimizer = Own(model)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        """,
    )
    found = compare("train.py", "--optimizer", "adamw,as-is", cwd=tmp_path)
    variants = by_name(found)
    assert variants["adamw"]["status"] == "refused"
    assert "cannot replace Own" in variants["adamw"]["reason"]
    assert variants["as-is"]["status"] == "ok"
    alone = compare("train.py", "--optimizer", "adamw", cwd=tmp_path, code=2)
    assert alone["variants"][0]["status"] == "refused"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--optimizer", "adamw"], "nothing to run"),
        (["train.py", "--optimizer", "adamww"], "did you mean adamw"),
        (["train.py", "--optimizer", "galore-adamw:rnak=3"], "has no option 'rnak'"),
        (["train.py", "--optimizer", "galore-adamw:rank=big"], "must be of kind int"),
        (["train.py", "--optimizer", "lomo+no-retain-grad"], "never retains gradients"),
        (["train.py", "--capacity", "24 parsecs"], "24 parsecs"),
        (["nowhere.py"], "no such script"),
        (["--model", "lama-60m", "--batch", "1x8"], "llama-60m"),
        (["--bogus", "train.py"], "no such option: --bogus"),
        (["train.py", "--baseline", "best"], "no optimizer 'best'"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], text: str, tmp_path: Path) -> None:
    script(tmp_path)
    done = run_memlens("compare", *words, cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("memlens: ")
    assert text in lines[0]
    assert not (tmp_path / "memlens-runs").exists()


def test_the_baseline_is_added_if_it_is_not_among_them(tmp_path: Path) -> None:
    script(tmp_path)
    found = compare("train.py", "--optimizer", "sgd", "--baseline", "adamw", cwd=tmp_path)
    assert found["baseline"] == "adamw"
    assert list(by_name(found)) == ["adamw", "sgd"]
    assert by_name(found)["sgd"]["peak_difference_bytes"] < 0


def test_a_model_of_the_table_needs_no_script(tmp_path: Path) -> None:
    found = compare(
        *("--model", "vit-s", "--batch", "1", "--steps", "3", "--optimizer", "adamw-fused,lion-r"),
        cwd=tmp_path,
    )
    for each in found["variants"]:
        assert each["status"] == "ok"
        assert each["steps"] == 3
    assert found["job"] == "--model vit-s --batch 1 --steps 3"
    fused, lion = found["variants"]
    assert lion["peak"]["categories"]["weight"] == fused["peak"]["categories"]["weight"]


@pytest.mark.slow
def test_the_trainer_s_choice_is_replaced(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "hf_trainer.py"
    words = (str(example), "--steps", "3", "--batch", "1", "--optimizer")
    variants = by_name(compare(*words, "adamw,sgd,adafactor+no-retain-grad", cwd=tmp_path))
    assert variants["adamw"]["replaced"] == ["AdamW"]
    assert variants["sgd"]["peak"]["categories"]["optimizer_state"] == 0
    # The Trainer clips by default.
    assert variants["adafactor+no-retain-grad"]["status"] == "refused"


@pytest.mark.slow
def test_ranks_of_a_launcher(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "ddp.py"
    found = compare(
        *("--optimizer", "adamw-loop,sgd", "--out", "all", "--"),
        *("torchrun", "--standalone", "--nproc-per-node", "2", str(example), "--steps", "3"),
        cwd=tmp_path,
    )
    for each in found["variants"]:
        assert each["status"] == "ok", each["reason"]
        assert len(memlens.load(each["run"]).ranks) == 2
        assert each["final_loss"] is not None
    assert found["variants"][1]["peak"]["categories"]["optimizer_state"] == 0


def make_job(kind: str) -> Any:
    def job() -> None:
        import torch

        torch.manual_seed(0)
        model = torch.nn.Linear(WIDTH, WIDTH)
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-3)
        for _ in range(3):
            model(torch.ones(1, WIDTH)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return job


def test_functions_from_python(tmp_path: Path) -> None:
    comparison = memlens.compare(
        {"adam": make_job("Adam"), "sgd": make_job("SGD"), "broken": lambda: 1 / 0},
        out=tmp_path / "functions",
    )
    assert [result.status.value for result in comparison.results] == ["ok", "ok", "failed"]
    assert comparison.result("broken").reason == "ZeroDivisionError: division by zero"
    peak = comparison.result("sgd").peak
    assert peak is not None
    assert peak.categories[Category.OPTIMIZER_STATE] == 0
    difference = comparison.difference(comparison.result("sgd"))
    assert difference is not None
    assert difference.peak_bytes < 0
    assert comparison.difference(comparison.result("broken")) is None
    with pytest.raises(memlens.MemlensError, match="baseline"):
        memlens.compare({"a": make_job("SGD")}, baseline="b")
    with pytest.raises(memlens.MemlensError, match="nothing to compare"):
        memlens.compare({})


def test_this_interpreter_is_the_jobs(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "import sys\nprint(sys.executable)\nraise SystemExit(3)")
    found = compare("train.py", "--optimizer", "as-is", "--out", "all", cwd=tmp_path, code=1)
    (variant,) = found["variants"]
    assert variant["status"] == "failed"
    assert variant["reason"].startswith("exit code 3")
    (output,) = (tmp_path / "all").glob("*/output.txt")
    assert output.read_text().strip() == sys.executable
