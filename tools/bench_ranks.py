"""How long `memlens report` takes for a run of many ranks, and how much memory.

python tools/bench_ranks.py --ranks 1024 --events 20000

Makes a synthetic run (or takes the one in RUN), reports it on two cores, and prints seconds, CPU
seconds, and the most memory that all of its processes held together.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from make_capture import make_capture

SAMPLE_S = 0.05


def report(run: Path, options: Sequence[str] = (), cores: int = 2) -> dict[str, Any]:
    """Run `memlens report RUN` and measure it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    usable = sorted(os.sched_getaffinity(0))[:cores]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "memlens", "report", str(run), *options],
            stdout=output,
            preexec_fn=lambda: os.sched_setaffinity(0, usable),
        )
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, sum(map(resident_bytes, tree(process.pid))))
            time.sleep(SAMPLE_S)
        wall_s = time.perf_counter() - began
        size = output.seek(0, os.SEEK_END)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "exit": process.returncode,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_rss_mb": round(peak_bytes / 1e6),
        "output_kb": size // 1000,
        "cores": len(usable),
        "load": os.getloadavg()[0],
    }


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            pass
    return found


def resident_bytes(pid: int) -> int:
    """Memory of one process; pages that several share are counted for each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure the terminal's report and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="an existing run")
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--events", type=int, default=20_000, help="of each rank, at least")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="measure --json as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = options.run
        if run is None:
            run = Path(scratch) / "run"
            make_capture(run, options.events, options.ranks)
        ranks = len(list(run.glob("*/rank.json")))
        for words in [[], ["--json"]] if options.json else [[]]:
            measured = report(run, words, options.cores)
            print(f"{ranks:,} ranks, report {' '.join(words)}: {json.dumps(measured)}", flush=True)


if __name__ == "__main__":
    main()
