"""Step times of memlens.optim's optimizers next to their originals, in one run, as ratios.

    python tools/bench_optim.py            everything (about two minutes on two cores)
    python tools/bench_optim.py --quick    fewer rounds

Only `optimizer.step()` is timed, on one thread, on gradients that are made anew before each step, as a
backward does. In each round all take their turn, and a ratio compares two steps of the same round; the
median over rounds is printed, with the quartiles. Needs pytorch_optimizer, for the originals of Adan
and Lion (pip install pytorch-optimizer).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import Adan, Lion

from memlens.optim import AdamWR, AdanR, LionR

Shapes = list[tuple[int, ...]]


def language_model() -> Shapes:
    """The example's Llama of seven million parameters, eight layers."""
    layer: Shapes = [(256, 256)] * 4 + [(768, 256)] * 2 + [(256, 768)] + [(256,)] * 2
    return [(256, 256), *layer * 8, (256,), (256, 256)]


def convolutional() -> Shapes:
    """Like a small ResNet: few large tensors, many small ones."""
    shapes: Shapes = []
    for before, width in ((64, 64), (64, 128), (128, 256), (256, 384)):
        shapes += [
            (width, before, 3, 3),
            (width,),
            (width,),
            (width, width, 3, 3),
            (width,),
            (width,),
        ]
    return [*shapes, (1000, 384), (1000,)]


def flat() -> Shapes:
    """One partition of ZeRO."""
    return [(6_000_000,)]


def toy() -> Shapes:
    """Sixty linear layers of 8 x 8: nothing but dispatch."""
    return [(8, 8), (8,)] * 60


CASES: dict[str, Callable[[], Shapes]] = {
    "language model": language_model,
    "convolutional": convolutional,
    "one flat tensor": flat,
    "dispatch-bound": toy,
}


class Contestant:
    """An optimizer with parameters of its own."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer], shapes: Shapes) -> None:
        torch.manual_seed(0)
        self.parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        self.gradients = [torch.randn(shape) for shape in shapes]
        self.optimizer = make(self.parameters)

    def step_ns(self) -> int:
        """Time of one step, in nanoseconds."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient.clone()
        begin = time.perf_counter_ns()
        self.optimizer.step()
        spent = time.perf_counter_ns() - begin
        self.optimizer.zero_grad()
        return spent


WAYS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, foreach=True, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, weight_decay=0.01),
    "AdamWR": lambda p: AdamWR(p, weight_decay=0.01),
    "AdamWR, foreach": lambda p: AdamWR(p, weight_decay=0.01, foreach=True),
    "Adan": lambda p: Adan(p, weight_decay=0.01),
    "AdanR": lambda p: AdanR(p, weight_decay=0.01),
    "Lion": lambda p: Lion(p, weight_decay=0.01),
    "LionR": lambda p: LionR(p, weight_decay=0.01),
}

RATIOS = (
    ("AdamWR", "AdamW, foreach"),
    ("AdamWR, foreach", "AdamW, foreach"),
    ("AdamWR", "AdamW"),
    ("AdanR", "Adan"),
    ("LionR", "Lion"),
)


def measure(shapes: Shapes, rounds: int) -> dict[str, list[int]]:
    """Step times by way, one per round; the first rounds, which make the state, are left out."""
    contestants = {name: Contestant(make, shapes) for name, make in WAYS.items()}
    times: dict[str, list[int]] = {name: [] for name in WAYS}
    names = list(WAYS)
    for number in range(rounds + 3):
        for name in names:
            spent = contestants[name].step_ns()
            if number >= 3:
                times[name].append(spent)
        names.append(names.pop(0))  # so that none always follows the same one
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, one thread, float32; ratio of step times: median (quartiles)"
    )
    print(f"{'':34}" + "".join(f"{name:>24}" for name in CASES))
    columns = {}
    for name, case in CASES.items():
        count = sum(torch.Size(shape).numel() for shape in case())
        rounds = (400 if count < 100_000 else 40) // (4 if quick else 1)
        columns[name] = measure(case(), rounds)
    for ours, original in RATIOS:
        line = f"{f'{ours} / {original}':34}"
        for times in columns.values():
            ratios = [
                mine / theirs for mine, theirs in zip(times[ours], times[original], strict=True)
            ]
            low, middle, high = statistics.quantiles(ratios, n=4)
            line += f"{f'{middle:.2f} ({low:.2f}-{high:.2f})':>24}"
        print(line)
    line = f"{'AdamW, foreach: ms per step':34}"
    for times in columns.values():
        line += f"{statistics.median(times['AdamW, foreach']) / 1e6:>24.2f}"
    print(line)


if __name__ == "__main__":
    main()
