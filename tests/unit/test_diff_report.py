"""What `memlens diff` says, to people and to programs."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.fake_capture import COMPLETE, Block, FakeRank, make_capture
from tests.support.llama_job import make_rank
from tests.support.small_job import HOSTILE, HOSTILE_SHOWN, small_rank

from memlens.answers import Frame
from memlens.cli.diff import command
from memlens.errors import UsageError
from memlens.events import ROLLUP, Category
from memlens.report.diff.payload import diff_payload
from memlens.report.diff.terminal import print_diff
from memlens.report.diff.view import view_diff
from memlens.report.view import ReportOptions

MIB = 1 << 20


def text_of(a: Any, b: Any, *, width: int = 100, colour: bool = False, **options: Any) -> str:
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
    asked = ReportOptions(**options)
    print_diff(view_diff(a, b, asked), asked, console)
    return stream.getvalue()


def json_of(a: Any, b: Any, **options: Any) -> dict[str, Any]:
    asked = ReportOptions(**options)
    made: dict[str, Any] = json.loads(json.dumps(diff_payload(view_diff(a, b, asked), asked)))
    return made


def warnings(a: Any, b: Any) -> list[str]:
    return list(view_diff(a, b, ReportOptions()).warnings)


def larger() -> FakeRank:
    """The small job with twice the activations, from a script in another folder."""
    blocks = []
    for block in small_rank().blocks:
        if block.category is Category.ACTIVATION:
            main, linear = block.stack
            stack = (replace(main, file="/home/bob/other/train.py"), linear)
            blocks.append(replace(block, size_bytes=100, stack=stack))
        else:
            blocks.append(block)
    return small_rank(blocks=blocks)


def test_the_diff_in_a_pipe() -> None:
    """All of a small diff, letter by letter."""
    text = text_of(make_capture(small_rank()), make_capture(larger(), name="larger"), width=80)
    assert [line.rstrip() for line in text.splitlines()] == GOLDEN.splitlines()


def test_a_run_and_itself_are_told_in_one_line() -> None:
    run = make_capture(small_rank())
    text = text_of(run, run)
    (line,) = (line for line in text.splitlines() if "do not differ by a byte" in line)
    assert "allocation sites" in line
    assert "By category" not in text
    made = json_of(run, run)
    assert made["identical"]
    parts = [*made["categories"], *made["steps"], *made["modules"], *made["sites"]]
    parts += [made["peak"], made["at"]]
    assert len(parts) > 15
    assert {each["difference_bytes"] for each in parts} == {0}
    assert {each["difference_percent"] for each in parts} == {0.0}


@pytest.mark.parametrize("rollup", [False, True])
def test_the_contract_of_the_json(rollup: bool) -> None:
    made = json_of(make_capture(small_rank()), make_capture(larger(), name="larger"), rollup=rollup)
    assert made["format_version"] == 1
    assert (made["a"]["name"], made["b"]["name"]) == ("20250615-142640-train", "larger")
    assert made["a"]["command"] == ["train.py", "--lr", "3e-4"]
    assert (made["a"]["rank"], made["a"]["source"], made["a"]["world_size"]) == (0, "cpu", 1)
    assert made["b"]["peak"] == {
        "step": 1, "phase": "forward", "module": "fc", "allocated_bytes": 207,
    }  # fmt: skip
    change = {
        "a_bytes": 157,
        "b_bytes": 207,
        "difference_bytes": 50,
        "difference_percent": pytest.approx(100 * 50 / 157),
    }
    assert made["peak"] == change
    assert made["at"] == {"step": None, **change}
    names = set(ROLLUP) if rollup else {category.value for category in Category}
    assert {each["category"] for each in made["categories"]} == names
    for key in ("a_bytes", "b_bytes", "difference_bytes"):
        for parts in ("categories", "modules", "sites"):
            assert sum(each[key] for each in made[parts]) == made["peak"][key]
    assert made["steps"][0] == {
        "step": 0, "a_bytes": 150, "b_bytes": 200, "difference_bytes": 50,
        "difference_percent": pytest.approx(100 * 50 / 150),
    }  # fmt: skip
    site = made["sites"][0]
    assert site["category"] == ("Activation" if rollup else "activation")
    assert site["a_frame"] == {"function": "main", "file": "/home/ada/job/train.py", "line": 9}
    assert site["b_frame"] == {"function": "main", "file": "/home/bob/other/train.py", "line": 9}
    assert (site["a_bytes"], site["b_bytes"], site["a_blocks"], site["b_blocks"]) == (50, 100, 1, 1)
    (module,) = made["modules"]
    assert (module["module"], module["a_class_name"]) == ("fc", "Linear")


def test_what_only_one_run_has_is_null() -> None:
    made = json_of(make_capture(small_rank(step_ends=[40])), make_capture(small_rank()))
    assert made["steps"][1] == {
        "step": 1, "a_bytes": None, "b_bytes": 157,
        "difference_bytes": None, "difference_percent": None,
    }  # fmt: skip
    new = make_capture(FakeRank(0, [Block(8, Category.WEIGHT, 1, None, "w", "fc")]))
    made = json_of(make_capture(FakeRank(0, [])), new)
    assert made["modules"][0]["a_class_name"] is None
    assert made["modules"][0]["difference_percent"] is None


def test_lists_are_cut_and_counted() -> None:
    blocks = [Block(n, Category.WEIGHT, n, None, f"w{n}", f"fc{n}") for n in range(1, 9)]
    made = json_of(make_capture(FakeRank(0, [])), make_capture(FakeRank(0, blocks)), top=3)
    assert [each["module"] for each in made["modules"]] == ["fc8", "fc7", "fc6"]
    assert [each["name"] for each in made["sites"]] == ["w8", "w7", "w6"]
    assert (made["modules_count"], made["sites_count"]) == (8, 8)


@pytest.mark.parametrize(
    ("b", "words"),
    [
        (make_capture(small_rank(), source="cuda"), "from cpu and B from cuda"),
        (make_capture(small_rank(), small_rank(rank=1)), "A ran on 1 rank, B on 2"),
        (make_capture(small_rank(step_ends=[40])), "A recorded steps 0 to 1, B step 0"),
        (make_capture(small_rank(step_ends=[])), "A recorded steps 0 to 1, B no complete step"),
        (make_capture(small_rank(), problems=("rank 1 is missing",)), "B: rank 1 is missing"),
        (
            make_capture(small_rank(coverage=replace(COMPLETE, complete=False))),
            "B: the capture is not complete",
        ),
    ],
)
def test_runs_that_are_not_comparable(b: Any, words: str) -> None:
    (warning,) = warnings(make_capture(small_rank()), b)
    assert words in warning
    text = text_of(make_capture(small_rank()), b)
    assert words in " ".join(text.split())


def test_formats_and_emptiness_are_warned_of() -> None:
    a: Any = make_capture(small_rank())
    b: Any = make_capture(small_rank())
    assert warnings(a, b) == []
    b.info = replace(b.info, format_version=2)
    assert "format 1, B of 2" in warnings(a, b)[0]
    empty = make_capture(FakeRank(0, []))
    assert warnings(empty, empty) == ["A holds no allocation", "B holds no allocation"]
    assert "A holds no allocation" in text_of(empty, a)


def test_the_highest_rank_of_each_is_compared() -> None:
    a = make_capture(larger(), small_rank(rank=1))
    b = make_capture(small_rank(), replace(larger(), rank=1))
    made = json_of(a, b)
    assert (made["a"]["rank"], made["b"]["rank"]) == (0, 1)
    assert made["identical"]
    assert "rank 1, step 1, forward, in fc" in text_of(a, b)
    made = json_of(a, b, rank=1)
    assert (made["a"]["rank"], made["b"]["rank"]) == (1, 1)
    assert made["peak"]["difference_bytes"] == 50
    with pytest.raises(UsageError, match="there is no rank 2"):
        json_of(a, b, rank=2)


def test_a_step_is_compared() -> None:
    text = text_of(make_capture(small_rank()), make_capture(larger()), step=0)
    assert re.search(r"Peak of step 0 in A +150 B +of the run: 157 B", text)
    assert re.search(r"Peak of step 0 in B +200 B +of the run: 207 B", text)
    assert re.search(r"total +150 B +200 B +\+50 B +\+33\.3 %", text)


def test_many_steps_are_thinned_out() -> None:
    a, b = make_rank(steps=40), make_rank(steps=30)
    spike = Block(900 * MIB, Category.UNKNOWN, b.step_ends[21] - 5, b.step_ends[21] - 4)
    text = text_of(make_capture(a), make_capture(replace(b, blocks=[*b.blocks, spike])))
    steps = text.split("Peak of each step (40)")[1].split("By module")[0]
    rows = re.findall(r"^ *(\d+) ", steps, re.MULTILINE)
    assert rows == ["0", "1", "2", "21", "30", "37", "38", "39"]
    assert "… 18 steps" in steps
    assert len(re.findall(r"^ +3[0789] +\S+ MiB +- +only in A *$", steps, re.MULTILINE)) == 4


def test_layers_that_are_alike_share_a_row() -> None:
    text = text_of(make_capture(make_rank(steps=2)), make_capture(make_rank(steps=2, tokens=4096)))
    modules = text.split("By module")[1].split("By allocation site")[0]
    assert re.search(r"^4 ×  model\.layers\.\*\.mlp ", modules, re.MULTILINE)
    assert "* stands for the number of a layer" in modules
    sites = text.split("By allocation site")[1]
    assert "activation in forward" in sites
    assert "llama/modeling_llama.py:512" in sites


def test_a_line_that_moved_and_a_class_that_changed() -> None:
    def run(line: int, size: int, class_name: str) -> Any:
        stack = (Frame("main", "t.py", line),)
        blocks = [Block(size, Category.WEIGHT, 1, None, "w", "fc", stack=stack)]
        return make_capture(FakeRank(0, blocks, class_names={"fc": class_name}))

    text = text_of(run(3, 8, "Linear"), run(5, 4, "Linear8bitLt"))
    assert "t.py:5 (in A: 3)" in text
    assert "Linear → Linear8bitLt" in text
    assert "B needs 4 B less (-50.0 %); the largest difference is weight, -4 B." in text


def test_modules_that_differ_in_what_and_not_in_how_much_are_shown() -> None:
    a = make_capture(FakeRank(0, [Block(8, Category.WEIGHT, 1, None, "w", "fc")]))
    b = make_capture(FakeRank(0, [Block(8, Category.GRADIENT, 1, None, "w", "fc")]))
    text = text_of(a, b)
    assert "Both need the same; the largest difference is weight, -8 B." in text
    assert "By module (1 of 1 differ)" in text
    assert re.search(r"fc +8 B +8 B +=", text)
    assert re.search(r"^ +- +8 B +\+8 B +only in B +0 → 1  g  gradient", text, re.MULTILINE)
    assert "recorded without stacks" in text


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("rollup", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_too_long_and_no_number_is_cut(width: int, rollup: bool, colour: bool) -> None:
    a = make_capture(make_rank(steps=30))
    b = make_capture(make_rank(steps=20, tokens=4096, leak_bytes=MIB), name="b" * 30)
    text = text_of(a, b, width=width, rollup=rollup, colour=colour)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"\d…(?! )", text)
    assert "lm_head" in text


@pytest.mark.parametrize("place", ["name", "module", "function", "file", "command", "problem"])
def test_a_hostile_name_is_shown_and_does_nothing(place: str) -> None:
    def at(where: str) -> str:
        return HOSTILE if where == place else "fine"

    stack = (Frame(at("function"), f"/x/{at('file')}", 1),) if place != "name" else ()
    block = Block(8, Category.WEIGHT, 1, None, at("name"), at("module"), stack=stack)
    run = make_capture(
        FakeRank(0, [block]), command=("train.py", at("command")), problems=(at("problem"),)
    )
    text = text_of(make_capture(FakeRank(0, [])), run, width=140)
    for sign in ("\x1b", "\x07", "\u202e"):
        assert sign not in text
    assert HOSTILE_SHOWN in text
    text.encode("utf-8")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"a": make_capture(small_rank()), "b": make_capture(larger(), name="larger")}
    for name in runs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    monkeypatch.setattr("memlens.load", lambda path: runs[Path(path).name], raising=False)
    words = [str(tmp_path / "a"), str(tmp_path / "b")]
    command.main([*words, "--json", "--rollup", "--top", "1"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["peak"]["difference_bytes"] == 50
    command.main(words, standalone_mode=False)
    out = capsys.readouterr().out
    assert "B needs 50 B more (+31.8 %)" in out
    assert "\x1b" not in out
    with pytest.raises(UsageError, match="there is no run"):
        command.main([words[0], "no/such/run"], standalone_mode=False)


GOLDEN = """\
A  20250615-142640-train   cpu · 1 rank · torch 2.13.0+cpu
   $ train.py --lr 3e-4
B  larger   cpu · 1 rank · torch 2.13.0+cpu
   $ train.py --lr 3e-4

Peak of A       157 B   step 1, forward, in fc
Peak of B       207 B   step 1, forward, in fc
B needs 50 B more (+31.8 %); the largest difference is activation, +50 B.

By category ────────────────────────────────────────────────────────────────────
   category             A      B  B - A      of A
w  weight           100 B  100 B      =         =
o  optimizer state    7 B    7 B      =         =
a  activation        50 B  100 B  +50 B  +100.0 %  aaaaaaaaaaaaaaaaaaaaaaaaaaa
   total            157 B  207 B  +50 B   +31.8 %

Peak of each step (2) ──────────────────────────────────────────────────────────
step      A      B  B - A     of A
   0  150 B  200 B  +50 B  +33.3 %
   1  157 B  207 B  +50 B  +31.8 %

By module (1 of 1 differ) ──────────────────────────────────────────────────────
  module      A      B  B - A
  fc      157 B  207 B  +50 B  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
bars: the categories that differ

By allocation site (1 of 3 differ) ─────────────────────────────────────────────
   A      B  B - A  blocks     what it is, where it was made
50 B  100 B  +50 B       1  a  activation in main
                               other/train.py:9
"""
