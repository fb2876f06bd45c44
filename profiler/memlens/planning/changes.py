"""Changes that need less memory, the cheapest first: what to write, what it costs, and who says so.

What a change can touch is told by categories. At no moment can it take away more than those have then; by
that, most changes need not be tried at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from memlens.catalogue.table import CATALOGUE, find
from memlens.events import Category
from memlens.planning.sizes import batch_of

__all__ = ["Axis", "Change", "Cost", "Price", "changes_for"]


class Axis(str, Enum):
    """What a change is a choice of; two changes go together if they are of different axes."""

    ALLOCATOR = "allocator"
    OPTIMIZER = "optimizer"
    GRADIENTS = "gradients"
    ACTIVATIONS = "activations"
    BATCH = "batch"


class Price(int, Enum):
    """What a change costs, the cheapest first."""

    NOTHING = 0
    TIME = 1
    """The same training, slower or with less freedom."""
    TRAINING = 2
    """Another training, which may end elsewhere."""


@dataclass(frozen=True)
class Cost:
    """What is known of the price."""

    price: Price
    text: str
    source: str


@dataclass(frozen=True)
class Change:
    """One change to a job."""

    name: str
    """For programs: `adamw-r`, `checkpointing`, `accumulate-4`."""
    what: str
    """What to write or to set."""
    axis: Axis
    touches: frozenset[Category]
    """It takes away from these only."""
    cost: Cost
    optimizer: str = ""
    """The row of the catalogue that takes the place of the job's optimizer; empty: none does."""
    words: tuple[str, ...] = ()
    """What a built-in job is told beside its words."""
    share: float = 1.0
    """Of what it touches, how much it can take away."""
    simulated: bool = True
    """False: the script has to be changed, so that only a bound is known."""


_TEMPORARIES = frozenset({Category.OPTIMIZER_TEMPORARY})
_STATE = _TEMPORARIES | {Category.OPTIMIZER_STATE, Category.MASTER_WEIGHT}
_ACTIVATIONS = frozenset({Category.ACTIVATION, Category.TEMPORARY})
_PYTORCH = "docs.pytorch.org"

_COSTS: Mapping[str, Cost] = {
    "expandable-segments": Cost(
        Price.NOTHING,
        "none known; PyTorch calls it experimental",
        f"{_PYTORCH}/docs/stable/notes/cuda.html",
    ),
    "fused": Cost(
        Price.NOTHING,
        "none: the fastest of the three implementations; last bits differ",
        f"{_PYTORCH}/docs/stable/optim.html",
    ),
    "reuse": Cost(
        Price.NOTHING,
        "none: the same bits; gradients cannot be read after step()",
        "Dong and Lin, PRCV 2024",
    ),
    "loop": Cost(
        Price.TIME,
        "the same bits; a slower step(): several kernels for each parameter",
        f"{_PYTORCH}/docs/stable/optim.html",
    ),
    "no-retain-grad": Cost(
        Price.TIME,
        "the same updates; no clipping by the norm of all gradients, no accumulation",
        f"{_PYTORCH}/tutorials/intermediate/optimizer_step_in_backward_tutorial.html",
    ),
    "accumulate": Cost(
        Price.TIME,
        "the same gradient of a mean loss; slower, since each pass is smaller; batch norm sees less",
        "huggingface.co/docs/transformers/v4.21.0/perf_train_gpu_one",
    ),
    "checkpointing": Cost(
        Price.TIME,
        "the same training; one more forward, about a third more compute",
        "Chen et al. 2016, arXiv 1604.06174",
    ),
    "adamw8bit": Cost(
        Price.TRAINING,
        "nearly the same training: as good as 32-bit state in all tasks of the paper",
        "arXiv 2110.02861",
    ),
    "lion": Cost(
        Price.TRAINING,
        "another optimizer: a learning rate 3 to 10 times smaller; gains at large batches only",
        "arXiv 2302.06675",
    ),
    "adafactor": Cost(
        Price.TRAINING,
        "another optimizer: no momentum; comparable to Adam in the paper's translation tasks",
        "arXiv 1804.04235",
    ),
    "lion8bit": Cost(
        Price.TRAINING,
        "another optimizer, as Lion, and its momentum in 8 bits",
        "arXiv 2302.06675; arXiv 2110.02861",
    ),
    "apollo": Cost(
        Price.TRAINING,
        "another optimizer: on par with AdamW in the paper's pre-training; a learning rate of its own",
        "arXiv 2412.05270",
    ),
    "galore-adamw8bit": Cost(
        Price.TRAINING,
        "another optimizer: comparable perplexity in the paper; an SVD of each matrix every 200 steps",
        "arXiv 2403.03507",
    ),
}
"""By kind of change, or row of the catalogue."""

_ROW_OF = {
    "Adagrad": "adagrad",
    "Adam": "adam",
    "AdamW": "adamw",
    "Adan": "adan",
    "Lion": "lion",
    "RMSprop": "rmsprop",
}
"""The row that a job's own class is; others are not known well enough to be tuned."""
_REUSE = {"adamw": "adamw-r", "adan": "adan-r", "lion": "lion-r"}
_ALTERNATIVES = ("adamw8bit", "lion-r", "adafactor", "lion8bit", "apollo", "galore-adamw8bit")
"""The cheapest first: in what they change about the training."""


def changes_for(
    optimizers: Sequence[str], words: Sequence[str], *, built_in: bool
) -> tuple[Change, ...]:
    """What could be changed about a job, the cheapest first.

    Args:
        optimizers: classes that the job constructs.
        words: the job's own.
        built_in: it is one of ours, and knows our words.
    """
    row = _ROW_OF.get(optimizers[0], "") if len(optimizers) == 1 else ""
    found = [
        Change(
            "expandable-segments",
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            Axis.ALLOCATOR,
            frozenset(),
            _COSTS["expandable-segments"],
        ),
        *_same_optimizer(row),
        *_passes(words, built_in=built_in),
    ]
    if optimizers:
        found += [_optimizer(name, _key(name), _STATE) for name in _ALTERNATIVES if name != row]
    return tuple(sorted(found, key=lambda each: each.cost.price))


def _same_optimizer(row: str) -> Iterator[Change]:
    if f"{row}-fused" in CATALOGUE:
        yield _optimizer(f"{row}-fused", "fused", _TEMPORARIES)
    if row in _REUSE:
        yield _optimizer(_REUSE[row], "reuse", _TEMPORARIES)
    if f"{row}-loop" in CATALOGUE:
        yield _optimizer(f"{row}-loop", "loop", _TEMPORARIES)
    if row in CATALOGUE and CATALOGUE[row].in_backward:
        yield Change(
            "no-retain-grad",
            "update layer by layer within backward (memlens.optim.StepInBackward)",
            Axis.GRADIENTS,
            _TEMPORARIES | {Category.GRADIENT},
            _COSTS["no-retain-grad"],
            optimizer=row,
        )


def _passes(words: Sequence[str], *, built_in: bool) -> Iterator[Change]:
    batch = _ACTIVATIONS | {Category.INPUT, Category.WORKSPACE}
    if built_in:
        given = (batch_of(words) or "1").lower().replace("×", "x").partition("x")[0].strip()
        samples = int(given) if given.isdecimal() else 1
        if not any(word.partition("=")[0] == "--accumulate" for word in words):
            for parts in _divisors(samples):
                yield Change(
                    f"accumulate-{parts}",
                    f"--accumulate {parts}: batches of {samples // parts}, gradients of {parts} added up",
                    Axis.BATCH,
                    batch,
                    _COSTS["accumulate"],
                    words=("--accumulate", str(parts)),
                    share=1 - 1 / parts,
                )
        if "--checkpointing" not in words:
            yield Change(
                "checkpointing",
                "--checkpointing: activations are computed again in backward",
                Axis.ACTIVATIONS,
                _ACTIVATIONS,
                _COSTS["checkpointing"],
                words=("--checkpointing",),
            )
        return
    yield Change(
        "accumulate",
        "smaller batches, gradients of several added up (memlens plan --max-batch finds the largest)",
        Axis.BATCH,
        batch,
        _COSTS["accumulate"],
        simulated=False,
    )
    yield Change(
        "checkpointing",
        "activation checkpointing: model.gradient_checkpointing_enable() of Transformers, or "
        "torch.utils.checkpoint around each block",
        Axis.ACTIVATIONS,
        _ACTIVATIONS,
        _COSTS["checkpointing"],
        simulated=False,
    )


def _divisors(samples: int) -> Iterator[int]:
    parts = 2
    while parts <= samples:
        if samples % parts == 0:
            yield parts
        parts *= 2


def _optimizer(name: str, cost: str, touches: frozenset[Category]) -> Change:
    row = find(name)
    return Change(name, f"{row.title} ({row.home})", Axis.OPTIMIZER, touches, _COSTS[cost], name)


def _key(name: str) -> str:
    return name.removesuffix("-r")
