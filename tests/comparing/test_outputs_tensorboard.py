"""A comparison in TensorBoard: its files read back, and what a real server makes of them."""

from __future__ import annotations

import io
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tests.support.fake_comparison import COMPARISONS, HOSTILE, SIX, make_comparison, ok
from tests.support.tensorboard_server import ask, tensorboard

from memlens.comparing.outputs.tensorboard import write_tensorboard
from memlens.comparing.results import Status
from memlens.errors import UsageError
from memlens.events import Category

MIB = 1 << 20
GALORE = "galore-adamw8bit-rank=64,update_proj_gap=50+no-retain-grad"


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}
    )
    accumulator.Reload()
    return accumulator


def hparams(folder: Path) -> dict[str, Any]:
    content = read(folder).PluginTagToContent("hparams")
    return {
        tag: plugin_data_pb2.HParamsPluginData.FromString(value) for tag, value in content.items()
    }


def columns(folder: Path) -> dict[str, Any]:
    start = hparams(folder)[metadata.SESSION_START_INFO_TAG].session_start_info
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_run_for_every_variant(name: str, tmp_path: Path) -> None:
    comparison = COMPARISONS[name]
    folder = Path(write_tensorboard(comparison, tmp_path / "board"))
    assert folder.parent == tmp_path / "board"
    runs = {
        columns(each)["variant"]: each for each in folder.iterdir() if each.name != "comparison"
    }
    assert len(runs) == len(comparison.results)
    occurring = {
        f"peak_MiB/{category.value}"
        for result in comparison.results
        if result.peak
        for category, size_bytes in result.peak.categories.items()
        if size_bytes
    }
    for result in comparison.results:
        run = runs[result.name.replace("\x1b", "\\x1b")]
        data = hparams(run)
        session = data[metadata.SESSION_END_INFO_TAG].session_end_info
        expected = api_pb2.STATUS_SUCCESS if result.peak else api_pb2.STATUS_FAILURE
        assert session.status == expected
        assert columns(run)["status"] == result.status.value
        # TensorBoard would take the columns of the first it finds for those of all.
        assert metadata.EXPERIMENT_TAG not in data
        accumulator = read(run)
        tags = set(accumulator.Tags()["scalars"])
        if result.peak is None:
            assert not tags
            continue
        assert {tag for tag in tags if tag.startswith("peak_MiB/")} == occurring
        sizes = {f"peak_MiB/{key.value}": size for key, size in result.peak.categories.items()}
        sizes["peak_MiB"] = result.peak.allocated_bytes
        for tag in tags & set(sizes):
            (point,) = accumulator.Scalars(tag)
            # float32 is what an event file holds.
            assert point.value == np.float32(sizes[tag] / MIB)
            assert point.wall_time == pytest.approx(result.peak.time_ns / 1e9, abs=1e-6)
        assert ("step_time_ms" in tags) == (result.step_time_ns is not None)
        losses = [point.value for point in accumulator.Scalars("loss")] if "loss" in tags else []
        assert losses == pytest.approx([np.float32(each) for each in result.losses], nan_ok=True)


def test_what_describes_a_variant(tmp_path: Path) -> None:
    folder = Path(write_tensorboard(SIX, tmp_path))
    assert columns(folder / GALORE) == {
        "variant": "galore-adamw8bit:rank=64,update_proj_gap=50+no-retain-grad",
        "status": "ok",
        "baseline": False,
        "optimizer": "galore-adamw8bit",
        "no_retain_grad": True,
        "option/rank": 64,
        "option/update_proj_gap": 50,
        "job": "train.py --lr 1e-3",
        "device": "cpu",
        "torch": "2.13.0+cpu",
    }
    assert columns(folder / "adamw")["baseline"] is True
    refused = columns(folder / "adamw4bit")
    assert refused["status"] == "refused"
    assert refused["reason"] == SIX.results[5].reason
    (time_ms,) = read(folder / "adamw-r").Scalars("step_time_ms")
    assert time_ms.value == 262.5


def test_a_callable_is_its_own_optimizer(tmp_path: Path) -> None:
    folder = Path(write_tensorboard(make_comparison(ok("my training", {})), tmp_path))
    assert columns(folder / "my-training")["optimizer"] == "my training"
    assert "no_retain_grad" not in columns(folder / "my-training")


def test_names_that_would_be_one_folder(tmp_path: Path) -> None:
    names = ["comparison", "a/b", "a:b", "A-B", "..", "../../x", "", "x" * 300]
    comparison = make_comparison(*(ok(name, {Category.WEIGHT: 4}) for name in names))
    folder = Path(write_tensorboard(comparison, tmp_path / "board"))
    runs = {each.name for each in folder.iterdir()}
    assert runs == {
        *("comparison", "comparison-2", "a-b", "a-b-2", "A-B-3"),
        *("variant", "x", "variant-2", "x" * 80),
    }
    assert {each.name for each in tmp_path.iterdir()} == {"board"}


def test_a_second_comparison_stands_beside_the_first(tmp_path: Path) -> None:
    first = write_tensorboard(SIX, tmp_path)
    before = {path: path.read_bytes() for path in Path(first).rglob("*tfevents*")}
    second, third = (write_tensorboard(SIX, tmp_path) for _ in range(2))
    assert len({first, second, third}) == 3
    assert {path: path.read_bytes() for path in Path(first).rglob("*tfevents*")} == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        write_tensorboard(SIX, tmp_path / "file")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two comparisons in one folder."""
    folder = tmp_path_factory.mktemp("board")
    for name in ("six", "unicode"):
        write_tensorboard(COMPARISONS[name], folder)
    return folder


@pytest.fixture(scope="module")
def server(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(board, tmp_path_factory.mktemp("server") / "log", runs=6 + 4 + 2) as url:
        yield url


def session_groups(server: str, metrics: list[str]) -> list[dict[str, Any]]:
    answer = ask(
        server,
        "/data/plugin/hparams/session_groups",
        {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE"],
            "colParams": [{"metric": {"tag": tag}} for tag in metrics],
            "startIndex": 0,
            "sliceSize": 100,
        },
    )
    groups: list[dict[str, Any]] = answer["sessionGroups"]
    return groups


def test_the_server_shows_all_variants_side_by_side(server: str) -> None:
    groups = session_groups(server, ["peak_MiB", "loss", "step_time_ms"])
    results = [*SIX.results, *COMPARISONS["unicode"].results]
    shown = {group["hparams"]["variant"]: group for group in groups}
    assert set(shown) == {each.name.replace("\x1b", "\\x1b") for each in results}
    assert HOSTILE.replace("\x1b", "\\x1b") in shown
    for result in SIX.results:
        group = shown[result.name]
        assert group["hparams"]["status"] == result.status.value
        values = {each["name"]["tag"]: each["value"] for each in group.get("metricValues", [])}
        if result.status is not Status.OK:
            assert values == {}
            continue
        assert result.peak is not None and result.step_time_ns is not None
        sizes = {f"peak_MiB/{key.value}": size for key, size in result.peak.categories.items()}
        assert values == {
            **{tag: float(np.float32(size / MIB)) for tag, size in sizes.items() if tag in values},
            "peak_MiB": float(np.float32(result.peak.allocated_bytes / MIB)),
            # The last of the curve.
            "loss": float(np.float32(result.losses[-1])),
            "step_time_ms": float(np.float32(result.step_time_ns / 1e6)),
        }


def test_the_server_finds_the_columns_of_all_rows(server: str) -> None:
    experiment = ask(
        server,
        "/data/plugin/hparams/experiment",
        {"experimentName": "", "includeMetrics": True},
    )
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"variant", "status", "optimizer", "option/rank", "reason", "job"} <= names
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"peak_MiB", "peak_MiB/optimizer_state", "loss", "step_time_ms"} <= metrics
    assert "peak_MiB/communication" not in metrics


def test_the_server_shows_the_charts(server: str, board: Path) -> None:
    run = f"{min(each.name for each in board.iterdir())}/comparison"
    for tag in ("chart/rollup", "chart/categories"):
        (image,) = ask(server, "/data/plugin/images/images", run=run, tag=tag, sample="0")
        query = dict(urllib.parse.parse_qsl(image["query"]))
        png = ask(server, "/data/plugin/images/individualImage", **query)
        assert Image.open(io.BytesIO(png)).width == 1760


def test_the_server_renders_the_table(server: str, board: Path) -> None:
    run = f"{max(each.name for each in board.iterdir())}/comparison"
    (text,) = ask(server, "/data/plugin/text/text", run=run, tag="tables/variants")
    # The head and four variants, within the table that TensorBoard lays out texts in.
    assert text["text"].count("<tr>") == 1 + (1 + 4)
    assert "<b>" not in text["text"]
