"""Runs one training job twice, really on the CPU and simulated, and lists what the two recorded."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from textwrap import dedent

from tests.simulation.conftest import simulate
from tests.support.jobs import run_memlens, write_script

import memlens
from memlens.attribution.segments import PHASES
from memlens.capture import RankCapture
from memlens.rank import CATEGORIES

__all__ = ["Event", "differences", "events_of", "really_and_simulated"]

HEAD = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    DEVICE = "{device}"
    torch.manual_seed(0)
"""
"""Begins each job; `{device}` is `cpu` or `cuda`."""

CPU_KERNELS = """
    import torch
    from memlens.simulation import dispatch, operators
    from tests.support.cpu_kernels import temporaries

    dispatch.temporaries = operators.temporaries = temporaries
"""
"""Begins the simulated one: kernels have buffers of their own, and CUDA's others than the CPU's."""

NO_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":0:0", "TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1"}

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
    name: str
    """Of the tensor, if an observer told it."""


def events_of(rank: RankCapture) -> list[Event]:
    """The events of blocks, in order."""
    blocks, attribution, segments = rank.blocks, rank.attribution, rank.segments
    found: list[tuple[int, Event]] = []
    for number in range(len(blocks.first)):
        size_bytes = int(blocks.requested_bytes[number])
        if size_bytes <= _HOST_BYTES:
            continue
        ends = {"alloc": int(blocks.first[number]), "free": int(blocks.last[number])}
        for action, at in ends.items():
            if at < len(blocks.time_ns):
                where = int(segments.at(blocks.time_ns[at : at + 1])[0])
                event = Event(
                    action,
                    size_bytes,
                    CATEGORIES[attribution.category[number]].value,
                    PHASES[segments.phase[where]].value,
                    rank.texts.module_name(int(attribution.module[number])),
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
    texts = {
        device: dedent(HEAD.replace("{device}", device)) + dedent(job) for device in ("cpu", "cuda")
    }
    script = write_script(folder / "real" / "job.py", texts["cpu"])
    flag = "--stacks" if stacks else "--no-stacks"
    words = ("run", "--device", "cpu", "--out", "run", flag, str(script))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_memlens, *words, cwd=script.parent)
        simulated = simulate(
            dedent(CPU_KERNELS) + texts["cuda"],
            folder / "simulated",
            stacks=stacks,
            environment=NO_WORKSPACE,
        ).rank
        done = running.result()
    assert done.returncode == 0, done.stderr[-4000:]
    (real,) = memlens.load(script.parent / "run").ranks
    return real, simulated


def differences(
    real: RankCapture, simulated: RankCapture, *, only_real: Collection[int] = ()
) -> list[str]:
    """What one has and the other has not, as a diff.

    Args:
        real: of the CPU.
        simulated: of the same job.
        only_real: sizes of buffers that only a kernel of the CPU takes.
    """
    events = [event for event in events_of(real) if event.requested_bytes not in only_real]
    there, here = ([str(event) for event in each] for each in (events, events_of(simulated)))
    return list(unified_diff(there, here, "real", "simulated", lineterm="", n=0))
