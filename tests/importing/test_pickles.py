"""A pickle is a program. These are written to do harm, or are broken; none runs, hangs or crashes."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest

from memlens.errors import CaptureError
from memlens.importing.pickles import read_snapshot

HEAD = b"\x80\x04"
LARGEST = b"\xff" * 7 + b"\x7f"

BOMBS = {
    "memo index beyond all memory": HEAD + b"}r\xff\xff\xff\x7f.",
    "the same as text": b"(dp4000000000\n.",
    "frame beyond the end": HEAD + b"\x95" + LARGEST + b"}.",
    "text beyond the end": HEAD + b"\x8d" + LARGEST + b"abc.",
    "bytes beyond the end": HEAD + b"\x8e" + LARGEST + b"abc.",
    "bytearray beyond the end": HEAD + b"\x96" + LARGEST + b"abc.",
    "number of 2 GiB": HEAD + b"\x8b\xff\xff\xff\x7f.",
    "tuples whose hash is taken recursively": HEAD + b"})" + b"\x85" * 10**6 + b"K\x01s.",
    "the same in pairs": HEAD + b"}K\x01K\x01\x86" + b"K\x01\x86" * 10**6 + b"K\x01s.",
    "the same with MARK": b"}" + b"(" * 10**6 + b"K\x01K\x01" + b"t" * 10**6 + b"K\x01s.",
    "number of a million digits": b"]L" + b"9" * 10**6 + b"L\na.",
    "marks": HEAD + b"(" * 10**6 + b".",
    "nothing but its end": HEAD + b".",
    "version to come": b"\x80\x09}.",
    "memo that was never filled": HEAD + b"h\x07.",
    "items for a number": HEAD + b"K\x01(K\x01K\x01u.",
}

CALLS = {
    "GLOBAL": HEAD + b"cos\nsystem\n(\x8c\x04truet\x52.",
    "STACK_GLOBAL": HEAD + b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "BUILD": HEAD + b"}}b.",
    "PERSID": b"(dPabc\n.",
    "BINPERSID": HEAD + b"}Q.",
    "EXT1": HEAD + b"}\x82\x01.",
    "NEXT_BUFFER": b"\x80\x05}\x97.",
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "a.pickle"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_bomb_ends_in_an_error(tmp_path: Path, data: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(CaptureError, match="cannot import"):
        read_snapshot(write(tmp_path, data))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("data", CALLS.values(), ids=CALLS)
def test_no_instruction_that_calls_something_passes(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CaptureError, match=r"plain data|no pickle") as caught:
        read_snapshot(write(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_zeros_that_were_packed(tmp_path: Path) -> None:
    packed = gzip.compress(HEAD + b"N" * 50_000_000 + b".")
    with pytest.raises(CaptureError, match="larger than a snapshot can be"):
        read_snapshot(write(tmp_path, packed))


def test_a_packed_file_that_was_cut(tmp_path: Path) -> None:
    packed = gzip.compress(pickle.dumps({"segments": list(range(1000))}))
    for cut in (3, 20, len(packed) - 4):
        with pytest.raises(CaptureError, match="cannot import"):
            read_snapshot(write(tmp_path, packed[:cut]))


def test_a_deep_list_is_data(tmp_path: Path) -> None:
    depth = 10**6
    content = read_snapshot(write(tmp_path, HEAD + b"]" * depth + b"a" * (depth - 1) + b"."))
    assert isinstance(content["segments"], list)


def test_a_list_that_holds_itself_is_data(tmp_path: Path) -> None:
    content: list[Any] = []
    content.append(content)
    found = read_snapshot(write(tmp_path, pickle.dumps(content)))["segments"]
    assert found[0] is found


PLAIN = {
    "numbers": [
        0,
        1,
        -1,
        255,
        256,
        65535,
        65536,
        -(2**31),
        2**31,
        2**47,
        2**63,
        2**64 - 1,
        -(2**40),
    ],
    "others": [0.5, -1e300, True, False, None, "", "é", "x" * 300, "y" * 70_000, "line\nbreak"],
    "pairs": [(0, 0), (1, 2**40), ()],
    1: {"": [], "deep": [[[{}]]]},
    "shared": [[1, 2]] * 3,
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_through(tmp_path: Path, protocol: int) -> None:
    """Packed as well: what is small shrinks more than a snapshot does."""
    data = pickle.dumps(PLAIN, protocol=protocol)
    assert read_snapshot(write(tmp_path, data)) == PLAIN
    assert read_snapshot(write(tmp_path, gzip.compress(data))) == PLAIN


def test_texts_are_not_taken_for_instructions(tmp_path: Path) -> None:
    every_byte = "".join(map(chr, range(256))) * 3
    content = {"segments": [every_byte[start : start + 250] for start in range(500)]}
    assert read_snapshot(write(tmp_path, pickle.dumps(content))) == content


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes(tmp_path: Path, seed: int) -> None:
    """Whatever is broken: data or an error, and nothing else."""
    whole = pickle.dumps(PLAIN)
    chance = random.Random(seed)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read_snapshot(write(tmp_path, bytes(data)))
        except CaptureError as error:
            assert "\n" not in str(error)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CaptureError, match="not an ordinary file"):
        read_snapshot(tmp_path / "pipe")
