"""Compares the ranks of a run: levels, totals, and why the highest one is higher than the median one.

The summaries become three Arrow tables, which DuckDB aggregates in place:

    ranks   (place, rank, peak_bytes)              place: position in the list of summaries
    held    (place, key, size_bytes)               what each rank holds of each category at its peak
    modules (place, module, alike, key, size_bytes)  the same by module; `alike`: without layer numbers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from memlens.across.summary import RankSummary
from memlens.analysis.alike import pattern
from memlens.events import Category
from memlens.palette import Series

if TYPE_CHECKING:
    import duckdb

__all__ = ["Difference", "Level", "RanksCompared", "compare_ranks"]

MEMORY_LIMIT = "1GB"


@dataclass(frozen=True)
class Level:
    """How much of something the ranks hold, each at its own peak."""

    lowest_bytes: int
    median_bytes: int
    """That of a rank: the lower of two."""
    highest_bytes: int
    sum_bytes: int


@dataclass(frozen=True)
class Difference:
    """What the highest rank holds more of than the median one."""

    name: str
    """A category, or a module: `layers.*.mlp` where it is spread over several layers."""
    size_bytes: int
    category: str | None = None
    """Of a module: the category that differs most there."""


@dataclass(frozen=True)
class RanksCompared:
    """The ranks of one launch."""

    highest: RankSummary
    median: RankSummary
    lowest: RankSummary
    peak: Level
    categories: dict[str, Level]
    """By the key of the series asked for."""
    category: Difference | None
    """None: the highest rank is not higher than the median one."""
    module: Difference | None

    @property
    def difference_bytes(self) -> int:
        """By how much the highest rank is higher than the median one."""
        return self.highest.peak_bytes - self.median.peak_bytes


def compare_ranks(ranks: Sequence[RankSummary], series: Sequence[Series]) -> RanksCompared:
    """Compare some ranks, one at least.

    Args:
        ranks: of one launch.
        series: the categories, or sums of them.
    """
    import duckdb

    with duckdb.connect(":memory:", config={"memory_limit": MEMORY_LIMIT}) as engine:
        engine.execute("SET temp_directory = ''")
        engine.register("ranks", _ranks_table(ranks))
        engine.register("held", _held_table(ranks, series))
        [total] = _rows(engine, f"SELECT {_level('peak_bytes')} FROM ranks")
        levels = {
            key: Level(*level)
            for key, *level in _rows(
                engine, f"SELECT key, {_level('size_bytes')} FROM held GROUP BY key"
            )
        }
        highest, median, lowest = (
            ranks[_rows(engine, f"SELECT place FROM ranks ORDER BY {order} LIMIT 1")[0][0]]
            for order in (
                "peak_bytes DESC, place",
                f"abs(peak_bytes - {total[1]}), place",
                "peak_bytes, place",
            )
        )
        category = module = None
        if highest.peak_bytes > median.peak_bytes:
            engine.register("modules", _modules_table((highest, median), series))
            category, module = _category(engine, ranks, highest, median), _module(engine)
    return RanksCompared(
        highest=highest,
        median=median,
        lowest=lowest,
        peak=Level(*total),
        categories={each.key: levels[each.key] for each in series},
        category=category,
        module=module,
    )


def _level(column: str) -> str:
    return f"min({column}), quantile_disc({column}, 0.5), max({column}), sum({column})::BIGINT"


def _rows(engine: duckdb.DuckDBPyConnection, query: str, *values: object) -> list[Any]:
    return engine.execute(query, list(values)).fetchall()


def _category(
    engine: duckdb.DuckDBPyConnection,
    ranks: Sequence[RankSummary],
    highest: RankSummary,
    median: RankSummary,
) -> Difference:
    high, middle = (
        next(n for n, each in enumerate(ranks) if each is one) for one in (highest, median)
    )
    [(key, size)] = _rows(
        engine,
        """
        SELECT key, sum(if(place = $1, size_bytes, -size_bytes))::BIGINT AS more
        FROM held WHERE place IN ($1, $2) GROUP BY key ORDER BY more DESC, key LIMIT 1
        """,
        high,
        middle,
    )
    return Difference(key, size)


def _module(engine: duckdb.DuckDBPyConnection) -> Difference | None:
    """The module, or the layers that are alike, in which the two differ most.

    Layers are compared together: in a pipeline each rank has layers of its own. Where one layer makes
    most of the difference, it is named.
    """
    found = _rows(
        engine,
        """
        WITH parts AS (
            SELECT alike, module, key,
                   sum(if(place = 0, size_bytes, -size_bytes))::BIGINT AS more
            FROM modules GROUP BY ALL
        ), single AS (
            SELECT alike, module, sum(more)::BIGINT AS more FROM parts GROUP BY ALL
        ), together AS (
            SELECT alike, sum(more)::BIGINT AS more, max(more) AS most, arg_max(module, more) AS module
            FROM single GROUP BY alike
        ), top AS (
            SELECT * FROM together WHERE more > 0 ORDER BY more DESC, alike LIMIT 1
        )
        SELECT if(2 * top.most > top.more, top.module, top.alike), top.more,
               (SELECT key FROM parts WHERE parts.alike = top.alike
                GROUP BY key ORDER BY sum(more) DESC, key LIMIT 1)
        FROM top
        """,
    )
    return Difference(*found[0]) if found else None


def _ranks_table(ranks: Sequence[RankSummary]) -> pa.Table:
    return pa.table(
        {
            "place": pa.array(range(len(ranks)), pa.int32()),
            "rank": pa.array([each.rank for each in ranks], pa.int64()),
            "peak_bytes": pa.array([each.peak_bytes for each in ranks], pa.int64()),
        }
    )


def _held_table(ranks: Sequence[RankSummary], series: Sequence[Series]) -> pa.Table:
    rows = [
        (place, each.key, each.amount(rank.peak.categories))
        for place, rank in enumerate(ranks)
        for each in series
    ]
    place, key, size = zip(*rows, strict=True)
    return pa.table(
        {
            "place": pa.array(place, pa.int32()),
            "key": pa.array(key),
            "size_bytes": pa.array(size, pa.int64()),
        }
    )


def _modules_table(ranks: Sequence[RankSummary], series: Sequence[Series]) -> pa.Table:
    key_of = {member: each.key for each in series for member in each.members}
    keys = pa.array([key_of[category] for category in Category])
    parts = []
    for place, rank in enumerate(ranks):
        held = rank.modules
        modules = held.column("module")
        alike = pa.array([pattern(name) for name in modules.dictionary.to_pylist()], pa.string())
        parts.append(
            pa.table(
                {
                    "place": np.full(held.num_rows, place, np.int32),
                    "module": modules.cast(pa.string()),
                    "alike": pa.DictionaryArray.from_arrays(modules.indices, alike).cast(
                        pa.string()
                    ),
                    "key": pa.DictionaryArray.from_arrays(
                        held.column("category").indices, keys
                    ).cast(pa.string()),
                    "size_bytes": held.column("size_bytes"),
                }
            )
        )
    return pa.concat_tables(parts)
