"""As the inner optimizer of DeepSpeed ZeRO, on two processes."""

from __future__ import annotations

import math

import pytest
from tests.optim.launching import found_by
from tests.optim.training import PAIRS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "dtypes"), [(1, "bf16"), (1, "bf16 and fp32"), (2, "bf16"), (2, "fp32")]
)
def test_zero(stage: int, dtypes: str) -> None:
    """Weights in one dtype, gradients accumulated in the same or in float32."""
    pytest.importorskip("deepspeed")
    found = found_by("zero_job.py", str(stage), dtypes)
    assert set(found) == set(PAIRS)
    for outcome in found.values():
        assert outcome["identical on all ranks"]
        assert outcome["gradients are cleared"] is (dtypes != "bf16 and fp32")
        assert all(map(math.isfinite, outcome["losses"]))
        assert len(set(outcome["losses"])) == len(outcome["losses"])
