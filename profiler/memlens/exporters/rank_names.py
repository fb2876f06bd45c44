"""What ranks are called in files: by their number, and by their device where they have several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memlens.report.text import plain

if TYPE_CHECKING:
    from memlens.capture import RankCapture

__all__ = ["rank_file_name", "rank_title"]


def rank_title(rank: RankCapture, ranks: Sequence[RankCapture]) -> str:
    """For people: `rank 0`, `rank 0, cuda:1`."""
    return (
        f"rank {rank.rank}, {plain(rank.device)}"
        if _has_several(rank, ranks)
        else f"rank {rank.rank}"
    )


def rank_file_name(rank: RankCapture, ranks: Sequence[RankCapture]) -> str:
    """Part of a file's name: `rank-0`, `rank-0-cuda-1`."""
    return re.sub(r"[^A-Za-z0-9]+", "-", rank_title(rank, ranks))


def _has_several(rank: RankCapture, ranks: Sequence[RankCapture]) -> bool:
    return sum(other.rank == rank.rank for other in ranks) > 1
