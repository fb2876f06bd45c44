"""One job on several hosts: the second command joins the run of the first."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.jobs import STEPS, clean_environment, run_memlens, start_memlens, write_script
from tests.support.large import make_capture

import memlens
from memlens.disk import runs
from memlens.disk.format import read_json, write_json
from memlens.disk.runs import create_run
from memlens.errors import OutputExistsError
from memlens.launch.hosts import deepspeed_environment, names_several_hosts
from memlens.options import Options


@pytest.mark.parametrize(
    ("words", "several"),
    [
        ("torchrun --nnodes 2 --node-rank 1 train.py", True),
        ("torchrun --nnodes=2:4 train.py", True),
        ("python -m torch.distributed.run --nnodes=2 train.py", True),
        ("accelerate launch --num_machines 2 train.py", True),
        ("torchrun --nnodes 1 --nproc-per-node 2 train.py", False),
        ("torchrun --nnodes=1:1 train.py", False),
        ("torchrun --standalone --nproc-per-node 2 train.py", False),
        ("deepspeed --num_nodes 2 train.py", False),
        ("train.py", False),
        ("torchrun --nnodes", True),
    ],
)
def test_commands_of_several_hosts(words: str, several: bool) -> None:
    assert names_several_hosts(words.split()) is several


def test_variables_for_the_hosts_of_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    job = {"MEMLENS_RUN": "/shared/run", "MEMLENS_STACKS": "1", "SECRET": "not handed on"}
    command = ["/opt/bin/deepspeed", "--hostfile=hosts", "train.py"]
    assert deepspeed_environment(["torchrun", "--hostfile", "hosts"], tmp_path, job) == {}
    assert deepspeed_environment(["deepspeed", "train.py"], tmp_path, job) == {}
    assert list(tmp_path.iterdir()) == []

    file = tmp_path / "deepspeed_env"
    assert deepspeed_environment(command, tmp_path, job) == {"DS_ENV_FILE": str(file)}
    assert file.read_text() == "MEMLENS_RUN=/shared/run\nMEMLENS_STACKS=1\n"
    (tmp_path / "mine").write_text("A=1\n# not a variable\nB=x=y")
    deepspeed_environment(command, tmp_path, {**job, "DS_ENV_FILE": "mine"})
    assert file.read_text() == "A=1\nB=x=y\nMEMLENS_RUN=/shared/run\nMEMLENS_STACKS=1\n"


def test_a_run_that_has_just_begun_can_be_joined(tmp_path: Path) -> None:
    options = Options(out=tmp_path / "run")
    folder = create_run(options, command=("train.py",))
    first = (folder / "run.json").read_bytes()
    with pytest.raises(OutputExistsError):
        create_run(options, command=("train.py",))
    assert create_run(replace(options, join=True), command=("train.py",)) == folder
    assert (folder / "run.json").read_bytes() == first


def test_a_run_that_has_ended_is_not_joined(tmp_path: Path) -> None:
    make_capture(tmp_path / "run", 600, ranks=2, layers=8)
    options = Options(out=tmp_path / "run", join=True)
    with pytest.raises(OutputExistsError):
        create_run(options, command=())
    # After a failure, the launcher of another host may come late.
    for rank in range(2):
        path = tmp_path / f"run/rank-{rank:05d}/rank.json"
        write_json(path, {**read_json(path)[0], "error": "ValueError: no such batch"})
    create_run(options, command=())


def test_another_folder_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SOON_S", 0.2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").touch()
    with pytest.raises(OutputExistsError):
        create_run(Options(out=tmp_path / "run", join=True), command=())


def test_the_other_host_is_still_writing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.run.json.abc").touch()

    def write_late() -> None:
        time.sleep(0.3)
        (tmp_path / "run/run.json").write_text("{}")

    writer = threading.Thread(target=write_late)
    writer.start()
    assert create_run(Options(out=tmp_path / "run", join=True), command=()) == tmp_path / "run"
    writer.join()
    assert (tmp_path / "run/run.json").read_text() == "{}"


def test_hosts_without_a_folder_in_common_are_told(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "print('ran')")
    job = run_memlens("run", "--", "python", "train.py", "--nnodes", "2", cwd=tmp_path)
    assert (job.returncode, job.stdout) == (0, "ran\n")
    [line] = job.stderr.splitlines()
    assert line.startswith("memlens: each host will have a run of its own")


PDSH = """#!{python}
# Runs the command for every host, here. Of pdsh's options only these are given by the launcher.
import subprocess, sys
words = sys.argv[1:]
hosts = words[words.index("-w") + 1].split(",")
command = " ".join(words[words.index("-w") + 2 :])
jobs = [
    subprocess.Popen(["env", "-i", *{keep!r}, "sh", "-c", command.replace("%n", str(number))])
    for number, host in enumerate(hosts)
]
sys.exit(max(job.wait() for job in jobs))
"""


@pytest.mark.slow
def test_deepspeed_starts_processes_on_other_hosts(tmp_path: Path) -> None:
    """The launcher for real; what takes it to another host is a stand-in with an empty environment."""
    pytest.importorskip("deepspeed")
    environment = clean_environment()
    keep = [f"PATH={environment['PATH']}", f"HOME={tmp_path}", "OMP_NUM_THREADS=1"]
    for name, text in (
        ("pdsh", PDSH.format(python=sys.executable, keep=keep)),
        ("ssh", "#!/bin/sh\necho 127.0.0.1\n"),
    ):
        write_script(tmp_path / "bin" / name, text).chmod(0o755)
    write_script(tmp_path / "train.py", DISTRIBUTED)
    write_script(tmp_path / "hosts", "localhost slots=1\n127.0.0.1 slots=1\n")
    write_script(tmp_path / ".deepspeed_env", "THEIRS=kept\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = run_memlens(
        "run", "--out", "run", "--", "deepspeed", "--hostfile", "hosts", "--master_port", port,
        "train.py",
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}",
            "DS_ACCELERATOR": "cpu",
        },
        timeout=400,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    assert (tmp_path / "run/deepspeed_env").read_text().startswith("THEIRS=kept\n")
    capture = memlens.load(tmp_path / "run")
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    assert (capture.info.world_size, capture.problems) == (2, ())


DISTRIBUTED = """
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4 + dist.get_rank()))
for step in range(3):
    model(torch.randn(8, 64)).sum().backward()
    dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_launchers_of_one_job(tmp_path: Path) -> None:
    """Two hosts, as far as the launchers know: the same command on each, but for the number."""
    write_script(tmp_path / "train.py", DISTRIBUTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    hosts = [
        start_memlens(
            "run", "--out", "run", "--", "torchrun", "--nnodes", "2", "--nproc-per-node", "2",
            "--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", port,
            "train.py",
            cwd=tmp_path,
        )
        for number in range(2)
    ]  # fmt: skip
    for host in hosts:
        _, errors = host.communicate(timeout=300)
        assert host.returncode == 0, errors
    capture = memlens.load(tmp_path / "run")
    assert [rank.rank for rank in capture.ranks] == [0, 1, 2, 3]
    assert (capture.info.world_size, capture.problems, capture.launches) == (4, (), 1)
    assert all(rank.coverage.complete for rank in capture.ranks)
    report = run_memlens("report", "run", "--json", cwd=tmp_path)
    across = json.loads(report.stdout)["across_ranks"]
    assert across["highest"]["rank"] == 3  # the widest last layer
    assert across["difference"]["module"] == "1"
    assert across["total"]["partial"] == []


def test_a_script_of_its_own_can_join(tmp_path: Path) -> None:
    """As with `srun memlens run --join`: one command for each process, and no launcher."""
    write_script(
        tmp_path / "train.py",
        STEPS
        + """
import os, pathlib, time
train(2)
pathlib.Path("there-" + os.environ["RANK"]).touch()
while len(list(pathlib.Path().glob("there-*"))) < 2:  # as a collective would
    time.sleep(0.05)
""",
    )
    processes = [
        start_memlens(
            "run", "--out", "run", "--join", "train.py",
            cwd=tmp_path,
            env={"RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    capture = memlens.load(tmp_path / "run")
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    assert capture.is_whole
