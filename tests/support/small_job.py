"""Two steps of a job small enough to check by head, and a name that wants to do harm."""

from __future__ import annotations

from typing import Any

from tests.support.fake_capture import Block, FakeRank

from memlens.answers import Frame
from memlens.events import Category, Certainty, Phase

HOSTILE = "[red]x[/red]\x1b[31m\x07a\nb|c\u202e\ud800"
HOSTILE_SHOWN = "[red]x[/red]\\x1b[31m\\x07a\\nb|c\\u202e\\ud800"


def small_rank(**changes: Any) -> FakeRank:
    """Two steps: 100 B of weights for ever, 50 B of activations within each step."""
    stack = (
        Frame("main", "/home/ada/job/train.py", 9),
        Frame("forward", "/usr/lib/python3.11/site-packages/torch/nn/modules/linear.py", 125),
    )
    values: dict[str, Any] = {
        "rank": 0,
        "blocks": [
            Block(100, Category.WEIGHT, 10, None, "fc.weight", "fc"),
            Block(
                50, Category.ACTIVATION, 20, 30, "", "fc",
                Phase.FORWARD, Certainty.INFERRED, stack,
            ),
            Block(7, Category.OPTIMIZER_STATE, 35, None, "step of fc.weight", "fc"),
            Block(
                50, Category.ACTIVATION, 50, 60, "", "fc",
                Phase.FORWARD, Certainty.INFERRED, stack,
            ),
        ],
        "step_ends": [40, 70],
        "class_names": {"fc": "Linear"},
    }  # fmt: skip
    return FakeRank(**(values | changes))
