"""A real TensorBoard with the tab "Memory", asked over HTTP."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Answer", "MemoryTab", "memory_tab"]

PATIENCE_S = 60


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes
    """Decompressed."""
    sent_bytes: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class MemoryTab:
    """A server that runs.

    Args:
        port: on loopback.
        prefix: what `--path_prefix` says.
        log: file with what it prints.
    """

    def __init__(self, port: int, prefix: str, log: Path) -> None:
        self.port = port
        self.prefix = prefix
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str, method: str = "GET") -> Answer:
        """A path as it is, without any of the tidying that clients do."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, self.prefix + path, skip_accept_encoding=True)
            connection.putheader("Accept-Encoding", "gzip")
            connection.endheaders()
            response = connection.getresponse()
            body = response.read()
            headers = {name.lower(): value for name, value in response.getheaders()}
            sent_bytes = len(body)
            if headers.get("content-encoding") == "gzip" and body:
                body = gzip.decompress(body)
            return Answer(response.status, headers, body, sent_bytes)
        finally:
            connection.close()

    def plugin(self, path: str) -> Answer:
        """A path of the plugin."""
        return self.get(f"/data/plugin/memlens/{path}")

    def ask(self, question: str, status: int = 200, **given: Any) -> Any:
        """An answer that has to have this status. `from_` stands for `from`."""
        texts = {name.rstrip("_"): str(value) for name, value in given.items()}
        answer = self.plugin(f"{question}?{urllib.parse.urlencode(texts)}")
        assert answer.status == status, answer
        assert len(answer.body) <= 200_000
        return answer.json

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)


@contextmanager
def memory_tab(
    *arguments: str,
    log: Path,
    prefix: str = "",
    ready: bool = True,
    fast: bool = False,
    **environment: str,
) -> Iterator[MemoryTab]:
    """Start TensorBoard as a user does.

    Args:
        arguments: its own.
        log: file for what it prints.
        prefix: for `--path_prefix`.
        ready: wait until it has looked for runs; else until it answers at all.
        fast: let it start its other process, which reads event files, as it does by itself.
        environment: variables on top of ours.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", *arguments]
    command += [] if fast else ["--load_fast=false"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if prefix:
        command += ["--path_prefix", prefix]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, **environment}
        )
        tab = MemoryTab(port, prefix, log)

        def answers() -> bool:
            assert process.poll() is None, tab.log
            try:
                answer = tab.plugin("runs")
            except OSError:
                return False
            return not ready or (answer.status == 200 and not answer.json["scanning"])

        try:
            tab.until(answers)
            yield tab
            assert process.poll() is None, tab.log
        finally:
            process.terminate()
            process.wait(30)
