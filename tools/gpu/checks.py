"""What tools/gpu_check.py checks: each check runs jobs and judges what they have found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu.bench import (
    FAIL,
    MEASURED,
    MEMLENS,
    PASS,
    ROOT,
    SKIPPED,
    Bench,
    Found,
    Verdict,
)

__all__ = ["SECTIONS", "Check", "Section", "judge_conservation"]

MOST_UNKNOWN = 0.01
LEAST_NAMED = 0.95
PEAKS = {"peak_bytes": "peak", "reserved_peak_bytes": "reserved peak"}
TARGETS = {"language-model": 1.02, "dispatch-bound": 1.10}
"""What a step may take under memlens, as a multiple of what it takes without."""


@dataclass(frozen=True)
class Check:
    """One row."""

    title: str
    run: Callable[[Bench], Verdict]
    seconds: int = 15
    """What it takes on a GPU, about; it is left out where there is less time."""
    cuda_only: bool = False
    full_only: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    checks: Sequence[Check]
    alone: bool = False
    """One check at a time: it measures time."""


# -- conservation ----------------------------------------------------------------------------------


def conservation(training: str, bench: Bench, settings: str = "") -> Verdict:
    """The capture's figures are those that the job read from the allocator."""
    return judge_conservation(bench.training(training, settings), bench.device)


def judge_conservation(found: Found, device: str) -> Verdict:
    wrong = [*found["problems"]]
    if len(found["ranks"]) != 1:
        wrong.append(f"{len(found['ranks'])} captures instead of one")
    rank = found["ranks"][0]
    wrong += whole(rank, found["source"], device)
    ends, read = rank["step_end_bytes"], found.get("allocated_bytes", [])
    if len(ends) != found["steps"]:
        wrong.append(f"{len(ends)} steps in the capture, {found['steps']} in the job")
    if not found["steps"]:
        wrong.append("the job made no step")
    if device == "cuda" and (len(read) != found["steps"] or None in map(found.get, PEAKS)):
        wrong.append("the job has not read the allocator's counters")
    for number, (ours, theirs) in enumerate(zip(ends, read, strict=False)):
        if ours != theirs:
            wrong.append(f"end of step {number}: {ours:,} B, allocator {theirs:,} B")
    for key, title in PEAKS.items():
        if key in found and rank[key] != found[key]:
            wrong.append(f"{title}: {_size(rank[key])}, allocator {_size(found[key])}")
    figures = [f"{len(ends)} steps, {rank['events']:,} events, peak {rank['peak_bytes']:,} B"]
    if read:
        figures[0] += f", reserved {_size(rank['reserved_peak_bytes'])}"
        if not wrong:
            figures[0] += ": all as the allocator counts"
    figures[0] += f"; {unknown(rank):.2%} unknown at the peak"
    return Verdict(FAIL if wrong else PASS, (*wrong[:4], *figures))


def whole(rank: Found, source: str, device: str) -> list[str]:
    """What a capture lacks."""
    wrong = list(rank["problems"])
    if source != device or not rank["device"].startswith(device):
        wrong.append(f"recorded {rank['device']} with source {source}, not {device}")
    if not rank["complete"]:
        wrong.append("not complete")
    for key in ("lost_events", "witness_difference_bytes"):
        if rank[key]:
            wrong.append(f"{key} {rank[key]:,}")
    if unknown(rank) >= MOST_UNKNOWN:
        wrong.append(f"{unknown(rank):.2%} unknown at the peak")
    return wrong


def _size(size_bytes: int | None) -> str:
    return "not told" if size_bytes is None else f"{size_bytes:,} B"


def unknown(rank: Found) -> float:
    return float(rank["peak_categories"].get("unknown", 0) / max(rank["peak_bytes"], 1))


def example(script: str, bench: Bench) -> Verdict:
    """An example as it is, under `memlens run`."""
    out, path = bench.place("example"), ROOT / "examples" / script
    run = (*MEMLENS, "run", "--device", bench.device, "--out", str(out))
    if script == "ddp.py":
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        bench.run([*run, "--", sys.executable, *launcher, str(path)])
        found = bench.job("examine", "--out", str(out))
        wrong = [
            text for rank in found["ranks"] for text in whole(rank, found["source"], bench.device)
        ]
        peaks = ", ".join(f"{rank['peak_bytes']:,} B" for rank in found["ranks"])
        if len(found["ranks"]) != 2:
            wrong.append(f"{len(found['ranks'])} ranks instead of 2")
        return Verdict(FAIL if wrong else PASS, (*wrong, f"two processes, peaks {peaks}"))
    read = bench.job("script", str(path), before=run)
    if read.pop("used_cuda", True) is False:
        return Verdict(SKIPPED, ("it uses no CUDA",))
    readings = bench.place("readings")
    readings.write_text(json.dumps(read))
    found = bench.job("examine", "--out", str(out), "--readings", str(readings))
    return judge_conservation(found, bench.device)


# -- while it runs ---------------------------------------------------------------------------------


def while_it_runs(bench: Bench) -> Verdict:
    """A logger is given what the capture says; the device's capacity is in it."""
    steps = "3" if bench.quick else "8"
    out = str(bench.place("logged"))
    found = bench.job("logged", "language-model", "--out", out, "--steps", steps)
    wrong = list(found["differ"])
    if not found["steps"]:
        wrong.append("the logger was given nothing")
    if found["capacity_bytes"] != found["total_bytes"]:
        wrong.append(
            f"capacity {_size(found['capacity_bytes'])}, device {_size(found['total_bytes'])}"
        )
    return Verdict(FAIL if wrong else PASS, (*wrong, f"{found['steps']} steps logged"))


# -- harm ------------------------------------------------------------------------------------------


def same_bits(training: str, bench: Bench) -> Verdict:
    """Losses and weights with and without memlens; a second plain run shows that bits can be compared."""
    steps = str(5 if bench.quick else 20)

    def job(*more: str) -> Found:
        out = str(bench.place("run"))
        return bench.job("losses", training, "--steps", steps, "--out", out, *more)

    plain, again, recorded = bench.together(
        lambda: job("--plain"), lambda: job("--plain"), lambda: job()
    )
    # Without a recording there would be nothing that could do harm.
    events, problems = recorded.pop("events"), recorded.pop("problems")
    if not events or problems:
        return Verdict(FAIL, (f"memlens recorded {events:,} events", *problems))
    if plain != again:
        return Verdict(FAIL, ("two runs without memlens differ: nothing can be compared",))
    text = f"{len(plain['losses'])} losses and the weights, {events:,} events"
    if plain != recorded:
        differing = sum(a != b for a, b in zip(plain["losses"], recorded["losses"], strict=True))
        return Verdict(FAIL, (f"{text}: {differing} losses differ",))
    return Verdict(PASS, (f"{text}: bit-identical",))


def same_calls(bench: Bench) -> Verdict:
    """Calls that wait for the device or copy from it, with and without memlens."""
    steps = str(3 if bench.quick else 20)

    def job(*more: str) -> Found:
        out = str(bench.place("run"))
        return bench.job("calls", "language-model", "--steps", steps, "--out", out, *more)

    plain, recorded = bench.together(lambda: job("--plain"), lambda: job())
    differing = {
        name: (plain["runtime"].get(name, 0), recorded["runtime"].get(name, 0))
        for name in sorted({*plain["runtime"], *recorded["runtime"]})
        if plain["runtime"].get(name, 0) != recorded["runtime"].get(name, 0)
    }
    figures = [
        f"{steps} steps, {recorded['drains']} drains: "
        + (", ".join(f"{name} {count:,}" for name, count in plain["waiting"].items()) or "none"),
        f"operators: {plain['operators']:,} without, {recorded['operators']:,} with memlens",
    ]
    figures += [f"{name}: {a:,} without, {b:,} with memlens" for name, (a, b) in differing.items()]
    same = plain["waiting"] == recorded["waiting"] and plain["operators"] == recorded["operators"]
    if bench.is_cuda and not plain["waiting"]:
        return Verdict(FAIL, ("the profiler saw no call of CUDA's runtime", *figures))
    if bench.is_cuda and not recorded["drains"]:
        return Verdict(FAIL, ("memlens did not drain meanwhile", *figures))
    return Verdict(PASS if same else FAIL, tuple(figures))


# -- speed -----------------------------------------------------------------------------------------


def speed(name: str, bench: Bench) -> Verdict:
    quick = ("--quick",) if bench.quick else ()
    found = bench.job("speed", name, *quick, limit_s=240)
    figures = [f"{found['job']}: {found['plain_ms']:.2f} ms a step without a profiler"]
    for way, row in found["ways"].items():
        low, high = row["spread"]
        text = f"{way}: {row['ms']:.2f} ms, {row['ratio']:.3f} x ({low:.3f} to {high:.3f})"
        if "events_per_step" in row:
            text += f"; {row['events_per_step']:.0f} events a step"
        if "drain_ms_per_10000" in row:
            text += f", a drain takes {row['drain_ms_per_10000']:.1f} ms per 10,000 of them"
        figures.append(text)
    wrong = found["problems"]
    if wrong:
        return Verdict(FAIL, (*wrong, *figures))
    if not bench.is_cuda:
        return Verdict(MEASURED, tuple(figures))
    target = TARGETS[name]
    good = found["ways"]["memlens"]["ratio"] <= target
    return Verdict(PASS if good else FAIL, (*figures, f"target for memlens: {target:.2f} x"))


# -- attribution and out of memory -----------------------------------------------------------------


def attribution(training: str, bench: Bench) -> Verdict:
    """What is at the peak, and what the autograd engine's threads know of modules."""
    rank = bench.training(training)["ranks"][0]
    total = rank["peak_bytes"]
    parts = sorted(rank["peak_categories"].items(), key=lambda item: -item[1])
    figures = [
        f"peak in {rank['peak_phase']}: "
        + ", ".join(f"{name} {size / total:.2%}" for name, size in parts)
    ]
    wrong = []
    for name, share in rank["named"].items():
        if share is None:
            wrong.append(f"no {name} seen")
        else:
            figures.append(f"{share:.2%} of the bytes of {name} have a module's name")
            if share < LEAST_NAMED:
                wrong.append(f"less than {LEAST_NAMED:.0%} of {name} have a module's name")
    if unknown(rank) >= MOST_UNKNOWN:
        wrong.append(f"{unknown(rank):.2%} unknown at the peak")
    gauges = [f"{name} {size:,} B" for name, size in rank["gauges"].items()]
    if gauges:
        figures.append("beside the allocator: " + ", ".join(gauges))
    return Verdict(FAIL if wrong else PASS, (*wrong, *figures))


def out_of_memory(bench: Bench) -> Verdict:
    out = bench.place("run")
    found = bench.job("out-of-memory", "--out", str(out))
    if not found["raised"]:
        return Verdict(FAIL, ("memory did not run out",))
    if not found["bundles"]:
        return Verdict(FAIL, ("there was no bundle when the exception came", found["message"]))
    report = bench.run([*MEMLENS, "report", str(out)])
    _, heading, text = report.partition("Out of memory")
    figures = (f"{found['bundles'][0]} was there when the exception came",)
    if not heading:
        return Verdict(FAIL, ("`memlens report` says nothing of it", *figures), report)
    told = next(line.strip() for line in text.splitlines()[1:] if line.strip())
    return Verdict(PASS, (*figures, f"report: {told}"))


def oom_only(bench: Bench) -> Verdict:
    out = bench.place("run")
    run = (*MEMLENS, "run", "--device", bench.device, "--oom-only", "--out", str(out))
    found = bench.job("out-of-memory", "--plain", before=run)
    if not found["raised"] or not found["bundles"]:
        return Verdict(FAIL, ("memory ran out and nothing was written",))
    rank = bench.job("examine", "--out", str(out))["ranks"][0]
    text = f"{found['bundles'][0]}, and a capture of the last {rank['events']:,} events"
    return Verdict(PASS, (text,))


def oom_only_nothing(bench: Bench) -> Verdict:
    out = bench.place("run")
    run = (*MEMLENS, "run", "--device", bench.device, "--oom-only", "--out", str(out))
    bench.job("train", "language-model", "--steps", "3", "--plain", before=run)
    if out.exists():
        return Verdict(FAIL, ("it wrote a folder although nothing had failed",))
    return Verdict(PASS, ("nothing is written",))


# -- the list --------------------------------------------------------------------------------------


def settings(text: str) -> Check:
    run = partial(conservation, "language-model", settings=text)
    return Check(f"language model, {text}", run, cuda_only=True)


def training(title: str, name: str, **options: Any) -> Check:
    return Check(title, partial(conservation, name), **options)


CONSERVATION = [
    training("language model, AdamW", "language-model"),
    training("convolutions with batch norm, SGD", "vision"),
    training("the same, cudnn.benchmark", "vision-benchmark", cuda_only=True),
    training("gradient accumulation", "accumulation"),
    training("activation checkpointing", "checkpointing"),
    training("autocast to bfloat16", "autocast-bf16"),
    training("float16 with GradScaler", "scaler-fp16", full_only=True),
    training("fused AdamW", "fused-adamw"),
    training("two streams, record_stream", "two-streams", cuda_only=True),
    training("CUDA graphs: forward and backward", "graphed-model", cuda_only=True),
    training("CUDA graphs: the whole step", "graphed-step", cuda_only=True),
    settings("expandable_segments:True"),
    settings("roundup_power2_divisions:4"),
    settings("max_split_size_mb:64"),
]
HARM = [
    Check("losses of a language model", partial(same_bits, "language-model"), seconds=25),
    Check("losses of convolutions", partial(same_bits, "vision"), seconds=25, full_only=True),
    Check("calls that wait or copy", same_calls, seconds=30),
]
WHILE_IT_RUNS = [Check("scalars of steps, capacity", while_it_runs)]
SPEED = [
    Check("GPU-bound", partial(speed, "language-model"), seconds=90),
    Check("dispatch-bound", partial(speed, "dispatch-bound"), seconds=45),
]
ATTRIBUTION = [
    Check("language model", partial(attribution, "language-model")),
    Check("activation checkpointing", partial(attribution, "checkpointing"), full_only=True),
]
OUT_OF_MEMORY = [
    Check("a job that runs out", out_of_memory, cuda_only=True),
    Check("--oom-only, a job that runs out", oom_only, cuda_only=True),
    Check("--oom-only, nothing fails", oom_only_nothing, cuda_only=True),
]
LIBRARIES = [
    training("AdamW-R (memlens.optim)", "adamw-r"),
    training("Adafactor (torch)", "adafactor", full_only=True),
    training("GaLore", "galore", full_only=True),
    training("AdamW8bit (bitsandbytes)", "adamw8bit", full_only=True),
    training("PagedAdamW8bit (bitsandbytes)", "paged-adamw8bit", cuda_only=True),
    training("torch.compile", "compile", full_only=True, seconds=60),
]
SHARDED = [
    training("FSDP2, bfloat16", "fsdp2"),
    training("DeepSpeed, ZeRO 2, bfloat16", "zero-2", seconds=30),
    training("DeepSpeed, ZeRO 3, bfloat16", "zero-3", seconds=30, full_only=True),
]
EXAMPLES = [
    Check(f"examples/{script}", partial(example, script), seconds=25, full_only=True)
    for script in (
        "language_model.py",
        "vision.py",
        "hf_trainer.py",
        "lora.py",
        "qlora.py",
        "ddp.py",
    )
]
SECTIONS = [
    Section("Conservation", CONSERVATION),
    Section("Harm", HARM),
    Section("While it runs", WHILE_IT_RUNS),
    Section("Speed", SPEED, alone=True),
    Section("Attribution", ATTRIBUTION),
    Section("Out of memory", OUT_OF_MEMORY),
    Section("Other optimizers, torch.compile", LIBRARIES),
    Section("One rank of FSDP and ZeRO", SHARDED),
    Section("Examples under `memlens run`", EXAMPLES),
]
