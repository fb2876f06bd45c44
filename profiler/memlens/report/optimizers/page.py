"""One optimizer of the catalogue in a terminal: what it is, what it costs, when to use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from memlens.catalogue.row import Row
from memlens.report.optimizers.view import DTYPES, SHAPES, OptimizerView, number
from memlens.report.tables import make_table
from memlens.report.text import plain

__all__ = ["print_optimizer"]

_SHOWN_SHAPE = {"matrix": "2-D", "vector": "1-D"}
_LABEL_WIDTH = 10


def print_optimizer(
    view: OptimizerView, implementations: Sequence[OptimizerView], console: Console
) -> None:
    """Print everything that is known of one optimizer."""
    row = view.row
    title = Text(row.name, style="bold")
    title.append(f"   {row.title} · {row.family}", style="not bold")
    console.print(title)
    console.print()
    console.print(_lines(_what_it_is(view)))
    _section(console, "From what a job constructs")
    console.print(_lines(_mapping(row)))
    _section(console, "State, bytes per parameter")
    console.print(_state_table(view))
    console.print()
    console.print(_lines(_sources(view)))
    if view.figures:
        _section(console, "In a step, bytes per parameter")
        console.print(_step_table(view))
        _dim(
            console,
            "Of eight layers of 512 x 512 and 512: a layer is an eighth here, less in a longer model.",
        )
    if row.implementation_note:
        console.print()
        console.print(_lines([("computed", row.implementation_note)]))
    if implementations:
        _section(console, "Its implementations, bytes per parameter")
        console.print(_implementations_table(implementations))
        _dim(
            console,
            f"State of a matrix, {implementations[0].source}. For each: memlens optimizers NAME",
        )
    _section(console, "Where it runs")
    console.print(_lines(_limits(view)))
    if row.defects:
        _section(console, "Defects of its library, and what memlens does about them")
        console.print(_lines([("-", defect) for defect in row.defects], label_width=1))


def _what_it_is(view: OptimizerView) -> Iterable[tuple[str, str]]:
    row = view.row
    if row.paper:
        yield "paper", row.paper
    yield "library", f"{view.home}, as {row.home}"
    if view.install:
        lacking = f"; missing here: {', '.join(view.missing)}" if view.missing else ""
        yield "install", f"{view.install}{lacking or '; it is installed'}"
    yield "use when", row.when
    yield "not when", row.when_not


def _mapping(row: Row) -> Iterable[tuple[str, str]]:
    yield "takes", f"{', '.join(row.takes)}; all other hyperparameters of the job are dropped"
    fixed = {name: value for name, value in row.fixed.items() if name != "kind"}
    if fixed:
        yield "fixes", ", ".join(f"{name}={value}" for name, value in fixed.items())
    scale = "as the job has it" if row.lr_scale == 1 else f"{row.lr_scale:g} times what the job has"
    yield "lr", scale + (f" ({row.lr_source})" if row.lr_source else "")
    options = [f"{name}={value}" for name, value in row.options.items()]
    example = options[0] if options else f"lr_scale={row.lr_scale:g}"
    yield "options", f"{', '.join([*options, 'lr', 'lr_scale'])}; written {row.name}:{example}"
    if row.rest:
        yield "the rest", f"parameters that it cannot train are trained by {row.rest}"
    if row.precision == "bf16":
        yield "casts", "the model to bf16"
    elif row.precision == "mixed":
        yield "casts", "the model to bf16, and keeps fp32 master weights"


def _state_table(view: OptimizerView) -> Table:
    row = view.row
    columns = [(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    table = make_table(
        Column("", no_wrap=True, width=_LABEL_WIDTH),
        *(Column(f" {_SHOWN_SHAPE[shape]} {dtype}", no_wrap=True) for shape, dtype in columns),
        *([Column("claimed", no_wrap=True)] if row.claim else []),
    )
    # A claim is of no shape and dtype in particular.
    claimed = [Text(number(row.claim.bytes_per_parameter), style="not bold")] if row.claim else []
    if view.figures:
        cells = [
            number(view.figures[dtype].state(shape)) if dtype in view.figures else "  ?"
            for shape, dtype in columns
        ]
        table.add_row("measured", *cells, *claimed, style="bold")
        claimed = []
    table.add_row("expected", *(number(row.expected.of(*each)) for each in columns), *claimed)
    if any(figures.master_weight for figures in view.figures.values()):
        masters = [number(view.figures[dtype].master_weight) for dtype in view.figures]
        table.add_row("masters", *masters, *masters)
    return table


def _sources(view: OptimizerView) -> Iterable[tuple[str, str]]:
    row = view.row
    if view.figures:
        text = "of one matrix of 1024 x 1024 and one vector of 8192, counters and shared tables included"
        yield "measured", f"{text}; {view.source}"
        if not view.fresh:
            yield "again", f"memlens optimizers {row.name} --measure"
    elif view.failure:
        yield "measured", f"not: {plain(view.failure)}"
    yield "expected", row.expected.source
    if row.claim is not None:
        yield "claimed", row.claim.source
        yield "verdict", row.claim.verdict or "holds"


def _step_table(view: OptimizerView) -> Table:
    table = make_table(
        Column("", no_wrap=True),
        *(Column(f"   {dtype}", no_wrap=True) for dtype in DTYPES),
        *(Column(f"copies, {dtype}", no_wrap=True) for dtype in DTYPES),
    )
    figures = [view.figures[dtype] for dtype in DTYPES if dtype in view.figures]

    def add(label: str, amounts: Sequence[float]) -> None:
        copies = [amount / each.weight for amount, each in zip(amounts, figures, strict=True)]
        table.add_row(label, *map(number, [*amounts, *copies]))

    always = view.row.always_in_backward
    add("gradients, at most" if always else "gradients", [each.gradient for each in figures])
    add("temporaries in step()", [each.temporary for each in figures])
    gradients = [each.no_retain_gradient for each in figures]
    temporaries = [each.no_retain_temporary for each in figures]
    if view.row.in_backward and None not in (*gradients, *temporaries):
        table.add_row(Text(f"{view.row.name}+no-retain-grad", style="dim"))
        add("  gradients, at most", [each or 0.0 for each in gradients])
        add("  temporaries", [each or 0.0 for each in temporaries])
    return table


def _implementations_table(views: Sequence[OptimizerView]) -> Table:
    table = make_table(
        Column("", no_wrap=True),
        *(Column(f"  state\n   {dtype}", no_wrap=True) for dtype in DTYPES),
        *(Column(f" step()\n   {dtype}", no_wrap=True) for dtype in DTYPES),
        Column(""),
    )
    for view in views:
        temporaries = [
            number(view.figures[dtype].temporary) if dtype in view.figures else "  ?"
            for dtype in DTYPES
        ]
        table.add_row(
            view.row.name,
            *(number(view.state("matrix", dtype)) for dtype in DTYPES),
            *temporaries,
            Text(view.row.implementation_note),
        )
    return table


def _limits(view: OptimizerView) -> Iterable[tuple[str, str]]:
    row = view.row
    if row.runs_on_cpu:
        yield "CPU", row.cpu or "runs"
    else:
        yield "CPU", f"does not run: {row.cpu}"
    refused = "refused" + (f": {row.zero}" if row.zero else "")
    yield "ZeRO", refused if view.refused_under_zero else row.zero or "no limit is known"
    if row.runs_under_fsdp:
        yield "FSDP", row.fsdp or "no limit is known"
    else:
        yield "FSDP", f"refused: {row.fsdp}"
    if row.always_in_backward:
        layerwise = "always: it retains no gradients"
    elif row.in_backward:
        layerwise = f"can: {row.name}+no-retain-grad"
    else:
        layerwise = "cannot"
    yield "in backward", layerwise


def _lines(pairs: Iterable[tuple[str, str]], label_width: int = _LABEL_WIDTH + 1) -> Table:
    """Labels, and texts of several lines beside them."""
    table = Table.grid(Column("", width=label_width, style="dim"), Column(""), padding=(0, 1, 0, 0))
    for label, text in pairs:
        table.add_row(Text(label), Text(text))
    return table


def _dim(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"))


def _section(console: Console, title: str) -> None:
    console.print()
    console.print(Rule(Text(title, style="bold"), align="left", style="dim"))
