"""What a report says, for machines and for people."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from support.fake_capture import COMPLETE, START_NS, Block, FakeRank, make_capture
from support.llama_job import llama_job, make_rank

from memlens.answers import Frame, Growth
from memlens.errors import UsageError
from memlens.events import ROLLUP, Category, Certainty, Phase
from memlens.report.payload import payload
from memlens.report.terminal import make_console, print_report
from memlens.report.view import ReportOptions

KIB = 1 << 10
MIB = 1 << 20

HOSTILE = "[red]x[/red]\x1b[31m\x07a\nb|c\u202e\ud800"
HOSTILE_SHOWN = "[red]x[/red]\\x1b[31m\\x07a\\nb|c\\u202e\\ud800"


def small_rank(**changes: Any) -> FakeRank:
    """Two steps: 100 B of weights for ever, 50 B of activations within each step."""
    stack = (
        Frame("main", "/home/ada/job/train.py", 9),
        Frame("forward", "/usr/lib/python3.11/site-packages/torch/nn/modules/linear.py", 125),
    )
    values: dict[str, Any] = {
        "rank": 0,
        "blocks": [
            Block(100, Category.WEIGHT, 10, None, "fc.weight", "fc"),
            Block(
                50, Category.ACTIVATION, 20, 30, "", "fc",
                Phase.FORWARD, Certainty.INFERRED, stack,
            ),
            Block(7, Category.OPTIMIZER_STATE, 35, None, "step of fc.weight", "fc"),
            Block(
                50, Category.ACTIVATION, 50, 60, "", "fc",
                Phase.FORWARD, Certainty.INFERRED, stack,
            ),
        ],
        "step_ends": [40, 70],
        "class_names": {"fc": "Linear"},
    }  # fmt: skip
    return FakeRank(**(values | changes))


def text_of(capture: Any, *, width: int = 100, colour: bool = False, **options: Any) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    print_report(capture, ReportOptions(**options), console)
    return stream.getvalue()


# --- for machines


def test_the_contract_of_the_json() -> None:
    made = payload(make_capture(small_rank(reserved_bytes=200)), ReportOptions())
    assert made["format_version"] == 1
    assert made["source"] == "cpu"
    assert made["world_size"] == 1
    (rank,) = made["ranks"]
    zero = {category.value: 0 for category in Category}
    at_peak = zero | {"weight": 100, "activation": 50, "optimizer_state": 7}
    assert rank["rank"] == 0
    assert rank["device"] == "cpu"
    assert rank["events"] == 6
    assert rank["lost_events"] == 0
    peak = rank["peak"]
    assert {key: peak[key] for key in ("time_ns", "step", "phase", "allocated_bytes")} == {
        "time_ns": START_NS + 50,
        "step": 1,
        "phase": "forward",
        "allocated_bytes": 157,
    }
    assert peak["reserved_bytes"] == 200
    assert peak["categories"] == at_peak
    assert peak["elapsed_ns"] == 40
    contract = ("step", "peak_bytes", "end_bytes", "categories")
    assert [{key: step[key] for key in contract} for step in rank["steps"]] == [
        {
            "step": 0,
            "peak_bytes": 150,
            "end_bytes": 107,
            "categories": zero | {"weight": 100, "activation": 50},
        },
        {"step": 1, "peak_bytes": 157, "end_bytes": 107, "categories": at_peak},
    ]


def test_what_is_not_known_is_null() -> None:
    made = payload(make_capture(small_rank()), ReportOptions(step=0))
    assert made["ranks"][0]["peak"]["reserved_bytes"] is None
    assert made["ranks"][0]["at"]["phase"] is None
    assert made["ranks"][0]["at"]["allocated_bytes"] == 150
    # The contract's own keys do not move with the options.
    assert made["ranks"][0]["peak"]["allocated_bytes"] == 157


@pytest.mark.parametrize("rollup", [False, True])
def test_categories_sum_to_the_total_beside_them(rollup: bool) -> None:
    made = payload(llama_job(steps=3, leak_bytes=999), ReportOptions(rollup=rollup, top=100))
    names = set(ROLLUP) if rollup else {category.value for category in Category}
    checked = 0
    for rank in made["ranks"]:
        totals = [
            (rank["peak"]["categories"], rank["peak"]["allocated_bytes"]),
            (rank["at"]["categories"], rank["at"]["allocated_bytes"]),
            *((usage["categories"], usage["total_bytes"]) for usage in rank["modules"]),
            *((step["categories"], step["peak_bytes"]) for step in rank["steps"]),
            *((step["end_categories"], step["end_bytes"]) for step in rank["steps"]),
        ]
        for categories, total in totals:
            assert set(categories) == names
            assert sum(categories.values()) == total > 0
            checked += 1
        assert (
            sum(block["size_bytes"] for block in rank["allocations"])
            == (rank["at"]["allocated_bytes"])
        )
        assert {each["category"] for each in rank["allocations"] + rank["growth"]} <= names
    assert checked == 2 * (2 + 11 + 6)


def test_the_five_names_are_sums_of_their_categories() -> None:
    plain, rolled = (
        payload(llama_job(steps=2), ReportOptions(rollup=rollup))["ranks"][0]["peak"]["categories"]
        for rollup in (False, True)
    )
    assert rolled == {
        name: sum(plain[member.value] for member in members) for name, members in ROLLUP.items()
    }


def test_what_was_inferred_is_counted() -> None:
    at = payload(make_capture(small_rank()), ReportOptions())["ranks"][0]["at"]
    assert at["inferred"] == {category.value: 0 for category in Category} | {"activation": 50}


def test_the_json_is_plain_even_when_names_are_not() -> None:
    block = Block(8, Category.WEIGHT, 1, None, HOSTILE, HOSTILE, stack=(Frame(HOSTILE, "f", 1),))
    capture = make_capture(FakeRank(0, [block]), command=(HOSTILE,), name=HOSTILE)
    text = json.dumps(payload(capture, ReportOptions()))
    assert text.isascii()
    back = json.loads(text)
    # Escaped for the wire only: a program gets the real name.
    assert back["ranks"][0]["allocations"][0]["name"] == HOSTILE
    assert back["command"] == [HOSTILE]


def test_top_and_rank_choose() -> None:
    made = payload(llama_job(steps=2), ReportOptions(rank=1, top=3))
    (rank,) = made["ranks"]
    assert rank["rank"] == 1
    assert len(rank["modules"]) == len(rank["allocations"]) == 3
    assert rank["allocations_count"] == 42
    sizes = [block["size_bytes"] for block in rank["allocations"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ReportOptions(rank=7),
            "there is no rank 7 in memlens-runs/20250615-142640-train; it holds rank 0",
        ),
        (ReportOptions(step=9), "step 9 was not recorded; the capture holds steps 0 to 1"),
    ],
)
def test_what_was_not_recorded_is_refused(options: ReportOptions, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        payload(make_capture(small_rank()), options)


def test_a_run_without_ranks_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no rank"):
        payload(make_capture(), ReportOptions())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lost_events": 3}, "3 events lost"),
        ({"blind_ns": 1_500_000}, "nothing was recorded for 1.5 ms"),
        ({"uncovered_bytes": 3 * MIB}, "up to 3.00 MiB in tensors outside the allocator"),
        ({"witness_difference_bytes": 64}, "differ by up to 64 B"),
        ({"problems": ("the gradient observer failed",)}, "the gradient observer failed"),
        ({"complete": False}, "the capture is not complete"),
    ],
)
def test_a_reader_is_warned(changes: dict[str, Any], words: str) -> None:
    capture = make_capture(small_rank(coverage=replace(COMPLETE, **changes)))
    (warning,) = payload(capture, ReportOptions())["warnings"]
    assert words in warning
    # Lines may be wrapped.
    assert words in " ".join(text_of(capture).split())


def test_no_warning_without_reason() -> None:
    assert payload(make_capture(small_rank()), ReportOptions())["warnings"] == []
    assert "!" not in text_of(make_capture(small_rank()))


# --- for people


def test_the_report_in_a_pipe() -> None:
    """All of a small report, letter by letter: what people and their scripts see."""
    text = text_of(make_capture(small_rank()), width=80)
    assert [line.rstrip() for line in text.splitlines()] == GOLDEN.splitlines()


def test_colours_change_nothing_but_the_pictures() -> None:
    def words(text: str) -> list[str]:
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        return re.findall(r"[A-Za-z_.]{2,}|\d[\d.,]*", re.sub(r"\b([a-z])\1+\b", "", text))

    plain, coloured = (text_of(llama_job(steps=3), colour=colour) for colour in (False, True))
    assert "\x1b[" in coloured
    assert "\x1b" not in plain
    assert "■" in coloured
    numbers = [word for word in words(plain) if word[0].isdigit()]
    assert numbers == [word for word in words(coloured) if word[0].isdigit()]
    assert len(numbers) > 100


@pytest.mark.parametrize("width", [80, 100, 120, 140])
@pytest.mark.parametrize("rollup", [False, True])
@pytest.mark.parametrize("steps", [1, 8, 30])
def test_no_line_is_too_long_and_no_number_is_cut(width: int, rollup: bool, steps: int) -> None:
    text = text_of(llama_job(steps, leak_bytes=1 << 20), width=width, rollup=rollup)
    assert max(map(len, text.splitlines())) <= width
    # An ellipsis may shorten a name or a stack, and stands for steps left out: never in a number.
    assert not re.search(r"\d…(?! )", text)
    assert "lm_head" in text


@pytest.mark.parametrize("place", ["name", "module", "function", "file", "command", "problem"])
def test_a_hostile_name_is_shown_and_does_nothing(place: str) -> None:
    def at(where: str) -> str:
        return HOSTILE if where == place else "fine"

    frame = Frame(at("function"), f"/x/{at('file')}", 1)
    block = Block(8, Category.WEIGHT, 1, None, at("name"), at("module"), stack=(frame,))
    capture = make_capture(
        FakeRank(0, [block]), command=("train.py", at("command")), problems=(at("problem"),)
    )
    text = text_of(capture, width=140)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert HOSTILE_SHOWN in text
    text.encode("utf-8")


def test_many_steps_are_thinned_out_and_the_highest_is_kept() -> None:
    rank = make_rank(steps=40)
    spike = Block(900 * MIB, Category.UNKNOWN, rank.step_ends[21] - 5, rank.step_ends[21] - 4)
    text = text_of(make_capture(replace(rank, blocks=[*rank.blocks, spike])))
    rows = re.findall(r"^ *(\d+) +\S+ ms +[\d.]+ [MG]iB", text, re.MULTILINE)
    assert rows == ["0", "1", "2", "21", "37", "38", "39"]
    assert "… 18 steps" in text
    assert "… 15 steps" in text
    assert "Step 21, 101.0 ms" in text


def test_growth_is_shown_with_the_line_that_makes_it() -> None:
    text = text_of(llama_job(steps=8, leak_bytes=3 * MIB))
    after = text.split("Growth: these accumulate from step to step")[1]
    assert re.search(r"\+3\.00 MiB +3\.00 MiB +24\.00 MiB +8 +unknown", after)
    assert "llm/train.py:58 main" in after
    assert "Nothing accumulates from step to step." in text_of(llama_job(steps=8))


def test_two_steps_say_nothing_about_growth() -> None:
    assert "Growth" not in text_of(make_capture(small_rank()))
    suspect = Growth(Category.UNKNOWN, "", "cache", 5, 5, 10, 2, ())
    assert "cache" in text_of(make_capture(small_rank(suspects=(suspect,))))


def test_ranks_are_compared_and_the_highest_is_shown() -> None:
    text = text_of(llama_job(steps=2))
    assert "rank 1 (the highest), step 1, backward, in lm_head" in text
    assert re.search(r"^ +1  cpu +763\.44 MiB .*\+44\.44 MiB  step 1, backward$", text, re.M)
    assert (
        "Spread 44.44 MiB (5.8 % of the highest): rank 1 is the highest, rank 0 the lowest; "
        "the largest difference is activation, +44.41 MiB." in " ".join(text.split())
    )


def test_many_ranks_show_both_ends() -> None:
    ranks = [FakeRank(n, [Block((100 - n) * KIB, Category.WEIGHT, 1)]) for n in range(64)]
    text = text_of(make_capture(*ranks))
    shown = re.findall(r"^ *(\d+)  cpu", text, re.MULTILINE)
    assert shown == ["0", "1", "2", "3", "4", "5", "6", "7", "60", "61", "62", "63"]
    assert "… 52 ranks" in text
    assert "rank 0 is the highest, rank 63 the lowest" in " ".join(text.split())


def test_equal_ranks_have_no_spread() -> None:
    text = text_of(make_capture(small_rank(), small_rank(rank=1)))
    assert "All ranks have the same peak." in text


def test_an_empty_capture_is_said_to_be_empty() -> None:
    text = text_of(make_capture(FakeRank(0, [])))
    assert "No allocation was recorded." in text
    made = payload(make_capture(FakeRank(0, [])), ReportOptions())
    assert made["ranks"][0]["peak"]["allocated_bytes"] == 0


def test_a_capture_without_a_whole_step_still_has_a_report() -> None:
    text = text_of(make_capture(small_rank(step_ends=[])))
    assert "No complete training step was recorded." in text
    assert "Peak 157 B   step 0, forward, in fc" in text


def test_a_step_can_be_looked_at() -> None:
    text = text_of(make_capture(small_rank()), step=0)
    assert "Peak of step 0 150 B (of the run: 157 B)" in text
    assert "step 0 peak" in text


def test_width_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console(io.StringIO()).width == 100
    monkeypatch.setenv("COLUMNS", "72")
    assert make_console(io.StringIO()).width == 72
    monkeypatch.setenv("COLUMNS", "500")
    assert make_console(io.StringIO()).width == 140


def test_a_terminal_without_unicode_gets_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_report(llama_job(steps=3), ReportOptions(), make_console(stream))
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "Peak 763.44 MiB" in text
    assert "v peak" in text


GOLDEN = """\
20250615-142640-train   cpu · 1 rank · torch 2.13.0+cpu · 6 events
$ train.py --lr 3e-4

Peak 157 B   step 1, forward, in fc, 40 ns after the first event

Allocated over time, 60 ns ─────────────────────────────────────────────────────
                                                         ▼ peak
     157 B ┤           aaaaaaaaaaaa                      aaaaaaaaaaaa
           │           aaaaaaaaaaaa                      aaaaaaaaaaaa
           │           aaaaaaaaaaaa                      aaaaaaaaaaaa
           │           aaaaaaaaaaaa     oooooooooooooooooooooooooooooooooooooooo
           │wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww
      78 B ┤wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww
           │wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww
           │wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww
           │wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww
           │wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww
       0 B └┬─────────────────────────────────┬─────────────────────────────────
            step 0                            1
w weight   o optimizer state   a activation

By category ────────────────────────────────────────────────────────────────────
   category         at the peak   share                 step 1 peak  inferred
w  weight                 100 B  63.7 %  wwwwwwwwwwwww        100 B         -
o  optimizer state          7 B   4.5 %  o                      7 B         -
a  activation              50 B  31.8 %  aaaaaaa               50 B   100.0 %
?  unknown                    -       -                           -         -
   total                  157 B                               157 B    31.8 %
inferred: share concluded from when and where it was allocated and freed; the
rest belongs to objects we know

Steps (2) ──────────────────────────────────────────────────────────────────────
step   time   peak                        end  change of end
   0  40 ns  150 B  wwwwwwwwwwwwaaaaa   107 B
   1  30 ns  157 B  wwwwwwwwwwwwaaaaaa  107 B              =

Top modules (1) ────────────────────────────────────────────────────────────────
module  total    share
fc      157 B  100.0 %  wwwwwwwwwwwwwwwwwoaaaaaaaa

Top allocations (3 of 3) ───────────────────────────────────────────────────────
 size     category         what it is, when and where it was made
100 B  w  weight           fc.weight
                           step 0, init
 50 B  a  activation~      in fc
                           step 1, forward, at job/train.py:9 main
  7 B  o  optimizer state  step of fc.weight
                           step 0, init
~ inferred, as above

More: --step N or --rank N to look elsewhere, --rollup for the five published
names, --json for machines;
memlens export memlens-runs/20250615-142640-train --to tensorboard
"""
