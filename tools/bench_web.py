"""How fast the tab "Memory" of TensorBoard is: opening, zooming, lists; what it sends, what it takes.

    python tools/bench_web.py                      a synthetic run of a million events
    python tools/bench_web.py --events 10000000
    python tools/bench_web.py RUN                  a run that is there

Starts a real TensorBoard and asks it over HTTP, as the page does. Opening is the first question about a
rank that nobody has asked about. Each other figure is the median over several windows or moments; the
slowest is in brackets.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from make_capture import make_capture

PATIENCE_S = 60
TIMES = 15


@dataclass
class Server:
    """A TensorBoard that runs."""

    port: int
    process: subprocess.Popen[bytes]

    def ask(self, question: str, **given: object) -> tuple[float, int, int, Any]:
        """Seconds, bytes, compressed bytes, and the answer."""
        query = urllib.parse.urlencode({name.rstrip("_"): value for name, value in given.items()})
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/data/plugin/memlens/{question}?{query}",
            headers={"Accept-Encoding": "gzip"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        began = time.perf_counter()
        with opener.open(request, timeout=600) as response:
            sent = response.read()
            compressed = response.headers.get("Content-Encoding") == "gzip"
        seconds = time.perf_counter() - began
        body = gzip.decompress(sent) if compressed else sent
        return seconds, len(body), len(sent), json.loads(body)

    def memory_mb(self, field: str) -> int:
        """`VmRSS` or `VmHWM` of the server."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024 // 1_000_000
        return 0


@contextmanager
def tensorboard(folder: Path) -> Iterator[Server]:
    """Start TensorBoard on a folder, and wait until it has looked for runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--load_fast=false",
         "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    server = Server(port, process)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                if not server.ask("runs")[3]["scanning"]:
                    break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("TensorBoard does not start")
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def measure(run: Path) -> dict[str, Any]:
    """All figures of one run (of its first rank)."""
    with tensorboard(run) as server:
        [found] = server.ask("runs")[3]["runs"]
        about = {"run": found["run"], "rank": found["ranks"][0]["key"]}
        idle_mb = server.memory_mb("VmRSS")
        first = server.ask("timeline", **about)
        total = first[3]["span"][1]
        windows = [
            (total * place // TIMES, total * place // TIMES + total // 2**zoom)
            for place, zoom in zip(range(TIMES), [1, 2, 4, 6, 8, 10, 12] * 3, strict=False)
        ]
        moments = [total * place // TIMES for place in range(1, TIMES)]
        asked = {
            "zoom": [("timeline", {"from_": low, "to": high}) for low, high in windows],
            "list of what is alive": [("alive", {"time": at}) for at in moments],
            "the same, searched": [("alive", {"time": at, "search": "7"}) for at in moments],
            "modules": [("modules", {"time": at}) for at in moments],
            "lifetimes": [("lifetimes", {"from_": low, "to": high}) for low, high in windows],
            "steps": [("steps", {})] * 3,
            "difference": [("difference", {"with_run": about["run"], "with_rank": about["rank"]})],
        }
        rows = {"open": [first[:3]]}
        for name, questions in asked.items():
            rows[name] = [server.ask(what, **about, **given)[:3] for what, given in questions]
        return {
            "events": found["ranks"][0]["events"],
            "load": os.getloadavg()[0],
            "idle_mb": idle_mb,
            "after_mb": server.memory_mb("VmRSS"),
            "most_mb": server.memory_mb("VmHWM"),
            "rows": {
                name: {
                    "median_ms": round(1000 * statistics.median(row[0] for row in many), 1),
                    "slowest_ms": round(1000 * max(row[0] for row in many), 1),
                    "most_kb": round(max(row[1] for row in many) / 1000, 1),
                    "most_gzip_kb": round(max(row[2] for row in many) / 1000, 1),
                }
                for name, many in rows.items()
            },
        }


def show(figures: dict[str, Any]) -> None:
    """Print a table."""
    print(f"\n{figures['events']:,} events (load {figures['load']:.1f})")
    print(f"{'':24}{'ms':>9}{'(slowest)':>11}{'kB':>8}{'gzip kB':>9}")
    for name, row in figures["rows"].items():
        print(
            f"{name:24}{row['median_ms']:9.1f}{row['slowest_ms']:11.1f}"
            f"{row['most_kb']:8.1f}{row['most_gzip_kb']:9.1f}"
        )
    print(
        f"memory of the server: {figures['idle_mb']} MB idle, {figures['after_mb']} MB afterwards, "
        f"{figures['most_mb']} MB at most"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a run; else a synthetic one")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        run = options.run
        if run is None:
            run = Path(scratch) / "run"
            make_capture(run, events=options.events, ranks=1)
        figures = measure(run)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)


if __name__ == "__main__":
    main()
