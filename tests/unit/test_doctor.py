"""What the doctor sees, in good and in bad surroundings."""

from __future__ import annotations

import builtins
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

from memlens import doctor
from memlens.cli import main
from memlens.doctor import Check, Status, can_record_cpu, examine, in_range


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writable working directory, and none of memlens' variables."""
    import os

    for name in list(os.environ):
        if name.startswith("MEMLENS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look(name: str) -> Check:
    (check,) = [check for check in examine() if check.name == name]
    return check


def test_everything_that_recording_needs_is_looked_at() -> None:
    checks = examine()
    assert {check.name for check in checks if check.required} == {
        "torch", "CPU memory", "pyarrow", "numpy", "environment", "output folder",
    }  # fmt: skip
    assert len({check.name for check in checks}) == len(checks)


def test_this_machine_can_record() -> None:
    """The tests record, so the doctor must say that it works."""
    checks = examine()
    assert [check for check in checks if check.required and check.status is not Status.OK] == []
    assert can_record_cpu(checks)
    assert look("memlens run").status is Status.OK


def test_what_is_missing_comes_with_the_command_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("tensorboard", "matplotlib", "pyarrow"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    check = look("tensorboard")
    assert check.status is Status.MISSING
    assert shlex.split(check.fix) == [
        sys.executable, "-m", "pip", "install", "tensorboard", "matplotlib",
    ]  # fmt: skip
    # Not needed to record; pyarrow is.
    assert not check.required
    assert look("pyarrow").status is Status.MISSING
    assert not can_record_cpu(examine())


def test_a_folder_of_the_same_name_does_not_pass_for_a_library(
    surroundings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (surroundings / "deepspeed").mkdir()
    (surroundings / "deepspeed" / "__init__.py").write_text("__version__ = '9'")
    real = metadata.version

    def version(name: str) -> str:
        if name == "deepspeed":  # whether or not this environment has it
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert look("deepspeed").status is Status.MISSING


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch is not installed"),
        (OSError("libcudart.so.12:\ncannot open"), "OSError: libcudart.so.12: cannot open"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_an_answer(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def broken(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if name == "torch":
            raise error
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", broken)
    checks = examine()
    (torch,) = [check for check in checks if check.name == "torch"]
    assert torch.status is Status.MISSING
    assert torch.detail == words
    assert torch.fix.endswith(" -m pip install torch")
    assert not can_record_cpu(checks)
    assert "CPU memory" not in {check.name for check in checks}


def test_a_torch_out_of_range_is_said_but_may_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=1", "torch<1.2,>=1.0"])
    check = look("torch")
    assert check.status is Status.PROBLEM
    assert "(supported: >=1.0,<1.2); not tested" in check.detail
    assert check.fix.endswith("pip install 'torch>=1.0,<1.2'")
    assert can_record_cpu(examine())


def test_the_range_of_torch_is_that_of_the_package() -> None:
    """What pip resolved and what the doctor says come from one line."""
    try:
        requirements = metadata.requires("memlens") or []
    except metadata.PackageNotFoundError:
        pytest.skip("memlens is not installed here, only on the path")
    (requirement,) = [line for line in requirements if re.match(r"torch[<>=]", line)]
    bounds = doctor._torch_bounds()
    assert sorted(bounds.split(",")) == sorted(requirement.removeprefix("torch").split(","))
    assert look("torch").status is Status.OK


@pytest.mark.parametrize(
    ("version", "bounds", "inside"),
    [
        ("2.13.0+cpu", ">=2.9,<2.16", True),
        ("2.9", ">=2.9,<2.16", True),
        ("2.9.0", ">=2.9.0,<2.16", True),
        ("2.16.0", ">=2.9,<2.16", False),
        ("2.8.1", ">=2.9,<2.16", False),
        ("10.0", ">=2.9,<2.16", False),
        ("2.13.0a0+git123", ">=2.9,<2.16", True),
        ("2.13.0", "", True),
    ],
)
def test_in_range(version: str, bounds: str, inside: bool) -> None:
    assert in_range(version, bounds) is inside


def test_a_cpu_that_cannot_be_recorded_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memlens.sources.cpu.check", lambda: ["this torch lacks Kineto"])
    check = look("CPU memory")
    assert check.status is Status.UNSUPPORTED
    assert check.detail == "this torch lacks Kineto"
    assert not can_record_cpu(examine())


def test_without_a_device_cuda_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    check = look("CUDA memory")
    assert (check.status, check.detail) == (Status.UNSUPPORTED, "there is no CUDA device")


@pytest.mark.skipif(
    hasattr(torch._C, "_cuda_memorySnapshot"), reason="this torch is built with CUDA"
)
def test_a_torch_without_cuda_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check = look("CUDA memory")
    assert check.status is Status.UNSUPPORTED
    assert check.detail.startswith("this torch lacks torch._C._cuda_record_memory_history")


@pytest.mark.parametrize(
    ("count", "words"), [(2, "2 devices (Fake GPU)"), (1, "1 device (Fake GPU)")]
)
def test_cuda_devices_are_named(count: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "Fake GPU")
    for name in (
        "_cuda_record_memory_history",
        "_cuda_memorySnapshot",
        "_cuda_setMemoryMetadata",
        "_cuda_attach_out_of_memory_observer",
    ):
        monkeypatch.setattr(torch._C, name, print, raising=False)
    check = look("CUDA memory")
    assert (check.status, check.detail) == (Status.OK, words)


def test_a_missing_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert look("Python stacks").status is Status.OK
    from memlens.sources import allocator_hook

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    allocator_hook._library.cache_clear()
    check = look("Python stacks")
    assert check.status is Status.PROBLEM
    assert "no C++ compiler" in check.detail
    assert check.fix == "apt install g++"
    assert look("CPU memory").status is Status.OK  # by torch's profiler
    allocator_hook._library.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MEMLENS_DISABLE", "1", "nothing is recorded"),
        ("MEMLENS_STEPS", "x", "steps must look like"),
        ("MEMLENS_STACKS", "many", "MEMLENS_STACKS must be 1 or 0"),
    ],
)
def test_variables_that_prevent_recording_are_found(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    check = look("environment")
    assert check.status is Status.PROBLEM
    assert words in check.detail
    assert check.fix == f"unset {name}"
    assert not can_record_cpu(examine())


def test_an_output_folder_that_cannot_be_made_is_found(
    surroundings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look("output folder").status is Status.OK
    assert str(surroundings / "memlens-runs") in look("output folder").detail
    (surroundings / "file").write_text("")
    monkeypatch.setenv("MEMLENS_OUT", str(surroundings / "file" / "runs"))
    assert look("output folder").status is Status.PROBLEM
    assert not (surroundings / "memlens-runs").exists()


def test_children_that_do_not_find_memlens_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run

    def isolated(command: list[str], **options: object) -> object:
        # -I makes Python ignore PYTHONPATH, as some launchers do.
        return real([command[0], "-I", *command[1:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", isolated)
    check = look("memlens run")
    assert check.status is Status.PROBLEM
    assert "does not load memlens at its start" in check.detail


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", *arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capsys.readouterr().out


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys)
    assert code == 0
    assert out.splitlines()[0] == "recording"
    assert out.splitlines()[-1] == "CPU memory can be recorded here."
    for check in examine():
        assert f"{check.name:<14} " in out
        # A command is shown where it is needed, and only there.
        assert (f"-> {check.fix}\n" in out) == bool(check.fix)
    assert "\x1b" not in out


def test_the_exit_code_says_whether_it_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", "1")
    code, out = run(capsys)
    assert code == 1
    assert out.splitlines()[-1] == "CPU memory cannot be recorded here; see environment above."
    assert "-> unset MEMLENS_DISABLE" in out


def test_the_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memlens.sources.cpu.check", lambda: ["no"])
    code, out = run(capsys, "--json")
    answer = json.loads(out)
    assert code == 1
    assert answer["can_record"] == {"cpu": False, "cuda": False}
    (cpu,) = [check for check in answer["checks"] if check["name"] == "CPU memory"]
    assert cpu == {
        "group": "recording",
        "name": "CPU memory",
        "status": "not supported",
        "detail": "no",
        "fix": None,
        "required": True,
    }
