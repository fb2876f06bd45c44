"""What a job prints to stderr under memlens: what it prints without, and one line of ours at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.support.jobs import STEPS, ours, run_both, run_plain, theirs, write_script

JOBS = {
    "plain": STEPS + "train(200)",
    "frees what was there before the session": """
import torch
kept = [torch.empty(100) for _ in range(1500)]
import memlens
with memlens.profile(out=OUT):
    model = torch.nn.Linear(8, 8)
    model(torch.ones(2, 8)).sum().backward()
    del kept[:500]
""",
    "runs a profiler of its own": STEPS
    + """
train(2)
with torch.profiler.profile(profile_memory=True):
    train(2)
train(2)
""",
    "steps from the middle": """
import torch
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(8):
    optimizer.zero_grad()
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
""",
    "workers": STEPS
    + """
from torch.utils.data import DataLoader, TensorDataset
for epoch in range(3):
    for batch in DataLoader(TensorDataset(torch.ones(64, 64)), batch_size=8, num_workers=2):
        train(1)
""",
    "warnings of its own": STEPS
    + """
import warnings
train(2)
warnings.warn("mine")
torch.nn.functional.softmax(torch.ones(3))
x = torch.ones(2, requires_grad=True); y = (x * x).sum(); y.backward(create_graph=True)
torch.ones(2, dtype=torch.complex64).to(torch.float32)
torch._C._warn()
""",
    "an error of its own": STEPS + "train(2)\nraise ValueError('diverged')",
}


@pytest.mark.parametrize("source", ["hook", pytest.param("profiler", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", JOBS)
def test_stderr_is_the_jobs_own(name: str, source: str, tmp_path: Path) -> None:
    within = "OUT" in JOBS[name]
    text = JOBS[name].replace("OUT", "'run'")
    write_script(tmp_path / "train.py", text)
    env = {"MEMLENS_CPU_SOURCE": source}
    options = ["--steps", "4:6"] if name == "steps from the middle" else []

    if within:
        plain_text = text.replace("import memlens", "").replace(
            "memlens.profile(out='run')", "torch.enable_grad()"
        )
        write_script(tmp_path / "plain.py", plain_text)
        plain = run_plain(sys.executable, "plain.py", cwd=tmp_path)
        job = run_plain(sys.executable, "train.py", cwd=tmp_path, env=env)
    else:
        plain, job = run_both(["train.py"], options, cwd=tmp_path, env=env)

    assert job.returncode == plain.returncode, job.stderr
    expected = _fixed(plain.stderr.splitlines())
    if (name, source) == ("runs a profiler of its own", "profiler"):
        # What torch says of blocks from before a profile, for the first of them: we had it swallowed.
        assert expected.pop().startswith("[WMemory block of unknown size")
    assert _fixed(theirs(job.stderr)) == expected
    assert len(ours(job.stderr)) == (0 if within else 1)
    assert (tmp_path / "run/rank-00000/events.arrow").stat().st_size > 1000


def _fixed(lines: list[str]) -> list[str]:
    """Without the times and numbers of threads in torch's own lines.

    And without what Kineto says when a profiler of the job starts: it reads how much to say once, and
    has been told to be silent where memlens itself records by a profiler.
    """
    return [
        "[W" + line.partition("] ")[2] if line.startswith("[W") else line
        for line in lines
        if not line.startswith("USDT:")
    ]
