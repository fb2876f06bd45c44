"""What the layout says of each rank is what DeepSpeed's own tensors are, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.sharding.launching import found_by_ranks
from tests.sharding.models import Odd, groups_of, is_frozen

from memlens.sharding.layout import Held, Parameter, RankLayout, total_bytes
from memlens.sharding.zero import Zero, zero_layout

pytestmark = pytest.mark.slow

BUCKETS = {"reduce_bucket_size": 60, "stage3_param_persistence_threshold": 20}


def config(stage: int, precision: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        # A scale that does not change: no step is skipped.
        "fp16": {"enabled": precision == "fp16", "loss_scale": 1},
    }
    for name in ("gradient_accumulation_steps", "data_types"):
        if name in more:
            found[name] = more.pop(name)
    found["zero_optimization"] = {"stage": stage, **BUCKETS, **more}
    return found


FP32 = {"grad_accum_dtype": "fp32"}
CPU = {"device": "cpu"}
CONFIGURATIONS = {
    **{
        f"{stage} {precision}": config(stage, precision)
        for stage in range(4)
        for precision in ("fp32", "bf16", "fp16")
    },
    **{
        f"{stage} bf16, fp32 gradients": config(stage, "bf16", data_types=FP32)
        for stage in (1, 2, 3)
    },
    **{
        f"{stage} bf16, two micro-batches": config(stage, "bf16", gradient_accumulation_steps=2)
        for stage in (1, 2, 3)
    },
    **{
        f"{stage} bf16, offload": config(stage, "bf16", offload_optimizer=CPU)
        for stage in (1, 2, 3)
    },
    **{
        f"{stage} fp16, fp32 gradients": config(stage, "fp16", data_types=FP32)
        for stage in (1, 2, 3)
    },
    **{
        f"{stage} {precision}, fp32 gradients, offload": config(
            stage, precision, data_types=FP32, offload_optimizer=CPU
        )
        for stage in (1, 2, 3)
        for precision in ("bf16", "fp16")
    },
    "2 fp16, offload": config(2, "fp16", offload_optimizer=CPU),
    "1 bf16, round robin": config(1, "bf16", round_robin_gradients=True),
    "2 fp32, round robin": config(2, "fp32", round_robin_gradients=True),
    "2 bf16, aligned": config(2, "bf16", parameter_alignment=True),
    "2 bf16, apart": config(2, "bf16", contiguous_gradients=False),
    "2 bf16, overlap": config(2, "bf16", overlap_comm=True),
    "2 bf16, offload, two micro-batches": config(
        2, "bf16", offload_optimizer=CPU, gradient_accumulation_steps=2
    ),
    "3 bf16, small parts": config(3, "bf16", sub_group_size=40),
    "3 fp32, small parts": config(3, "fp32", sub_group_size=1),
    "3 bf16, apart": config(3, "bf16", contiguous_gradients=False),
    "3 bf16, parameters offloaded": config(
        3, "bf16", offload_optimizer=CPU, offload_param={**CPU, "pin_memory": False}
    ),
}


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Any]:
    asked = tmp_path_factory.mktemp("zero") / "configurations.json"
    asked.write_text(json.dumps(CONFIGURATIONS))
    return found_by_ranks("zero_layout_job.py", request.param, str(Path(asked)))


@pytest.fixture(scope="module")
def model() -> Odd:
    return Odd()


def layout_of(model: Odd, name: str, rank: int, world_size: int) -> RankLayout:
    named = dict(model.named_parameters())
    parameters = [
        Parameter(each, tuple(value.shape), trainable=not is_frozen(each))
        for each, value in named.items()
    ]
    groups = groups_of([(each, value.dim()) for each, value in named.items()])
    zero = Zero.from_config(CONFIGURATIONS[name], world_size)
    return zero_layout(zero, parameters, rank, groups)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_sizes(ranks: dict[int, Any], model: Odd, name: str) -> None:
    for rank, answers in ranks.items():
        layout = layout_of(model, name, rank, len(ranks))
        found = answers[name]
        said = {
            "weights": layout.weight_bytes,
            "masters": layout.master_weight_bytes,
            "after_backward": layout.gradient_bytes,
            "in_step": [total_bytes(each) for each in layout.gradients_in_step],
            "after_step": total_bytes(layout.gradients_between_steps),
            "state": layout.state_bytes(),
            "gathered": total_bytes(layout.persistent),
        }
        assert said == {key: found[key] for key in said}, f"rank {rank}"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_pieces(ranks: dict[int, Any], model: Odd, name: str) -> None:
    values = {each: value.detach().reshape(-1).tolist() for each, value in model.named_parameters()}
    for rank, answers in ranks.items():
        masters = layout_of(model, name, rank, len(ranks)).master_weights
        contents = answers[name]["contents"]
        assert [len(each) for each in contents] == [each.elements for each in masters]
        for held, content in zip(masters, contents, strict=True):
            assert covered(held, content, values)


def covered(held: Held, content: list[float], values: dict[str, list[float]]) -> bool:
    """Each piece is those elements of its parameter."""
    return all(
        content[piece.start : piece.start + piece.count]
        == values[piece.parameter][piece.parameter_start : piece.parameter_start + piece.count]
        for piece in held.pieces
    )
