"""Where training steps begin and end, and where each one's peak is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import Lifetimes
from memlens.attribution.segments import Segments

__all__ = ["StepBounds", "step_bounds"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StepBounds:
    """One step, in events. Event -1 stands for the time before all events."""

    step: int
    start_ns: int
    end_ns: int
    peak_event: int
    """After which the most bytes were allocated; may be the last event before the step."""
    peak_ns: int
    last_event: int


def step_bounds(blocks: Lifetimes, segments: Segments, running: Array) -> list[StepBounds]:
    """Find the steps that were recorded.

    What follows the last `optimizer.step()` counts as a step only if a backward ran in it (the job
    was stopped in the middle), or if there is no other.
    """
    count = len(blocks.time_ns)
    if not count:
        return []
    numbers = sorted(segments.step_start_ns)
    starts = [int(blocks.time_ns[0]), *(segments.step_start_ns[number] for number in numbers)]
    steps = list(zip([0, *numbers], starts, strict=True))
    found: list[StepBounds] = []
    for position, (step, start_ns) in enumerate(steps):
        last = position + 1 == len(steps)
        if last and step not in segments.trained and found:
            break
        first_event = int(np.searchsorted(blocks.time_ns, start_ns, side="left"))
        end_event = (
            count
            if last
            else int(np.searchsorted(blocks.time_ns, steps[position + 1][1], side="left"))
        )
        if end_event <= first_event:
            continue  # not recorded
        before = max(first_event - 1, 0)
        peak = before + int(np.argmax(running[before:end_event]))
        found.append(
            StepBounds(
                step=step,
                start_ns=start_ns,
                end_ns=int(blocks.time_ns[-1]) if last else steps[position + 1][1],
                peak_event=peak,
                peak_ns=max(int(blocks.time_ns[peak]), start_ns),
                last_event=end_event - 1,
            )
        )
    return found
