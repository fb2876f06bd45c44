"""What is shown of one optimizer: its row, and the figures that were measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memlens.catalogue import measured
from memlens.catalogue.combinations import ShardingMode, refusal
from memlens.catalogue.installed import libraries_of, missing_libraries, version_of
from memlens.catalogue.measured import Measured
from memlens.catalogue.row import Row
from memlens.catalogue.table import CATALOGUE

__all__ = [
    "DTYPES",
    "SHAPES",
    "OptimizerView",
    "fresh_view",
    "implementations_of",
    "number",
    "plain_of",
    "stored_view",
]

DTYPES = ("fp32", "bf16")
SHAPES = ("matrix", "vector")


@dataclass(frozen=True)
class OptimizerView:
    """One row of the catalogue, with what was measured of it and where."""

    row: Row
    figures: Mapping[str, Measured]
    """By dtype; empty where nothing was measured."""
    device: str
    torch: str
    libraries: Mapping[str, str | None]
    """The row's libraries, with the versions that were measured."""
    failure: str = ""
    """Why nothing was measured."""
    fresh: bool = False
    """Measured just now, and not read from memlens' own file."""

    def state(self, shape: str, dtype: str) -> float:
        """Bytes of state per parameter: measured, or else what the library's layout says."""
        figures = self.figures.get(dtype)
        return figures.state(shape) if figures else self.row.expected.of(shape, dtype)

    @property
    def source(self) -> str:
        """Where the figures are from, in a few words."""
        libraries = [f"{name} {version}" for name, version in self.libraries.items() if version]
        when = "measured now" if self.fresh else "measured"
        return f"{when} on the {self.device} with {', '.join([f'torch {self.torch}', *libraries])}"

    @property
    def home(self) -> str:
        """The libraries that it comes from, in words."""
        if self.row.extra:
            # The one that the extra is named after first.
            names = sorted(
                libraries_of(self.row.extra), key=lambda name: not name.startswith(self.row.extra)
            )
            return ", ".join(names) or self.row.extra
        return "memlens" if self.row.home.startswith("memlens.") else "torch"

    @property
    def missing(self) -> Sequence[str]:
        """Libraries that are not installed here."""
        return missing_libraries(self.row)

    @property
    def install(self) -> str:
        """The line that installs its libraries; empty: there is nothing to install."""
        return f'pip install "memlens[{self.row.extra}]"' if self.row.extra else ""

    @property
    def refused_under_zero(self) -> bool:
        """It cannot run on DeepSpeed's flat partitions at all."""
        return bool(refusal(self.row, ShardingMode.ZERO_1))


def stored_view(row: Row) -> OptimizerView:
    """A row with the figures that come with memlens."""
    found = {dtype: measured.measured(row.name, dtype) for dtype in DTYPES}
    return OptimizerView(
        row=row,
        figures={dtype: figures for dtype, figures in found.items() if figures},
        device=measured.device(),
        torch=measured.torch_version(),
        libraries=measured.versions(row.name),
        failure=measured.failure(row.name),
    )


def fresh_view(row: Row, figures: Mapping[str, Measured]) -> OptimizerView:
    """A row with figures that were measured here and now."""
    return OptimizerView(
        row=row,
        figures=figures,
        device="cpu",
        torch=version_of("torch") or "",
        libraries={name: version_of(name) for name in libraries_of(row.extra)},
        fresh=True,
    )


def plain_of(row: Row) -> Row | None:
    """The plain row that this one is an implementation of: `adamw` of `adamw-fused`."""
    name, _, suffix = row.name.rpartition("-")
    return CATALOGUE.get(name) if suffix == row.implementation else None


def implementations_of(row: Row) -> list[Row]:
    """The rows of its implementations."""
    return [each for each in CATALOGUE.values() if plain_of(each) is row]


def number(value: float, whole: int = 3) -> str:
    """`8`, `2.033` within a fixed width, so that a column of them has its points in one line.

    Args:
        value: at most three decimals of it are shown, and no zeros at the end.
        whole: width of what stands before the point.
    """
    text = f"{value:.3f}"
    return text.rstrip("0").rstrip(".").ljust(len(text)).rjust(whole + 4)
