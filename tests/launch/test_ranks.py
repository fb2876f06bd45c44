"""Which processes of a job are ranks: those that train, and no others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.support.jobs import STEPS, ours, run_memlens, run_plain, theirs, write_script

import memlens
from memlens import Category
from memlens.errors import CaptureError

LAYER_BYTES = 4 * (64 * 64 + 64)
MODEL_BYTES = LAYER_BYTES + 4 * (64 * 4 + 4)

DISTRIBUTED = """
import os
import torch
import torch.distributed as dist

def work(rank=None, store=None):
    if store is None:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
    for step in range(4 + dist.get_rank()):
        model(torch.randn(8, 64)).sum().backward()
        dist.barrier() if step < 4 else None
    os.write(1, f"rank {dist.get_rank()} steps {step + 1}\\n".encode())  # at once, as a whole
    dist.destroy_process_group()
"""


def folders(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob("*/rank.json"))


def assert_two_ranks(run: Path) -> None:
    capture = memlens.load(run)
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    assert capture.info.world_size == 2
    assert capture.problems == ()
    for rank in capture.ranks:
        assert rank.coverage.complete, rank.coverage
        assert rank.coverage.lost_events == 0
        # The constructor's allocations are seen as well, with names, and not by a census.
        weights = [item for item in rank.allocations_at() if item.category is Category.WEIGHT]
        assert sum(item.size_bytes for item in weights) == MODEL_BYTES
        assert not any(item.preexisting for item in weights)
        assert {item.name for item in weights} == {"0.weight", "0.bias", "1.weight", "1.bias"}
    # They are not mixed up: the second one trains a step longer.
    assert capture.rank(1).events > capture.rank(0).events


def test_torchrun(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", DISTRIBUTED + "work()")

    job = run_memlens(
        "run", "--out", "run", "--",
        "torchrun", "--standalone", "--nproc-per-node", "2", "train.py",
        cwd=tmp_path,
    )  # fmt: skip

    assert job.returncode == 0, job.stderr
    assert sorted(job.stdout.splitlines()) == ["rank 0 steps 4", "rank 1 steps 5"]
    assert folders(tmp_path / "run") == ["rank-00000", "rank-00001"]
    assert_two_ranks(tmp_path / "run")
    [line] = ours(job.stderr)  # one line for all ranks
    assert line.endswith("read them with: memlens report run")


@pytest.mark.slow
def test_torchrun_passes_the_exit_code_of_a_failed_rank(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", DISTRIBUTED + "work()\nraise SystemExit(4)")
    words = ("torchrun", "--standalone", "--nproc-per-node", "2", "train.py")

    plain = run_plain(*words, cwd=tmp_path)
    job = run_memlens("run", "--out", "run", "--", *words, cwd=tmp_path)

    assert job.returncode == plain.returncode == 1
    assert len(folders(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "start", ["spawn", "fork", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_processes_of_multiprocessing_that_train(start: str, tmp_path: Path) -> None:
    """Their ranks are known only once they have joined the process group."""
    write_script(
        tmp_path / "train.py",
        DISTRIBUTED
        + f"""
import torch.multiprocessing as mp
if __name__ == "__main__":
    mp.start_processes(work, (os.path.abspath("store"),), nprocs=2, start_method={start!r})
    print("parent", flush=True)
""",
    )

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert job.returncode == 0, job.stderr
    lines = job.stdout.splitlines()
    assert (sorted(lines[:2]), lines[2:]) == (["rank 0 steps 4", "rank 1 steps 5"], ["parent"])
    assert_two_ranks(tmp_path / "run")
    assert len(ours(job.stderr)) == 1
    assert theirs(job.stderr) == []


def test_ranks_with_a_model_that_their_script_makes_when_it_is_imported(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        STEPS
        + """
import torch.multiprocessing as mp
def work(rank):
    train(rank + 1)
if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
""",
    )

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert job.returncode == 0, job.stderr
    capture = memlens.load(tmp_path / "run")
    assert len(capture.ranks) == 2  # without a process group: which is which is not known
    for rank in capture.ranks:
        assert rank.coverage.complete, rank.coverage
        assert rank.peak().categories[Category.WEIGHT] == MODEL_BYTES
    assert len({rank.events for rank in capture.ranks}) == 2


LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset

class Data(Dataset):
    def __init__(self):
        self.transform = torch.nn.Linear(64, 64)
    def __len__(self):
        return 32
    def __getitem__(self, index):
        if not hasattr(self, "late"):
            self.late = torch.nn.Linear(64, 64)  # made in the worker
        with torch.no_grad():
            return self.late(self.transform(torch.full((64,), float(index))))

def collate(items):
    with torch.no_grad():
        return torch.nn.functional.relu(torch.nn.BatchNorm1d(64)(torch.stack(items)))

helper = torch.nn.Linear(64, 64)  # made again in a spawned worker, which imports this file

if __name__ == "__main__":
    model = torch.nn.Linear(64, 4)
    for epoch in range(2):
        loader = DataLoader(
            Data(), batch_size=8, num_workers=2, collate_fn=collate,
            multiprocessing_context=%r, persistent_workers=%r,
        )
        for batch in loader:
            model(batch).sum().backward()
    print("trained")
"""


@pytest.mark.parametrize(
    ("start", "persistent"),
    [("fork", False), ("spawn", True), pytest.param("forkserver", False, marks=pytest.mark.slow)],
)
def test_workers_that_load_data_are_no_ranks(start: str, persistent: bool, tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", LOADER % (start, persistent))

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "trained\n"), job.stderr
    assert folders(tmp_path / "run") == ["rank-00000"]
    [line] = job.stderr.splitlines()
    assert line.startswith("memlens: recorded")
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.coverage.complete, rank.coverage


def test_several_scripts_in_one_command(tmp_path: Path) -> None:
    write_script(tmp_path / "a.py", STEPS + "train(2)")
    write_script(tmp_path / "b.py", STEPS + "train(9)")

    job = run_memlens(
        "run", "--out", "run", "--", "sh", "-c", "python a.py; python b.py; exit 6", cwd=tmp_path
    )

    assert job.returncode == 6
    assert len(ours(job.stderr)) == 2
    assert theirs(job.stderr) == []
    capture = memlens.load(tmp_path / "run")
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    assert all(rank.coverage.complete for rank in capture.ranks)
    # In the order in which they began.
    assert capture.rank(0).events < capture.rank(1).events
    assert any("same rank" in text for text in capture.problems)


def test_a_command_that_is_python(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", STEPS + "train(3)\nprint(__name__)")

    job = run_memlens("run", "--out", "run", "--", "python", "train.py", "--x", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "__main__\n")
    assert len(ours(job.stderr)) == 1
    capture = memlens.load(tmp_path / "run")
    assert capture.info.command == ("python", "train.py", "--x")
    assert [rank.rank for rank in capture.ranks] == [0]


@pytest.mark.parametrize(
    "beginning",
    [
        "import importlib.util; assert importlib.util.find_spec('torch')",
        "import pkgutil; assert pkgutil.get_loader('torch')" if sys.version_info < (3, 12) else "",
        pytest.param("import torch.nn.functional as F", marks=pytest.mark.slow),
        pytest.param(
            "import importlib; importlib.import_module('torch.utils.data')", marks=pytest.mark.slow
        ),
        """
import threading
thread = threading.Thread(target=__import__, args=("torch",))
thread.start(); thread.join()
""",
        """
import sys
class Mine:
    def find_spec(self, name, path, target=None):
        return None
sys.meta_path.insert(0, Mine())
""",
    ],
    ids=["find_spec", "pkgutil", "submodule", "import_module", "thread", "finder"],
)
def test_however_torch_is_imported(beginning: str, tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", beginning + STEPS + "train(3)")

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert job.returncode == 0, job.stderr
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.coverage.complete
    assert rank.peak().categories[Category.GRADIENT] == MODEL_BYTES


def test_a_training_in_a_thread_that_imports_torch(tmp_path: Path) -> None:
    text = STEPS + "train(3)"
    write_script(
        tmp_path / "train.py",
        f"import threading\nthread = threading.Thread(target=exec, args=({text!r}, {{}}))\n"
        "thread.start(); thread.join()",
    )

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert job.returncode == 0, job.stderr
    assert theirs(job.stderr) == []
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.peak().categories[Category.GRADIENT] == MODEL_BYTES


def test_a_process_that_was_forked_by_hand(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        STEPS
        + """
import os
train(2)
child = os.fork()
train(3 if child else 30)
if child:
    assert os.waitpid(child, 0)[1] == 0
print("child" if child == 0 else "parent", flush=True)
""",
    )

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "child\nparent\n"), job.stderr
    capture = memlens.load(tmp_path / "run")
    parent, child = capture.ranks
    assert parent.coverage.complete, parent.coverage
    assert child.coverage.complete, child.coverage
    assert child.events > parent.events > 0
    # What the child inherited is there, found by its census.
    weights = [item for item in child.allocations_at(top=None) if item.category is Category.WEIGHT]
    assert all(item.preexisting for item in weights)
    assert sum(item.size_bytes for item in weights) == MODEL_BYTES


def test_a_script_without_torch(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "print('nothing to see')")

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout, job.stderr) == (0, "nothing to see\n", "")
    with pytest.raises(CaptureError, match="holds no rank: no process of the job trained a model"):
        memlens.load(tmp_path / "run")
    report = run_memlens("report", "run", cwd=tmp_path)
    assert (report.returncode, report.stdout) == (2, "")
    [line] = report.stderr.splitlines()
    assert line.startswith("memlens: run holds no rank: ")


def test_a_script_that_trains_nothing(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "import torch\nx = torch.ones(1000)")

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert job.returncode == 0
    capture = memlens.load(tmp_path / "run")
    assert capture.problems == ("no training was seen: no module, backward or optimizer",)
    report = run_memlens("report", "run", "--json", cwd=tmp_path)
    assert report.returncode == 0
    assert capture.problems[0] in json.loads(report.stdout)["warnings"]


def test_a_process_that_allocates_much_and_trains_nothing(tmp_path: Path) -> None:
    """What is held back until a process turns out to be a rank must not grow without end."""
    write_script(
        tmp_path / "prepare.py",
        "import torch\nx = torch.ones(1)\nfor _ in range(600_000): x + x",
    )
    write_script(tmp_path / "train.py", STEPS + "train(2)")

    job = run_memlens(
        "run", "--out", "run", "--", "sh", "-c", "python prepare.py; python train.py", cwd=tmp_path
    )

    assert job.returncode == 0, job.stderr
    assert len(folders(tmp_path / "run")) == 2
    [rank] = memlens.load(tmp_path / "run").ranks  # only one of them trains
    assert rank.peak().categories[Category.GRADIENT] == MODEL_BYTES


def test_a_command_that_trains_nothing(tmp_path: Path) -> None:
    """Not known to be a script that trains, so that a process which does not is no rank."""
    write_script(tmp_path / "prepare.py", "import torch\nx = torch.ones(1000)")

    job = run_memlens("run", "--out", "run", "--", "python", "prepare.py", cwd=tmp_path)

    assert (job.returncode, job.stderr) == (0, "")
    assert folders(tmp_path / "run") == []
