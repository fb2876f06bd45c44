"""How `memlens run` is asked for what: options, variables, environments, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tests.support.jobs import (
    STEPS,
    clean_environment,
    ours,
    run_both,
    run_memlens,
    theirs,
    write_script,
)

import memlens
from memlens.launch.environment import VARIABLES

OPTIMIZED = """
import torch

model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(6):
    optimizer.zero_grad()
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run"], "nothing to run; "),
        (["run", "--"], "nothing to run; "),
        (["run", "trian.py"], "no such script: trian.py"),
        (["run", "sh"], "no such script: sh; for a command, write: memlens run -- sh ..."),
        (["run", "--", "no-such-command", "x"], "command not found: no-such-command"),
        (["run", "--", "./train.py"], "command not found: ./train.py"),  # is not executable
        (["run", "-m"], "-m needs the name of a module"),
        (["run", "--steps", "8:3", "train.py"], "no step lies in '8:3'"),
        (["run", "--steps", "5:5", "train.py"], "no step lies in '5:5'"),
        (["run", "--steps", "x", "train.py"], "steps must look like 3:8"),
        (["run", "--steps", "", "train.py"], "steps must look like 3:8"),
        (["run", "--steps", "1:2:3", "train.py"], "steps must look like 3:8"),
        (["run", "--steps", "-1:3", "train.py"], "steps must look like 3:8"),
        (["run", "--steps"], "Option '--steps' requires an argument"),
        (["run", "--stack-depth", "0", "train.py"], "Invalid value for '--stack-depth'"),
        (["run", "--device", "tpu", "train.py"], "device 'tpu' can not be recorded"),
        (["run", "--device", "mps", "train.py"], "device 'mps' can not be recorded"),
        (["run", "--device", "xpu", "train.py"], "device 'xpu' can not be recorded"),
        (["run", "--device", "cuda:1", "train.py"], "device 'cuda:1' can not be recorded"),
        (["run", "--oom-only", "--device", "cpu", "train.py"], "--oom-only waits for CUDA"),
        (["run", "--out"], "Option '--out' requires an argument"),
        (["run", "--no-such-option", "train.py"], "No such option"),
        (["run", "--out", "taken", "train.py"], "output folder exists already"),
        (["run", "--out", "file", "train.py"], "output folder exists already"),
        (["run", "--out", "file/run", "train.py"], "cannot make the output folder"),
        (["run", "--out", "x" * 300, "train.py"], "cannot make the output folder"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_said_in_one_line(
    words: list[str], line: str, tmp_path: Path
) -> None:
    write_script(tmp_path / "train.py", "print('must not run')")
    write_script(tmp_path / "taken/run.json", "mine")
    write_script(tmp_path / "file", "mine")

    job = run_memlens(*words, cwd=tmp_path)

    assert job.returncode == 2
    assert job.stdout == ""
    [said] = job.stderr.splitlines()
    assert said.startswith(f"memlens: {line}")
    assert (tmp_path / "taken/run.json").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken", "train.py"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("MEMLENS_STEPS", "8:3", "no step lies in '8:3'"),
        ("MEMLENS_STACKS", "blue", "MEMLENS_STACKS must be 1 or 0"),
        ("MEMLENS_STACK_DEPTH", "deep", "MEMLENS_STACK_DEPTH must be a number"),
        ("MEMLENS_STACK_DEPTH", "0", "stack depth must be 1 or more"),
        ("MEMLENS_DEVICE", "tpu", "device 'tpu' can not be recorded"),
        ("MEMLENS_OUT", "taken", "output folder exists already"),
    ],
)
def test_a_variable_that_is_not_valid_is_refused_before_the_job_starts(
    name: str, value: str, line: str, tmp_path: Path
) -> None:
    write_script(tmp_path / "train.py", "print('must not run')")
    write_script(tmp_path / "taken/run.json", "mine")

    job = run_memlens("run", "train.py", cwd=tmp_path, env={name: value})

    assert (job.returncode, job.stdout) == (2, "")
    [said] = job.stderr.splitlines()
    assert said.startswith(f"memlens: {line}")


def test_an_empty_folder_that_was_made_beforehand_is_used(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "pass")
    (tmp_path / "run").mkdir()

    assert run_memlens("run", "--out", "run", "train.py", cwd=tmp_path).returncode == 0
    assert (tmp_path / "run/run.json").exists()


def test_every_variable_stands_in_the_help(tmp_path: Path) -> None:
    read = set()
    for path in Path(memlens.__file__).parent.rglob("*.py"):
        read |= set(re.findall(r"\bMEMLENS_[A-Z_]+\b", path.read_text()))
    read.discard("MEMLENS_")
    # Set by click's own machinery for shell completion, and not by a person.
    read.discard("_MEMLENS_COMPLETE")

    assert read == set(VARIABLES)
    shown = run_memlens("run", "--help", cwd=tmp_path).stdout
    for name in sorted(read):
        assert re.search(rf"^ +{name} +\S", shown, re.MULTILINE), name


def test_steps_choose_what_is_recorded(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", OPTIMIZED)

    assert run_memlens("run", "--out", "run", "--steps", "2:4", "train.py", cwd=tmp_path).stderr

    [rank] = memlens.load(tmp_path / "run").ranks
    assert [step.step for step in rank.steps()] == [2, 3]


def test_variables_do_what_the_options_do(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", OPTIMIZED)
    env = {"MEMLENS_OUT": "mine", "MEMLENS_STEPS": "3", "MEMLENS_STACKS": "0"}

    job = run_memlens("run", "train.py", cwd=tmp_path, env=env)

    assert job.stderr.endswith("memlens report mine\n")
    [rank] = memlens.load(tmp_path / "mine").ranks
    assert [step.step for step in rank.steps()] == [3]
    assert not any(item.stack for item in rank.allocations_at(top=None))
    # An option counts for more than a variable.
    job = run_memlens("run", "--out", "other", "--steps", "1", "train.py", cwd=tmp_path, env=env)
    assert job.stderr.endswith("memlens report other\n")
    [rank] = memlens.load(tmp_path / "other").ranks
    assert [step.step for step in rank.steps()] == [1]


@pytest.mark.parametrize(("value", "records"), [("1", False), ("0", True)])
def test_memlens_disable(value: str, records: bool, tmp_path: Path) -> None:
    script = STEPS + "import os\ntrain(2)\nprint('MEMLENS_RUN' in os.environ)"
    write_script(tmp_path / "train.py", script)

    job = run_memlens("run", "train.py", cwd=tmp_path, env={"MEMLENS_DISABLE": value})

    assert (job.returncode, job.stdout) == (0, f"{records}\n")
    assert len(ours(job.stderr)) == records
    assert (tmp_path / "memlens-runs").exists() == records


def test_memlens_disable_for_a_part_of_the_job(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", STEPS + "train(2)")

    job = run_memlens(
        "run", "--out", "run", "--", "sh", "-c",
        "MEMLENS_DISABLE=1 python train.py; python train.py", cwd=tmp_path,
    )  # fmt: skip

    assert job.returncode == 0
    assert len(memlens.load(tmp_path / "run").ranks) == 1


def test_a_session_within_memlens_run_is_refused_clearly(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        STEPS
        + """
import memlens
from memlens.errors import SessionActiveError
try:
    with memlens.profile():
        train(1)
except SessionActiveError as error:
    print(error)
train(2)
""",
    )

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert job.returncode == 0, job.stderr
    assert "already recording in this process" in job.stdout
    assert "memlens run" in job.stdout
    assert not (tmp_path / "memlens-runs").exists()
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.coverage.complete


# -- environments ------------------------------------------------------------------------------


def with_path(*folders: Path) -> dict[str, str]:
    """PYTHONPATH with these folders first."""
    inherited = clean_environment().get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([*map(str, folders), inherited]).rstrip(os.pathsep)}


@pytest.mark.parametrize(
    "text",
    ["print('mine')", "print('mine'); raise ImportError('x')", "print('mine')\n1 / 0"],
    ids=["good", "ImportError", "ZeroDivisionError"],
)
def test_the_users_own_sitecustomize_runs_as_without_memlens(text: str, tmp_path: Path) -> None:
    write_script(tmp_path / "site/sitecustomize.py", text)
    write_script(
        tmp_path / "train.py",
        STEPS + "import sys\ntrain(2)\nprint(sys.modules['sitecustomize'].__file__)",
    )
    if "mine'); " in text or "1 / 0" in text:
        write_script(tmp_path / "train.py", STEPS + "train(2)")
    env = with_path(tmp_path / "site")

    plain, job = run_both(["train.py"], cwd=tmp_path, env=env)

    assert plain.returncode == job.returncode == 0, job.stderr
    assert plain.stdout.startswith("mine\n")
    # Once for memlens' own process, which is a Python of this environment like any other.
    assert job.stdout == "mine\n" + plain.stdout
    assert theirs(job.stderr)[-len(plain.stderr.splitlines()) or len(job.stderr) :] == (
        plain.stderr.splitlines()
    )
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.coverage.complete


def test_an_interpreter_without_memlens(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    write_script(tmp_path / "train.py", "import sys; print('ran', sys.argv[1:])")
    # memlens itself is found here, but not by what it starts.
    path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    main = f"import sys; sys.path[:0] = {path!r}; from memlens.cli import main; main()"

    job = subprocess.run(
        [
            sys.executable,
            "-c",
            main,
            "run",
            "--out",
            "run",
            "--",
            "venv/bin/python",
            "train.py",
            "x",
        ],
        cwd=tmp_path,
        env={name: v for name, v in clean_environment().items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (job.returncode, job.stdout) == (0, "ran ['x']\n"), job.stderr
    [line] = job.stderr.splitlines()
    assert re.fullmatch(
        r"memlens: not installed for \S+/venv/bin/python\S*; this process is not recorded", line
    )


@pytest.mark.parametrize("flag", ["-S", "-I", "-E"])
def test_an_interpreter_that_ignores_us(flag: str, tmp_path: Path) -> None:
    """Nothing of ours runs in it, so that only the run can say why it is empty."""
    write_script(tmp_path / "train.py", "print('ran')")

    job = run_memlens("run", "--out", "run", "--", "python", flag, "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout, job.stderr) == (0, "ran\n", "")
    report = run_memlens("report", "run", cwd=tmp_path)
    assert report.returncode == 2
    assert "or its Python ignores PYTHONPATH: -I, -E, -S" in report.stderr


def test_a_broken_dependency_of_ours_does_not_stop_the_job(tmp_path: Path) -> None:
    write_script(tmp_path / "broken/pyarrow/__init__.py", "raise ImportError('no such library')")
    write_script(tmp_path / "train.py", STEPS + "train(2)\nprint('trained')")
    write_script(
        tmp_path / "job.sh",
        f'PYTHONPATH="$PYTHONPATH:{tmp_path}/broken" python -c "import sys; '
        "sys.path.insert(0, 'broken'); exec(open('train.py').read())\"",
    )

    job = run_memlens("run", "--out", "run", "--", "sh", "job.sh", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "trained\n"), job.stderr
    [line] = job.stderr.splitlines()
    assert line == "memlens: this process is not recorded: no such library"


def test_the_folder_of_runs_cannot_be_made(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "print('must not run')")
    write_script(tmp_path / "memlens-runs", "a file")

    job = run_memlens("run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (2, "")
    [line] = job.stderr.splitlines()
    assert line.startswith("memlens: cannot make the output folder ")
    assert "memlens-runs" in line
