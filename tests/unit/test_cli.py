"""The command line as a whole: light, one line per error, and codes that scripts rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from tests.support.fake_capture import Block, FakeRank, make_capture

import memlens
from memlens.cli import COMMANDS, cli, main
from memlens.errors import CaptureError, SourceError
from memlens.events import Category
from memlens.report import terminal

# `memlens --help` must come up at once, also where one of these is broken or missing.
HEAVY = {
    "torch", "numpy", "pyarrow", "rich", "tensorboard", "matplotlib", "deepspeed", "duckdb",
    "transformers", "accelerate", "google.protobuf",
}  # fmt: skip

FROZEN_COMMANDS = {
    "run": {
        "--out", "--join", "--steps", "--stacks", "--no-stacks", "--stack-depth", "--device",
        "--oom-only", "--live",
    },
    "watch": set(),
    "import": {"--out"},
    "report": {"--json", "--rollup", "--rank", "--step", "--top"},
    "compare": {
        "--optimizer", "--baseline", "--no-retain-grad", "--model", "--capacity", "--rollup",
        "--json", "--out", "--fresh", "--tensorboard", "--stacks", "--no-stacks", "--plan", "--gpu",
        "--steps", "--settings", "--zero", "--fsdp", "--nproc", "--ray", "--ray-cpus",
    },
    "diff": {"--json", "--rollup", "--rank", "--step", "--top"},
    "optimizers": {"--measure", "--chart", "--dtype", "--only", "--json"},
    "estimate": {
        "--params", "--model", "--optimizer", "--precision", "--zero", "--gpus", "--gpu",
        "--no-retain-grad", "--json",
    },
    "plan": {
        "--gpu", "--capacity", "--model", "--optimizer", "--no-retain-grad", "--steps", "--settings",
        "--rollup", "--json", "--out", "--stacks", "--no-stacks", "--max-batch", "--max-tokens",
        "--max-model", "--multiple-of", "--fresh", "--world-size", "--rank", "--zero", "--fsdp", "--fit",
        "--ray", "--ray-cpus",
    },
    "advise": {
        "--gpu", "--capacity", "--model", "--steps", "--settings", "--all", "--json", "--out", "--fresh",
    },
    "export": {"--to", "--out"},
    "replay": {"--json", "--settings", "--capacity", "--rank", "--device"},
    "doctor": {"--json"},
    "view": {"--host", "--port"},
}  # fmt: skip

PROBE = """
import runpy, sys
sys.argv = ["memlens", *sys.argv[1:]]
try:
    runpy.run_module("memlens", run_name="__main__")
except SystemExit as error:
    print("exit", error.code, file=sys.stderr)
print(sorted(set(sys.modules) & {heavy}), file=sys.stderr)
"""


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line, run in this process."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    code = exit_.value.code
    assert isinstance(code, int)
    return code, out, err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [], *([name, "--help"] for name in COMMANDS)]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    answer = run_python("-c", PROBE.format(heavy=HEAVY), *arguments)
    assert answer.stderr == "exit 0\n[]\n"
    assert "memlens" in answer.stdout
    assert "\\b" not in answer.stdout


def test_importing_memlens_imports_nothing_heavy() -> None:
    answer = run_python(
        "-c", f"import sys, memlens; print(sorted(set(sys.modules) & {HEAVY} | {{'click'}}))"
    )
    assert answer.stdout == "['click']\n"
    # And the probe can fail: numpy is one of those that answers need.
    answer = run_python("-c", f"import sys, memlens.answers; print(set(sys.modules) & {HEAVY})")
    assert answer.stdout == "{'numpy'}\n"


def test_help_is_quick() -> None:
    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        run_python(*arguments)
        return time.perf_counter() - start

    # The best of five, because other tests may be busy beside us.
    bare = min(seconds("-c", "pass") for _ in range(5))
    helped = min(seconds("-m", "memlens", "--help") for _ in range(5))
    assert helped - bare < 0.3


def test_commands_and_their_options_are_frozen() -> None:
    """A new option is a decision, not an accident."""
    context = click.Context(cli)
    found = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        found[name] = {
            option
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
    assert found == FROZEN_COMMANDS


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name, entry in COMMANDS.items():
        assert f"{name} " in out
        assert entry.help in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"memlens {memlens.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reprot"], "no such command: reprot; did you mean report?"),
        (["train.py"], "did you mean: memlens run train.py?"),
        (["xyzzy"], "the commands are run, watch, import, report, compare, diff"),
        (["report"], "Missing argument 'RUN' (see memlens report --help)"),
        (["report", "x", "--rank", "one"], "'one' is not a valid integer"),
        (["report", "x", "--nonsense"], "--nonsense"),
        (["export", "x"], "Missing option '--to'"),
        (["export", "x", "--to", "excel"], "'excel' is not"),
        (["report", "no/such/run"], "there is no run no/such/run"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("memlens: ")
    assert words in err
    assert err.count("\n") == 1
    assert err.endswith("\n")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a-run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CaptureError("run.json is empty"), 2, "memlens: run.json is empty\n"),
        (SourceError("cannot record"), 1, "memlens: cannot record\n"),
        (CaptureError("a\nb\x1b[31m \ud800"), 2, "memlens: a b\\x1b[31m \\ud800\n"),
        (KeyboardInterrupt(), 130, "memlens: interrupted\n"),
        (
            ZeroDivisionError("oh\nno"),
            1,
            "memlens: internal error: ZeroDivisionError: oh no (MEMLENS_DEBUG=1 shows where)\n",
        ),
        (
            AssertionError(),
            1,
            "memlens: internal error: AssertionError (MEMLENS_DEBUG=1 shows where)\n",
        ),
    ],
)
def test_each_error_is_one_line_with_its_code(
    error: BaseException,
    code: int,
    line: str,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(path: object) -> None:
        raise error

    monkeypatch.delenv("MEMLENS_DEBUG", raising=False)
    monkeypatch.setattr("memlens.load", load, raising=False)
    assert call(capsys, "report", str(run_folder)) == (code, "", line)


def test_debug_shows_the_traceback_of_our_own_faults(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: object) -> None:
        raise ZeroDivisionError("oh no")

    monkeypatch.setenv("MEMLENS_DEBUG", "1")
    monkeypatch.setattr("memlens.load", load, raising=False)
    with pytest.raises(ZeroDivisionError, match="oh no"):
        main(["report", str(run_folder)])


def test_a_folder_of_runs_is_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for age, name in enumerate(["a", "f", "c", "d", "e", "b", "g"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        os.utime(tmp_path / name / "run.json", (1_700_000_000 - age,) * 2)
    code, _, err = call(capsys, "report", str(tmp_path))
    newest = ", ".join(str(tmp_path / name) for name in ["a", "f", "c", "d", "e"])
    assert code == 2
    assert err == (
        f"memlens: {tmp_path} is not a run but holds 7; name one, newest first: {newest}, "
        "and 2 older\n"
    )


def test_a_reader_that_stops_reading_is_no_fault(tmp_path: Path) -> None:
    """`memlens report RUN | head -1`: no traceback, nothing on stderr."""
    # The pipe is closed before anything is written, so the write must fail.
    script = (
        "import sys, time; time.sleep(0.3)\n"
        "from memlens.cli import main; main(['report', '--help'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 1


def _fake_run(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = make_capture(FakeRank(0, [Block(100, Category.WEIGHT, 1)]))
    monkeypatch.setattr("memlens.load", lambda path: capture, raising=False)


def test_report_prints_one_json_object(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_run(monkeypatch)
    code, out, err = call(capsys, "report", str(run_folder), "--json", "--rollup")
    assert (code, err) == (0, "")
    assert json.loads(out)["ranks"][0]["peak"]["categories"]["Weight"] == 100


def test_report_prints_tables(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_run(monkeypatch)
    code, out, err = call(capsys, "report", str(run_folder))
    assert (code, err) == (0, "")
    assert "Peak 100 B" in out
    assert "\x1b" not in out


def test_a_fault_after_the_report_began_is_still_one_line(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("cannot draw")

    _fake_run(monkeypatch)
    monkeypatch.setattr(terminal, "_print_charts", broken)
    monkeypatch.delenv("MEMLENS_DEBUG", raising=False)
    code, _, err = call(capsys, "report", str(run_folder))
    assert code == 1
    assert err.startswith("memlens: internal error: RuntimeError: cannot draw")
    assert err.count("\n") == 1
