"""The catalogue holds together, and what it expects is what was measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from memlens.catalogue import measured
from memlens.catalogue.installed import libraries_of, missing_libraries
from memlens.catalogue.row import Row
from memlens.catalogue.rows import factored, low_bit, low_rank, others, plain, reuse
from memlens.catalogue.table import CATALOGUE, find
from memlens.errors import UsageError
from memlens.report.optimizers.view import DTYPES, SHAPES, implementations_of, plain_of

ROWS = [pytest.param(row, id=name) for name, row in CATALOGUE.items()]

ELEMENTS = {"matrix": 1024 * 1024, "vector": 8192}

# Tables of codes (of two moments, 1 KiB each), and a counter per tensor: what is measured and is no
# part of what the layout says per parameter.
TABLES_BYTES = 2048 + 64

IMPORT = """
import json, sys
from importlib import import_module
missing = []
for home in json.loads(sys.argv[1]):
    module, _, attribute = home.partition(":")
    try:
        getattr(import_module(module), attribute)
    except Exception as error:
        missing.append(f"{home}: {error!r}")
print(json.dumps(missing))
"""


def test_no_name_is_there_twice() -> None:
    files = (plain, low_bit, factored, low_rank, reuse, others)
    assert len(CATALOGUE) == sum(len(file.ROWS) for file in files)
    assert all(name == row.name for name, row in CATALOGUE.items())


@pytest.mark.parametrize("row", ROWS)
def test_a_row_says_what_people_need_to_know(row: Row) -> None:
    assert row.title and row.family and row.when and row.when_not and row.expected.source
    assert row.name == row.name.lower().strip() and not set(row.name) & set(" :,+=")
    assert "lr" in row.takes
    assert not set(row.takes) & set(row.fixed), "a fixed argument is not the job's"
    assert row.lr_scale > 0
    assert row.lr_scale == 1 or row.lr_source, "a multiple has a source"
    assert row.claim is None or row.claim.source
    assert row.runs_on_cpu or row.cpu, "a limit has a reason"
    assert row.precision in ("job", "bf16", "mixed")
    assert not (row.in_backward and row.always_in_backward)


@pytest.mark.parametrize("row", ROWS)
def test_options_have_defaults_that_give_them_a_type(row: Row) -> None:
    assert all(isinstance(value, (bool, int, float, str)) for value in row.options.values())
    assert not set(row.options) & {"lr", "lr_scale"}, "those every row has"


@pytest.mark.parametrize("row", ROWS)
def test_what_a_row_names_is_there(row: Row) -> None:
    if row.rest:
        assert not find(row.rest).matrices_only
    if row.implementation in ("loop", "fused"):
        assert plain_of(row) is not None
    if row.extra:
        assert libraries_of(row.extra), "memlens has no such extra"


@pytest.mark.slow
def test_homes_can_be_imported() -> None:
    """Of the rows whose libraries are here; in a process that may import them all."""
    homes = {row.home for row in CATALOGUE.values() if not missing_libraries(row)}
    assert "torch.optim:AdamW" in homes
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT, json.dumps(sorted(homes))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == []


def test_near_misses_are_named() -> None:
    with pytest.raises(UsageError, match=r"no optimizer 'adamm' .* did you mean adam, adamw"):
        find("adamm")
    with pytest.raises(UsageError, match="`memlens optimizers` lists them"):
        find("zzzzz")


def test_figures_are_those_of_the_catalogue_in_its_order() -> None:
    rows = json.loads(measured.FILE.read_text())["rows"]
    assert list(rows) == list(CATALOGUE)
    assert "torch 2." in measured.conditions()


@pytest.mark.parametrize("row", ROWS)
def test_each_was_measured_or_says_why_not(row: Row) -> None:
    for dtype in DTYPES:
        figures = measured.measured(row.name, dtype)
        assert (figures is None) == bool(measured.failure(row.name))
        if figures is None:
            continue
        assert figures.weight == (2 if dtype == "bf16" or row.precision != "job" else 4)
        assert figures.master_weight == (4 if row.precision == "mixed" else 0)
        assert (figures.no_retain_gradient is None) == (not row.in_backward)
        if row.always_in_backward:
            assert figures.gradient < figures.weight
        else:
            assert figures.gradient == figures.weight
        if figures.no_retain_gradient is not None:
            # One layer's of eight.
            assert figures.no_retain_gradient == figures.weight / 8
    assert set(measured.versions(row.name)) == set(libraries_of(row.extra))


@pytest.mark.parametrize("row", ROWS)
def test_the_layout_explains_what_was_measured(row: Row) -> None:
    for dtype in DTYPES:
        figures = measured.measured(row.name, dtype)
        for shape in SHAPES if figures else ():
            assert figures is not None
            more = (figures.state(shape) - row.expected.of(shape, dtype)) * ELEMENTS[shape]
            assert 0 <= round(more) <= TABLES_BYTES, f"{shape} {dtype}: {more:+,.0f} bytes"


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "adagrad", "rmsprop", "adam", "adamw"])
def test_implementations_differ_in_temporaries_alone(name: str) -> None:
    row = find(name)
    rows = {each.implementation: each.name for each in implementations_of(row)}
    assert set(rows) >= {"foreach", "loop"}
    for dtype in DTYPES:
        found = {kind: measured.measured(each, dtype) for kind, each in rows.items()}
        plain_figures = measured.measured(name, dtype)
        assert plain_figures is not None
        for figures in found.values():
            assert figures is not None
            # A counter that one of them keeps as a tensor is 4 bytes.
            assert abs(figures.matrix_state - plain_figures.matrix_state) * ELEMENTS["matrix"] <= 4
        copies = {kind: each.temporary / each.weight for kind, each in found.items() if each}
        # adagrad needs two intermediates, SGD none; counters and scalars are well below a hundredth.
        whole = {"sgd": 0, "sgd-momentum": 0, "adagrad": 2}.get(name, 1)
        assert copies["foreach"] == pytest.approx(whole, abs=0.01)
        assert copies["loop"] <= 0.5
        assert copies.get("fused", 0) == pytest.approx(0, abs=0.01)
        # On the CPU, torch takes the for-loop where nobody says which.
        assert plain_figures.temporary == found["loop"].temporary  # type: ignore[union-attr]
