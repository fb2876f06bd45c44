"""What lies beside the tensors: the allocator's slack, and memory that it knows nothing of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.answers import Gauge, Slack
    from memlens.capture import RankCapture

__all__ = ["beside_lines"]

IN_USE = "device memory in use"


def beside_lines(rank: RankCapture, slack: Slack | None) -> list[str]:
    """One line for each thing; none where nothing was measured (the CPU's allocator).

    Args:
        rank: of which device.
        slack: at the moment that the report describes.
    """
    lines = []
    if slack is not None:
        lines += _of_allocator(slack, rank.reserved_peak_bytes)
    for gauge in rank.gauges():
        lines.append(_of_gauge(gauge, rank.reserved_peak_bytes))
    return lines


def _of_allocator(slack: Slack, peak_bytes: int | None) -> list[str]:
    peak = "" if peak_bytes is None else f", at most {format_bytes(peak_bytes)}"
    return [
        f"reserved from the device: {format_bytes(slack.reserved_bytes)}{peak}",
        f"  of it no block: {format_bytes(slack.cached_bytes)}, kept for later requests",
        f"  of the blocks, rounding: {format_bytes(slack.rounding_bytes)}",
    ]


def _of_gauge(gauge: Gauge, reserved_bytes: int | None) -> str:
    line = f"{plain(gauge.what)}: at most {format_bytes(gauge.peak_bytes)}"
    if gauge.what == IN_USE and reserved_bytes is not None:
        rest = gauge.peak_bytes - reserved_bytes
        line += (
            f", of which {format_bytes(max(rest, 0))} outside of PyTorch's allocator (CUDA context, "
            "NCCL, other processes)"
        )
    return line
