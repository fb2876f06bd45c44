"""Proves on one GPU, with one command and in ten minutes, what memlens says of CUDA; writes a table.

    python tools/gpu_check.py                        everything (about nine minutes)
    python tools/gpu_check.py --quick                fewer rounds and jobs
    python tools/gpu_check.py --device cpu --quick   the same code over the CPU's allocator
    python tools/gpu_check.py --plans                instead: jobs run for real and planned (nine minutes)
    python tools/gpu_check.py --plans --device cpu   the same, each job planned twice
    python tools/gpu_check.py --recorded tools/gpu_plans.json   real runs of then, planned now (no GPU)
    python tools/gpu_check.py --operators            instead: single operators, run and planned

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

from gpu.bench import FAIL, PASS, SKIPPED, Bench, Found, Stopped, Verdict
from gpu.checks import SECTIONS, Check, Section
from gpu.matrix import MATRIX
from gpu.operators_table import hold_operators
from gpu.plans import DEFAULT_CARD, Planner, recorded_runs, run_plans
from gpu.plans_table import PlansTable, summary_line
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
    parser.add_argument("--plans", action="store_true", help="hold plans against real runs")
    parser.add_argument(
        "--recorded",
        type=Path,
        help="with --plans: real runs from this gpu_plans.json, on any machine",
    )
    parser.add_argument(
        "--operators", action="store_true", help="hold plans of operators against CUDA"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="default: gpu_check.md, gpu_plans.md or gpu_operators.md, beside it",
    )
    parser.add_argument("--work", type=Path, help="keep captures and results in this new folder")
    parser.add_argument(
        "--only", action="append", default=[], help="checks with this in their name"
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, help="at a time")
    parser.add_argument(
        "--together", type=int, default=1, help="with --plans: real runs at a time, if they all fit"
    )
    options = parser.parse_args()
    if options.recorded:
        options.plans, options.device = True, "cpu"
    here = Path(__file__)
    if options.plans:
        # A job is a run, which waits for the GPU, and a plan, which takes one core.
        options.jobs = options.jobs or max(1, min(8, cores // 2))
        options.out = options.out or here.with_name("gpu_plans.md")
    else:
        options.jobs = options.jobs or max(1, min(4, cores // 2))
        name = "gpu_operators.md" if options.operators else "gpu_check.md"
        options.out = options.out or here.with_name(name)
    return options


def card_of(bench: Bench, facts: Found) -> Sequence[str]:
    """The machine's card, in words of `memlens plan`."""
    if not bench.is_cuda:
        return DEFAULT_CARD
    found = bench.job("card")
    facts["planned as"] = found["text"]
    return tuple(found["words"])


def hold_plans(bench: Bench, facts: Found, options: argparse.Namespace, command: str) -> int:
    """Run the matrix; returns the exit code."""
    chosen = [
        job
        for job in MATRIX
        if (job.quick or not options.quick)
        and (not options.only or any(word.lower() in job.title for word in options.only))
    ]
    recorded = None
    if options.recorded:
        recorded, measured_on, card = recorded_runs(options.recorded)
        chosen = [job for job in chosen if job.title in recorded]
        facts = {**measured_on, "planned again with": f"torch {facts['torch']}, {facts['host']}"}
    else:
        card = card_of(bench, facts)
        facts["at a time"] = f"{options.together} real, {options.jobs} plans"
    planned_twice = not (bench.is_cuda or options.recorded)
    table = PlansTable(options.out, command, chosen, planned_twice=planned_twice, facts=facts)
    planner = Planner(bench, card, options.together, recorded)
    run_plans(planner, chosen, table, options.jobs)
    summary = table.summary
    print(f"{bench.elapsed_s:6.1f} s  {summary.state}: {summary_line(summary)}", flush=True)
    for failure in summary.failures:
        print(f"{'':10}{failure}")
    print(f"written to {options.out} and {options.out.with_suffix('.json')}")
    return 1 if summary.failures else 0


def main() -> int:
    options = parse()
    command = shlex.join(["python", "tools/gpu_check.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        folder = options.work.resolve() if options.work else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(options.device, quick=options.quick, minutes=options.minutes, folder=folder)
        try:
            facts = bench.job("facts")
            print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
            if options.plans:
                return hold_plans(bench, facts, options, command)
            if options.operators:
                hold_operators(bench, card_of(bench, facts), options.out, command, facts)
                return 0
        except Stopped as stopped:
            print(f"nothing can be checked here: {stopped.verdict.log or stopped}", file=sys.stderr)
            return 2
        table = Table(options.out, command, facts)
        run_all(bench, table, options.jobs, [word.lower() for word in options.only])
        print(f"{bench.elapsed_s:6.1f} s  {table.summary}; written to {options.out}")
    return 1 if table.count(FAIL) or not table.count(PASS) else 0


if __name__ == "__main__":
    sys.exit(main())
