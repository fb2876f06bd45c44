"""Weights told apart: frozen, quantised, added by an adapter, trainable, buffers. All to the byte."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from bitsandbytes.optim.adamw import AdamW8bit
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from rich.console import Console
from tests.support.fake_capture import Block, FakeRank, make_capture
from tests.support.training import Outcome, Recorded, Recording, now, run_both
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM

import memlens
import memlens_integrations
from memlens.capture import RankCapture
from memlens.events import Category, WeightKind
from memlens.recording.storages import is_quantised
from memlens.report.payload import payload
from memlens.report.terminal import print_report
from memlens.report.view import ReportOptions

FLOAT = 4
IN, HIDDEN, OUT, BATCH, RANK = 64, 128, 64, 4, 32
LINEAR = FLOAT * (IN * HIDDEN + HIDDEN + HIDDEN * OUT + OUT)
"""Weights and biases of both layers."""
FACTORS = [FLOAT * RANK * size for size in (IN, HIDDEN, HIDDEN, OUT)]
"""LoRA's A and B of the first layer, and of the second."""
LORA = sum(FACTORS)
STEP = FLOAT
"""torch's AdamW counts steps in one float32 per parameter."""

BLOCK, BLOCK_OF_SCALES = 64, 256
"""How many values share a scale: weights in 4 bits, and those scales, if they are quantised too."""
CODE_4BIT, CODE_8BIT = 16 * FLOAT, 256 * FLOAT
"""Code books: what each code stands for, in float32."""


@pytest.fixture(autouse=True, scope="module")
def made_once() -> None:
    """bitsandbytes keeps the code book of 8 bits that it copies from, and torchao constants."""
    four_bit_net(nested=True)
    quantize_(linear_net(), Int8WeightOnlyConfig())


@pytest.fixture(autouse=True)
def nothing_left_over(made_once: None) -> None:
    """A session would find what tests before have left: their models, and what libraries keep."""
    gc.collect()
    gc.freeze()


class Net(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.second(torch.relu(self.first(x))))


def linear_net() -> Net:
    return Net(nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, OUT))


def four_bit_net(*, nested: bool) -> Net:
    def layer(inner: int, outer: int) -> nn.Module:
        return Linear4bit(  # type: ignore[no-untyped-call]
            inner, outer, quant_type="nf4", compress_statistics=nested
        )

    return Net(layer(IN, HIDDEN), layer(HIDDEN, OUT)).to("cpu")


def with_lora(net: Net) -> Net:
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(r=RANK, target_modules=["first", "second"])
    return cast("Net", inject_adapter_in_model(config, net))


def train(
    model: nn.Module,
    optimizer: Any,
    outcome: Outcome,
    *,
    steps: int = 3,
) -> None:
    """Take steps, and note three moments of the last one."""
    x = torch.randn(BATCH, IN)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        outcome.moments["before backward"] = now()
        loss.backward()
        outcome.moments["before step"] = now()
        optimizer.step()
        outcome.losses.append(loss.item())
        outcome.moments["end"] = now()
        del loss
    outcome.models.append(model)
    outcome.values += [parameter.detach() for parameter in model.parameters()]


def kinds(rank: RankCapture, time_ns: int | None = None) -> dict[WeightKind, int]:
    """Bytes per kind of weight, without the zeros."""
    return {kind: size for kind, size in rank.weights_at(time_ns).items() if size}


def weights(rank: RankCapture, time_ns: int) -> dict[str, tuple[int, WeightKind | None, str]]:
    """Bytes, kind and module of each weight, by its name."""
    alive = rank.allocations_at(time_ns, top=None)
    found = {
        block.name: (block.size_bytes, block.weight_kind, block.module)
        for block in alive
        if block.category is Category.WEIGHT
    }
    assert len(found) == sum(block.category is Category.WEIGHT for block in alive)
    return found


def assert_conserved(recorded: Recorded) -> None:
    """At every event, kinds sum to the weights; and only weights have a kind."""
    rank = recorded.rank
    for time_ns in sorted({int(each) for each in rank.timeline().time_ns}):
        sums = rank.weights_at(time_ns)
        assert set(sums) == set(WeightKind)
        assert sum(sums.values()) == rank.categories_at(time_ns)[Category.WEIGHT]
    for block in rank.allocations_at(recorded.outcome.moments["end"], top=None):
        assert (block.weight_kind is not None) == (block.category is Category.WEIGHT)


# -- adapters ----------------------------------------------------------------------------------


def test_lora_is_told_from_the_model_it_is_added_to(tmp_path: Path) -> None:
    def job(recording: Recording) -> Outcome:
        outcome = Outcome()
        with recording():
            model = with_lora(linear_net())
            adapter = [each for each in model.parameters() if each.requires_grad]
            train(model, torch.optim.AdamW(adapter), outcome)
        return outcome

    recorded = run_both(job, tmp_path)

    end = recorded.outcome.moments["end"]
    assert kinds(recorded.rank, end) == {WeightKind.FROZEN: LINEAR, WeightKind.ADAPTER: LORA}
    held = recorded.at("end")
    assert held[Category.WEIGHT] == LINEAR + LORA
    assert held[Category.GRADIENT] == LORA
    assert held[Category.OPTIMIZER_STATE] == 2 * LORA + len(FACTORS) * STEP
    assert Category.UNKNOWN not in held
    assert weights(recorded.rank, end) == {
        "first.base_layer.weight": (FLOAT * IN * HIDDEN, WeightKind.FROZEN, "first.base_layer"),
        "first.base_layer.bias": (FLOAT * HIDDEN, WeightKind.FROZEN, "first.base_layer"),
        "first.lora_A.default.weight": (FACTORS[0], WeightKind.ADAPTER, "first.lora_A.default"),
        "first.lora_B.default.weight": (FACTORS[1], WeightKind.ADAPTER, "first.lora_B.default"),
        "second.base_layer.weight": (FLOAT * HIDDEN * OUT, WeightKind.FROZEN, "second.base_layer"),
        "second.base_layer.bias": (FLOAT * OUT, WeightKind.FROZEN, "second.base_layer"),
        "second.lora_A.default.weight": (FACTORS[2], WeightKind.ADAPTER, "second.lora_A.default"),
        "second.lora_B.default.weight": (FACTORS[3], WeightKind.ADAPTER, "second.lora_B.default"),
    }
    assert_conserved(recorded)


def test_an_adapter_that_is_switched_off_is_an_adapter_still(tmp_path: Path) -> None:
    """It takes no gradient then; the model's own weights do not either, and are no adapter for it."""
    with memlens.profile(out=tmp_path / "run") as session:
        model = with_lora(linear_net())
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model(torch.randn(BATCH, IN))
        moment = now()

    assert kinds(session.capture.rank(0), moment) == {
        WeightKind.FROZEN: LINEAR,
        WeightKind.ADAPTER: LORA,
    }


def test_parameters_of_a_layer_itself_and_saved_modules_are_adapters_too(tmp_path: Path) -> None:
    """IA3 holds its vectors in a ParameterDict; `modules_to_save` is a copy that trains."""
    with memlens.profile(out=tmp_path / "run") as session:
        config = IA3Config(
            target_modules=["first"], feedforward_modules=[], modules_to_save=["second"]
        )
        model: nn.Module = get_peft_model(cast("Any", linear_net()), config)
        model(torch.randn(BATCH, IN))
        moment = now()

    saved = FLOAT * (HIDDEN * OUT + OUT)
    assert kinds(session.capture.rank(0), moment) == {
        WeightKind.FROZEN: LINEAR,
        WeightKind.ADAPTER: FLOAT * HIDDEN + saved,
    }


def test_a_learned_prompt_is_an_adapter(tmp_path: Path) -> None:
    vocabulary, hidden, tokens = 32, 16, 5
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with memlens.profile(out=tmp_path / "run") as session:
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
        model: nn.Module = get_peft_model(LlamaForCausalLM(config), prompt)
        frozen = sum(each.nbytes for each in model.parameters() if not each.requires_grad)
        model(input_ids=torch.zeros(1, 8, dtype=torch.long))
        moment = now()

    found = kinds(session.capture.rank(0), moment)
    assert found[WeightKind.ADAPTER] == FLOAT * tokens * hidden
    assert found[WeightKind.FROZEN] == frozen
    assert WeightKind.TRAINABLE not in found


# -- quantised ---------------------------------------------------------------------------------


def scales(values: int, name: str, module: str, *, nested: bool) -> Iterator[tuple[str, Any]]:
    """What bitsandbytes keeps for a weight in 4 bits, by the layout that its source documents."""
    parts = {"weight": values // 2, "weight.quant_state.code": CODE_4BIT}
    count = values // BLOCK
    if nested:
        parts["weight.quant_state.absmax"] = count  # codes of 8 bits
        parts["weight.quant_state.offset"] = FLOAT
        parts["weight.quant_state.state2.absmax"] = FLOAT * -(-count // BLOCK_OF_SCALES)
        parts["weight.quant_state.state2.code"] = CODE_8BIT
    else:
        parts["weight.quant_state.absmax"] = FLOAT * count
    for part, size in parts.items():
        yield f"{name}.{part}", (size, WeightKind.QUANTISED, module)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("made_before", [False, True])
def test_codes_and_scales_of_4_bit_weights(nested: bool, made_before: bool, tmp_path: Path) -> None:
    """Also when the session finds them there: then no observer has seen them made."""

    def job(recording: Recording) -> Outcome:
        outcome = Outcome()
        model = four_bit_net(nested=nested) if made_before else None
        with recording():
            model = model or four_bit_net(nested=nested)
            biases = [each for each in model.parameters() if each.requires_grad]
            train(model, torch.optim.SGD(biases, lr=0.1), outcome)
        return outcome

    recorded = run_both(job, tmp_path)

    assert weights(recorded.rank, recorded.outcome.moments["end"]) == {
        "first.bias": (FLOAT * HIDDEN, WeightKind.TRAINABLE, "first"),
        "second.bias": (FLOAT * OUT, WeightKind.TRAINABLE, "second"),
        **dict(scales(IN * HIDDEN, "first", "first", nested=nested)),
        **dict(scales(HIDDEN * OUT, "second", "second", nested=nested)),
    }
    assert recorded.at("end")[Category.GRADIENT] == FLOAT * (HIDDEN + OUT)
    for moment in recorded.outcome.moments:
        assert Category.UNKNOWN not in recorded.at(moment)
    assert_conserved(recorded)


def test_what_is_read_from_codes_is_no_weight(tmp_path: Path) -> None:
    """The weight in full exists for a moment, in forward and in backward, and is not saved."""

    def job(recording: Recording) -> Outcome:
        outcome = Outcome()
        with recording():
            model = with_lora(four_bit_net(nested=True))
            adapter = [each for each in model.parameters() if each.requires_grad]
            train(model, torch.optim.SGD(adapter, lr=0.1), outcome)
        return outcome

    recorded = run_both(job, tmp_path)

    rank, moments = recorded.rank, recorded.outcome.moments
    full = FLOAT * IN * HIDDEN
    for moment in moments:
        assert Category.TEMPORARY not in recorded.at(moment)
        blocks = rank.allocations_at(moments[moment], top=None)
        assert full not in {block.size_bytes for block in blocks}
    timeline = rank.timeline()
    during = (timeline.time_ns > moments["before backward"]) & (
        timeline.time_ns < moments["before step"]
    )
    assert int(timeline.categories[Category.TEMPORARY][during].max()) >= full
    assert set(timeline.categories[Category.WEIGHT][during].tolist()) == {
        rank.categories_at(moments["end"])[Category.WEIGHT]
    }


def test_memory_from_before_it_was_quantised_is_not_called_quantised(tmp_path: Path) -> None:
    def job(recording: Recording) -> Outcome:
        outcome = Outcome()
        with recording():
            layer = Linear4bit(  # type: ignore[no-untyped-call]
                IN, HIDDEN, bias=False, quant_type="nf4", compress_statistics=False
            )
            outcome.moments["full"] = now()
            model = layer.to("cpu")
            with torch.no_grad():
                outcome.values.append(model(torch.randn(BATCH, IN)))
            outcome.moments["end"] = now()
        return outcome

    recorded = run_both(job, tmp_path)

    moments = recorded.outcome.moments
    before = kinds(recorded.rank, moments["full"])
    assert sum(before.values()) == FLOAT * IN * HIDDEN
    assert WeightKind.QUANTISED not in before
    codes = IN * HIDDEN // 2
    assert kinds(recorded.rank, moments["end"]) == {
        WeightKind.QUANTISED: codes + FLOAT * IN * HIDDEN // BLOCK + CODE_4BIT
    }


def test_qlora_has_state_for_its_adapters_alone(tmp_path: Path) -> None:
    def job(recording: Recording) -> Outcome:
        outcome = Outcome()
        with recording():
            model = with_lora(four_bit_net(nested=True))
            adapter = [each for each in model.parameters() if each.requires_grad]
            optimizer = AdamW8bit(  # type: ignore[no-untyped-call]
                adapter, lr=1e-3, min_8bit_size=1024
            )
            train(model, optimizer, outcome)
        return outcome

    recorded = run_both(job, tmp_path)

    biases = FLOAT * (HIDDEN + OUT)
    quantised = sum(
        size
        for values, name in ((IN * HIDDEN, "first"), (HIDDEN * OUT, "second"))
        for _, (size, *_) in scales(values, name, name, nested=True)
    )
    end = recorded.outcome.moments["end"]
    assert kinds(recorded.rank, end) == {
        WeightKind.ADAPTER: LORA,
        WeightKind.QUANTISED: quantised,
        WeightKind.FROZEN: biases,
    }
    held = recorded.at("end")
    assert held[Category.GRADIENT] == LORA
    # Two moments: a byte for each value, a float32 for each block of 256; one code book for each moment.
    values = LORA // FLOAT
    assert held[Category.OPTIMIZER_STATE] == 2 * (values + FLOAT * values // 256 + CODE_8BIT)
    assert Category.UNKNOWN not in held
    assert_conserved(recorded)


@pytest.mark.parametrize("called", [False, True])
def test_codes_and_scales_of_8_bit_weights(called: bool, tmp_path: Path) -> None:
    """The first call moves the scales from the parameter to the layer."""
    with memlens.profile(out=tmp_path / "run") as session:
        layer: nn.Module = Linear8bitLt(IN, HIDDEN, bias=False, has_fp16_weights=False)
        model = nn.Sequential(layer).to("cpu")
        if called:
            model(torch.randn(BATCH, IN))
        moment = now()

    assert weights(session.capture.rank(0), moment) == {
        "0.weight": (IN * HIDDEN, WeightKind.QUANTISED, "0"),
        "0.weight.SCB": (FLOAT * HIDDEN, WeightKind.QUANTISED, "0"),
    }


def test_a_quantised_tensor_of_torchao(tmp_path: Path) -> None:
    def job(recording: Recording) -> Outcome:
        outcome = Outcome()
        with recording():
            model = nn.Sequential(nn.Linear(IN, HIDDEN))
            quantize_(model, Int8WeightOnlyConfig())
            with torch.no_grad():
                outcome.values.append(model(torch.randn(BATCH, IN)))
            outcome.moments["end"] = now()
            weight: Any = model[0].weight
            parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
            sizes.append(sum(part.nbytes for part in parts))
        return outcome

    sizes: list[int] = []
    recorded = run_both(job, tmp_path)

    assert sizes[-1] >= IN * HIDDEN + FLOAT * HIDDEN  # codes, and a scale for each row
    assert kinds(recorded.rank, recorded.outcome.moments["end"]) == {
        WeightKind.QUANTISED: sizes[-1],
        WeightKind.TRAINABLE: FLOAT * HIDDEN,
    }
    assert_conserved(recorded)


def test_a_wrapper_that_keeps_its_precision_is_not_quantised() -> None:
    rows = [torch.ones(2, 3), torch.ones(4, 3)]
    assert not is_quantised(torch.nested.nested_tensor(rows, layout=torch.jagged))
    assert not is_quantised(torch.ones(3, dtype=torch.int8))


# -- without libraries -------------------------------------------------------------------------


def test_what_trains_what_is_frozen_and_buffers(tmp_path: Path) -> None:
    """Also a parameter of no module; and what is frozen in between counts as it is in the end."""

    def job(recording: Recording) -> Outcome:
        outcome = Outcome()
        with recording():
            norm = nn.BatchNorm1d(HIDDEN)
            model = nn.Sequential(nn.Linear(IN, HIDDEN), norm, nn.Linear(HIDDEN, OUT))
            alone = nn.Parameter(torch.ones(10))
            optimizer = torch.optim.SGD([*model.parameters(), alone], lr=0.1)
            train(model, optimizer, outcome, steps=1)
            model[0].requires_grad_(False)
            train(model, optimizer, outcome, steps=1)
        return outcome

    recorded = run_both(job, tmp_path)

    first = FLOAT * (IN * HIDDEN + HIDDEN)
    expected = {
        WeightKind.BUFFER: FLOAT * 2 * HIDDEN + 8,  # mean, variance, an int64 count
        WeightKind.FROZEN: first,
        WeightKind.TRAINABLE: LINEAR - first + FLOAT * 2 * HIDDEN + FLOAT * 10,
    }
    assert kinds(recorded.rank, recorded.outcome.moments["end"]) == expected
    assert_conserved(recorded)


def test_a_capture_without_kinds_says_that_they_are_not_known(tmp_path: Path) -> None:
    """As written before there were kinds: names of tensors have no detail."""
    with memlens.profile(out=tmp_path / "run") as session:
        model = linear_net()
        model(torch.randn(BATCH, IN))
        moment = now()
    rank = session.capture.rank(0)
    assert kinds(rank, moment) == {WeightKind.TRAINABLE: LINEAR}

    data = rank._data
    old = RankCapture(replace(data, names=replace(data.names, weight_kind={})), 0, 0)

    assert kinds(old, moment) == {WeightKind.UNKNOWN: LINEAR}
    assert old.categories_at(moment) == rank.categories_at(moment)


def test_no_library_is_imported_for_it(tmp_path: Path) -> None:
    script = f"""
import sys, torch, memlens
with memlens.profile(out={str(tmp_path / "run")!r}) as session:
    torch.nn.Linear(3, 4)(torch.ones(2, 3))
print(sorted({{"peft", "bitsandbytes", "torchao", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_an_adapter_that_fails_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Broken:
        library = "torch"

        def install(self, recorder: object, undo: object) -> None:
            """Nothing to do."""

        def weights(self, module: nn.Module) -> Any:
            asked.append(module)
            raise LookupError("lost")

    monkeypatch.setitem(sys.modules, "broken", cast("Any", SimpleNamespace(Broken=Broken)))
    monkeypatch.setitem(memlens_integrations.ADAPTERS, "broken", "broken:Broken")
    with memlens.profile(out=tmp_path / "run") as session:
        model = with_lora(linear_net())
        model(torch.randn(BATCH, IN))
        moment = now()

    rank = session.capture.rank(0)
    assert len(asked) == 1
    assert rank.coverage.problems == ("adapter for torch failed (LookupError: lost)",)
    assert kinds(rank, moment) == {WeightKind.FROZEN: LINEAR, WeightKind.ADAPTER: LORA}


# -- reports -----------------------------------------------------------------------------------


def report_of(*sizes: tuple[WeightKind, int]) -> tuple[str, dict[str, Any]]:
    """The terminal's report and the JSON of a run that holds such weights."""
    blocks = [
        Block(size, Category.WEIGHT, at, weight_kind=kind) for at, (kind, size) in enumerate(sizes)
    ]
    blocks.append(Block(7, Category.ACTIVATION, 50, 60))
    capture = make_capture(FakeRank(0, blocks, [100]))
    stream = io.StringIO()
    print_report(capture, ReportOptions(), Console(file=stream, width=100))
    return stream.getvalue(), json.loads(json.dumps(payload(capture, ReportOptions())))


def test_the_report_tells_kinds_apart() -> None:
    text, made = report_of(
        (WeightKind.QUANTISED, 3 << 20), (WeightKind.ADAPTER, 1 << 20), (WeightKind.BUFFER, 256)
    )

    assert "weight: adapter 1.00 MiB, quantised 3.00 MiB, buffer 256 B\n" in text
    expected = {
        "adapter": 1 << 20,
        "quantised": 3 << 20,
        "buffer": 256,
        "frozen": 0,
        "trainable": 0,
        "unknown": 0,
    }
    (rank,) = made["ranks"]
    for moment in (rank["peak"], rank["at"]):
        assert moment["weight_kinds"] == expected
        assert sum(expected.values()) == moment["categories"]["weight"]
    assert {block["name"]: block["weight_kind"] for block in rank["allocations"]}.keys() == {""}
    assert [block["weight_kind"] for block in rank["allocations"]] == [
        "quantised",
        "adapter",
        "buffer",
        None,
    ]


@pytest.mark.parametrize("kind", [WeightKind.TRAINABLE, WeightKind.UNKNOWN, WeightKind.FROZEN])
def test_the_report_keeps_silent_where_there_is_nothing_to_tell(kind: WeightKind) -> None:
    text, _ = report_of((kind, 1 << 20), (WeightKind.BUFFER, 256))
    assert "weight:" not in text
