"""What a real TensorBoard server makes of an export, asked over HTTP as its web page does."""

from __future__ import annotations

import html
import io
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.fake_capture import START_NS
from tests.support.llama_job import llama_job
from tests.support.tensorboard_server import ask, read, tensorboard

from memlens.exporters import export

MIB = 1 << 20
STEPS = 4
JOB = llama_job(STEPS, leak_bytes=MIB)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(JOB, "tensorboard", tmp_path_factory.mktemp("export") / "board")


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TensorBoard on loopback, as a user starts it."""
    with tensorboard(exported, tmp_path_factory.mktemp("server") / "log", runs=3) as url:
        yield url


def test_the_server_lists_our_scalars(server: str, exported: Path) -> None:
    tags = ask(server, "/data/plugin/scalars/tags")
    assert set(tags) == {"all-ranks", "rank-0", "rank-1"}
    for run, found in tags.items():
        assert set(found) == set(read(exported / run).Tags()["scalars"])


def test_the_server_serves_our_numbers(server: str) -> None:
    points = ask(server, "/data/plugin/scalars/scalars", run="rank-1", tag="step_peak_MiB/total")
    steps = JOB.ranks[1].steps()
    assert [(step, value) for _, step, value in points] == [
        (step.step, float(np.float32(step.peak_bytes / MIB))) for step in steps
    ]
    assert [when for when, _, _ in points] == pytest.approx([step.peak_ns / 1e9 for step in steps])
    assert points[0][0] > START_NS / 1e9


def test_the_server_renders_our_tables(server: str) -> None:
    (text,) = ask(server, "/data/plugin/text/text", run="rank-1", tag="tables/2 top modules")
    assert "<table>" in text["text"]
    assert re.search(r"<td[^>]*>model\.layers\.\*\.mlp</td>", html.unescape(text["text"]))


def test_the_server_shows_our_picture(server: str) -> None:
    (image,) = ask(
        server, "/data/plugin/images/images", run="rank-0", tag="timeline/allocated", sample="0"
    )
    query = dict(urllib.parse.parse_qsl(image["query"]))
    png = ask(server, "/data/plugin/images/individualImage", **query)
    assert Image.open(io.BytesIO(png)).size == (1760, 704)


def test_the_server_makes_a_row_of_our_run(server: str) -> None:
    groups = ask(
        server,
        "/data/plugin/hparams/session_groups",
        {
            "experimentName": "",
            "allowedStatuses": ["STATUS_SUCCESS"],
            "colParams": [{"metric": {"tag": "run_peak_MiB/total"}}],
            "startIndex": 0,
            "sliceSize": 10,
        },
    )
    (group,) = groups["sessionGroups"]
    assert group["hparams"]["source"] == "cpu"
    assert group["hparams"]["world_size"] == 2
    values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    peak_bytes = JOB.ranks[1].peak().allocated_bytes
    assert values["run_peak_MiB/total"] == float(np.float32(peak_bytes / MIB))
