"""What can grow until a card is full: a batch, a sequence, a model. Each is a ladder of jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memlens.errors import UsageError
from memlens.models.batch import parse_batch
from memlens.models.table import MODELS, find_model

__all__ = [
    "PLACE",
    "TOKENS_MULTIPLE",
    "JobWords",
    "Ladder",
    "batch_of",
    "model_ladder",
    "number_ladder",
    "with_batch",
]

PLACE = "{}"
"""Stands in a script's words for the size."""
TOKENS_MULTIPLE = 64
"""Of sequences, multiples of this are tried unless told otherwise: kernels have no tails then."""


@dataclass(frozen=True)
class JobWords:
    """A job, as it stands on a command line of ours."""

    words: tuple[str, ...]
    literal: tuple[str, ...] | None = None
    """Behind `--`; None: nothing stood there."""
    model: str | None = None
    """Of the built-in job, whose further words `words` are; None: there is a script."""

    def with_number(self, number: int) -> JobWords:
        """The number stands wherever `{}` stood."""

        def put(words: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(word.replace(PLACE, str(number)) for word in words)

        return replace(
            self, words=put(self.words), literal=None if self.literal is None else put(self.literal)
        )


@dataclass(frozen=True)
class Ladder:
    """Jobs that differ in one size, the smallest first; a rung is a number from 1 on."""

    what: str
    """`batch`, `tokens` or `model`."""
    job_at: Callable[[int], JobWords]
    """The job at a rung."""
    label_of: Callable[[int], str]
    """What to call a rung: its size, or the model's name."""
    rungs: int | None = None
    """How many there are; None: there is always a larger one."""
    end: str = ""
    """Why there are no more."""


def number_ladder(what: str, job: JobWords, multiple: int) -> Ladder:
    """A batch or a number of tokens.

    Args:
        what: `batch` or `tokens`.
        job: a script holds `{}` where the number is to stand; of a built-in job, `--batch` says the
            rest.
        multiple: only multiples of this.

    Raises:
        UsageError: there is no place for the number.
    """
    if job.model is None:
        if not any(PLACE in word for word in (*job.words, *(job.literal or ()))):
            option = "--batch-size" if what == "batch" else "--seq-len"
            raise UsageError(
                f"--max-{what} needs to know where the number stands; write {PLACE} in its place: "
                f"train.py {option} {PLACE}"
            )
        return Ladder(
            what,
            lambda rung: job.with_number(rung * multiple),
            lambda rung: str(rung * multiple),
        )
    shape = find_model(job.model)
    given = batch_of(job.words)
    if given is None:
        example = "4" if shape.kind == "image" else "1x256"
        raise UsageError(
            f"--max-{what} needs to know what stays the same: give --batch, such as {example}"
        )
    samples, length = parse_batch(given, shape)
    if what == "tokens" and shape.kind == "image":
        raise UsageError(f"{job.model} takes images of one size; --max-batch finds how many")

    def job_at(rung: int) -> JobWords:
        size = rung * multiple
        batch = (size, length) if what == "batch" else (samples, size)
        return replace(job, words=with_batch(job.words, *batch))

    limit = shape.max_tokens if what == "tokens" else None
    return Ladder(
        what,
        job_at,
        lambda rung: str(rung * multiple),
        rungs=None if limit is None else limit // multiple,
        end="" if limit is None else f"{job.model} has positions for {limit} tokens",
    )


def model_ladder(job: JobWords) -> Ladder:
    """Models of one family, by how many parameters they have.

    Raises:
        UsageError: there is a script and no built-in model.
    """
    if job.model is None:
        raise UsageError(
            "--max-model tries built-in models; name one of the family with --model llama-60m"
        )
    find_model(job.model)
    family = _family(job.model)
    # Of several with the same shape, the first of the table.
    by_size = {
        shape.published_parameters: shape.name
        for shape in reversed(MODELS.values())
        if _family(shape.name) == family
    }
    names = [by_size[size] for size in sorted(by_size)]
    return Ladder(
        "model",
        lambda rung: replace(job, model=names[rung - 1]),
        lambda rung: names[rung - 1],
        rungs=len(names),
        end=f"the table has no larger {family}*",
    )


def with_batch(words: Sequence[str], samples: int, length: int) -> tuple[str, ...]:
    """The words of a built-in job, with another batch."""
    changed = list(words)
    for at, word in enumerate(changed):
        if word == "--batch" and at + 1 < len(changed):
            changed[at + 1] = f"{samples}x{length}"
        elif word.startswith("--batch="):
            changed[at] = f"--batch={samples}x{length}"
    return tuple(changed)


def batch_of(words: Sequence[str]) -> str | None:
    """What the words of a built-in job say of its batch."""
    found = None
    for at, word in enumerate(words):
        if word == "--batch" and at + 1 < len(words):
            found = words[at + 1]
        elif word.startswith("--batch="):
            found = word.partition("=")[2]
    return found


def _family(name: str) -> str:
    """`llama-` of `llama-60m` and `llama-2-7b`; `vit-` of `vit-s`."""
    before = re.match(r"[^0-9]*", name)
    text = before[0] if before else ""
    return text if text != name else name.partition("-")[0] + "-"
