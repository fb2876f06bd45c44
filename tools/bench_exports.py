"""What exports of a large capture take: seconds, size and memory, each in a process of its own.

python tools/bench_exports.py [--events 1000000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memlens.exporters import EXPORTERS


def size_bytes(path: Path) -> int:
    """Of a file, or of all in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def measure(run: Path, to: str, out: Path) -> tuple[float, int, int]:
    """Seconds, bytes of the result, and bytes that the process held at most."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "memlens", "export", str(run), "--to", to, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the export to {to} failed")
    return time.perf_counter() - began, size_bytes(out), usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        # By a process of its own: one's most memory, as the system counts it, begins with the size of the
        # process that started it.
        make = [sys.executable, str(Path(__file__).with_name("make_capture.py")), str(run)]
        subprocess.run(
            [*make, "--events", str(options.events)], check=True, stdout=subprocess.DEVNULL
        )
        print(f"\nexports of {options.events:,} events, reading included")
        print(f"{'':<18} {'s':>6} {'MB':>8} {'MB of memory':>13}", flush=True)
        for to in EXPORTERS:
            seconds, written, held = measure(run, to, Path(folder) / to)
            print(f"{to:<18} {seconds:6.1f} {written / 1e6:8.1f} {held / 1e6:13.0f}", flush=True)


if __name__ == "__main__":
    main()
