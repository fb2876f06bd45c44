"""Measured again, the figures that come with memlens come out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from memlens.catalogue.installed import version_of
from memlens.catalogue.measured import FILE, read_figures
from memlens.catalogue.table import find

STACK_WEIGHTS = 8 * (512 * 512 + 512)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adamw-fused", "adamw-r", "lion"])
def test_measuring_again(name: str) -> None:
    words = [sys.executable, "-m", "memlens.variants.measure", name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"fp32", "bf16"}
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        assert found[dtype]["stack"]["weight"] == size * STACK_WEIGHTS
        assert found[dtype]["stack"]["gradient"] == size * STACK_WEIGHTS
        assert ("no_retain_grad" in found[dtype]) == find(name).in_backward
        assert read_figures(found[dtype]).weight == size
    stored = json.loads(FILE.read_text())
    row = stored["rows"][name]
    libraries = row.pop("libraries")
    # Other versions may allocate otherwise; the same ones do the same, to the byte.
    if version_of("torch") == stored["torch"] and all(
        version_of(library) == version for library, version in libraries.items()
    ):
        assert found == row


BROKEN = """
import sys
from memlens.observers.parameters import Parameters
from memlens.variants.measure import main

def fail(*args, **kwargs):
    raise RuntimeError("broken on purpose")

Parameters.forget_gradients = fail
sys.argv = ["measure", "sgd"]
main()
"""


@pytest.mark.slow
def test_an_incomplete_capture_gives_no_figures() -> None:
    """An observer that fails would leave zeros that look like any other figure."""
    words = [sys.executable, "-c", BROKEN]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("memlens: not measured, the capture is incomplete: ")
    assert "broken on purpose" in last


def test_a_wrong_name_is_one_line() -> None:
    words = [sys.executable, "-m", "memlens.variants.measure", "adamm"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("memlens: no optimizer 'adamm' in the catalogue")
    assert done.stderr.count("\n") == 1
