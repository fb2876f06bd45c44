"""What an adapter for another library is, and how sessions find them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

from memlens.events import Category, MarkKind, NameKind
from memlens.recording.recorder import Recorder

__all__ = ["Adapter", "find_adapters", "mark_scope"]

_TABLE = "memlens_integrations"
_GROUP = "memlens.adapters"


class Adapter(Protocol):
    """Knows one library. Made without arguments, once per session."""

    library: str
    """Import name of the library; the adapter is used when the process has imported it."""

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Hook into the library, and push the way back onto the undo list."""


def find_adapters(recorder: Recorder) -> Iterator[Adapter]:
    """Adapters whose library this process has imported: ours, then those of other packages."""
    homes: dict[str, str] = {}
    try:
        homes.update(import_module(_TABLE).ADAPTERS)
    except ImportError:
        recorder.problem("memlens_integrations is not installed; libraries are not told apart")
    homes.update({entry.name: entry.value for entry in entry_points(group=_GROUP)})
    for name, home in homes.items():
        try:
            module, _, attribute = home.partition(":")
            adapter: Adapter = getattr(import_module(module), attribute)()
            if adapter.library in sys.modules:
                yield adapter
        except Exception as error:
            recorder.problem(f"adapter {name} does not load ({type(error).__name__}: {error})")


def mark_scope(
    recorder: Recorder,
    undo: ExitStack,
    owner: Any,
    attribute: str,
    *,
    text: str,
    survivors: Category,
) -> None:
    """Wrap a function of a library, so that what outlives its calls gets a category.

    Args:
        recorder: of the session.
        undo: gets the way back.
        owner: class or module that has the function.
        attribute: the function's name.
        text: what to call it.
        survivors: category of memory that a call allocates and leaves behind.
    """
    original: Callable[..., Any] = getattr(owner, attribute)
    scope = recorder.names.intern(NameKind.SCOPE, text, survivors.value)
    enter = recorder.hook(text, lambda: recorder.mark(MarkKind.SCOPE_ENTER, scope))
    leave = recorder.hook(text, lambda: recorder.mark(MarkKind.SCOPE_EXIT, scope))

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        enter()
        try:
            return original(*args, **kwargs)
        finally:
            leave()

    setattr(owner, attribute, wrapper)
    undo.callback(setattr, owner, attribute, original)
