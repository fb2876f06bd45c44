"""The process in which one test is simulated; see `elsewhere`.

python -m memlens_integrations.pytest_plugin.child FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

__all__ = ["main"]


def main(folder: Path) -> None:
    """Simulate CUDA, run the test, and write its reports into the folder."""
    from memlens.launch.environment import PLAN
    from memlens.simulation.begin import begin_planned
    from memlens_integrations.pytest_plugin.elsewhere import JOB, REPORTS

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    sys.path[:] = job["path"]
    # First of all: modules of tests ask at import whether there is a GPU.
    begin_planned(os.environ.pop(PLAN), folder)

    import pytest

    from memlens_integrations.pytest_plugin.hooks import IS_CHILD

    class Writer:
        """Writes reports as they come."""

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            data = config.hook.pytest_report_to_serializable(config=config, report=report)
            with (folder / REPORTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(data) + "\n")

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                print(report.longreprtext)

    config = pytest.Config.fromdictargs(job["options"], [job["argument"]])
    config.stash[IS_CHILD] = True
    if job["worker"] is not None:
        config.workerinput = job["worker"]  # type: ignore[attr-defined]
        config.workeroutput = {}  # type: ignore[attr-defined]
    config.pluginmanager.register(Writer(), "memlens-writer")
    config.hook.pytest_cmdline_main(config=config)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
