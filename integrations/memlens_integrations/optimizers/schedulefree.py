"""Schedule-free AdamW (arXiv 2405.15682), for loops that know nothing of it."""

from __future__ import annotations

from schedulefree import AdamWScheduleFree

from memlens.variants.request import Request

__all__ = ["make"]


def make(request: Request) -> AdamWScheduleFree:
    """`schedulefree-adamw` of the catalogue.

    It is put into train mode, in which alone it steps, and stays there unless the job calls
    `optimizer.eval()`. What the job evaluates is then the point at which gradients are taken, not the
    average of points that the method would give back.
    """
    optimizer = AdamWScheduleFree(request.groups, **request.hyper)
    optimizer.train()
    return optimizer
