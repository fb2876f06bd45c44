"""The adapter's parts that need no DeepSpeed."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memlens.adapters import Holding, watch_calls
from memlens.events import Category
from memlens_integrations.deepspeed.adapter import DeepSpeedAdapter
from memlens_integrations.deepspeed.flat import holdings_of_flat
from memlens_integrations.deepspeed.private import CALLS, READS, Private


class Problems:
    """Of a recorder, what the adapter uses here."""

    def __init__(self, device_type: str = "cpu") -> None:
        self.found: list[str] = []
        self.source = SimpleNamespace(device_type=device_type)

    def problem(self, text: str) -> None:
        self.found.append(text)


def private_of(problems: Problems) -> Private:
    recorder: Any = problems
    return Private(recorder, ExitStack())


def optimizer_of(**changes: Any) -> Any:
    """Like one of stage 2 on the second of two ranks: groups of 5 and 4 elements, padded to 6 and 4."""
    first, second, third = torch.zeros(3), torch.zeros(2), torch.zeros(4)
    attributes: dict[str, Any] = {
        "bit16_groups": [[first, second], [third]],
        "round_robin_bit16_groups": [[first, second], [third]],
        "bit16_groups_flat": [torch.zeros(6), torch.zeros(4)],
        "single_partition_of_fp32_groups": [torch.zeros(3), torch.zeros(2)],
        "params_in_partition": [[second], [third]],
        "partition_size": [3, 2],
        "real_dp_process_group": [None, None],
        "averaged_gradients": {0: [torch.zeros(2), torch.zeros(1)], 1: [torch.zeros(2)]},
        "ipg_buckets": {torch.float32: SimpleNamespace(buffer=[torch.zeros(7)])},
    }
    return SimpleNamespace(**{**attributes, **changes})


def by_category(holdings: Any) -> dict[Category, list[Holding]]:
    found: dict[Category, list[Holding]] = {}
    for each in holdings:
        found.setdefault(each.category, []).append(each)
    return found


def test_flat_groups(monkeypatch: Any) -> None:
    monkeypatch.setattr("memlens_integrations.deepspeed.flat.rank_in", lambda group: 1)
    problems, optimizer = Problems(), optimizer_of()
    found = by_category(holdings_of_flat(private_of(problems), optimizer))
    pieces = [
        [(each.start, each.count, each.parameter_start, each.elements) for each in holding.pieces]
        for holding in found[Category.MASTER_WEIGHT]
    ]
    assert pieces == [[(0, 2, 0, 2)], [(0, 2, 2, 4)]]
    gradients = [
        [(each.start, each.count, each.parameter_start) for each in holding.pieces]
        for holding in found[Category.GRADIENT]
    ]
    assert gradients == [[(0, 2, 0)], [], [(0, 2, 2)]]
    assert [each.name for each in found[Category.COMMUNICATION]] == ["reduce bucket 0"]
    assert problems.found == []


def test_older_names() -> None:
    """The bucket of older versions has another name, and is a list."""
    optimizer = optimizer_of(ipg_buffer=[torch.zeros(7), torch.zeros(7)])
    del optimizer.ipg_buckets
    problems = Problems()
    found = by_category(holdings_of_flat(private_of(problems), optimizer))
    assert len(found[Category.COMMUNICATION]) == 2
    assert problems.found == []


def test_what_is_missing_is_said_and_the_rest_is_told() -> None:
    for name, read in READS["flat"].items():
        optimizer, problems = optimizer_of(), Problems()
        if not hasattr(optimizer, name):
            assert read.optional or len(read.names) > 1, name
            continue
        delattr(optimizer, name)
        found = by_category(holdings_of_flat(private_of(problems), optimizer))
        assert len(found) >= 3, name
        said = [text for text in set(problems.found) if f"no `{name}`" in text]
        assert len(said) == (not read.optional), name


def test_a_function_that_is_gone_is_a_problem(monkeypatch: Any) -> None:
    monkeypatch.setitem(CALLS, "gathering of parameters", ("json:JSONDecoder.gather",))
    problems = Problems()
    private_of(problems).wrap("gathering of parameters")
    assert problems.found == [
        "this DeepSpeed has no gathering of parameters that memlens knows; it is inferred"
    ]


def test_wrapped_functions_come_back() -> None:
    called: list[tuple[str, int]] = []
    undo = ExitStack()
    recorder: Any = SimpleNamespace(hook=lambda what, function: function)
    owner = type("Owner", (), {"run": lambda self, value: 1 // value})
    original = vars(owner)["run"]
    watch_calls(
        recorder,
        undo,
        owner,
        "run",
        before=lambda *arguments: called.append(("before", arguments[1])),
        after=lambda *arguments: called.append(("after", arguments[1])),
        always=lambda *arguments: called.append(("always", arguments[1])),
    )
    made: Any = owner()
    assert made.run(1) == 1
    assert called == [("before", 1), ("after", 1), ("always", 1)]
    called.clear()
    with pytest.raises(ZeroDivisionError):
        made.run(0)
    assert called == [("before", 0), ("always", 0)]
    undo.close()
    assert vars(owner)["run"] is original


def test_host_memory_is_a_gauge_where_the_device_is_another(monkeypatch: Any) -> None:
    flat = torch.zeros(10)
    flat.grad = torch.zeros(10)
    held = [
        Holding(flat, Category.MASTER_WEIGHT),
        Holding(flat[2:], Category.WEIGHT),  # the same storage
        Holding(torch.zeros(3), Category.GRADIENT),
    ]
    owner = SimpleNamespace(optimizer=SimpleNamespace(state={flat: {"exp_avg": torch.zeros(10)}}))
    for device_type, expected in (("cpu", []), ("cuda", [0, 40 + 40 + 12 + 40])):
        problems = Problems(device_type)
        adapter = DeepSpeedAdapter()
        recorder: Any = problems
        adapter._recorder, adapter._private = recorder, private_of(problems)
        monkeypatch.setattr(adapter, "holdings", lambda: iter(held))
        monkeypatch.setattr(adapter, "_alive", lambda kind: [owner] if kind == "flat" else [])
        assert [size for _, _, size in adapter.gauges()] == expected
        assert problems.found == []


def test_the_stage_is_told() -> None:
    adapter = DeepSpeedAdapter()
    adapter._private = private_of(Problems())
    owners = [optimizer_of(partition_gradients=stage == 2) for stage in (1, 2)]
    adapter._alive = lambda kind: owners if kind == "flat" else []  # type: ignore[method-assign]
    assert list(adapter.sharding()) == ["ZeRO 1", "ZeRO 2"]
    adapter._alive = lambda kind: [None] if kind == "stage 3" else []  # type: ignore[method-assign]
    assert list(adapter.sharding()) == ["ZeRO 3"]
