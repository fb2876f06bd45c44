"""Trace events as Chrome's JSON has them, written one by one, whatever their number.

Times are microseconds with three decimals, since the recording began: Unix times do not fit into the
floating-point numbers that readers take them for.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from memlens.report.text import plain

__all__ = ["TraceFile", "quoted"]

_BATCH = 10_000
_LEVEL = 4
"""Of compression: 6 takes twice the time for a tenth less."""


def quoted(text: str) -> str:
    """A text of the job's as a JSON string."""
    return json.dumps(plain(text))


class TraceFile:
    """A compressed trace; its name ends with `.json.gz`.

    Args:
        path: the file to make.
        about: what the trace says of itself.
        origin_ns: the time, since the Unix epoch, from which times in it count.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], origin_ns: int) -> None:
        # Without the time of day, so that the same capture gives the same file.
        self._raw = path.open("wb")
        packed = gzip.GzipFile("", "wb", _LEVEL, self._raw, mtime=0)
        self._file: IO[str] = io.TextIOWrapper(packed, encoding="ascii", write_through=False)
        self._origin_ns = origin_ns
        self._lines: list[str] = []
        self._separator = "\n"
        self._file.write(json.dumps(dict(about))[:-1] + (", " if about else ""))
        self._file.write('"traceEvents": [')

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
                self._file.write("\n]}\n")
            self._file.close()
        finally:
            self._raw.close()

    def at(self, time_ns: int) -> str:
        """A time as the trace has it."""
        return f"{(time_ns - self._origin_ns) / 1000:.3f}"

    def name(self, pid: int, name: str, order: int, threads: Mapping[int, str]) -> None:
        """Say what a process and its threads are called, and in which order to show them."""
        self._meta(pid, 0, "process_name", {"name": plain(name)})
        self._meta(pid, 0, "process_sort_index", {"sort_index": order})
        for tid, thread in threads.items():
            self._meta(pid, tid, "thread_name", {"name": thread})
            self._meta(pid, tid, "thread_sort_index", {"sort_index": tid})

    def slice(
        self,
        pid: int,
        tid: int,
        name: str,
        start_ns: int,
        end_ns: int,
        args: Mapping[str, Any] | None = None,
        *,
        category: str = "memlens",
        gap_ns: float = 0,
    ) -> None:
        """Something that took time, less a gap for readers to whom neighbours must not touch."""
        more = f',"args":{json.dumps(dict(args))}' if args else ""
        self.add(
            f'{{"ph":"X","cat":"{category}","pid":{pid},"tid":{tid},"name":{quoted(name)},'
            f'"ts":{self.at(start_ns)},"dur":{(end_ns - start_ns - gap_ns) / 1000:.4f}{more}}}'
        )

    def begin(self, pid: int, tid: int, name: str, time_ns: int) -> None:
        """Something begins, within what has begun before on that thread."""
        self.add(
            f'{{"ph":"B","pid":{pid},"tid":{tid},"name":{quoted(name)},"ts":{self.at(time_ns)}}}'
        )

    def end(self, pid: int, tid: int, time_ns: int) -> None:
        """What began last on a thread ends."""
        self.add(f'{{"ph":"E","pid":{pid},"tid":{tid},"ts":{self.at(time_ns)}}}')

    def counter(self, pid: int, name: str, samples: Iterable[tuple[int, int]]) -> None:
        """A level in bytes, from pairs of time and value."""
        head = f'{{"ph":"C","pid":{pid},"name":{quoted(name)},"ts":'
        origin = self._origin_ns
        for time_ns, value in samples:
            self.add(f'{head}{(time_ns - origin) / 1000:.3f},"args":{{"bytes":{value}}}}}')

    def instant(self, pid: int, tid: int, name: str, time_ns: int, args: Mapping[str, Any]) -> None:
        """A moment, marked for the whole process."""
        self.add(
            f'{{"ph":"i","s":"p","pid":{pid},"tid":{tid},"name":{quoted(name)},'
            f'"ts":{self.at(time_ns)},"args":{json.dumps(dict(args))}}}'
        )

    def add(self, event: str) -> None:
        """One event, as JSON."""
        self._lines.append(event)
        if len(self._lines) >= _BATCH:
            self._flush()

    def _meta(self, pid: int, tid: int, what: str, args: Mapping[str, Any]) -> None:
        self.add(
            f'{{"ph":"M","pid":{pid},"tid":{tid},"ts":0,"name":"{what}",'
            f'"args":{json.dumps(dict(args))}}}'
        )

    def _flush(self) -> None:
        if self._lines:
            self._file.write(self._separator + ",\n".join(self._lines))
            self._separator = ",\n"
            self._lines.clear()
