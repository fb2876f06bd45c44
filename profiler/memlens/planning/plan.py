"""A plan: what a simulation showed, and what cards make of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlens.catalogue.gpus import CONTEXT_BYTES, GPUS, Gpu
from memlens.comparing.results import Status
from memlens.errors import SimulationError
from memlens.planning.ranks import Ranks
from memlens.planning.simulated import NOTHING_ON_CUDA
from memlens.planning.verdict import Verdict, judge

if TYPE_CHECKING:
    from memlens.capture import Capture
    from memlens.catalogue.combinations import ShardingMode
    from memlens.comparing.results import Result
    from memlens.rank import RankCapture

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """One simulated job."""

    result: Result
    capture: Capture
    rank: RankCapture
    gpu: Gpu | None
    """The card that was asked about; None: none was."""
    verdict: Verdict | None
    """Of that card."""
    ranks: Ranks | None = None
    """Which rank it is; None: the only one."""
    mode: ShardingMode | None = None
    """How ranks were told to share the training state; None: as the job has it."""

    @property
    def allocated_peak_bytes(self) -> int:
        """Most that tensors, workspaces and temporaries took, in blocks of the allocator."""
        return self.rank.peak().allocated_bytes

    @property
    def reserved_peak_bytes(self) -> int:
        """Most that the allocator took from the device."""
        return self.rank.reserved_peak_bytes or 0

    @property
    def device_bytes(self) -> int:
        """Estimated use of the device: with driver, context and libraries, a constant."""
        return self.reserved_peak_bytes + CONTEXT_BYTES

    def smallest_cards(self, how_many: int = 3) -> list[Gpu]:
        """The smallest cards of the table that hold it."""
        fitting = [each for each in GPUS.values() if each.usable_bytes >= self.reserved_peak_bytes]
        return sorted(fitting, key=lambda each: each.total_bytes)[:how_many]

    def to_json(self) -> dict[str, Any]:
        """What `memlens plan --json` adds to the report; sizes are whole bytes."""
        return {
            "optimizer": self.result.name,
            "steps": self.result.steps,
            **({} if self.ranks is None else self.ranks.to_json()),
            **({} if self.mode is None else {"sharding": self.mode.value}),
            "allocated_peak_bytes": self.allocated_peak_bytes,
            "reserved_peak_bytes": self.reserved_peak_bytes,
            "fragmentation_bytes": self.fragmentation_bytes,
            "context_bytes": CONTEXT_BYTES,
            "device_bytes": self.device_bytes,
            "verdict": self.verdict and self.verdict.to_json(),
            "smallest_cards": [each.name for each in self.smallest_cards()],
            "notes": list(self.result.notes),
        }

    @property
    def fragmentation_bytes(self) -> int:
        """Of what is reserved when the most is allocated: what no block uses."""
        slack = self.rank.slack_at()
        return 0 if slack is None else slack.cached_bytes


def make_plan(
    result: Result,
    gpu: Gpu | None,
    ranks: Ranks | None = None,
    mode: ShardingMode | None = None,
) -> Plan:
    """Read a simulation, and judge it.

    Args:
        result: of `memlens.planning.simulate.simulate`.
        gpu: the card to hold it against; None: none.
        ranks: which rank it is; None: the only one.
        mode: how ranks were told to share the training state; None: as the job has it.

    Raises:
        SimulationError: the job did not come to its end, or trained nothing.
    """
    from memlens.capture import load

    if result.peak is None:
        log = f" (its output is in {Path(result.run).parent})" if result.run else ""
        how = "is refused" if result.status is Status.REFUSED else "failed in simulation"
        raise SimulationError(f"the job {how}: {result.reason}{log}")
    capture = load(result.run)
    rank = max(capture.ranks, key=lambda each: each.peak().allocated_bytes)
    if not rank.events:
        raise SimulationError(NOTHING_ON_CUDA)
    verdict = None if gpu is None else judge(rank, gpu)
    return Plan(result, capture, rank, gpu, verdict, ranks, mode)
