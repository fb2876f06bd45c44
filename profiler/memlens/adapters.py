"""What an adapter for another library is, and how sessions find them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import torch

from memlens.events import Category, MarkKind, NameKind, WeightKind
from memlens.recording.recorder import Recorder
from memlens.sources.base import Gauge

__all__ = [
    "Adapter",
    "Adapters",
    "GaugeAdapter",
    "Holding",
    "HoldingAdapter",
    "Piece",
    "ShardingAdapter",
    "SimulationAdapter",
    "WeightAdapter",
    "WeightAdapters",
    "load_adapters",
    "mark_scope",
    "watch_calls",
]

_TABLE = "memlens_integrations"
_GROUP = "memlens.adapters"


class Adapter(Protocol):
    """Knows one library. Made without arguments, once per session."""

    library: str
    """Import name of the library; the adapter is used when the process has imported it."""

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Hook into the library, and push the way back onto the undo list."""


@runtime_checkable
class WeightAdapter(Adapter, Protocol):
    """Knows weights of its library better than torch tells, and what else belongs to them."""

    def weights(self, module: torch.nn.Module) -> Iterable[tuple[str, torch.Tensor, WeightKind]]:
        """Weights that a module holds, or modules inside it, and their kind.

        Asked of every module when its model is first called, and again when recording ends. Only
        those need to be named of which torch alone would tell another kind, or nothing: tensors that
        a parameter holds as attributes.

        Returns:
            (name within the module, tensor, kind) of each; the module holds the tensor.
        """


@runtime_checkable
class GaugeAdapter(Adapter, Protocol):
    """Knows memory of its library that no allocator of torch's tells of."""

    def gauges(self) -> Iterable[Gauge]:
        """(what, device or empty, bytes) as of now; asked about once a second."""


@dataclass(frozen=True)
class Piece:
    """Some elements of a flat tensor, and whose they are."""

    parameter: torch.Tensor
    """Of the job's model; its qualified name and module are known."""
    start: int
    """The first element within the flat tensor."""
    count: int
    """How many elements."""
    parameter_start: int = 0
    """Which element of the parameter the first one is."""
    elements: int = 0
    """How many the parameter has in all; 0: as many as it has now (not so while it is released)."""


@dataclass(frozen=True)
class Holding:
    """A tensor that a library holds, and what it is."""

    tensor: torch.Tensor
    category: Category
    name: str = ""
    """What to call it; with `parameter`, what to put before the parameter's name."""
    parameter: torch.Tensor | None = None
    """The one parameter that it belongs to, if there is one."""
    pieces: tuple[Piece, ...] = ()
    """Which of its elements belong to which parameter."""
    inferred: bool = False
    """It was concluded, not read from an object that is known."""


@runtime_checkable
class HoldingAdapter(Adapter, Protocol):
    """Knows memory that objects of its library hold: flat partitions, buckets, gathered parameters."""

    def holdings(self) -> Iterable[Holding]:
        """What the library's live objects hold right now.

        Asked when a model is called from outside, after each backward, before and after each
        `optimizer.step()`, when recording begins and when it ends, and whenever the adapter calls
        `recorder.take_stock()`. What was told before, and is in the same storage still, costs little.
        Of a tensor that an optimizer holds as a parameter, gradient and state get the same pieces.
        """


@runtime_checkable
class ShardingAdapter(Adapter, Protocol):
    """Knows how its library spreads a training over ranks."""

    def sharding(self) -> Iterable[str]:
        """What is in use, in its users' words ("ZeRO 2"); nothing where it is not in use."""


@runtime_checkable
class SimulationAdapter(Adapter, Protocol):
    """Knows what it takes to run its library where CUDA is simulated and tensors have no data."""

    def simulate(self) -> None:
        """Make ready a process that simulates, for good.

        Called once, when nothing but torch has been imported: `library` most likely has not.
        `memlens.simulation.disguise.imports.when_imported` does what has to wait for it.
        """


class Adapters:
    """Installs each adapter once the process has imported its library: ours, then other packages'.

    Args:
        recorder: of the session.
        undo: gets the ways back.
    """

    def __init__(self, recorder: Recorder, undo: ExitStack) -> None:
        self._recorder = recorder
        self._undo = undo
        self._waiting: list[Adapter] | None = None
        self._sharding: list[ShardingAdapter] = []
        self._told: list[str] = []

    def install_new(self) -> None:
        """Look again which libraries are there; costs nothing to speak of."""
        if self._waiting is None:
            self._waiting = list(load_adapters(self._recorder))
            if _is_simulated():
                self._simulate(self._waiting)
        for adapter in [each for each in self._waiting if _is_imported(each.library)]:
            self._waiting.remove(adapter)
            try:
                adapter.install(self._recorder, self._undo)
            except Exception as error:
                self._recorder.problem(
                    f"adapter for {adapter.library} failed ({type(error).__name__}: {error})"
                )
            else:
                if isinstance(adapter, GaugeAdapter):
                    self._recorder.gauges.append(adapter.gauges)
                if isinstance(adapter, HoldingAdapter):
                    self._recorder.holdings.append(adapter.holdings)
                if isinstance(adapter, ShardingAdapter):
                    self._sharding.append(adapter)

    def note_sharding(self) -> None:
        """Have the rank's header say how the training is spread over ranks."""
        found: set[str] = set()
        for adapter in list(self._sharding):
            try:
                found.update(adapter.sharding())
            except Exception as error:
                self._sharding.remove(adapter)
                self._recorder.problem(
                    f"adapter for {adapter.library} failed ({type(error).__name__}: {error})"
                )
        told = sorted(found)
        if told != self._told:
            self._told = told
            self._recorder.update_header(sharding=told)

    def _simulate(self, adapters: Iterable[Adapter]) -> None:
        for adapter in adapters:
            if not isinstance(adapter, SimulationAdapter):
                continue
            try:
                adapter.simulate()
            except Exception as error:
                self._recorder.problem(
                    f"{adapter.library} cannot be simulated ({type(error).__name__}: {error})"
                )


def _is_imported(library: str) -> bool:
    """Whether a library is there, and its import has ended."""
    module = sys.modules.get(library)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)


def _is_simulated() -> bool:
    """Whether CUDA is simulated in this process; who does so has imported the module."""
    process: Any = sys.modules.get("memlens.simulation.process")
    return process is not None and process.current_simulation() is not None


class WeightAdapters:
    """All adapters that know weights; each is asked once the job has imported its library."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._adapters: list[WeightAdapter] | None = None

    def weights(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, WeightKind]]:
        """What they know of a module. One that fails is not asked again."""
        if self._adapters is None:
            self._adapters = [
                each for each in load_adapters(self._recorder) if isinstance(each, WeightAdapter)
            ]
        for adapter in list(self._adapters):
            if adapter.library not in sys.modules:
                continue
            try:
                yield from list(adapter.weights(module))
            except Exception as error:
                self._adapters.remove(adapter)
                self._recorder.problem(
                    f"adapter for {adapter.library} failed ({type(error).__name__}: {error})"
                )


def load_adapters(recorder: Recorder) -> Iterator[Adapter]:
    """All adapters: ours, then those of other packages. One that does not load is a problem, no error."""
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
        except Exception as error:
            recorder.problem(f"adapter {name} does not load ({type(error).__name__}: {error})")
            continue
        yield adapter


def mark_scope(
    recorder: Recorder,
    undo: ExitStack,
    owner: Any,
    attribute: str,
    *,
    text: str,
    survivors: Category,
    temporaries: Category = Category.TEMPORARY,
) -> None:
    """Wrap a function of a library, so that what its calls allocate gets a category.

    Args:
        recorder: of the session.
        undo: gets the way back.
        owner: class or module that has the function.
        attribute: the function's name.
        text: what to call it, and the memory that it allocates and no object shows.
        survivors: category of memory that a call allocates and leaves behind.
        temporaries: category of memory that a call allocates and frees.
    """
    kept = survivors.value
    if temporaries is not Category.TEMPORARY:
        kept = f"{kept}/{temporaries.value}"
    scope = recorder.names.intern(NameKind.SCOPE, text, kept)
    recorder.names.intern(NameKind.TENSOR, text)
    watch_calls(
        recorder,
        undo,
        owner,
        attribute,
        before=lambda *_: recorder.mark(MarkKind.SCOPE_ENTER, scope),
        always=lambda *_: recorder.mark(MarkKind.SCOPE_EXIT, scope),
    )


def watch_calls(
    recorder: Recorder,
    undo: ExitStack,
    owner: Any,
    attribute: str,
    *,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
    always: Callable[..., None] | None = None,
) -> None:
    """Have a function of a library call others first, or afterwards, with its own arguments.

    Args:
        recorder: of the session.
        undo: gets the way back.
        owner: class or module that has the function.
        attribute: the function's name.
        before: called first.
        after: called when the function has returned; not if it raised.
        always: called when the function is done, in whichever way.
    """
    original: Callable[..., Any] = getattr(owner, attribute)
    text = f"adapter of {attribute}"
    enter, leave, end = (recorder.hook(text, each or _nothing) for each in (before, after, always))

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        enter(*args)
        try:
            result = original(*args, **kwargs)
            leave(*args)
            return result
        finally:
            end(*args)

    is_inherited = isinstance(owner, type) and attribute not in vars(owner)
    setattr(owner, attribute, wrapper)
    if is_inherited:
        undo.callback(delattr, owner, attribute)
    else:
        undo.callback(setattr, owner, attribute, original)


def _nothing(*_: object) -> None:
    pass
