"""Runs one test in a process of its own, in which CUDA is simulated.

A simulation has no way back, so it begins before anything of the test is imported, with another
pytest (`child`) that has this one's options and the one test. Its reports become this one's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from memlens.catalogue.gpus import find_gpu
from memlens.errors import SimulationError
from memlens.planning.simulate import outcome_notes, simulation_settings

__all__ = ["JOB", "OUTPUT", "REPORTS", "run_elsewhere"]

JOB, REPORTS, OUTPUT = "job.json", "reports.jsonl", "output.txt"
_NO_END = 10**9
"""Training steps: the test says itself when it is done."""
_NOT_THERE: dict[str, Any] = {
    # What chooses tests, or stops in between: the one test is chosen.
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "maxfail": 0,
    "reruns": 0,
    # What would write over what this process writes.
    "xmlpath": None,
    "cacheclear": False,
    "cacheshow": None,
    "log_file": os.devnull,
    "basetemp": None,
    # What needs a terminal, or more processes.
    "usepdb": False,
    "trace": False,
    "dist": "no",
    "distload": False,
    "looponfail": False,
    "numprocesses": None,
    "maxprocesses": None,
    "tx": [],
}
_NO_PLUGINS = ["no:terminal", "no:pytest_cov"]


def run_elsewhere(item: pytest.Item, gpu: str) -> dict[str, pytest.TestReport]:
    """Run a test simulated.

    Returns:
        Its reports, by `when`.

    Raises:
        SimulationError: the process has ended without them.
    """
    config = item.config
    with TemporaryDirectory(prefix="memlens-") as name:
        folder = Path(name)
        (folder / JOB).write_text(json.dumps(_job(item)), encoding="utf-8")
        settings = simulation_settings(find_gpu(gpu), _NO_END)
        words = [sys.executable, "-m", "memlens_integrations.pytest_plugin.child", name]
        shown = config.getoption("capture") == "no"
        with (folder / OUTPUT).open("wb") as output:
            process = subprocess.Popen(
                words,
                cwd=config.invocation_params.dir,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=None if shown else output,
                stderr=None if shown else subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait()
            except BaseException:  # Ctrl-C, or a plugin's time limit
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        reports = _reports(folder, config)
        notes, error = outcome_notes(folder)
        if "teardown" not in reports:
            text = (folder / OUTPUT).read_text("utf-8", "replace").strip()
            raise SimulationError(
                error
                or f"the process of the simulated test has ended with code {process.returncode}; "
                + ("it said nothing" if not text else f"the last that it said:\n{text[-3000:]}")
            )
    told = reports.get("call")
    if told is not None and notes:
        told.sections.append(("memlens: other than on a GPU", "\n".join(notes)))
    return reports


def _reports(folder: Path, config: pytest.Config) -> dict[str, pytest.TestReport]:
    path = folder / REPORTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {}
    for line in lines:
        data = json.loads(line, object_hook=_with_tuples)
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        found[report.when] = report
    return found


def _with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    """A report as it was before JSON, which has no tuples."""
    for name in {"location", "longrepr"} & data.keys():
        if isinstance(data[name], list):
            data[name] = tuple(data[name])
    for name in {"sections", "user_properties"} & data.keys():
        data[name] = [tuple(each) for each in data[name]]
    return data


def _job(item: pytest.Item) -> dict[str, Any]:
    config = item.config
    options = {
        name: value
        for name, value in vars(config.option).items()
        if _is_plain(value) and name != "file_or_dir"
    } | _NOT_THERE
    options["rootdir"] = str(config.rootpath)
    options["inifilename"] = str(config.inipath) if config.inipath else None
    options["plugins"] = [*(options.get("plugins") or []), *_NO_PLUGINS]
    worker = getattr(config, "workerinput", None)
    return {
        "path": list(map(str, sys.path)),
        "argument": f"{item.path}::{item.nodeid.partition('::')[2]}",
        "options": options,
        # Of a worker of pytest-xdist: plugins and tests ask which one it is.
        "worker": worker and {name: each for name, each in worker.items() if _is_plain(each)},
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
