"""What is recorded while there is no folder to write it to."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

__all__ = ["Held", "Holder", "Sink"]


class Sink(Protocol):
    """Takes batches, in the order in which a reader needs them."""

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        """Take one batch of a stream."""


class Holder(Sink, Protocol):
    """Keeps them until there is a folder."""

    @property
    def is_full(self) -> bool:
        """Memory may not grow further: a folder is needed now, or nothing."""

    def release(self, sink: Sink) -> None:
        """Hand over what is kept, and keep nothing any more."""


class Held:
    """Keeps everything: a process may turn out to train a model later on.

    Args:
        most_rows: how many rows are too many to keep in memory.
    """

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._rows = 0
        self._batches: list[tuple[str, pa.RecordBatch]] = []

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        """Keep a batch."""
        self._batches.append((table, batch))
        self._rows += batch.num_rows

    @property
    def is_full(self) -> bool:
        """There are more rows than should be kept."""
        return self._rows > self._most_rows

    def release(self, sink: Sink) -> None:
        """Hand over all batches."""
        batches, self._batches, self._rows = self._batches, [], 0
        for table, batch in batches:
            sink.write(table, batch)
