"""A real TensorBoard, asked over HTTP as its web page does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

__all__ = ["ask", "read", "tensorboard"]

PATIENCE_S = 60


@contextmanager
def tensorboard(folder: Path, log: Path, *, runs: int) -> Iterator[str]:
    """Serve a folder on loopback, as a user does, once it has found that many runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)),
                *("--host", "127.0.0.1", "--port", str(port), "--reload_interval", "1"),
            ],
            stdout=stream,
            stderr=stream,
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            url = f"http://127.0.0.1:{port}"
            while True:
                try:
                    if len(ask(url, "/data/runs")) == runs:
                        break
                except OSError:
                    pass
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str, path: str, body: object = None, **query: str) -> Any:
    """One answer of the server; never by way of a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(
        f"{url}{path}?{urllib.parse.urlencode(query)}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with opener.open(request, timeout=10) as answer:
        text = answer.read()
    return json.loads(text) if path != "/data/plugin/images/individualImage" else text


def read(folder: Path) -> EventAccumulator:
    """All of a folder of event files, by TensorBoard's own reader."""
    accumulator = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}
    )
    accumulator.Reload()
    return accumulator
