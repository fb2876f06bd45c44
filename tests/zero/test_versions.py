"""Older DeepSpeeds keep their memory under other names, and versions to come may do so again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.zero.launching import ROOT, Trained, train
from tests.zero.test_theory import layout_of

from memlens.events import Category
from memlens.sharding.layout import total_bytes

pytestmark = pytest.mark.slow
pytest.importorskip("deepspeed")

NAMES = ["stage1-fp32", "stage2-bf16", "stage3-bf16"]


@pytest.mark.parametrize("version", ["0.15.4", "0.16.9", "0.17.6"])
def test_older(version: str, tmp_path: Path) -> None:
    place = ROOT / ".cache" / f"deepspeed-{version}"
    if not place.is_dir():
        pytest.skip(f"DeepSpeed {version} is not there: python tools/old_deepspeed.py {version}")
    for each in train(2, NAMES, tmp_path, str(place)):
        assert each.version == version
        assert each.problems == []
        assert each.losses == each.plain_losses
        _check(each)


def _check(each: Trained, inferred_bytes: int = 0) -> None:
    layout, capture = layout_of(each), each.capture
    after_step = capture.categories_at(each.time_ns("step"))
    after_backward = capture.categories_at(each.time_ns("backward"))
    expected = {
        Category.WEIGHT: layout.weight_bytes + total_bytes(layout.persistent),
        Category.MASTER_WEIGHT: layout.master_weight_bytes,
        Category.OPTIMIZER_STATE: layout.state_bytes(),
    }
    assert {key: after_step[key] for key in expected} == expected, each.run
    known = layout.gradient_bytes - inferred_bytes
    assert after_backward[Category.GRADIENT] == known, each.run
    assert after_step[Category.GRADIENT] == total_bytes(layout.gradients_between_steps), each.run
    peak = capture.peak()
    assert peak.categories[Category.UNKNOWN] < 0.01 * peak.allocated_bytes, each.run
    timeline = capture.timeline()
    total = np.sum(list(timeline.categories.values()), axis=0)
    assert np.array_equal(total, timeline.allocated_bytes)


def test_missing(tmp_path: Path) -> None:
    """What is not there any more is said once, and inferred; nothing else changes."""
    for each in train(1, ["stage2-bf16-missing"], tmp_path):
        (problem,) = each.problems
        assert "DeepSpeedZeroOptimizer of this DeepSpeed has no `averaged_gradients`" in problem
        assert "inferred" in problem
        assert each.losses == each.plain_losses
        held = layout_of(each).gradients_after_backward
        padding_bytes = sum(one.size_bytes for one in held if not one.pieces)
        assert padding_bytes > 0
        _check(each, padding_bytes)  # nothing but a list holds it
