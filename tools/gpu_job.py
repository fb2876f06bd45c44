"""The jobs of tools/gpu_check.py, each a process of its own, which leaves its findings as JSON.

    python tools/gpu_job.py train language-model --device cuda --out run --result found.json

A job reads what torch's allocator says of itself, and sets beside it what the capture says. Whether the
two agree is for `gpu_check.py` to judge.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import runpy
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

Results = dict[str, Any]
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Runtime calls by which a profiler would slow a job down, or change what it does."""
OPTIONAL = ("accelerate", "bitsandbytes", "deepspeed", "galore_torch", "peft")


def main() -> None:
    parser = argparse.ArgumentParser(description="One job of gpu_check.py.")
    parser.add_argument("kind", choices=sorted(JOBS))
    parser.add_argument(
        "name", nargs="?", default="", help="of a training, a speed job or a script"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, help="folder of the capture")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--readings", type=Path, help="for `examine`")
    parser.add_argument("--words", default="", help="of a built-in job, for `model`")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plain", action="store_true", help="open no session")
    options = parser.parse_args()
    try:
        found = JOBS[options.kind](options)
    except Exception as error:
        missing = what_is_missing(options.name, error)
        if missing is None:
            raise
        found = {"missing": missing}
    options.result.write_text(json.dumps(found))


def what_is_missing(name: str, error: Exception) -> str | None:
    """The library that is not there and need not be; None: something else has gone wrong."""
    text = str(error)
    if isinstance(error, ImportError):
        return next((each for each in OPTIONAL if each in text), None)
    if name == "compile":  # torch.compile, which brings its own exceptions
        return next((each for each in ("compiler", "triton") if each in text.lower()), None)
    return None


# -- what is measured ------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> Results:
    """A training with and beside the allocator's own counters."""
    import torch

    from gpu.trainings import TRAININGS, Readings, Size

    size = Size(options.device, options.steps)
    readings = Readings(size.is_cuda)
    begin(size.is_cuda)
    with session_of(options) as session:
        TRAININGS[options.name](size, readings)
        told = readings.told()
    if options.plain:
        return told
    assert session is not None
    return {**told, **examine_capture(session.run), "torch": torch.__version__}


def logged(options: argparse.Namespace) -> Results:
    """What a logger is given while a training runs, beside what the capture says afterwards."""
    from gpu.trainings import TRAININGS, Readings, Size

    size = Size(options.device, options.steps)
    given: dict[int, dict[str, int]] = {}

    def keep(scalars: dict[str, int], step: int) -> None:
        given[step] = scalars

    begin(size.is_cuda)
    with session_of(options, logger=keep, log_every=1) as session:
        TRAININGS[options.name](size, Readings(size.is_cuda))
    assert session is not None
    rank = session.capture.ranks[0]
    differ = []
    for step in rank.steps():
        if step.step in given:
            told = given[step.step]
            differ += [
                f"step {step.step}: {name} {told[name]:,} B, afterwards {value:,} B"
                for name, value in (
                    ("memory/peak_bytes", step.peak_bytes),
                    ("memory/end_bytes", step.end_bytes),
                    *(
                        (f"memory/{kind.value}_bytes", size)
                        for kind, size in step.categories.items()
                    ),
                )
                # What a loader has made is unknown before the forward that it is for.
                if told[name] != value and not name.startswith(("memory/input", "memory/unknown"))
            ]
    total = None
    if size.is_cuda:
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
    capacity = (rank.header.get("capacity_bytes") or [None])[0]
    return {"steps": len(given), "differ": differ, "capacity_bytes": capacity, "total_bytes": total}


def begin(is_cuda: bool) -> None:
    """Start with an empty allocator, whose peaks are then those of the job alone."""
    import torch

    torch.manual_seed(0)
    if is_cuda:
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
        if torch.cuda.memory_reserved():
            raise RuntimeError("the allocator is not empty when the job begins")


def session_of(options: argparse.Namespace, **extra: Any) -> AbstractContextManager[Any]:
    if options.plain:
        return nullcontext()
    import memlens

    return memlens.profile(device=options.device, out=options.out, **extra)


def examine(options: argparse.Namespace) -> Results:
    """A capture that somebody else has recorded, beside what its job has read."""
    told = json.loads(options.readings.read_text()) if options.readings else {}
    return {**told, **examine_capture(options.out)}


def examine_capture(folder: Path) -> Results:
    import memlens

    capture = memlens.load(folder)
    ranks = [examine_rank(rank) for rank in capture.ranks]
    return {
        "ranks": ranks,
        "source": capture.info.source,
        "problems": list(capture.problems),
    }


def examine_rank(rank: Any) -> Results:
    coverage, peak = rank.coverage, rank.peak()
    return {
        "device": rank.device,
        "events": rank.events,
        "step_end_bytes": [step.end_bytes for step in rank.steps()],
        "peak_bytes": peak.allocated_bytes,
        "peak_categories": {kind.value: size for kind, size in peak.categories.items() if size},
        "peak_phase": peak.phase.value,
        "peak_step": peak.step,
        "reserved_peak_bytes": rank.reserved_peak_bytes,
        "gauges": {gauge.what: gauge.peak_bytes for gauge in rank.gauges()},
        "complete": coverage.complete,
        "lost_events": coverage.lost_events,
        "witness_difference_bytes": coverage.witness_difference_bytes,
        "problems": list(coverage.problems),
        "named": named_shares(rank.to_arrow()),
    }


def named_shares(blocks: Any) -> dict[str, float | None]:
    """How many of the bytes that were ever handed out are known by the module that asked for them."""
    category, phase, module = (
        np.array(blocks[name].to_pylist(), dtype=object) for name in ("category", "phase", "module")
    )
    size = blocks["size_bytes"].to_numpy().astype(np.float64)
    named, backward = module != "", phase == "backward"
    groups = {
        "activations": category == "activation",
        "backward temporaries": (category == "temporary") & backward,
    }
    return {
        name: float(size[chosen & named].sum() / size[chosen].sum()) if chosen.any() else None
        for name, chosen in groups.items()
    }


# -- harm ------------------------------------------------------------------------------------------


def losses(options: argparse.Namespace) -> Results:
    """Losses and final weights of a training in which every bit is determined."""
    # Before CUDA's libraries are loaded; see torch.use_deterministic_algorithms.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    from gpu.trainings import TRAININGS, Readings, Size

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    size = Size(options.device, options.steps)
    readings = Readings(size.is_cuda)
    begin(size.is_cuda)
    with session_of(options) as session:
        model = TRAININGS[options.name](size, readings)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    found: Results = {
        "losses": [float(loss).hex() for loss in readings.losses],
        "weights": digest.hexdigest(),
    }
    if session is not None:
        import memlens

        found["events"] = session.events
        found["problems"] = list(memlens.load(session.run).ranks[0].coverage.problems)
    return found


def calls(options: argparse.Namespace) -> Results:
    """How often a training calls CUDA's runtime and torch's operators, as torch.profiler counts."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from gpu.speed import watch_drains
    from gpu.trainings import TRAININGS, Readings, Size

    size = Size(options.device, options.steps)
    activities = [ProfilerActivity.CPU]
    if size.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    begin(size.is_cuda)
    warm = Size(options.device, 2)
    TRAININGS[options.name](warm, Readings(False))
    with session_of(options) as session:
        drains = watch_drains(session)
        with profile(activities=activities) as profiler:
            TRAININGS[options.name](size, Readings(False))
            if size.is_cuda:
                torch.cuda.synchronize()
        within = len(drains)
    counts = {event.key: event.count for event in profiler.key_averages()}
    # Such as cudaLaunchKernel, and cuLaunchKernel of the driver; kernels have names like cutlass_80.
    runtime = {
        name: count
        for name, count in counts.items()
        if name.startswith("cuda") or (name.startswith("cu") and name[2:3].isupper())
    }
    return {
        "waiting": {name: runtime[name] for name in sorted(runtime) if name.startswith(WAITING)},
        "runtime": runtime,
        "operators": sum(count for name, count in counts.items() if name.startswith("aten::")),
        "drains": within,
    }


# -- out of memory ---------------------------------------------------------------------------------


def out_of_memory(options: argparse.Namespace) -> Results:
    """A training that hoards what it should let go of, until the allocator gives no more."""
    import torch
    from torch import nn

    begin(True)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (2 << 30) / total))
    found: Results = {"raised": False}
    with session_of(options):
        run = Path(os.environ.get("MEMLENS_RUN") or options.out)
        model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        hoard = []
        try:
            for _ in range(1000):
                output = model(torch.randn(4096, 1024, device="cuda"))
                hoard.append(output)
                output.square().mean().backward(retain_graph=True)
                optimizer.step()
                optimizer.zero_grad()
        except torch.OutOfMemoryError as error:
            found = {
                "raised": True,
                "bundles": [str(path.relative_to(run)) for path in run.glob("*/oom*.json")],
                "message": str(error)[:200],
            }
        del hoard
    return found


# -- plans -----------------------------------------------------------------------------------------


def model(options: argparse.Namespace) -> Results:
    """A built-in job as it is, and what torch.cuda says of its peaks at the end."""
    import torch

    from memlens.models.job import main as train_model

    train_model(shlex.split(options.words))
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_peak_bytes": torch.cuda.max_memory_reserved(),
    }


def operators(options: argparse.Namespace) -> Results:
    """Single operators; what could not be run, and why."""
    from gpu.operators import run_cases

    with session_of(options):
        return {"refused": run_cases(options.device)}


def card(options: argparse.Namespace) -> Results:
    """How a command line of `memlens plan` calls this machine's card."""
    import torch

    from memlens.catalogue.gpus import CONTEXT_BYTES, GPUS

    here = torch.cuda.get_device_properties(0)
    alike = [gpu for gpu in GPUS.values() if gpu.capability == (here.major, here.minor)]
    if not alike:
        sys.exit(f"memlens plan knows no card of compute capability {here.major}.{here.minor}")
    processors = here.multi_processor_count
    near = min(
        alike,
        key=lambda gpu: (
            abs(gpu.multi_processors - processors),
            abs(gpu.total_bytes - here.total_memory),
        ),
    )
    text = f"{near.name} with {here.total_memory:,} B"
    if near.multi_processors != processors:
        text += f" and {near.multi_processors} multiprocessors instead of {processors}"
    # What `--capacity` takes is without the context.
    capacity = here.total_memory - CONTEXT_BYTES
    return {"words": ["--gpu", near.name, "--capacity", str(capacity)], "text": text}


# -- scripts and facts -----------------------------------------------------------------------------


def script(options: argparse.Namespace) -> Results:
    """Run a script as it is, and read the counters whenever an optimizer has stepped."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from gpu.trainings import Readings

    readings = Readings(options.device == "cuda")
    register_optimizer_step_post_hook(lambda *_: readings.read())
    path = Path(options.name).resolve()
    sys.argv = [str(path)]
    sys.path[0] = str(path.parent)
    runpy.run_path(str(path), run_name="__main__")
    if readings.is_cuda and not torch.cuda.is_initialized():
        return {**Readings(False).told(), "steps": readings.steps, "used_cuda": False}
    return readings.told()


def facts(options: argparse.Namespace) -> Results:
    """What was measured on."""
    import platform
    from importlib.metadata import version

    import torch

    found = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "transformers": version("transformers"),
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    if options.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("there is no CUDA device here; --device cpu tries the same code on the CPU")
        properties = torch.cuda.get_device_properties(0)
        found["device"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())
        found["driver"] = _driver()
    return found


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return text.split("\n")[0].strip()


def speed(options: argparse.Namespace) -> Results:
    from gpu.speed import measure

    return measure(options.name, options.device, options.quick)


JOBS = {
    "calls": calls,
    "card": card,
    "examine": examine,
    "facts": facts,
    "logged": logged,
    "losses": losses,
    "model": model,
    "operators": operators,
    "out-of-memory": out_of_memory,
    "script": script,
    "speed": speed,
    "train": train,
}


if __name__ == "__main__":
    main()
