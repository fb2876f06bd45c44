"""Which optimizers run under which kind of sharding."""

from __future__ import annotations

import pytest

from memlens.catalogue.combinations import ShardingMode, cautions, read_stages, refusal
from memlens.catalogue.table import CATALOGUE, find
from memlens.errors import UsageError

PARTITIONED = (ShardingMode.ZERO_1, ShardingMode.ZERO_2, ShardingMode.ZERO_3)
NEED_MATRICES = {"galore-adamw", "galore-adamw8bit", "galore-adafactor", "apollo", "muon"}
OWN_PRECISION = {"adamw-bf16", "adamw-mixed"}
PLAIN_TENSORS_ONLY = {
    "sgd-fused", "sgd-momentum-fused", "adagrad-fused", "adam8bit", "adamw8bit", "paged-adamw8bit",
    "lion8bit", "adafactor", "adafactor-momentum", "adafactor-torch", "came", "galore-adamw8bit",
    "galore-adafactor", "apollo", "adan", "adam-mini", "soap",
}  # fmt: skip
"""Those that failed on two processes under `fully_shard`, each with an error of DTensor's."""


def refused(mode: ShardingMode) -> set[str]:
    return {name for name, row in CATALOGUE.items() if refusal(row, mode)}


@pytest.mark.parametrize("mode", PARTITIONED)
def test_flat_partitions(mode: ShardingMode) -> None:
    assert refused(mode) == NEED_MATRICES | OWN_PRECISION | {"lomo"}


def test_deepspeed_without_zero_keeps_matrices() -> None:
    assert refused(ShardingMode.ZERO_0) == OWN_PRECISION | {"lomo"}


def test_fully_shard() -> None:
    assert refused(ShardingMode.FSDP) == PLAIN_TENSORS_ONLY


@pytest.mark.parametrize("mode", ShardingMode)
@pytest.mark.parametrize("name", ["adamw", "adamw-r", "adan-r", "lion-r", "adamw8bit-torchao"])
def test_what_runs_everywhere(name: str, mode: ShardingMode) -> None:
    assert not refusal(find(name), mode)


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        (
            "galore-adamw",
            ShardingMode.ZERO_2,
            "galore-adamw cannot run under ZeRO 2: GaLore needs matrices: flat partitions have none",
        ),
        (
            "adamw-mixed",
            ShardingMode.ZERO_1,
            "adamw-mixed cannot run under ZeRO 1: DeepSpeed keeps master weights itself: use adamw",
        ),
        (
            "adamw8bit",
            ShardingMode.FSDP,
            "adamw8bit does not run under FSDP: bitsandbytes' kernels take plain tensors, and the "
            "shards of fully_shard are DTensors",
        ),
    ],
)
def test_reasons_name_what_is_missing(name: str, mode: ShardingMode, reason: str) -> None:
    assert refusal(find(name), mode) == reason


def test_gradients_that_are_used_up_within_backward() -> None:
    """DeepSpeed wants them afterwards; `fully_shard` calls the hooks that use them."""
    row = find("adamw")
    for mode in (ShardingMode.ZERO_0, *PARTITIONED):
        assert "uses each up" in refusal(row, mode, no_retain_grad=True)
    assert not refusal(row, ShardingMode.FSDP, no_retain_grad=True)


def test_what_is_lost_is_said() -> None:
    assert cautions(find("adafactor"), ShardingMode.ZERO_2) == (
        "ZeRO 2: flat partitions are vectors: nothing is factored, 4 bytes per parameter",
    )
    assert "its block size divides it" in cautions(find("adamw4bit"), ShardingMode.ZERO_3)[0]
    assert cautions(find("adafactor"), ShardingMode.ZERO_0) == ()
    assert cautions(find("adamw"), ShardingMode.FSDP) == ()


@pytest.mark.parametrize("mode", ShardingMode)
def test_every_refusal_has_a_reason_and_a_name(mode: ShardingMode) -> None:
    for name in refused(mode):
        text = refusal(find(name), mode)
        assert text.startswith(f"{name} ")
        assert mode.label in text
        assert not text.endswith(": ")


def test_stages_as_they_are_written() -> None:
    modes = read_stages("0, 3,1,3")
    assert [mode.stage for mode in modes] == [0, 3, 1]
    for text in ("4", "0,two", "", ",", "-1"):
        with pytest.raises(UsageError, match="stage of ZeRO"):
            read_stages(text)
