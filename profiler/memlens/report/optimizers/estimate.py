"""The table of `memlens estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.table import Column
from rich.text import Text

from memlens.report.tables import make_table
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.catalogue.closed_form import Estimate
    from memlens.catalogue.gpus import Gpu

__all__ = ["Asked", "print_estimates"]

_GB = 10**9


class Asked(Protocol):
    """What was asked for."""

    @property
    def what(self) -> str:
        """The model, in words."""

    @property
    def precision(self) -> str:
        """Of weights and gradients."""

    @property
    def zero(self) -> int:
        """DeepSpeed's stage."""

    @property
    def gpus(self) -> int:
        """How many cards share the partitions."""

    @property
    def gpu(self) -> Gpu | None:
        """The card."""


def print_estimates(asked: Asked, found: Sequence[Estimate], console: Console) -> None:
    """Print all optimizers, a row each."""
    where = f", ZeRO {asked.zero} on {asked.gpus} GPUs: bytes on each" if asked.zero else ""
    console.print(
        Text.assemble(
            ("Estimate", "bold"),
            f"   {asked.what}, {asked.precision} precision{where}; no activations",
        ),
        soft_wrap=True,
    )
    console.print()
    columns = [
        Column("optimizer", no_wrap=True),
        *(
            Column(head, justify="right", no_wrap=True)
            for head in ("weights", "master\nweights", "gradients", "state", "total\nGB", "total")
        ),
    ]
    temporaries = any(each.temporary_bytes for each in found)
    if temporaries:
        columns.append(Column("in step()\nbesides", justify="right", no_wrap=True))
    if asked.gpu is not None:
        columns.append(Column(f"{asked.gpu.name}\ncards", justify="right", no_wrap=True))
    table = make_table(*columns)
    for each in found:
        name = each.row.name
        if each.no_retain_grad and not each.row.always_in_backward:
            name += "+no-retain-grad"
        if each.precision != asked.precision:
            name += f" ({each.precision})"
        cells = [
            Text(name),
            *map(_gb, (each.weight_bytes, each.master_weight_bytes, each.gradient_bytes)),
            _gb(each.state_bytes, mark="" if each.state_source == "measured" else "~"),
            _gb(each.total_bytes),
            Text(format_bytes(each.total_bytes), style="bold"),
        ]
        if temporaries:
            cells.append(_gb(each.temporary_bytes))
        if asked.gpu is not None:
            cards = each.cards(asked.gpu)
            cells.append(Text("never" if cards is None else str(cards)))
        table.add_row(*cells)
    console.print(table)
    console.print()
    for note in _notes(asked, found):
        console.print(Text(note, style="dim"))


def _gb(size_bytes: int, mark: str = "") -> Text:
    if not size_bytes:
        return Text("-", style="dim")
    return Text(
        f"{mark}{size_bytes / _GB:,.2f}"
        if size_bytes < 100 * _GB
        else f"{mark}{size_bytes / _GB:,.1f}"
    )


def _notes(asked: Asked, found: Sequence[Estimate]) -> list[str]:
    from memlens.catalogue.measured import conditions

    notes = [
        "GB are powers of 1000, GiB of 1024. Closed form: parameters times bytes; activations, buffers "
        "and the allocator come on top. memlens compare measures them."
    ]
    if any(each.state_source == "measured" for each in found):
        flat = " ZeRO's partitions are flat: state that depends on shapes is that of a vector."
        notes.append(
            f"State: bytes per parameter as {conditions()}, of a matrix of 1024 x 1024."
            + (flat if asked.zero else "")
        )
    if any(each.state_source != "measured" for each in found):
        notes.append("~ from the library's layout, not measured.")
    gpu = asked.gpu
    if gpu is not None:
        kind = (
            "the smallest number whose share fits"
            if asked.zero
            else "the total over what one card has"
        )
        notes.append(f"Cards: {kind}, {format_bytes(gpu.usable_bytes)} of {gpu.name} being usable.")
    return notes
