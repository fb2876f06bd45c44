"""`memlens export` for viewers, as it is typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tests.support.small_runs import two_ranks

from memlens.cli import main

RESULTS = {
    "torch-tb-profiler": "torch-tb-profiler",
    "memory-viz": "memory-viz.pickle",
    "perfetto": "perfetto.json.gz",
    "speedscope": "speedscope.json",
    "folded": "folded",
}


@pytest.mark.parametrize("to", list(RESULTS))
def test_the_result_stands_in_the_run(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "my run"
    two_ranks(run)
    for code in (0, 2):  # the second time it is there
        with pytest.raises(SystemExit) as exit_:
            main(["export", str(run), "--to", to])
        assert exit_.value.code == code
        said = capsys.readouterr()
        if code == 0:
            result = run / RESULTS[to]
            assert result.exists()
            assert shlex.quote(str(run))[:-1] in said.out.split("open with: ")[1]
        else:
            assert "never overwritten" in said.err
            assert len(said.err.splitlines()) == 1
    leftovers = [path.name for path in run.iterdir() if "unfinished" in path.name]
    assert leftovers == []
