"""Models come out in the published sizes, in their dtype from the start, and learn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tests.support.small_models import SMALL

import memlens
from memlens.errors import MissingDependencyError, UsageError
from memlens.models.build import build_model, compute_loss, count_parameters, make_batch
from memlens.models.table import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_it_has_as_many_parameters_as_published(name: str) -> None:
    shape = MODELS[name]
    # `rounding` is half a unit of the last digit that the source prints, and mostly 0.
    assert abs(count_parameters(name) - shape.published_parameters) <= shape.rounding


def test_most_counts_are_exact() -> None:
    rounded = [name for name, shape in MODELS.items() if shape.rounding and shape.kind != "image"]
    assert rounded == ["llama-3b"]
    assert all(MODELS[name].rounding <= 5_000 for name in MODELS if MODELS[name].kind == "image")


def test_every_class_is_among_the_small_ones() -> None:
    classes = {shape.model_class for shape in MODELS.values()}
    assert {shape.model_class for shape in SMALL.values()} == classes


def test_tied_weights_count_once() -> None:
    shape = SMALL["gpt2"]
    network = build_model(shape)
    stored = sum(tensor.numel() for tensor in network.state_dict().values())
    assert count_parameters(shape) == stored - 64 * 32


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_all_of_it_is_on_its_device_and_in_its_dtype(name: str, dtype: torch.dtype) -> None:
    for device in ("cpu", "meta"):
        network = build_model(SMALL[name], dtype=dtype, device=device)
        parameters = list(network.parameters())
        assert {(p.dtype, p.device.type, p.requires_grad) for p in parameters} == {
            (dtype, device, True)
        }
        assert network.training
    assert torch.get_default_dtype() == torch.float32


def test_building_in_bf16_takes_the_model_and_not_a_byte_more(tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run") as session:
        network = build_model(SMALL["llama-60m"], dtype=torch.bfloat16)
    weights_bytes = sum(2 * parameter.numel() for parameter in network.parameters())
    # Rotary frequencies stay in fp32: 4 of them, and as many kept as they were at first.
    assert session.capture.ranks[0].peak().allocated_bytes == weights_bytes + 2 * 4 * 4


def test_images_come_with_labels_only_where_there_is_a_head() -> None:
    batch = make_batch(SMALL["vit-s"], 3, 32, dtype=torch.bfloat16)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()} == {
        "pixel_values": ((3, 3, 32, 32), torch.bfloat16),
        "labels": ((3,), torch.int64),
    }
    assert set(make_batch(SMALL["vit-l"], 3, 32)) == {"pixel_values"}


def test_tokens_are_of_the_whole_vocabulary() -> None:
    batch = make_batch(SMALL["llama-60m"], 8, 512)
    assert batch["input_ids"].shape == batch["labels"].shape == (8, 512)
    assert batch["input_ids"].unique().tolist() == list(range(64))


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_is_reached_by_the_loss(name: str) -> None:
    torch.manual_seed(0)
    shape = SMALL[name]
    network = build_model(shape)
    length = shape.input_size if shape.kind == "image" else 16
    compute_loss(network, make_batch(shape, 2, length)).backward()
    gradients = {n: parameter.grad for n, parameter in network.named_parameters()}
    unreached = [n for n, g in gradients.items() if g is None or not g.any()]
    # Biases of keys move all scores of a query alike, and a softmax does not see that: their
    # gradients are rounding errors, and may be 0.
    assert not [n for n in unreached if "key" not in n and "k_proj" not in n and "qkv" not in n]


def test_features_without_a_head_train_the_first_layer_too() -> None:
    """The mean square of a layer norm's output would be 1 for any input: no gradient behind it."""
    torch.manual_seed(0)
    network = build_model(SMALL["vit-l"])
    batch = make_batch(SMALL["vit-l"], 2, 32)
    compute_loss(network, batch).backward()
    first = next(network.parameters()).grad
    network.zero_grad()
    network(**batch).last_hidden_state.square().mean().backward()
    flat = next(network.parameters()).grad
    assert first is not None and flat is not None
    assert first.norm() > 1000 * flat.norm()


def test_recomputing_changes_no_bit_of_loss_and_gradients() -> None:
    shape = SMALL["llama-60m"]
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build_model(shape, checkpointing=checkpointing)
        batch = make_batch(shape, 2, 16)
        calls: list[int] = []
        handle = network.get_submodule("model.layers.0.mlp").register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        loss = compute_loss(network, batch)
        loss.backward()
        handle.remove()
        assert len(calls) == 1 + checkpointing
        results.append([loss.detach(), *(parameter.grad for parameter in network.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert plain is not None and recomputed is not None
        assert torch.equal(plain, recomputed)


def test_recomputing_where_the_library_cannot() -> None:
    with pytest.raises(UsageError, match="convnext-t cannot recompute activations"):
        build_model(SMALL["convnext-t"], device="meta", checkpointing=True)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError) as error:
        build_model("gpt2", device="meta")
    assert str(error.value) == (
        'transformers is needed to build gpt2; install it with: pip install "memlens[models]"'
    )


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="no built-in model 'gpt-2'; did you mean gpt2"):
        count_parameters("gpt-2")
