"""Reads pickles that strangers made: plain data only, nothing in them can run.

A pickle is a program for a small machine. Before Python's own unpickler runs it, each instruction is
looked at: only those pass that build lists, dictionaries, texts and numbers. Those that call something
(REDUCE, BUILD, GLOBAL, ...) do not, nor those by which a short file can bring the unpickler down:

* a memo index far beyond what was stored, for which it makes room (LONG_BINPUT);
* tuples within tuples, whose hash is taken recursively and ends beyond the C stack. Pairs of numbers
  pass, since torch writes the ids of pools as such;
* a length beyond the file, numbers of many bytes.
"""

from __future__ import annotations

import gc
import gzip
import io
import pickle
import pickletools
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from memlens.errors import CaptureError

__all__ = ["read_snapshot"]

MOST_BYTES = 8 * 2**30
MOST_INFLATION = 200
"""Snapshots shrink to a twentieth; zeros to a thousandth."""
ALWAYS_BYTES = 2**24
"""So much is unpacked in any case: what is small has room for accidents."""

_LONG = b"|".join(rb"\x%02x.{%d}" % (length, length) for length in (6, 7, 5, 8, 9, 0, 1, 2, 3, 4))
_NUMBER = rb"K.|M..|J.{4}|\x8a(?:" + _LONG + rb")"
_TEXT_NUMBER = rb"I-?[0-9]{1,20}\n|L-?[0-9]{1,20}L?\n"
_PLAIN = re.compile(
    rb"(?:"
    rb"j.{4}|h.|\x94"  # LONG_BINGET, BINGET, MEMOIZE: most of a snapshot
    rb"|(?:" + _NUMBER + rb")(?:(?:" + _NUMBER + rb")\x86)?"  # BININT..., perhaps two and TUPLE2
    # MARK, up to two numbers, TUPLE; then MARK alone, EMPTY_*, SETITEM(S), APPEND(S), NONE, NEWTRUE...
    rb"|\((?:(?:" + _NUMBER + rb"|" + _TEXT_NUMBER + rb"){0,2}t)?"
    rb"|[}\]ueas)N\x88\x89dl]"
    rb"|q.|G.{8}|\x95.{8}|\x80."  # BINPUT, BINFLOAT, FRAME, PROTO
    rb"|" + _TEXT_NUMBER + rb"|F[-+.0-9a-z]{1,40}\n|V[^\n]*\n|g[0-9]{1,10}\n"  # of protocol 0
    # Not without end: each repetition that could be taken back costs memory.
    rb"){1,1000}",
    re.DOTALL,
)
_LENGTH_BYTES = {0x8C: 1, ord("X"): 4, 0x8D: 8}
"""SHORT_BINUNICODE, BINUNICODE, BINUNICODE8: how many bytes tell the length of the text."""
_PUT = re.compile(rb"p([0-9]{1,10})\n")
_NAMES = {ord(code.code): code.name for code in pickletools.opcodes}
_STOP = ord(".")


def read_snapshot(path: Path) -> dict[str, Any]:
    """Read a torch memory snapshot, as it was pickled; gzip'ed ones as well.

    Returns:
        Its dictionary; what it holds is not looked at. A list of segments, as
        `torch.cuda.memory_snapshot()` returns, becomes a dictionary with no more than these.

    Raises:
        CaptureError: it cannot be read, is damaged, or holds anything but plain data.
    """
    data = _read(path)
    try:
        _check(data)
        with _without_collector():
            content = _Unpickler(io.BytesIO(data)).load()
    except CaptureError as error:
        raise CaptureError(f"cannot import {path}: {error}") from None
    except Exception as error:  # whatever a broken program of that machine ends in
        raise CaptureError(
            f"cannot import {path}: it is no whole pickle ({type(error).__name__}: {error!s:.100})"
        ) from None
    if isinstance(content, list):
        content = {"segments": content}
    if not isinstance(content, dict):
        raise CaptureError(
            f"cannot import {path}: it holds a {type(content).__name__}, and a torch memory snapshot is "
            "a dictionary"
        )
    return content


class _Unpickler(pickle.Unpickler):
    """The second lock: should an instruction slip through the check, it finds nothing to call."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise CaptureError(f"it asks for {module_name}.{global_name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise CaptureError("it refers to objects outside of it")


@contextmanager
def _without_collector() -> Iterator[None]:
    """A million new containers set off the collector again and again: half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would be waited for, a device read for ever
            raise CaptureError(
                f"cannot import {path}: it is a folder; name the snapshot in it"
                if stat.S_ISDIR(mode)
                else f"cannot import {path}: it is not an ordinary file"
            )
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        most = MOST_BYTES
        if data[:2] == b"\x1f\x8b":
            most = min(most, max(MOST_INFLATION * len(data), ALWAYS_BYTES))
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(most + 1)
    except FileNotFoundError:
        raise CaptureError(f"cannot import {path}: there is no such file") from None
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CaptureError(f"cannot import {path}: {text}") from None
    if len(data) > most:
        raise CaptureError(
            f"cannot import {path}: it is larger than a snapshot can be ({most} bytes)"
        )
    return data


def _check(data: bytes) -> None:
    """Look at every instruction.

    Raises:
        CaptureError: one of them is not for plain data, or is cut off.
    """
    if data[:1] not in (b"\x80", b"(", b"]", b"}"):
        raise CaptureError("it is no pickle; torch.cuda.memory._dump_snapshot writes one")
    place, end = 0, len(data)
    plain = _PLAIN.match
    while place < end:
        if run := plain(data, place):
            place = run.end()
            continue
        code = data[place]
        if code == _STOP:
            return
        if (width := _LENGTH_BYTES.get(code)) is not None:
            place += 1 + width
            length = int.from_bytes(data[place - width : place], "little")
            if length > end - place:
                raise CaptureError("it ends too early")
            place += length
        elif code == ord("r"):  # LONG_BINPUT
            _check_index(int.from_bytes(data[place + 1 : place + 5], "little"), place)
            place += 5
        elif put := _PUT.match(data, place):
            _check_index(int(put[1]), place)
            place = put.end()
        else:
            name = _NAMES.get(code)
            if name is None:
                raise CaptureError(f"it is no whole pickle (byte {place} is no instruction)")
            raise CaptureError(
                f"it holds more than plain data ({name} at byte {place}), which a torch memory snapshot "
                "does not; nothing of it was run"
            )
    raise CaptureError("it ends too early")


def _check_index(index: int, place: int) -> None:
    if index > place:  # what was stored before took at least a byte each
        raise CaptureError(f"it is no whole pickle (it stores number {index} at byte {place})")
