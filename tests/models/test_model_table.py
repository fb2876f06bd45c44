"""The table of models, and batches in words: data and text, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from memlens.errors import UsageError
from memlens.models.batch import parse_batch
from memlens.models.table import MODELS, find_model


def test_it_is_read_without_torch_and_transformers() -> None:
    code = (
        "import sys; from memlens.models import batch, job, table; "
        "batch.parse_batch('1x256', 'llama-60m'); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_every_model_has_one_row() -> None:
    names = """
        llama-60m llama-130m llama-350m llama-1b llama-3b llama-7b llama-13b llama-2-7b llama-2-13b
        vicuna-7b vicuna-13b bloom-560m bloom-3b bloom-7b phi-1.5 phi-2 qwen1.5-0.5b qwen1.5-1.8b
        gemma-2b gemma-7b falcon-7b chatglm3-6b bert-base gpt2 gpt2-xl t5-3b
        vit-s vit-b vit-l vit-h vit-g convnext-t convnext-s convnext-b convnext-l convnext-xl
    """
    assert list(MODELS) == names.split()
    assert len({shape.title for shape in MODELS.values()}) == len(MODELS)
    assert all(shape.source for shape in MODELS.values())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lama-60m", "did you mean llama-60m"),
        ("LLaMA-2-7B", "did you mean llama-2-7b"),
        ("vit_b", "did you mean vit-b"),
        ("resnet", "there are llama-60m, llama-130m, "),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        find_model(name)
    assert str(error.value).startswith(f"no built-in model {name!r}; {hint}")


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        ("1x256", "llama-60m", (1, 256)),
        (" 8 X 16 ", "bert-base", (8, 16)),
        ("2×512", "bert-base", (2, 512)),
        ("1x1", "t5-3b", (1, 1)),
        ("1x2", "gpt2", (1, 2)),
        ("1x100000", "llama-7b", (1, 100_000)),
        ("4", "vit-b", (4, 224)),
        ("1x224", "convnext-t", (1, 224)),
    ],
)
def test_a_batch(text: str, model: str, expected: tuple[int, int]) -> None:
    assert parse_batch(text, model) == expected


@pytest.mark.parametrize(
    ("text", "model", "message"),
    [
        ("8", "gpt2", "a batch for gpt2 is samples x tokens, such as 1x256, not '8'"),
        ("", "gpt2", "a batch for gpt2 is samples x tokens, such as 1x256, not ''"),
        ("1x256x2", "gpt2", "such as 1x256, not '1x256x2'"),
        ("-1x256", "gpt2", "such as 1x256, not '-1x256'"),
        ("1x٣٢", "gpt2", "such as 1x256, not '1x٣٢'"),
        ("1x" + "9" * 5000, "gpt2", "such as 1x256, not '1x999"),
        ("many", "vit-s", "a batch for vit-s is samples, such as 4, not 'many'"),
        ("0x256", "gpt2", "a batch of no samples trains nothing: '0x256'; give 1x256"),
        ("0", "vit-s", "a batch of no samples trains nothing: '0'; give 4"),
        ("1x1", "gpt2", "gpt2 needs 2 or more tokens to have a loss, not 1; give more"),
        ("1x0", "bert-base", "bert-base needs 1 or more tokens to have a loss, not 0"),
        ("1x513", "bert-base", "has positions for 512 tokens, not 513; give fewer, such as 1x512"),
        ("1x1025", "gpt2-xl", "has positions for 1024 tokens, not 1025"),
        ("1x256", "vit-b", "takes images of 224 pixels a side, not 256; give the number of images"),
        ("1x256", "gtp2", "no built-in model 'gtp2'; did you mean gpt2"),
    ],
)
def test_what_is_no_batch(text: str, model: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_batch(text, model)
    assert message in str(error.value)


def test_a_batch_for_a_shape_that_is_not_in_the_table() -> None:
    vit = find_model("vit-s")
    small = replace(vit, name="vit-tiny", config={**vit.config, "image_size": 32})
    assert parse_batch("2", small) == (2, 32)
    with pytest.raises(UsageError, match="vit-tiny takes images of 32 pixels a side, not 224"):
        parse_batch("2x224", small)
