"""Text from a job, made harmless and short."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.answers import Frame
from memlens.report.text import count, frame_text, markdown, plain, shorten, user_frames


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0", "model.layers.0"),
        ("größe 模型", "größe 模型"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eevil", "\\u202eevil"),
        ("\u2028", "\\u2028"),
        ("\udc80", "\\udc80"),
        ("\x9b31m", "\\x9b31m"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_what_would_act_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(st.characters()))
def test_plain_text_is_always_printable(text: str) -> None:
    made = plain(text)
    made.encode("utf-8")
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for char in made)
    assert plain(made) == made


@given(st.text(st.characters()))
def test_markdown_means_nothing_but_itself(text: str) -> None:
    made = markdown(text)
    outside = made.replace("&#", "").replace(";", "")
    assert not set(outside) & set("|`*_<>[]()\\\n#!~{}")


def test_markdown_escapes_what_would_end_a_cell() -> None:
    assert markdown("a|b") == "a&#124;b"
    assert markdown("<img src=x>") == "&#60;img src=x&#62;"


@pytest.mark.parametrize(
    ("width", "short"),
    [(20, "model.layers.0.mlp"), (18, "model.layers.0.mlp"), (10, "mod….0.mlp"), (1, "…"), (0, "")],
)
def test_a_long_name_keeps_both_ends(width: int, short: str) -> None:
    assert shorten("model.layers.0.mlp", width) == short


def test_count() -> None:
    assert [count(0, "event"), count(1, "event"), count(12345, "event")] == [
        "0 events",
        "1 event",
        "12,345 events",
    ]


RUNPY = Frame("_run_code", "runpy.py", 88)
FROZEN = Frame("_run", "<frozen runpy>", 88)
MAIN = Frame("main", "/home/ada/llm/train.py", 58)
STEP = Frame("step", "C:\\Users\\ada\\llm\\loop.py", 7)
CALL = Frame("_call_impl", "torch/nn/modules/module.py", 1884)
MLP = Frame("forward", "transformers/models/llama/modeling_llama.py", 164)
OTHER = Frame("forward", "/v/lib/python3.11/site-packages/somelib/model.py", 5)
STDLIB = Frame("inner", "/usr/lib/python3.11/contextlib.py", 81)
LINEAR = Frame("forward", "/v/lib/python3.11/site-packages/torch/nn/modules/linear.py", 125)


@pytest.mark.parametrize(
    ("stack", "told"),
    [
        # One's own code all the way down: innermost first, without what torch puts in between.
        ((FROZEN, RUNPY, MAIN, CALL, STEP, STDLIB, LINEAR), (STEP, MAIN)),
        # A library's model: its line says what it was for, one's own line who called.
        ((MAIN, STEP, CALL, OTHER, CALL, MLP, CALL, LINEAR), (MLP, STEP, MAIN)),
        ((MAIN, CALL, OTHER, STDLIB, LINEAR), (OTHER, MAIN)),
        # Nobody's own code is in the stack.
        ((CALL, OTHER, MLP, LINEAR), (MLP, OTHER)),
        ((FROZEN, STDLIB, LINEAR), (LINEAR, STDLIB, FROZEN)),
        ((), ()),
    ],
)
def test_the_frames_that_tell_what_it_was_for(
    stack: tuple[Frame, ...], told: tuple[Frame, ...]
) -> None:
    assert user_frames(stack, 9) == told
    assert user_frames(stack, 1) == told[:1]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (MAIN, "llm/train.py:58 main"),
        (STEP, "llm/loop.py:7 step"),
        (MLP, "llama/modeling_llama.py:164 forward"),
        (Frame("main", "train.py", 3), "train.py:3 main"),
        (FROZEN, "<frozen runpy>:88 _run"),
        (Frame("f\x1b", "x\n.py", 1), "x\\n.py:1 f\\x1b"),
    ],
)
def test_a_frame_is_short_enough_to_read(frame: Frame, text: str) -> None:
    assert frame_text(frame) == text
