"""`memlens estimate`: the closed-form answer, in an instant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from memlens.catalogue.closed_form import Estimate
    from memlens.catalogue.gpus import Gpu
    from memlens.catalogue.row import Row

__all__ = ["command"]

DEFAULT = ("adamw", "adamw8bit", "adafactor", "lion", "sgd")


@dataclass(frozen=True)
class _Asked:
    what: str
    parameters: int
    precision: str
    zero: int
    gpus: int
    gpu: Gpu | None


@click.command(name="estimate")
@click.option("--params", help="How many parameters: 70e9, 7B, 350M.")
@click.option("--model", help="A model of the table of `memlens compare --model`, instead.")
@click.option(
    "--optimizer",
    "optimizers",
    multiple=True,
    help="Several times, or with commas; `memlens optimizers` lists them.  "
    f"[default: {','.join(DEFAULT)}]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "mixed"]),
    default="mixed",
    show_default=True,
    help="mixed: 16-bit weights and gradients, fp32 master weights and state.",
)
@click.option(
    "--zero", type=click.IntRange(0, 3), default=0, help="DeepSpeed's stage.  [default: none]"
)
@click.option(
    "--gpus", type=click.IntRange(min=1), default=1, help="How many share the partitions."
)
@click.option("--gpu", help='Card, or its size: "A100 80GB", "RTX 4090", 24GB.')
@click.option(
    "--no-retain-grad",
    is_flag=True,
    help="Update layer by layer within backward, with every optimizer that can. For one alone: "
    "NAME+no-retain-grad.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def command(
    params: str | None,
    model: str | None,
    optimizers: tuple[str, ...],
    precision: str,
    zero: int,
    gpus: int,
    gpu: str | None,
    no_retain_grad: bool,
    as_json: bool,
) -> None:
    """Say about how much memory weights, gradients and optimizer state need; no activations.

    An estimate: so many parameters times so many bytes, from the catalogue. `memlens run` and
    `memlens compare` measure.
    """
    from memlens.catalogue.closed_form import estimate, read_count
    from memlens.catalogue.gpus import find_gpu
    from memlens.cli.compare import split_names

    if (params is None) == (model is None):
        raise click.UsageError("give either --params (70e9, 7B) or --model (llama-7b)")
    if gpus > 1 and not zero:
        raise click.UsageError("--gpus shares memory only with --zero 1, 2 or 3")
    if params is not None:
        count, what = read_count(params), f"{read_count(params):,} parameters"
    else:
        from memlens.models.table import find_model

        count = find_model(str(model)).published_parameters
        what = f"{model}, {count:,} parameters"
    card = None if gpu is None else find_gpu(gpu)
    found = [
        estimate(row, count, precision, zero=zero, gpus=gpus, no_retain_grad=layerwise)
        for row, layerwise in _rows(split_names(optimizers or DEFAULT), no_retain_grad)
    ]
    asked = _Asked(what, count, precision, zero, gpus, card)
    if as_json:
        import json

        click.echo(json.dumps(_payload(asked, found), indent=2))
    else:
        from memlens.report.optimizers.estimate import print_estimates
        from memlens.report.terminal import make_console

        print_estimates(asked, found, make_console())


def _rows(names: list[str], no_retain_grad: bool) -> Iterator[tuple[Row, bool]]:
    from memlens.catalogue.variant import parse_variant

    for name in names:
        variant = parse_variant(name, no_retain_grad=no_retain_grad)
        if variant.row is None or variant.options:
            raise click.UsageError(f"an estimate is of default options, not of {name}")
        yield variant.row, variant.no_retain_grad


def _payload(asked: _Asked, found: list[Estimate]) -> dict[str, Any]:
    return {
        "estimate": True,
        "parameters": asked.parameters,
        "precision": asked.precision,
        "zero": asked.zero,
        "gpus": asked.gpus,
        "gpu": asked.gpu and asked.gpu.name,
        "usable_bytes": asked.gpu and asked.gpu.usable_bytes,
        "optimizers": [
            {
                "name": each.row.name,
                "precision": each.precision,
                "no_retain_grad": each.no_retain_grad,
                "weight_bytes": each.weight_bytes,
                "master_weight_bytes": each.master_weight_bytes,
                "gradient_bytes": each.gradient_bytes,
                "optimizer_state_bytes": each.state_bytes,
                "optimizer_temporary_bytes": each.temporary_bytes,
                "total_without_activations_bytes": each.total_bytes,
                "state_source": each.state_source,
                "cards": None if asked.gpu is None else each.cards(asked.gpu),
            }
            for each in found
        ],
    }
