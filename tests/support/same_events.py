"""Runs one training job twice, really on the CPU and simulated, and lists what the two recorded."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from textwrap import dedent

from tests.simulation.conftest import simulate
from tests.support.jobs import run_memlens, write_script

import memlens
from memlens.capture import RankCapture
from memlens.events import Category
from memlens.rank import CATEGORIES
from memlens.attribution.segments import PHASES

__all__ = ["Event", "differences", "events_of", "really_and_simulated"]

HEAD = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    DEVICE = "{device}"
    torch.manual_seed(0)
"""
"""Begins each job; `{device}` is `cpu` or `cuda`."""

NO_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}

_HOST_BYTES = 8
"""A number that a tensor is multiplied with is a tensor for the dispatcher, and on the host; so are an
optimizer's step counts. Blocks of no more than this are left out: with the CPU, all is on the host."""


@dataclass(frozen=True)
class Event:
    """A block handed out or given back."""

    action: str
    requested_bytes: int
    category: str
    phase: str
    module: str
    step: int
    name: str = ""


def events_of(rank: RankCapture) -> list[Event]:
    """The events of blocks, in order."""
    blocks, attribution, segments = rank.blocks, rank.attribution, rank.segments
    found: list[tuple[int, Event]] = []
    for number in range(len(blocks.first)):
        place = attribution.segment[number]
        size_bytes = int(blocks.requested_bytes[number])
        if size_bytes <= _HOST_BYTES:
            continue
        for action, at in (("alloc", int(blocks.first[number])), ("free", int(blocks.last[number]))):
            if at < len(blocks.time_ns):
                where = place if action == "alloc" else int(segments.at(blocks.time_ns[at : at + 1])[0])
                event = Event(
                    action,
                    size_bytes,
                    CATEGORIES[attribution.category[number]].value,
                    PHASES[segments.phase[where]].value,
                    rank._module_name(int(attribution.module[number])),
                    int(segments.step[where]),
                    rank._data.names.tensor.get(int(attribution.name[number]), ""),
                )
                found.append((at, event))
    return [event for _, event in sorted(found, key=lambda item: item[0])]


def really_and_simulated(
    job: str, folder: Path, *, stacks: bool = False
) -> tuple[RankCapture, RankCapture]:
    """Run a job on the CPU under `memlens run`, and on a simulated device.

    Args:
        job: its text after `HEAD`; it puts everything on `DEVICE`.
        folder: gets both.
        stacks: record Python stacks.
    """
    # What CUDA's kernels need for themselves, the CPU's need not.
    plain = "import torch; from memlens.simulation import dispatch; dispatch.temporaries = lambda *_: ()\n"
    texts = {device: dedent(HEAD.replace("{device}", device)) + dedent(job) for device in ("cpu", "cuda")}
    script = write_script(folder / "real" / "job.py", texts["cpu"])
    flag = "--stacks" if stacks else "--no-stacks"
    words = ("run", "--device", "cpu", "--out", "run", flag, str(script))
    done = run_memlens(*words, cwd=script.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    (real,) = memlens.load(script.parent / "run").ranks
    return real, simulate(plain + texts["cuda"], folder / "simulated", stacks=stacks, environment=NO_WORKSPACE).rank


def differences(real: RankCapture, simulated: RankCapture) -> list[str]:
    """What one has and the other has not, as a diff."""
    lines = [[str(event) for event in events_of(rank)] for rank in (real, simulated)]
    return [line for line in unified_diff(*lines, lineterm="", n=0)]
