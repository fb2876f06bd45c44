"""Each example, run plainly and under memlens: the same training, and a capture that adds up."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.support.example_jobs import EXAMPLES, run

import memlens
from memlens.events import Category, WeightKind

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Example:
    """One script and how a person would start it."""

    script: str
    arguments: tuple[str, ...]
    steps: int
    launcher: tuple[str, ...] = ("python",)
    """What starts the script without memlens."""
    named_launcher: bool = False
    """Start it as `memlens run -- LAUNCHER script`, not as `memlens run script`."""
    ranks: int = 1
    moments: float = 2
    """Optimizer state, in float32 per value that is trained."""
    fixed: Mapping[WeightKind, int] = field(default_factory=dict)
    """Bytes of weights that are not trained, if not all are; without buffers."""
    one_thread: bool = False

    def plain_command(self) -> list[str]:
        options = ["--steps", str(self.steps), "--checksum", *self.arguments]
        return [*self.launcher, str(EXAMPLES / self.script), *options]

    def profiled_command(self, capture: Path) -> list[str]:
        plain = self.plain_command()
        job = ["--", *plain] if self.named_launcher else plain[len(self.launcher) :]
        return ["memlens", "run", "--out", str(capture), *job]


LLAMA = ("--batch", "2", "--seq", "64")
LINEAR = {(256, 256): 4 * 8, (256, 768): 3 * 8}
"""The Llama's linear layers: how many of which shape."""
LINEAR_VALUES = sum(rows * columns * count for (rows, columns), count in LINEAR.items())
OTHER_VALUES = 2 * 256 * 256 + (2 * 8 + 1) * 256
"""Embedding, head and norms."""
NF4_BYTES = (
    LINEAR_VALUES // 2  # two codes in a byte
    + LINEAR_VALUES // 64  # a scale for each block of 64 values, itself a code of 8 bits
    + LINEAR_VALUES // 64 // 256 * FLOAT32_BYTES  # a scale for each block of 256 scales
    + sum(LINEAR.values()) * (16 + 256 + 1) * FLOAT32_BYTES  # a layer's two code books, an offset
)
"""Bytes of the linear layers in 4 bits, quantised twice, as bitsandbytes keeps them."""

EXAMPLE_RUNS = [
    Example("language_model.py", LLAMA, steps=6),
    # More than one epoch, so that an evaluation stands between two training steps.
    Example(
        "vision.py",
        ("--batch", "32"),
        steps=10,
        named_launcher=True,
        moments=1,
        one_thread=True,
    ),
    Example("hf_trainer.py", LLAMA, steps=6),
    Example(
        "ddp.py",
        LLAMA,
        steps=4,
        launcher=("torchrun", "--standalone", "--nproc-per-node", "2"),
        named_launcher=True,
        ranks=2,
        one_thread=True,
    ),
    Example(
        "lora.py",
        LLAMA,
        steps=6,
        fixed={WeightKind.FROZEN: (LINEAR_VALUES + OTHER_VALUES) * FLOAT32_BYTES},
    ),
    Example(
        "qlora.py",
        LLAMA,
        steps=6,
        # A code of 8 bits for each value, and a float32 for each block of 256 of them; twice.
        moments=2 * (1 + FLOAT32_BYTES / 256) / FLOAT32_BYTES,
        fixed={
            WeightKind.QUANTISED: NF4_BYTES,
            WeightKind.FROZEN: OTHER_VALUES * FLOAT32_BYTES,
        },
    ),
]


@dataclass(frozen=True)
class Profiled:
    """An example's run under memlens."""

    job: subprocess.CompletedProcess[str]
    capture: Path
    leftovers: list[str]
    """What the job and memlens left in the folder that they were started in."""


@pytest.fixture(scope="module", params=EXAMPLE_RUNS, ids=lambda example: example.script[:-3])
def example(request: pytest.FixtureRequest) -> Example:
    chosen: Example = request.param
    return chosen


@pytest.fixture(scope="module")
def plain(
    example: Example, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    folder = tmp_path_factory.mktemp("plain")
    return run(example.plain_command(), folder, one_thread=example.one_thread)


@pytest.fixture(scope="module")
def profiled(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    folder = tmp_path_factory.mktemp("profiled")
    capture = tmp_path_factory.mktemp("captures") / "run"
    job = run(example.profiled_command(capture), folder, one_thread=example.one_thread)
    return Profiled(job, capture, [path.name for path in folder.iterdir()])


def without_logs(stdout: str) -> str:
    """Leave out what begins with the time: where DeepSpeed is installed, accelerate imports it."""
    return re.sub(r"^\[\d{4}-\d\d-\d\d .*\n", "", stdout, flags=re.MULTILINE)


def losses(stdout: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^step \d+ loss (\S+)$", stdout, re.MULTILINE)]


def trained_bytes(stdout: str) -> int:
    """Bytes of the parameters that are trained, by what the example says of itself."""
    match = re.search(
        r"^(?:trainable params: )?([\d,]+) (?:parameters$|\|\|)", stdout, re.MULTILINE
    )
    assert match is not None
    return FLOAT32_BYTES * int(match[1].replace(",", ""))


def test_trains_without_memlens(example: Example, plain: subprocess.CompletedProcess[str]) -> None:
    assert plain.returncode == 0, plain.stderr

    values = losses(plain.stdout)
    assert len(values) == example.steps
    assert all(math.isfinite(value) for value in values)
    assert values[-1] < values[0]
    assert re.search(r"^weights [0-9a-f]{64}$", plain.stdout, re.MULTILINE)


def test_is_the_same_training_under_memlens(
    plain: subprocess.CompletedProcess[str], profiled: Profiled
) -> None:
    assert profiled.job.returncode == 0, profiled.job.stderr
    # Losses are printed with all their digits and the weights as a hash, so equal text means equal
    # bits. It also means that memlens wrote nothing to the job's standard output.
    assert without_logs(profiled.job.stdout) == without_logs(plain.stdout)
    assert profiled.leftovers == []


def test_capture_is_complete(example: Example, profiled: Profiled) -> None:
    capture = memlens.load(profiled.capture)

    # One stream for each training process: DataLoader workers and launchers are none.
    assert [rank.rank for rank in capture.ranks] == list(range(example.ranks))
    for rank in capture.ranks:
        assert rank.device == "cpu"
        coverage = rank.coverage
        assert coverage.complete, coverage.problems
        assert coverage.problems == ()
        assert coverage.lost_events == 0
        assert coverage.witness_difference_bytes == 0


def test_categories_add_up_at_every_event(profiled: Profiled) -> None:
    for rank in memlens.load(profiled.capture).ranks:
        timeline = rank.timeline()
        assert len(timeline.time_ns) > 1000
        assert set(timeline.categories) == set(Category)
        total = np.sum([timeline.categories[category] for category in Category], axis=0)
        np.testing.assert_array_equal(total, timeline.allocated_bytes)
        assert all(int(held.min()) >= 0 for held in timeline.categories.values())

        peak = rank.peak()
        assert peak.allocated_bytes == int(timeline.allocated_bytes.max())
        assert sum(peak.categories.values()) == peak.allocated_bytes


def test_almost_nothing_is_unknown_at_the_peak(profiled: Profiled) -> None:
    for rank in memlens.load(profiled.capture).ranks:
        peak = rank.peak()
        assert peak.categories[Category.UNKNOWN] < peak.allocated_bytes / 100, peak.categories


def test_what_is_known_beforehand_is_found(
    example: Example, plain: subprocess.CompletedProcess[str], profiled: Profiled
) -> None:
    """Weights, gradients and optimizer state have sizes that follow from the model alone."""
    trained = trained_bytes(plain.stdout)
    weights = trained + sum(example.fixed.values())
    state = round(example.moments * trained)
    how = WeightKind.ADAPTER if example.fixed else WeightKind.TRAINABLE
    for rank in memlens.load(profiled.capture).ranks:
        steps = rank.steps()
        assert example.steps <= len(steps) <= example.steps + 1  # what follows the last
        # The last of these may lie after the training, so look at the one before it.
        end = steps[-2].end_categories
        # Above the plain sum: buffers (running statistics, rotary tables) and step counters.
        assert weights <= end[Category.WEIGHT] < 1.01 * weights
        assert state <= end[Category.OPTIMIZER_STATE] < 1.01 * state
        assert end[Category.GRADIENT] == trained
        assert end[Category.MASTER_WEIGHT] == 0
        kinds = rank.weights_at(steps[-2].end_ns)
        assert sum(kinds.values()) == end[Category.WEIGHT]
        kinds.pop(WeightKind.BUFFER)
        assert {kind: size for kind, size in kinds.items() if size} == {
            **example.fixed,
            how: trained,
        }
