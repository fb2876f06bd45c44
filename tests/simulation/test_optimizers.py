"""Every optimizer of the catalogue steps on a simulated device, and holds what its layout says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.optimizers.layouts import FLOAT, LAYOUTS, SHARED, Parameter
from tests.simulation.conftest import Simulate, SimulatedJob, simulate
from tests.simulation.optimizer_job import DTYPES, LAYERS, RANK, SHAPES, SIDE, WIDTH

from memlens.catalogue.closed_form import estimate
from memlens.catalogue.measured import FILE
from memlens.catalogue.table import CATALOGUE
from memlens.events import Category
from memlens.rank import RankCapture
from memlens.variants.witness import read_witnesses

IN_BACKWARD = [name for name, row in CATALOGUE.items() if row.in_backward]
PAGED = 100_000
"""Elements from which bitsandbytes pages state (`get_state_buffer`: 1e5)."""
_LATER = re.compile(r"\bLanguage(#\d+)?\.")
"""Before the names of all models but the first."""
JOB = """
    from tests.simulation.optimizer_job import main
    main()
"""


class Ran:
    """All trainings, in one process."""

    def __init__(self, job: SimulatedJob) -> None:
        self.rank: RankCapture = job.rank
        lines = [json.loads(line) for line in job.output.splitlines()]
        self.told = {(each["name"], each["dtype"], each["what"]): each for each in lines}

    def blocks(self, told: dict[str, Any], category: Category, moment: str) -> dict[str, int]:
        """Bytes by name, of those that lie on the device."""
        found: dict[str, int] = {}
        for block in self.rank.allocations_at(told[moment], None):
            if block.category is category:
                shared = block.name.startswith("qmap") and not block.name.startswith("qmap.")
                name = block.name.partition(" of ")[0] if shared else _LATER.sub("", block.name)
                assert name not in found, "two blocks of one name"
                found[name] = block.size_bytes
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(simulate(JOB, tmp_path_factory.mktemp("optimizers")))


def rounded(size_bytes: int) -> int:
    """As the allocator hands it out."""
    return -(-size_bytes // 512) * 512


def item_bytes(name: str, dtype: str) -> int:
    """Of an element of the weights, as they are trained."""
    return 2 if CATALOGUE[name].precision != "job" else DTYPES[dtype].itemsize


def is_on_host(name: str, key: str, parameter: Parameter | None = None) -> bool:
    """Counts of steps, but those of fused kernels (torch/optim/adam.py); and what is paged."""
    if key == "step":
        return not name.endswith("-fused")
    paged = name == "paged-adamw8bit" and key in ("state1", "state2")
    return paged and parameter is not None and parameter.numel >= PAGED


def layout(name: str, dtype: str) -> list[tuple[str, str, int, Parameter]]:
    """What the layout keeps: key, parameter's name, bytes; before any rounding."""
    kept = []
    for text, shape in SHAPES.items():
        parameter = Parameter(
            shape,
            item_bytes(name, dtype),
            RANK,
            hidden=text not in ("embed.weight", "head.weight"),
            name=text,
        )
        for key, size in LAYOUTS[name](parameter).items():
            kept.append((key, text, size, parameter))
    return kept


def expected_state(name: str, dtype: str) -> dict[str, int]:
    state = {key: rounded(size) for key, size in SHARED.get(name, {}).items()}
    for key, text, size, parameter in layout(name, dtype):
        if not is_on_host(name, key, parameter):
            state[f"{key} of {text}"] = rounded(size)
    return state


def expected_weights(name: str, dtype: str) -> dict[str, int]:
    item = item_bytes(name, dtype)
    return {text: rounded(Parameter(shape, item, RANK).own_bytes) for text, shape in SHAPES.items()}


def cases(names: list[str], *what: str) -> Callable[[Any], Any]:
    return pytest.mark.parametrize(
        ("name", "dtype", *(("what",) if what else ())),
        [
            (name, dtype, *((each,) if what else ()))
            for name in names
            for dtype in DTYPES
            for each in (what or ("",))
            if each != "no_retain_grad" or (name in IN_BACKWARD and dtype == "bf16")
        ],
    )


@cases(list(CATALOGUE), "language", "no_retain_grad")
def test_state_is_what_the_layout_says_to_the_byte(
    name: str, dtype: str, what: str, ran: Ran
) -> None:
    told = ran.told[name, dtype, what]
    assert ran.blocks(told, Category.OPTIMIZER_STATE, "after_step") == expected_state(name, dtype)
    masters = {
        f"master_weight of {text}": rounded(Parameter(shape, 0, RANK).numel * FLOAT)
        for text, shape in SHAPES.items()
        if CATALOGUE[name].precision == "mixed"
    }
    assert ran.blocks(told, Category.MASTER_WEIGHT, "after_step") == masters


@cases(list(CATALOGUE), "language", "no_retain_grad")
def test_weights_and_gradients_are_those_of_the_model(
    name: str, dtype: str, what: str, ran: Ran
) -> None:
    told = ran.told[name, dtype, what]
    weights = expected_weights(name, dtype)
    assert ran.blocks(told, Category.WEIGHT, "before_step") == weights
    gradients = ran.blocks(told, Category.GRADIENT, "before_step")
    if what == "no_retain_grad" or CATALOGUE[name].always_in_backward:
        assert gradients == {}
    else:
        assert sum(gradients.values()) == sum(weights.values())
        assert len(gradients) == len(weights)
    assert ran.blocks(told, Category.GRADIENT, "after_zero_grad") == {}


@cases(list(CATALOGUE))
def test_a_matrix_costs_what_the_closed_form_says(name: str, dtype: str, ran: Ran) -> None:
    told = ran.told[name, dtype, "matrix"]
    said = estimate(CATALOGUE[name], SIDE * SIDE, dtype)
    assert told["weight"] == said.weight_bytes
    assert told["gradient"] == said.gradient_bytes
    parameter = Parameter((SIDE, SIDE), item_bytes(name, dtype), 128)
    kept = {**LAYOUTS[name](parameter), **SHARED.get(name, {})}
    # It was measured on a CPU: there, counters are as small as they are, and all are counted.
    on_host = sum(size for key, size in kept.items() if key == "step" and is_on_host(name, key))
    slack = sum(rounded(size) - size for key, size in kept.items() if not is_on_host(name, key))
    assert told["state"] == said.state_bytes + said.master_weight_bytes - on_host + slack


def test_paged_state_lies_outside_of_the_allocator(ran: Ran) -> None:
    """It is managed memory: the two moments of the embedding, and of the head."""
    for (name, dtype, what), told in ran.told.items():
        if what != "language":
            continue
        paged = [
            size
            for key, _, size, parameter in layout(name, dtype)
            if is_on_host(name, key, parameter) and key != "step"
        ]
        assert told["managed"] == sum(paged)
        assert len(paged) == (4 if name == "paged-adamw8bit" else 0)


LAYER = WIDTH * WIDTH + WIDTH
PARAMETERS = LAYERS * LAYER
COMPILED = "the simulation takes the compiled step, which does not run on a CPU here"
KERNEL = "in bf16, the CPU's matrix product has a scratch buffer, and its mean a copy in fp32"
FOREACH = "on CUDA the default is foreach, on a CPU the for-loop"
NATIVE = "bitsandbytes has one kernel on CUDA, and a few lines of torch on a CPU"

DIFFERENT: dict[str, tuple[str, dict[str, int]]] = {
    "adagrad": (FOREACH, {"fp32": 8 * PARAMETERS, "bf16": 4 * PARAMETERS}),
    "rmsprop": (FOREACH, {"fp32": 4 * PARAMETERS, "bf16": 2 * PARAMETERS}),
    "adam": (FOREACH, {"fp32": 4 * PARAMETERS, "bf16": 2 * PARAMETERS}),
    "adamw": (FOREACH, {"fp32": 4 * PARAMETERS, "bf16": 2 * PARAMETERS}),
    "adamw-bf16": (FOREACH, {"fp32": 2 * PARAMETERS, "bf16": 2 * PARAMETERS}),
    # A fp32 gradient and a temporary of one parameter at a time.
    "adamw-mixed": (FOREACH, dict.fromkeys(DTYPES, 8 * WIDTH * WIDTH)),
    # pytorch_optimizer's step_lefts_foreach: updates of all, and gradients of all in fp32.
    "adam-mini": (FOREACH, {"fp32": 4 * PARAMETERS + 1024, "bf16": 8 * PARAMETERS + 1024}),
    **dict.fromkeys(
        ("adam8bit", "adamw8bit", "paged-adamw8bit", "lion8bit"),
        (NATIVE, dict.fromkeys(DTYPES, 0)),
    ),
    # The projected gradient, its update, and the projection back before and after it is scaled.
    "galore-adamw8bit": (NATIVE, {"bf16": 2 * 2 * WIDTH * WIDTH + 2 * 128 * WIDTH * 2}),
    **dict.fromkeys(
        ("adam8bit-torchao", "adamw8bit-torchao"),
        (COMPILED, dict.fromkeys(DTYPES, 2 * (4 * WIDTH * WIDTH + WIDTH * WIDTH // 64))),
    ),
    "adamw4bit": (COMPILED, dict.fromkeys(DTYPES, 2 * (13 * WIDTH * WIDTH + WIDTH * WIDTH // 32))),
    "adamw-fp8": (COMPILED, dict.fromkeys(DTYPES, 2 * WIDTH * WIDTH // 64)),
    "came": (KERNEL, {"bf16": 2 * 2 * PARAMETERS}),
    "muon": (KERNEL, {"fp32": 3 * 4 * WIDTH * WIDTH, "bf16": 5 * 2 * WIDTH * WIDTH}),
    "soap": (KERNEL, {"bf16": 6 * 2 * WIDTH * WIDTH}),
    "adafactor-torch": (KERNEL, {"bf16": 2 * LAYER}),
}
"""Temporaries of `step()` that are not those that were measured on the CPU: why, and what they are."""
SMALL = 4096
"""Rounding, and counters."""


@cases([name for name, row in CATALOGUE.items() if not row.always_in_backward])
def test_temporaries_are_those_of_the_cpu_but_where_cuda_differs(
    name: str, dtype: str, ran: Ran
) -> None:
    measured = json.loads(FILE.read_text())["rows"][name][dtype]["stack"]["optimizer_temporary"]
    _, different = DIFFERENT.get(name, ("", {}))
    simulated = ran.told[name, dtype, "stack"]["temporary"]
    if dtype in different:
        assert abs(simulated - measured) > SMALL, "no longer different"
    assert abs(simulated - different.get(dtype, measured)) <= SMALL


def test_a_job_that_says_adamw_is_given_another(simulate: Simulate, tmp_path: Path) -> None:
    """As `memlens compare` does it, through the environment."""
    (tmp_path / "variant").mkdir()
    job = simulate(
        """
        import torch
        from torch import nn
        model = nn.Sequential(nn.Linear(1024, 1024, bias=False)).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            model(torch.randn(4, 1024, device="cuda")).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        print(type(optimizer).__module__)
        """,
        environment={
            "MEMLENS_VARIANT": "adamw8bit",
            "MEMLENS_VARIANT_OUT": str(tmp_path / "variant"),
        },
    )
    assert job.output.split() == ["bitsandbytes.optim.adamw"]
    [witness] = read_witnesses(tmp_path / "variant")
    assert witness["replaced"] == ["AdamW"]
    last = job.rank.steps()[-1]
    # Codes, scales and two tables.
    assert last.categories[Category.OPTIMIZER_STATE] == 2 * (1024 * 1024 + 4096 * 4 + 1024)
