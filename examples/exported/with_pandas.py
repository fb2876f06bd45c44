"""Questions to an exported run in pandas: what is there at the peak, who holds it, what grows.

memlens export RUN --to parquet
python with_pandas.py RUN/parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd


def main(folder: Path) -> None:
    """Ask, and print the answers."""
    ranks, blocks, parts = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("ranks", "blocks", "parts")
    )
    key = ["rank", "launch", "device"]
    # By the number of the event and not by its time, which several events may share.
    blocks = blocks.merge(ranks[[*key, "peak_event"]], on=key)
    freed = blocks.free_event.fillna(float("inf"))
    alive = blocks[(blocks.alloc_event <= blocks.peak_event) & (freed > blocks.peak_event)]

    print("Bytes by category at the peak of each rank")
    print(alive.pivot_table("size_bytes", "category", "rank", "sum", fill_value=0), "\n")

    print("Modules that hold most then")
    # A block that several tensors share counts for each module by its part.
    whole = alive.assign(size_bytes=alive.size_bytes - alive.parts_bytes)
    shared = parts[parts.block.isin(alive.block)]
    pieces = pd.concat([whole[["module", "size_bytes"]], shared[["module", "size_bytes"]]])
    print(pieces.groupby("module").size_bytes.sum().nlargest(10), "\n")

    print("What grows from step to step")
    # What steps leave behind, from step 2 on: until then optimizers make their state.
    left = blocks[blocks.free_event.isna() & (blocks.step >= 2) & (blocks["rank"] == 0)]
    groups = left.groupby(["category", "module", "site"])
    grown = groups.agg(steps=("step", "nunique"), size_bytes=("size_bytes", "sum"))
    grown = grown[grown.steps >= 3]
    print((grown.size_bytes // grown.steps).rename("bytes_per_step").sort_values(ascending=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
