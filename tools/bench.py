"""What profiling costs: memlens and others side by side, in one run, as ratios to no profiler at all.

    python tools/bench.py              everything (about five minutes on two cores)
    python tools/bench.py --quick      fewer rounds

Every way of recording takes its turn in each round, and a ratio compares it with the unprofiled steps
of the same round; the median over rounds is printed. Times are of steps alone: opening and closing a
profiler is left out, except where the table names it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Kineto would print a line for every profiler that is started here.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "language_model.py"
Step = Callable[[], None]


# -- jobs ------------------------------------------------------------------------------------------


def language_model() -> Step:
    """The example's model: a Llama of seven million parameters, 256 bytes of text times 8."""
    import torch

    sys.path.insert(0, str(EXAMPLE.parent))
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        tokens = torch.randint(0, 256, (4, 128))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def tiny() -> Step:
    """Sixty linear layers of 8 x 8: nothing but dispatch."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(60)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randn(8, 8)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()

    return step


# -- ways of recording -----------------------------------------------------------------------------


@contextlib.contextmanager
def nothing() -> Iterator[Step]:
    yield _no_more


def _no_more() -> None:
    """Most ways need nothing done between two steps."""


@contextlib.contextmanager
def memlens_session(stacks: bool) -> Iterator[Step]:
    import memlens

    with (
        tempfile.TemporaryDirectory() as folder,
        memlens.profile(out=f"{folder}/run", stacks=stacks),
    ):
        yield _no_more


@contextlib.contextmanager
def torch_profiler() -> Iterator[Step]:
    import torch

    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        profile_memory=True,
        record_shapes=True,
        with_stack=True,
    )
    profiler.start()
    yield _no_more
    profiler.stop()


@contextlib.contextmanager
def mem_tracker() -> Iterator[Step]:
    from torch.distributed._tools.mem_tracker import MemTracker

    with MemTracker() as tracker:
        yield tracker.reset_mod_stats  # or it refuses the next step


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[Step]]] = {
    "none": nothing,
    "memlens, no stacks": lambda: memlens_session(False),
    "memlens, stacks": lambda: memlens_session(True),
    "torch.profiler, memory + stacks": torch_profiler,
    "MemTracker": mem_tracker,
}


def measure(job: Callable[[], Step], steps: int, rounds: int) -> dict[str, Any]:
    """Time steps under each way of recording, in turns."""
    import torch

    torch.set_num_threads(1)
    run = job()
    for _ in range(3):
        run()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    closing: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, record in WAYS.items():
            stack = contextlib.ExitStack()
            between = stack.enter_context(record())
            count = steps if way != "MemTracker" else max(steps // 10, 2)
            run()  # the first one under a profiler pays for what is made once
            between()
            began = time.perf_counter()
            for _ in range(count):
                run()
                between()
            ended = time.perf_counter()
            stack.close()
            times[way].append((ended - began) / count)
            closing[way].append((time.perf_counter() - ended) / count)
    base = times["none"]
    return {
        "unprofiled_ms": statistics.median(base) * 1e3,
        "ways": {
            way: {
                "ratio": statistics.median(t / b for t, b in zip(times[way], base, strict=True)),
                "spread": [
                    min(t / b for t, b in zip(times[way], base, strict=True)),
                    max(t / b for t, b in zip(times[way], base, strict=True)),
                ],
                "closing_ms_per_step": statistics.median(closing[way]) * 1e3,
            }
            for way in WAYS
        },
    }


# -- memory and size -------------------------------------------------------------------------------


def peak_rss_bytes(arguments: list[str]) -> int:
    """Most memory that a process of Python took."""
    wrapper = (
        "import resource, subprocess, sys; "
        "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", wrapper, sys.executable, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return int(result.stdout.split()[-1])


def memory_and_size(step_counts: list[int]) -> list[dict[str, int]]:
    """Resident memory with and without memlens, and the capture's size, for jobs of some lengths."""
    rows = []
    for steps in step_counts:
        job = [str(EXAMPLE), "--steps", str(steps)]
        with tempfile.TemporaryDirectory() as folder:
            run = f"{folder}/run"
            plain = peak_rss_bytes(job)
            recorded = peak_rss_bytes(["-m", "memlens", "run", "--out", run, *job])
            size = sum(path.stat().st_size for path in Path(run).rglob("*") if path.is_file())
            header = json.loads(next(Path(run).glob("*/rank.json")).read_text())
        rows.append(
            {
                "steps": steps,
                "plain_rss_bytes": plain,
                "memlens_rss_bytes": recorded,
                "capture_bytes": size,
                "events": header["events"],
            }
        )
    return rows


_LOAD = """
import json, re, sys, time
began = time.perf_counter()
import memlens
run = memlens.load(sys.argv[1])
rank = run.ranks[0]
coverage, peak, steps = rank.coverage, rank.peak(), rank.steps()
rank.timeline(2000), rank.allocations_at(top=20), rank.modules_at(top=20), rank.growth()
# Not ru_maxrss: that begins with the size of the process that started this one.
rss = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({"seconds": time.perf_counter() - began, "rss_bytes": rss, "events": rank.events}))
"""


def loading(events: int) -> dict[str, float]:
    """Load and attribute a generated capture in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, str(ROOT / "tools" / "make_capture.py"), f"{folder}/run"]
        subprocess.run([*make, "--events", str(events)], check=True, stdout=subprocess.DEVNULL)
        load = subprocess.run(
            [sys.executable, "-c", _LOAD, f"{folder}/run"],
            check=True,
            capture_output=True,
            text=True,
        )
    result: dict[str, float] = json.loads(load.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", choices=["lm", "tiny", "memory", "load"])
    options = parser.parse_args()
    rounds = 3 if options.quick else 7

    def wanted(part: str) -> bool:
        return options.only in (None, part)

    for part, job, steps in (("lm", language_model, 8), ("tiny", tiny, 60)):
        if wanted(part):
            result = measure(job, steps, rounds)
            print(
                f"\n{part}: {result['unprofiled_ms']:.1f} ms a step without a profiler, one thread"
            )
            for way, row in result["ways"].items():
                low, high = row["spread"]
                print(
                    f"  {way:<34} {row['ratio']:6.3f} x  ({low:.3f} to {high:.3f});"
                    f" closing {row['closing_ms_per_step']:.1f} ms per step",
                    flush=True,
                )
    if wanted("memory"):
        print("\nmemory and capture size, example language model")
        for row in memory_and_size([5, 40] if options.quick else [5, 40, 160]):
            extra = row["memlens_rss_bytes"] - row["plain_rss_bytes"]
            print(
                f"  {row['steps']:>4} steps: {extra / 2**20:+.1f} MiB on"
                f" {row['plain_rss_bytes'] / 2**20:.0f} MiB;"
                f" {row['events']} events, {row['capture_bytes'] / row['events']:.1f} bytes each",
                flush=True,
            )
    if wanted("load"):
        row = loading(1_000_000)
        print(
            f"\nload and attribute {row['events']:.0f} events: {row['seconds']:.2f} s,"
            f" {row['rss_bytes'] / 2**20:.0f} MiB resident"
        )


if __name__ == "__main__":
    main()
