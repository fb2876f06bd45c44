"""Where a size stands in a job's words, and what there is to try."""

from __future__ import annotations

import pytest

from memlens.errors import UsageError
from memlens.models.table import MODELS
from memlens.planning.sizes import JobWords, model_ladder, number_ladder


def test_a_script_holds_a_place_for_the_number() -> None:
    job = JobWords(("train.py", "--bs={}", "--lr", "1", "{}"), ("x{}x",))
    ladder = number_ladder("batch", job, 8)
    assert ladder.job_at(3) == JobWords(("train.py", "--bs=24", "--lr", "1", "24"), ("x24x",))
    assert (ladder.label_of(3), ladder.rungs) == ("24", None)
    with pytest.raises(UsageError, match=r"write \{\} in its place: train.py --batch-size \{\}"):
        number_ladder("batch", JobWords(("train.py",)), 1)


@pytest.mark.parametrize("words", [("--batch", "2x256"), ("--batch=2x256",)])
def test_of_a_built_in_job_samples_or_tokens_change(words: tuple[str, ...]) -> None:
    job = JobWords(("--dtype", "bf16", *words), None, "llama-60m")
    batch = number_ladder("batch", job, 1).job_at(5)
    tokens = number_ladder("tokens", job, 64).job_at(5)
    assert " ".join(batch.words).replace("=", " ") == "--dtype bf16 --batch 5x256"
    assert " ".join(tokens.words).replace("=", " ") == "--dtype bf16 --batch 2x320"


def test_a_model_with_learned_positions_ends_somewhere() -> None:
    ladder = number_ladder("tokens", JobWords(("--batch", "1x8"), None, "gpt2"), 64)
    assert ladder.rungs == 16
    assert "1024 tokens" in ladder.end


def test_a_family_by_size() -> None:
    ladder = model_ladder(JobWords(("--batch", "1x8"), None, "llama-7b"))
    assert ladder.rungs is not None
    names = [ladder.label_of(rung) for rung in range(1, ladder.rungs + 1)]
    assert names[:3] == ["llama-60m", "llama-130m", "llama-350m"]
    sizes = [MODELS[name].published_parameters for name in names]
    assert sizes == sorted(set(sizes))
    assert ladder.job_at(2) == JobWords(("--batch", "1x8"), None, "llama-130m")
    vit = model_ladder(JobWords((), None, "vit-s"))
    assert vit.rungs == 5


@pytest.mark.parametrize(
    ("what", "job", "words"),
    [
        ("batch", JobWords((), None, "llama-60m"), "give --batch, such as 1x256"),
        ("tokens", JobWords(("--batch", "4"), None, "vit-s"), "images of one size"),
        ("batch", JobWords(("--batch", "4"), None, "llama-60m"), "a batch for llama-60m is"),
        ("batch", JobWords((), None, "llama-61m"), "no built-in model 'llama-61m'"),
        ("model", JobWords(("train.py",)), "name one of the family with --model"),
    ],
)
def test_what_cannot_grow_is_refused(what: str, job: JobWords, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model_ladder(job) if what == "model" else number_ladder(what, job, 1)
