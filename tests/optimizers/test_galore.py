"""GaLore: the library's defects are real, and not ours; what is projected, and how it steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import galore_torch
import pytest
import torch
from galore_torch.galore_projector import GaLoreProjector
from tests.optimizers.llama import llama
from torch import nn

from memlens.catalogue.variant import parse_variant
from memlens.errors import UsageError
from memlens.variants.build import build
from memlens.variants.request import read_construction
from memlens_integrations.optimizers.galore import GaLoreAdamW8bit, OwnMatrixProjector

PROJECTIONS = ["std", "reverse_std", "left", "right", "full"]
RANK = 4
SETTINGS = {"rank": RANK, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}


def matrices(projector: Any) -> list[torch.Tensor]:
    held = projector.ortho_matrix
    return held if isinstance(held, list) else [held]


def held_bytes(projector: Any) -> int:
    return sum(each.untyped_storage().nbytes() for each in matrices(projector))


def own_bytes(projector: Any) -> int:
    return sum(each.nbytes for each in matrices(projector))


def galore(text: str, parameters: Any, **hyper: Any) -> Any:
    asked = read_construction(torch.optim.AdamW, (parameters,), {"lr": 1e-3} | hyper)
    return build(parse_variant(text), asked)


# -- the projector -----------------------------------------------------------------------------


@pytest.mark.parametrize("proj_type", PROJECTIONS)
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_the_projector_holds_its_own_matrix_and_projects_the_same(
    proj_type: str, shape: tuple[int, int]
) -> None:
    gradient = torch.randn(shape)
    settings = SETTINGS | {"proj_type": proj_type}
    theirs, ours = GaLoreProjector(**settings), OwnMatrixProjector(**settings)
    low = theirs.project(gradient, 0)
    # A matrix with other strides is multiplied in another order.
    torch.testing.assert_close(ours.project(gradient, 0), low, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        ours.project_back(low), theirs.project_back(low), rtol=1e-5, atol=1e-6
    )

    assert held_bytes(theirs) > own_bytes(theirs), "galore-torch is mended: drop the row's note"
    assert held_bytes(ours) == own_bytes(ours) == own_bytes(theirs)
    assert all(each.is_contiguous() for each in matrices(ours))


def test_bf16_has_the_defect_in_none_of_both() -> None:
    gradient = torch.randn(24, 16, dtype=torch.bfloat16)
    for kind in (GaLoreProjector, OwnMatrixProjector):
        projector = kind(**SETTINGS)
        projector.project(gradient, 0)
        assert held_bytes(projector) == own_bytes(projector) == 2 * RANK * 16


def test_the_projection_is_renewed_every_few_steps() -> None:
    projector = OwnMatrixProjector(**SETTINGS)
    seen = []
    for step in range(4):
        projector.project(torch.randn(24, 16), step)
        seen.append(projector.ortho_matrix)
    assert [new is old for old, new in pairwise(seen)] == [True, False, True]


# -- the 8-bit optimizer -----------------------------------------------------------------------


def one_parameter(kind: Any, shape: tuple[int, int] = (96, 64), **hyper: Any) -> Any:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    optimizer = kind([{"params": [parameter], **SETTINGS}], lr=1e-2, **hyper)
    if kind is GaLoreAdamW8bit:
        optimizer.state[parameter]["projector"] = OwnMatrixProjector(**SETTINGS)
    return parameter, optimizer


def test_the_librarys_arguments_become_others() -> None:
    _, theirs = one_parameter(galore_torch.GaLoreAdamW8bit)
    assert theirs.args.max_unorm == 100  # meant: percentile_clipping
    assert theirs.args.skip_zeros is True  # meant: block_wise
    _, ours = one_parameter(GaLoreAdamW8bit)
    assert ours.args.max_unorm == 0
    assert ours.args.skip_zeros is False


def test_the_library_synchronises_and_leaves_a_gradient_of_another_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: calls.append(1))
    shapes = {}
    for kind in (galore_torch.GaLoreAdamW8bit, GaLoreAdamW8bit):
        calls.clear()
        parameter, optimizer = one_parameter(kind)
        parameter.grad = torch.randn(96, 64)
        optimizer.step()
        shapes[kind] = tuple(parameter.grad.shape), len(calls)
    assert shapes[galore_torch.GaLoreAdamW8bit] == ((96, RANK), 1)
    assert shapes[GaLoreAdamW8bit] == ((96, 64), 0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_8_bit_steps_are_those_of_galore_adamw(decay: float) -> None:
    """With fewer than 4096 projected elements the state is fp32, so that both compute the same."""
    ours, eight = one_parameter(GaLoreAdamW8bit, weight_decay=decay)
    theirs, full = one_parameter(
        galore_torch.GaLoreAdamW, weight_decay=decay, eps=1e-8, no_deprecation_warning=True
    )
    for _ in range(5):
        gradient = torch.randn(96, 64)
        for parameter, optimizer in ((ours, eight), (theirs, full)):
            parameter.grad = gradient.clone()
            optimizer.step()
            assert torch.equal(parameter.grad, gradient)
    assert eight.state[ours]["state1"].dtype == torch.float32
    # bitsandbytes adds eps to the corrected second moment, galore-torch to the raw one.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_codes_of_8_bits_step_nearly_alike() -> None:
    shape = (2048, 64)
    ours, eight = one_parameter(GaLoreAdamW8bit, shape, weight_decay=0.0)
    theirs, full = one_parameter(
        galore_torch.GaLoreAdamW, shape, eps=1e-8, no_deprecation_warning=True
    )
    begin = ours.detach().clone()
    for _ in range(5):
        gradient = torch.randn(shape)
        for parameter, optimizer in ((ours, eight), (theirs, full)):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert eight.state[ours]["state1"].dtype == torch.uint8
    moved, wanted = ours - begin, theirs - begin
    # Codes have some 2 digits.
    assert float((moved - wanted).norm() / wanted.norm()) < 0.05


def test_a_closure_and_parameters_without_gradient() -> None:
    parameter, optimizer = one_parameter(GaLoreAdamW8bit)
    optimizer.step()
    assert "state1" not in optimizer.state[parameter]

    def closure() -> torch.Tensor:
        loss: torch.Tensor = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None
    assert optimizer.state[parameter]["step"] == 1


# -- what is projected -------------------------------------------------------------------------


def test_hidden_matrices_with_sides_above_the_rank_are_projected() -> None:
    model = llama(layers=1, width=64)
    optimizer = galore("galore-adamw:rank=32", list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    projected = {
        names[id(parameter)]
        for group in optimizer.param_groups
        if "rank" in group
        for parameter in group["params"]
    }
    layer = "model.layers.0"
    # Keys and values have two heads of 16, the rank: as they are.
    assert projected == {
        f"{layer}.{part}.weight"
        for part in (
            "self_attn.q_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }
    assert optimizer.memlens_notes == [
        "2 of 7 hidden matrices have a side of 32 or less, the rank, and are not projected"
    ]


def test_groups_keep_what_the_job_said() -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    groups = [
        {"params": [model[0].weight, model[0].bias], "weight_decay": 0.5},
        {"params": list(model[2].parameters()), "lr": 1e-4},
    ]
    optimizer = galore("galore-adamw8bit:rank=8,lr_scale=2", groups, weight_decay=0.1)
    found = [
        (group["lr"], group["weight_decay"], "rank" in group, len(group["params"]))
        for group in optimizer.param_groups
    ]
    assert found == [
        (2e-3, 0.5, True, 1),
        (2e-4, 0.1, True, 1),
        (2e-3, 0.5, False, 1),
        (2e-4, 0.1, False, 1),
    ]


@pytest.mark.parametrize("option", ["rank=0", "proj_type=diagonal"])
def test_options_that_make_no_sense(option: str) -> None:
    with pytest.raises(
        UsageError, match="GaLore needs a rank of at least 1 and a proj_type of std"
    ):
        galore(f"galore-adamw:{option}", [nn.Parameter(torch.randn(8, 8))])
