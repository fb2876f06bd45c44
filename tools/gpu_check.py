"""Proves on one GPU, with one command and in ten minutes, what memlens says of CUDA; writes a table.

    python tools/gpu_check.py                        everything (about nine minutes)
    python tools/gpu_check.py --quick                fewer rounds and jobs
    python tools/gpu_check.py --device cpu --quick   the same code over the CPU's allocator

Needs torch, memlens' dependencies and transformers; what else is missing is said in its row. Memlens
need not be installed. Every job runs in a process of its own (tools/gpu_job.py), several at a time but
for those that are timed. A check that fails, crashes or hangs costs its own row alone. Exit code 1: some
check failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu.bench import FAIL, PASS, SKIPPED, Bench, Stopped, Verdict
from gpu.checks import SECTIONS, Check, Section
from gpu.table import Table


def attempt(check: Check, bench: Bench) -> Verdict:
    """A check's verdict, whatever happens."""
    if check.cuda_only and not bench.is_cuda:
        return Verdict(SKIPPED, ("only CUDA can tell",))
    if check.full_only and bench.quick:
        return Verdict(SKIPPED, ("left out by --quick",))
    if bench.left_s < check.seconds:
        return Verdict(SKIPPED, (f"no time left: it takes about {check.seconds} s",))
    try:
        return check.run(bench)
    except Stopped as stopped:
        return stopped.verdict
    except Exception as error:
        return Verdict(FAIL, (f"{type(error).__name__}: {error}",))


def run_all(bench: Bench, table: Table, workers: int, only: Sequence[str]) -> None:
    for section in SECTIONS:
        checks = [
            check
            for check in section.checks
            if not only or any(word in f"{section.title}: {check.title}".lower() for word in only)
        ]

        def one(check: Check, section: Section = section) -> None:
            began = time.monotonic()
            verdict = attempt(check, bench)
            table.add(
                section.title, check.title, verdict, time.monotonic() - began, bench.elapsed_s
            )

        with ThreadPoolExecutor(1 if section.alone else workers) as pool:
            try:
                for future in [pool.submit(one, check) for check in checks]:
                    future.result()
            except BaseException:  # Ctrl-C: the pool would wait for all that is left
                bench.end()
                raise


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and jobs")
    parser.add_argument("--minutes", type=float, default=9, help="in all; default: 9")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--work", type=Path, help="keep captures and results in this new folder")
    parser.add_argument(
        "--only", action="append", default=[], help="checks with this in their name"
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=max(1, min(4, cores // 2)), help="at a time")
    return parser.parse_args()


def main() -> int:
    options = parse()
    command = shlex.join(["python", "tools/gpu_check.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        folder = options.work.resolve() if options.work else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table = Table(options.out, command)
        bench = Bench(options.device, quick=options.quick, minutes=options.minutes, folder=folder)
        try:
            table.facts = bench.job("facts")
        except Stopped as stopped:
            print(f"nothing can be checked here: {stopped.verdict.log or stopped}", file=sys.stderr)
            return 2
        print(", ".join(f"{name} {value}" for name, value in table.facts.items()), flush=True)
        run_all(bench, table, options.jobs, [word.lower() for word in options.only])
        print(f"{bench.elapsed_s:6.1f} s  {table.summary}; written to {options.out}")
    return 1 if table.count(FAIL) or not table.count(PASS) else 0


if __name__ == "__main__":
    sys.exit(main())
