"""Questions to an exported run in SQL: what is there at the peak, who holds it, what grows.

memlens export RUN --to parquet
python with_duckdb.py RUN/parquet
"""

from __future__ import annotations

import sys

import duckdb

AT_THE_PEAK = """
    SELECT rank, category, sum(size_bytes)::BIGINT AS bytes
    FROM alive_at_peak
    GROUP BY ALL
    ORDER BY rank, bytes DESC
"""

TOP_MODULES = """
    WITH pieces AS (
        -- A block that several tensors share counts for each module by its part.
        SELECT module, size_bytes - parts_bytes AS size_bytes FROM alive_at_peak
        UNION ALL
        SELECT parts.module, parts.size_bytes FROM parts JOIN alive_at_peak USING (block)
    )
    SELECT module, sum(size_bytes)::BIGINT AS bytes
    FROM pieces
    GROUP BY module
    ORDER BY bytes DESC, module
    LIMIT 10
"""

GROWTH = """
    -- What steps leave behind, from step 2 on: until then optimizers make their state.
    SELECT category, module, site, count(DISTINCT step) AS steps,
           (sum(size_bytes) / count(DISTINCT step))::BIGINT AS bytes_per_step
    FROM blocks
    WHERE free_event IS NULL AND step >= 2 AND rank = 0
    GROUP BY ALL
    HAVING count(DISTINCT step) >= 3
    ORDER BY bytes_per_step DESC
"""


def main(folder: str) -> None:
    """Ask, and print the answers."""
    con = duckdb.connect()
    for table in ("ranks", "blocks", "parts"):
        con.from_parquet(f"{folder}/{table}.parquet").create_view(table)
    # By the number of the event and not by its time, which several events may share.
    con.execute("""
        CREATE VIEW alive_at_peak AS
        SELECT blocks.* FROM blocks JOIN ranks USING (rank, launch, device)
        WHERE alloc_event <= peak_event AND (free_event IS NULL OR free_event > peak_event)
    """)
    for title, query in (
        ("Bytes by category at the peak of each rank", AT_THE_PEAK),
        ("Modules that hold most then", TOP_MODULES),
        ("What grows from step to step", GROWTH),
    ):
        print(title)
        con.sql(query).show(max_width=120)


if __name__ == "__main__":
    main(sys.argv[1])
