"""What TensorBoard is given, read back with TensorBoard's own readers and its own server."""

from __future__ import annotations

import html
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tests.support.fake_capture import Block, FakeRank, make_capture
from tests.support.large import make_capture as make_capture_on_disk
from tests.support.llama_job import llama_job
from tests.support.tensorboard_server import read

import memlens
from memlens.cli import main
from memlens.errors import MissingDependencyError, OutputExistsError, UsageError
from memlens.events import ROLLUP, Category
from memlens.exporters import export
from memlens.exporters.pictures.timeline import timeline_png
from memlens.palette import CATEGORY_SERIES
from memlens.report.view import ReportOptions, view_rank

MIB = 1 << 20
STEPS = 4
JOB = llama_job(STEPS, leak_bytes=MIB)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(JOB, "tensorboard", tmp_path_factory.mktemp("export") / "board")


def test_each_rank_is_a_run(exported: Path) -> None:
    assert sorted(each.name for each in exported.iterdir()) == ["all-ranks", "rank-0", "rank-1"]


@pytest.mark.parametrize("rank", [0, 1])
def test_scalars_are_the_captures_numbers(exported: Path, rank: int) -> None:
    accumulator = read(exported / f"rank-{rank}")
    checked = 0
    for at, step in enumerate(JOB.ranks[rank].steps()):
        for group, total, categories, time_ns in (
            ("step_peak_MiB", step.peak_bytes, step.categories, step.peak_ns),
            ("step_end_MiB", step.end_bytes, step.end_categories, step.end_ns),
        ):
            expected = {f"{group}/{key.value}": size for key, size in categories.items()}
            expected[f"{group}/total"] = total
            for tag, size_bytes in expected.items():
                if tag not in accumulator.Tags()["scalars"]:
                    assert size_bytes == 0
                    continue
                point = accumulator.Scalars(tag)[at]
                # float32 is what an event file holds: exact to the last bit of it.
                assert point.value == np.float32(size_bytes / MIB)
                assert point.step == step.step
                assert point.wall_time == pytest.approx(time_ns / 1e9, abs=1e-6)
                checked += 1
    # Six categories are there at some peak or end; temporaries live in between.
    assert checked == STEPS * 2 * (1 + 6)


def test_categories_add_up_to_the_total(exported: Path) -> None:
    accumulator = read(exported / "rank-1")
    for group in ("step_peak_MiB", "step_end_MiB", "step_peak_rollup_MiB"):
        tags = [tag for tag in accumulator.Tags()["scalars"] if tag.startswith(f"{group}/")]
        sums = np.sum(
            [[p.value for p in accumulator.Scalars(tag)] for tag in tags if "total" not in tag],
            axis=0,
        )
        totals = [point.value for point in accumulator.Scalars(f"{group}/total")]
        assert sums == pytest.approx(totals, rel=1e-6)
        assert min(totals) > 100


def test_the_five_names_and_the_unknown_are_always_there(exported: Path) -> None:
    tags = read(exported / "rank-0").Tags()["scalars"]
    rolled = {tag.split("/")[1] for tag in tags if tag.startswith("step_peak_rollup_MiB/")}
    assert rolled == {*ROLLUP, "total"}
    assert "step_peak_MiB/unknown" in tags
    # Nothing of this job: an empty chart would hide the others.
    assert "step_peak_MiB/communication" not in tags


def _hparams(folder: Path) -> dict[str, Any]:
    content = read(folder).PluginTagToContent("hparams")
    return {
        tag: plugin_data_pb2.HParamsPluginData.FromString(value) for tag, value in content.items()
    }


def test_the_row_of_hyperparameters(exported: Path) -> None:
    data = _hparams(exported / "all-ranks")
    start = data[metadata.SESSION_START_INFO_TAG].session_start_info
    values = {
        name: value.string_value or value.number_value for name, value in start.hparams.items()
    }
    assert values == {
        "run": "20250615-142640-train",
        "command": "torchrun --nproc-per-node 2 train.py --model llama-26m",
        "source": "cpu",
        "world_size": 2,
        "torch": "2.13.0+cpu",
        "memlens": "0.1.0",
    }
    experiment = data[metadata.EXPERIMENT_TAG].experiment
    assert {info.name for info in experiment.hparam_infos} == set(values)
    assert metadata.SESSION_END_INFO_TAG in data

    peak = JOB.ranks[1].peak()
    accumulator = read(exported / "all-ranks")
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == set(accumulator.Tags()["scalars"])
    assert accumulator.Scalars("run_peak_MiB/total")[0].value == np.float32(
        peak.allocated_bytes / MIB
    )
    for category in Category:
        (point,) = accumulator.Scalars(f"run_peak_MiB/{category.value}")
        assert point.value == np.float32(peak.categories[category] / MIB)


def _text(folder: Path, tag: str) -> str:
    (event,) = read(folder).Tensors(tag)
    text: bytes = event.tensor_proto.string_val[0]
    return text.decode()


def test_tables_carry_whole_bytes(exported: Path) -> None:
    peak = JOB.ranks[1].peak()
    categories = _text(exported / "rank-1", "tables/1 categories at the peak")
    assert f"| {peak.allocated_bytes:,} |" in categories
    for category, size_bytes in peak.categories.items():
        assert re.search(rf"^\| {category.value.replace('_', ' ')} \|", categories, re.MULTILINE)
        assert f"| {size_bytes:,} |" in categories
    assert "train&#46;py&#58;58 main" in _text(exported / "rank-1", "tables/4 growth")
    assert "LlamaMLP" in _text(exported / "rank-1", "tables/2 top modules")
    allocations = _text(exported / "rank-1", "tables/3 top allocations")
    blocks = JOB.ranks[1].allocations_at(top=None)
    assert sum(_alike(line) for line in allocations.splitlines()[2:]) == len(blocks) > 40
    assert f"| {peak.allocated_bytes:,} |" in _text(exported / "all-ranks", "tables/ranks")


def _alike(row: str) -> int:
    return int(row.split("|")[1])


def test_tables_are_rectangles(exported: Path) -> None:
    """Whatever names hold, every row has as many cells as the head."""
    name = "a|b\n|c<script>`x`\x1b[31m\udc80"
    block = Block(8, Category.WEIGHT, 1, None, name, name)
    folder = export(
        make_capture(FakeRank(0, [block]), name=name, command=(name,), problems=(name,)),
        "tensorboard",
        exported.parent / "hostile",
    )
    texts = [
        _text(folder / run, tag)
        for run in ("rank-0", "all-ranks")
        for tag in read(folder / run).Tags()["tensors"]
        if tag.startswith("tables/")
    ]
    assert len(texts) == 5
    for text in texts:
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table}) == 1
        assert "<script>" not in text
        assert "\x1b" not in text
    assert "a&#124;b" in "".join(texts)


def test_the_picture_shows_the_categories(exported: Path) -> None:
    """The area of a colour is that of its category: weights lie below everything, all the time."""
    (event,) = read(exported / "rank-1").Images("timeline/allocated")
    picture = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    assert (event.width, event.height) == picture.size
    assert event.step == JOB.ranks[1].peak().step
    pixels = np.asarray(picture).reshape(-1, 3)
    area = {
        each.key: int((pixels == [int(each.colour[i : i + 2], 16) for i in (1, 3, 5)]).all(1).sum())
        for each in CATEGORY_SERIES
    }
    timeline = JOB.ranks[1].timeline()
    width = np.diff(timeline.time_ns)
    held = {key.value: int((row[:-1] * width).sum()) for key, row in timeline.categories.items()}
    scale = area["optimizer_state"] / held["optimizer_state"]
    for large in ("weight", "gradient", "activation"):
        assert area[large] == pytest.approx(scale * held[large], rel=0.1)
    assert area["communication"] == area["master_weight"] == 0


def test_the_run_as_a_whole_has_a_picture(exported: Path) -> None:
    (event,) = read(exported / "all-ranks").Images("peak and timeline")
    picture = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    assert (event.width, event.height) == picture.size
    assert np.asarray(picture).std() > 5  # a blank sheet has 0


def test_a_rank_that_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    make_capture_on_disk(tmp_path / "run", 600, ranks=3, layers=8)
    (tmp_path / "run" / "rank-00001" / "events.arrow").write_bytes(b"no stream")
    folder = export(memlens.load(tmp_path / "run"), "tensorboard", tmp_path / "board")
    assert sorted(each.name for each in folder.iterdir()) == ["all-ranks", "rank-0", "rank-2"]
    assert "rank 1 is left out" in html.unescape(_text(folder / "all-ranks", "tables/run"))


def test_the_picture_leaves_pyplot_alone() -> None:
    view = view_rank(JOB.ranks[0], ReportOptions())
    assert timeline_png(view.rank, view.timeline, view.peak).startswith(b"\x89PNG")
    code = "import sys, memlens.exporters.tensorboard.export; print('matplotlib.pyplot' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "False\n"


def test_one_event_is_enough_for_everything(tmp_path: Path) -> None:
    capture = make_capture(FakeRank(0, [Block(5, Category.WEIGHT, 1)]))
    folder = export(capture, "tensorboard", tmp_path / "x")
    assert read(folder / "rank-0").Tags()["images"] == ["timeline/allocated"]


def test_a_rank_with_two_devices_is_two_runs(tmp_path: Path) -> None:
    blocks = [Block(5, Category.WEIGHT, 1)]
    capture = make_capture(FakeRank(0, blocks, device="cpu"), FakeRank(0, blocks, device="cuda:1"))
    folder = export(capture, "tensorboard", tmp_path / "x")
    assert sorted(each.name for each in folder.iterdir()) == [
        "all-ranks",
        "rank-0-cpu",
        "rank-0-cuda-1",
    ]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(OutputExistsError, match="already there and is never overwritten"):
            export(JOB, "tensorboard", tmp_path / name)
    (tmp_path / "empty").mkdir()
    export(JOB, "tensorboard", tmp_path / "empty")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*anything: object) -> bytes:
        raise ValueError("cannot draw")

    monkeypatch.setattr("memlens.exporters.tensorboard.export.timeline_png", broken)
    with pytest.raises(ValueError, match="cannot draw"):
        export(JOB, "tensorboard", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_an_error_of_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        export(JOB, "tensorboard", tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("missing", "extra"), [("tensorboard", "tensorboard"), ("matplotlib", "chart")]
)
def test_a_missing_package_is_named(
    missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == missing or name.startswith(
            ("memlens.exporters.", "memlens.report.")
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=rf"^{missing} .*\"memlens\[{extra}\]\""):
        export(JOB, "tensorboard", Path("not-made"))
    assert not Path("not-made").exists()


def test_neither_torch_nor_tensorflow_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\n"
        "from tests.support.llama_job import llama_job\n"
        "from memlens.exporters import export\n"
        "export(llama_job(2), 'tensorboard', Path(sys.argv[1]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert answer.stderr == ""
    assert read(tmp_path / "x" / "rank-1").Tags()["scalars"]


def test_the_command_says_what_to_type_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    capture = make_capture(FakeRank(0, [Block(5, Category.WEIGHT, 1)]))
    object.__setattr__(capture.info, "path", str(run))
    monkeypatch.setattr("memlens.load", lambda path: capture, raising=False)
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(run), "--to", "tensorboard"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert re.match(rf"wrote 2 files, [\d.]+ KiB, to {run}/tensorboard\n", out)
    assert out.endswith(f"open with: tensorboard --logdir '{run}/tensorboard'\n")
