"""One simulated rank under `fully_shard` holds what it holds among real ones, to the byte."""

from __future__ import annotations

import pytest
from tests.planning.really_and_simulated import Ran, assert_alike, really_and_simulated
from tests.planning.sharded_job import BACKWARD, FSDP, STEP

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[(1, [0]), (2, [0]), (4, [1, 3])], ids=lambda each: each[0])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Ran]:
    world_size, simulated = request.param
    return really_and_simulated("fsdp", tmp_path_factory.mktemp("fsdp"), world_size, simulated)


@pytest.mark.parametrize("name", FSDP)
@pytest.mark.parametrize("moment", [BACKWARD, STEP], ids=["after backward", "after step"])
def test_a_rank_holds_what_it_really_holds(ranks: dict[int, Ran], name: str, moment: int) -> None:
    assert_alike(ranks, list(FSDP).index(name), moment)
