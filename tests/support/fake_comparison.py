"""Comparisons made from plain numbers, for testing what shows and writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlens.comparing.results import Comparison, PeakResult, RankResult, Result, Status
from memlens.events import Category

__all__ = ["COMPARISONS", "MATRIX", "SIX", "failed", "make_comparison", "ok"]

START_NS = 1_750_000_000_000_000_000
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HOSTILE = "=cmd|'/c calc'!A1 \x1b[31m$\\frac{x}$ <b>|"


def ok(name: str, categories: Mapping[Category, int], **changes: Any) -> Result:
    """A variant that came to its end; `categories` are those at its peak."""
    every = {category: categories.get(category, 0) for category in Category}
    losses = changes.pop("losses", (10.5, 9.25, 8.0))
    values: dict[str, Any] = {
        "peak": PeakResult(
            time_ns=START_NS + 10**9,
            step=1,
            phase="backward",
            module="model.layers.7.mlp",
            allocated_bytes=sum(every.values()),
            reserved_bytes=None,
            categories=every,
        ),
        "step_time_ns": 250_000_000,
        "losses": losses,
        "final_loss": losses[-1] if losses else None,
        "steps": len(losses),
        "run": f"/runs/{name}",
        "replaced": ("torch.optim.AdamW",),
    }
    return Result(name, Status.OK, **{**values, **changes})


def failed(name: str, reason: str, status: Status = Status.FAILED) -> Result:
    """A variant without figures."""
    return Result(name, status, reason)


def make_comparison(*results: Result, baseline: str | None = None) -> Comparison:
    """A comparison of these, against the first of them unless told otherwise."""
    return Comparison(
        job="train.py --lr 1e-3",
        baseline=results[0].name if baseline is None else baseline,
        results=results,
        folder="/runs/compare-train",
        torch_version="2.13.0+cpu",
    )


def _sizes(unit: int, *amounts: float) -> dict[Category, int]:
    """Weight, state, gradient, activation, input, optimizer temporary and temporary, in a unit."""
    names = (
        Category.WEIGHT,
        Category.OPTIMIZER_STATE,
        Category.GRADIENT,
        Category.ACTIVATION,
        Category.INPUT,
        Category.OPTIMIZER_TEMPORARY,
        Category.TEMPORARY,
    )
    return {name: round(unit * each) for name, each in zip(names, amounts, strict=False)}


OUT_OF_MEMORY = (
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity "
    "of 23.65 GiB of which 91.56 MiB is free."
)
NEEDS_TORCHAO = (
    'torchao is needed to run adamw4bit; install it with: pip install "memlens[torchao]"'
)

ADAMW = ok("adamw", _sizes(MIB, 26.5, 53, 1, 86.5, 0.004, 0, 5))

SIX = make_comparison(
    ADAMW,
    ok(
        "adamw-r",
        _sizes(MIB, 26.5, 53, 1, 60, 0.004, 0, 5),
        step_time_ns=262_500_000,
        losses=(10.5, 9.25, 8.0),
    ),
    ok(
        "adamw8bit",
        _sizes(MIB, 26.5, 13.7, 1, 86.5, 0.004, 0, 5),
        step_time_ns=310_000_000,
        losses=(10.5, 9.25, 8.0012),
        notes=(
            "12 of 75 parameters are smaller than 4,096 elements; their state is not quantised",
        ),
        reused=True,
    ),
    ok(
        "galore-adamw8bit:rank=64,update_proj_gap=50+no-retain-grad",
        _sizes(MIB, 26.5, 5.7, 0.25, 86.5, 0.004, 18.5, 5),
        step_time_ns=500_000_000,
        losses=(10.5, 9.75, 9.125),
    ),
    failed("muon", OUT_OF_MEMORY),
    failed("adamw4bit", NEEDS_TORCHAO, Status.REFUSED),
)

TWENTY = make_comparison(
    *(
        ok(
            f"variant-{number:02d}" if number % 5 else f"galore-adamw8bit:rank={number},gap=200",
            _sizes(GIB, 13.5, 27 - number, 13.5, 2.1, 0.001, number / 3, 1.5),
            step_time_ns=10**9 + number * 10**7,
        )
        for number in range(20)
    )
)


def sharded(optimizer: str, mode: str, *ranks: Mapping[Category, int]) -> Result:
    """A variant of a matrix; the categories of each rank at its own peak."""
    alone = [ok("", each) for each in ranks]
    peaks = [each.peak for each in alone if each.peak is not None]
    highest = max(peaks, key=lambda each: each.allocated_bytes)
    return ok(
        f"{optimizer}@{mode}",
        {},
        peak=highest,
        optimizer=optimizer,
        sharding=mode,
        ranks=tuple(RankResult(rank, peak) for rank, peak in enumerate(peaks)),
    )


def refused_in_matrix(optimizer: str, mode: str, reason: str) -> Result:
    """A combination that cannot run."""
    return Result(f"{optimizer}@{mode}", Status.REFUSED, reason, optimizer=optimizer, sharding=mode)


FLAT = "GaLore needs matrices: flat partitions have none"

MATRIX = make_comparison(
    sharded("adamw", "zero0", *[_sizes(MIB, 32, 64, 32, 12, 0.1, 32)] * 2),
    sharded("galore-adamw", "zero0", *[_sizes(MIB, 32, 24, 32, 12, 0.1, 16)] * 2),
    sharded("adamw", "zero2", _sizes(MIB, 32, 32, 18, 12), _sizes(MIB, 32, 32, 16, 12)),
    refused_in_matrix("galore-adamw", "zero2", f"galore-adamw cannot run under ZeRO 2: {FLAT}"),
    sharded("adamw", "fsdp", *[_sizes(MIB, 16 + at, 32, 16, 12) for at in range(8)]),
    sharded("galore-adamw", "fsdp", *[_sizes(MIB, 16, 12, 16, 12)] * 8),
)

COMPARISONS: dict[str, Comparison] = {
    "matrix": MATRIX,
    "ok only": make_comparison(ADAMW, SIX.results[1], SIX.results[2]),
    "alone": make_comparison(ADAMW),
    "six": SIX,
    "one failed": make_comparison(ADAMW, failed("muon", OUT_OF_MEMORY)),
    "one refused": make_comparison(ADAMW, failed("adamw4bit", NEEDS_TORCHAO, Status.REFUSED)),
    "all failed": make_comparison(
        failed("adamw", OUT_OF_MEMORY), failed("muon", "exit code 1"), failed("lion", "")
    ),
    "baseline failed": make_comparison(failed("adamw", OUT_OF_MEMORY), SIX.results[1]),
    "twenty": TWENTY,
    "huge": make_comparison(
        ok("adamw", _sizes(GIB, 140, 1120, 140.5, 77, 0.1, 0, 12), step_time_ns=61 * 10**9),
        ok("lion", _sizes(GIB, 140, 560, 140.5, 77, 0.1, 0, 12), losses=(float("nan"),)),
    ),
    "tiny": make_comparison(
        ok("sgd", {Category.WEIGHT: 8, Category.UNKNOWN: 1}, losses=(), step_time_ns=None),
        ok("nothing", {}, losses=(), step_time_ns=900),
    ),
    "baseline of no bytes": make_comparison(ok("none", {}), ok("some", {Category.WEIGHT: 4})),
    "every category": make_comparison(
        ok("all", {category: MIB << at for at, category in enumerate(Category)}),
        ok("half", {category: MIB >> 1 << at for at, category in enumerate(Category)}),
    ),
    "unicode": make_comparison(
        ok("オプティマイザ=アダム", _sizes(MIB, 26.5, 53, 1, 86.5)),
        ok("größer/ß", _sizes(MIB, 26.5, 53, 1, 99.5)),
        ok(HOSTILE, _sizes(MIB, 1, 2, 3, 4), notes=(HOSTILE,)),
        failed("-1+1", HOSTILE),
    ),
}
"""What every output has to cope with."""
