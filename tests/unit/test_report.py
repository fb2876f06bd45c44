"""What a report says to people."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.support.fake_capture import COMPLETE, Block, FakeRank, make_capture
from tests.support.llama_job import llama_job, make_rank
from tests.support.small_job import HOSTILE, HOSTILE_SHOWN, small_rank

from memlens.answers import Frame, Growth, Part
from memlens.events import Category, Certainty, Phase
from memlens.report.payload import payload
from memlens.report.terminal import make_console, print_report
from memlens.report.view import ReportOptions

KIB = 1 << 10
MIB = 1 << 20


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


def test_layers_that_are_alike_share_a_row() -> None:
    text = text_of(llama_job(steps=2), width=120)
    modules = text.split("Top modules")[1].split("Top allocations")[0]
    rows = re.findall(r"^ *(\d+ ×)? +(\S+) +\S+ +([\d.]+ MiB)", modules, re.MULTILINE)
    assert rows == [
        ("4 ×", "model.layers.*.mlp", "258.75 MiB"),
        ("4 ×", "model.layers.*.self_attn", "210.00 MiB"),
        ("", "lm_head", "160.16 MiB"),
        ("", "model.embed_tokens", "134.25 MiB"),
    ]
    assert "40.50 MiB each, step 1, forward, at llama/modeling_llama.py:512 forward" in text


def test_a_layer_that_differs_keeps_its_row() -> None:
    blocks = [Block(8, Category.WEIGHT, 1, None, "", f"m.{layer}.fc") for layer in range(4)]
    blocks.append(Block(1, Category.WEIGHT, 2, None, "", "m.2.fc"))
    text = text_of(make_capture(FakeRank(0, blocks)))
    assert re.search(r"^3 ×  m\.\*\.fc +24 B", text, re.MULTILINE)
    assert re.search(r"^     m\.2\.fc +9 B", text, re.MULTILINE)


def test_layers_say_their_numbers_where_others_hold_something_else() -> None:
    """As under ZeRO 1 and 2: a rank has the master weights of some layers, and the weights of all."""
    blocks = [Block(8, Category.WEIGHT, 1, None, "", f"m.{layer}.fc") for layer in range(6)]
    for layer in range(2):
        blocks.append(Block(90, Category.MASTER_WEIGHT, 2, None, "", f"m.{layer}.fc"))
    text = text_of(make_capture(FakeRank(0, blocks)))
    assert re.search(r"^2 ×  m\.0-1\.fc +196 B", text, re.MULTILINE)
    assert re.search(r"^4 ×  m\.2-5\.fc +32 B", text, re.MULTILINE)


def test_a_flat_partition_says_whose_elements_it_has() -> None:
    names = [f"m.layers.{layer}.fc.weight" for layer in range(3)]
    parts = tuple(Part(f"exp_avg of {name}", "", 4, 4) for name in (*names, "m.layers.3.w[0:9]"))
    flat = "exp_avg of master partition of group 0"
    blocks = [
        Block(16, Category.OPTIMIZER_STATE, 1, None, flat, parts=parts),
        Block(8, Category.OPTIMIZER_STATE, 2, None, flat, parts=parts[:1]),
    ]
    text = text_of(make_capture(FakeRank(0, blocks)))

    lines = [line.rstrip().split("  ")[-1].strip() for line in text.splitlines()]
    assert lines[lines.index(flat) + 1] == "4 parts: m.layers.0.fc.weight … m.layers.3.w[0:9]"
    assert "1 part: m.layers.0.fc.weight" in lines
    narrow = text_of(make_capture(FakeRank(0, blocks)), width=80)
    assert re.search(r"4 parts: m\.layers\.0\.fc\.weight … *\n +… m\.layers\.3\.w\[0:9\]", narrow)


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
    monkeypatch.setenv("COLUMNS", "3")
    assert make_console(io.StringIO()).width == 40


def test_a_terminal_without_unicode_gets_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_report(llama_job(steps=3), ReportOptions(), make_console(stream))
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "Peak 763.44 MiB" in text
    assert "v peak" in text


blocks = st.builds(
    lambda size, category, alloc_ns, lives, name, module, certainty: Block(
        size, category, alloc_ns, lives and alloc_ns + lives, name, module, Phase.FORWARD, certainty
    ),
    st.integers(0, 1 << 45),
    st.sampled_from(Category),
    st.integers(0, 100),
    st.one_of(st.none(), st.integers(1, 100)),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["", "m.0.fc", "m.1.fc", "x" * 200, HOSTILE]),
    st.sampled_from(Certainty),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(blocks, max_size=12),
    st.lists(st.integers(1, 200), max_size=20, unique=True).map(sorted),
    st.booleans(),
    st.sampled_from([40, 80, 100, 140]),
    st.booleans(),
)
def test_any_capture_has_a_report(
    made: list[Block], step_ends: list[int], rollup: bool, width: int, colour: bool
) -> None:
    capture = make_capture(FakeRank(0, made, step_ends))
    text = text_of(capture, width=width, rollup=rollup, colour=colour)
    text.encode("utf-8")
    assert "\x07" not in text
    (rank,) = payload(capture, ReportOptions(rollup=rollup))["ranks"]
    assert sum(rank["peak"]["categories"].values()) == rank["peak"]["allocated_bytes"]


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
  fc      157 B  100.0 %  wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwooaaaaaaaaaaaaaaa

Top allocations (3 blocks) ─────────────────────────────────────────────────────
  total     category         what it is, when and where it was made
  100 B  w  weight           fc.weight
                             step 0, init
   50 B  a  activation~      in fc
                             step 1, forward, at job/train.py:9 main
    7 B  o  optimizer state  step of fc.weight
                             step 0, init
~ inferred, as above

More: --step N or --rank N to look elsewhere, --rollup for the five published
names, --json for machines;
in a browser: memlens view memlens-runs/20250615-142640-train
"""
