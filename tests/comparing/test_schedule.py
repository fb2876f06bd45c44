"""What is run of a matrix, in which order, and what is refused before."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.support.fake_comparison import ok

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.row import Row
from memlens.catalogue.variant import parse_variant
from memlens.cli import main
from memlens.cli.compare import compared_job
from memlens.comparing.compare import compare_trials, sharded_trials
from memlens.comparing.job import ComparedJob
from memlens.comparing.on_ray import OnRay, run_there
from memlens.comparing.results import Comparison, Result, Status
from memlens.comparing.schedule import Here, InTurn, Machines, Schedule, Work, side_by_side
from memlens.comparing.tries import Runner, Tell, Trial
from memlens.errors import MissingDependencyError
from memlens.events import Category

UNSHARDED = "the job does not use DeepSpeed"


@dataclass
class FakeRunner:
    """Runs nothing."""

    refused: frozenset[ShardingMode] = frozenset()
    """The job cannot do these."""
    ran: list[str] = field(default_factory=list)
    device: str = "cpu"
    simulated: bool = False
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, row: Row) -> str:
        return ""

    def run(self, trial: Trial, folder: Path, tell: Tell) -> Result:
        self.ran.append(trial.name)
        tell("a line")
        if trial.sharding in self.refused:
            return Result(trial.name, Status.REFUSED, UNSHARDED, is_hopeless=True)
        (folder / "run").mkdir()
        return ok(trial.name, {Category.WEIGHT: len(trial.name)}, run=str(folder / "run"))


class Backwards:
    """Takes all that there is, and gives the last result first."""

    def run(
        self, work: Iterable[Work], runner: Runner, tell: Tell
    ) -> Iterator[tuple[Work, Result]]:
        return reversed(list(InTurn().run(work, runner, tell)))


def matrix(*modes: str, optimizers: str = "adamw,galore-adamw") -> list[Trial]:
    job = ComparedJob(("train.py",), "train", "train.py", processes=2)
    variants = [parse_variant(name) for name in optimizers.split(",")]
    return sharded_trials({ShardingMode(mode): job for mode in modes}, variants)


def compared(
    trials: list[Trial], folder: Path, runner: FakeRunner, schedule: Schedule | None = None
) -> Comparison:
    return compare_trials(
        trials,
        baseline=trials[0].name,
        shown="train.py",
        folder=folder,
        runner=runner,
        schedule=schedule,
    )


def test_a_combination_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path) -> None:
    runner = FakeRunner()
    found = compared(matrix("zero0", "zero2"), tmp_path, runner)
    assert runner.ran == ["adamw@zero0", "galore-adamw@zero0", "adamw@zero2"]
    refused = found.result("galore-adamw@zero2")
    assert refused.status is Status.REFUSED
    assert "GaLore needs matrices" in refused.reason
    assert (refused.optimizer, refused.sharding) == ("galore-adamw", "zero2")
    assert [each.name for each in found.results][-1] == "galore-adamw@zero2"


def test_without_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memlens.comparing.tries.version_of", lambda _: None)
    runner = FakeRunner()
    found = compared(matrix("zero1", "fsdp", optimizers="as-is,adamw"), tmp_path, runner)
    assert runner.ran == ["as-is@fsdp", "adamw@fsdp"]
    for each in found.results[:2]:
        assert each.reason == (
            'deepspeed is needed to train under ZeRO; install it with: pip install "memlens[deepspeed]"'
        )


def test_what_is_lost_is_a_note(tmp_path: Path) -> None:
    found = compared(matrix("zero0", "zero1", optimizers="adafactor"), tmp_path, FakeRunner())
    before, flat = found.results
    assert before.notes == ()
    assert "nothing is factored" in flat.notes[0]


def test_a_job_that_is_not_sharded_is_tried_once_for_each_kind(tmp_path: Path) -> None:
    """It runs to its first step; the other stages and optimizers would end there, too."""
    trials = matrix("zero0", "zero1", "fsdp", optimizers="adamw,lion")
    runner = FakeRunner(refused=frozenset(ShardingMode) - {ShardingMode.FSDP})
    found = compared(trials, tmp_path, runner)
    assert runner.ran == ["adamw@zero0", "adamw@fsdp", "lion@fsdp"]
    reasons = [each.reason for each in found.results]
    assert reasons == [UNSHARDED] * 4 + [""] * 2


def test_results_stand_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    trials = matrix("zero0", "zero1", "zero3", optimizers="adamw,lion")
    found = compared(trials, tmp_path, FakeRunner(), Backwards())
    assert [each.name for each in found.results] == [each.name for each in trials]


def test_results_are_kept_whatever_the_schedule(tmp_path: Path) -> None:
    trials = matrix("zero1", "zero3", optimizers="adamw,lion")
    compared(trials[:3], tmp_path, FakeRunner(), Backwards())
    runner = FakeRunner()
    found = compared(trials, tmp_path, runner)
    assert runner.ran == ["lion@zero3"]
    assert [each.reused for each in found.results] == [True, True, True, False]


def test_another_number_of_processes_is_another_job(tmp_path: Path) -> None:
    trials = matrix("zero1", optimizers="adamw")
    compared(trials, tmp_path, FakeRunner())
    runner = FakeRunner()
    more = [replace(each, job=replace(each.job, processes=4)) for each in trials]
    compared(more, tmp_path, runner)
    assert runner.ran == ["adamw@zero1"]


def test_processes_are_started_by_torchrun() -> None:
    job = matrix("zero1")[0].job
    assert job.command[:2] == ("--", sys.executable)
    assert " ".join(job.command[2:]) == (
        "-m torch.distributed.run --standalone --nproc-per-node 2 train.py"
    )
    assert replace(job, processes=0).command == ("train.py",)


def test_a_machine_of_a_cluster_that_does_not_see_the_script(tmp_path: Path) -> None:
    job = ComparedJob(("train.py",), "train", "train.py", files=(Path("train.py"),))
    work = Work(Trial("as-is", job), tmp_path)
    reason = run_there(work, FakeRunner(), str(tmp_path), {})
    assert isinstance(reason, str)
    assert f"does not find {tmp_path / 'train.py'}: " in reason
    assert "file system that all machines share" in reason


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "memlens\[ray\]"'):
        OnRay("auto")


class Several:
    """Two machines that are threads of this process."""

    count = 2

    def place(self, runner: Runner) -> Runner:
        return runner


@pytest.mark.parametrize("machines", [Here(), Several()])
def test_searches_side_by_side(machines: Machines) -> None:
    assert side_by_side(machines, lambda each: each * 2, [3, 1, 2]) == [6, 2, 4]

    def fail(each: int) -> int:
        raise ValueError(each)

    with pytest.raises(ValueError, match="3"):
        side_by_side(machines, fail, [3, 1, 2])


def test_what_a_job_reads_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another ds_config is another job; a data set is not looked at."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "ds.json", "run.yaml", "data.bin"):
        (tmp_path / name).write_text(name)
    words = ("train.py", "--deepspeed_config=ds.json", "data.bin", "none.json")
    assert compared_job(words, None, None).files == (Path("train.py"), Path("ds.json"))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "run.yaml",
        "train.py",
    ]
    assert compared_job((), launch, None).files == (Path("run.yaml"), Path("train.py"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--nproc", "2", "--", sys.executable, "train.py"), "a command behind -- starts its own"),
        (("train.py", "--zero", "5"), "not a stage of ZeRO: '5'"),
        (("train.py", "--ray-cpus", "2"), "--ray-cpus goes with --ray"),
        (("train.py", "--zero", "1", "--baseline", "adamw@zero2"), "adamw@zero2 is none of"),
    ],
)
def test_options_that_do_not_go_together(
    words: tuple[str, ...],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit('it must not run')")
    with pytest.raises(SystemExit) as exit_:
        main(["compare", "--optimizer", "adamw", *words])
    assert exit_.value.code == 2
    assert reason in capsys.readouterr().err
