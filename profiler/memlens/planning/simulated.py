"""The way in which comparisons, searches and advice run a job: simulated, and kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.catalogue.gpus import GPUS, Gpu
from memlens.catalogue.row import Row
from memlens.comparing.results import Result, Status
from memlens.comparing.tries import Tell, Trial
from memlens.errors import SimulationError
from memlens.planning.ranks import Ranks
from memlens.planning.simulate import DEFAULT_GPU, STEPS, simulate, simulation_settings
from memlens.planning.verdict import Verdict, judge

if TYPE_CHECKING:
    from memlens.rank import RankCapture

__all__ = ["NOTHING_ON_CUDA", "Simulated", "largest_rank", "verdict_on"]

NOTHING_ON_CUDA = (
    "the job allocated nothing on a CUDA device; have it use cuda (a script's own option, "
    "mostly --device cuda), or measure it on the CPU with memlens run"
)


@dataclass(frozen=True)
class Simulated:
    """Runs trials without a GPU: `memlens.comparing.tries.Runner`."""

    gpu: Gpu | None
    """The card that was asked for; None: one that has enough memory."""
    steps: int = STEPS
    allocator: str | None = None
    """Settings as in PYTORCH_CUDA_ALLOC_CONF; None: those of this process."""
    more_options: Sequence[str] = ()
    """For `memlens run`."""
    ranks: Ranks | None = None
    """Which rank is simulated; None: as the environment has it, or the only one."""
    simulated: bool = True

    @property
    def card(self) -> Gpu:
        """What is simulated."""
        return self.gpu or GPUS[DEFAULT_GPU]

    @property
    def device(self) -> str:
        """What is simulated, for people."""
        return f"simulated {self.card.name}"

    @property
    def options(self) -> Sequence[str]:
        """For `memlens run`."""
        return ("--device", "simulated", *self.more_options)

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """Tells the job's process what to simulate."""
        return simulation_settings(self.card, self.steps, self.allocator, self.ranks)

    def refusal(self, row: Row) -> str:
        """What needs a GPU has a simulated one."""
        return ""

    def run(self, trial: Trial, folder: Path, tell: Tell) -> Result:
        """Simulate it; what cannot be simulated is the result's reason."""
        try:
            result = simulate(
                trial.job,
                self.card,
                folder,
                name=trial.name,
                stand_in=trial.stand_in,
                steps=self.steps,
                allocator=self.allocator,
                ranks=self.ranks,
                options=self.more_options,
                tell=tell,
            )
        except SimulationError as error:
            return Result(trial.name, Status.REFUSED, str(error), run=str(folder / "run"))
        # There are none: nothing was computed.
        result = replace(result, step_time_ns=None, final_loss=None, losses=())
        if result.peak is not None and not result.peak.allocated_bytes:
            return Result(trial.name, Status.REFUSED, NOTHING_ON_CUDA, run=result.run)
        return result


def largest_rank(run: str) -> RankCapture:
    """Of a run's ranks, the one that allocated most."""
    from memlens.capture import load

    return max(load(run).ranks, key=lambda each: each.peak().allocated_bytes)


def verdict_on(result: Result, gpu: Gpu) -> Verdict | None:
    """What a card makes of a result; None: there is no peak to be judged."""
    if result.peak is None:
        return None
    reserved = result.reserved_peak_bytes or 0
    if reserved <= gpu.usable_bytes:  # whatever the capture has: that it fits is seen from here
        return Verdict(gpu, True, reserved, retries=False, shortage=None)
    return judge(largest_rank(result.run), gpu)
