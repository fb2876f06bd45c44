"""Parameters, buffers and gradients: which storages they are in, under which names."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType

import torch

from memlens import torch_private
from memlens.disk.format import codes
from memlens.events import Category, Certainty, NameKind, WeightKind
from memlens.recording.recorder import Recorder
from memlens.recording.storages import is_quantised

__all__ = ["Known", "Parameters", "Slice", "kind_of", "may_read_gradients"]

_GRADIENT = codes(Category)["gradient"]
_NAMED_ALIKE = (Category.WEIGHT, Category.MASTER_WEIGHT, Category.GRADIENT)
"""What is called as the parameter is that it belongs to."""
_ENGINE_CODE = torch_private.backward_engine_code()


class Known:
    """A parameter or buffer that a module or an optimizer has shown us."""

    __slots__ = (
        "address",
        "category",
        "certainty",
        "grad_address",
        "has_own_name",
        "kind",
        "leaves_early",
        "module",
        "name",
        "named_after",
        "ours",
        "pieces",
        "ref",
        "storage",
        "suffix",
        "text",
        "watched",
    )

    def __init__(
        self, tensor: torch.Tensor, category: Category, name: int, text: str, module: int
    ) -> None:
        self.text = text
        self.suffix = ""
        """Which elements of the parameter a shard holds: `[1024:4096]`."""
        self.has_own_name = True
        """Nothing else has this number of a name."""
        self.kind: WeightKind | None = None
        """None: not told yet."""
        self.ref: Callable[[], torch.Tensor | None] = weakref.ref(tensor)
        self.category = category
        self.name = name
        self.module = module
        self.address = 0
        self.storage: weakref.ref[torch.UntypedStorage] | None = None
        """What was tagged at that address; gone if the address has been given out again since."""
        self.ours = False
        """The session's thread trains it; the gradients of others are not looked at in each step."""
        self.grad_address = 0
        self.watched = False
        """A hook of ours looks at its gradient as soon as it is there."""
        self.leaves_early = False
        """A library frees its gradient within backward."""
        self.certainty = Certainty.DECLARED
        self.pieces: tuple[Slice, ...] = ()
        """Of a flat tensor: whose elements it holds."""
        self.named_after: dict[tuple[str, str], int] = {}
        """Numbers of names that are made of its own, by what stands before and behind it."""

    @property
    def label(self) -> str:
        """What to call its memory."""
        return self.text + self.suffix


@dataclass(frozen=True)
class Slice:
    """Some elements of a flat tensor, and the parameter that they belong to."""

    owner: Known
    start: int
    count: int
    suffix: str
    """Which elements of the parameter: `[1024:4096]`; empty for all of them."""


class Parameters:
    """The table of parameters and buffers, and their tags.

    A storage is tagged when it is new: a weight once, a gradient once per step. Addresses come back
    after a free, so a gradient's address of the last step says nothing about this one's.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._names = recorder.names
        self._known: dict[int, Known] = {}

    def install(self, undo: ExitStack) -> None:
        """Step aside where torch swaps two tensors, which it refuses if they have weak references.

        `model.to(...)` does so with parameters that are wrapper subclasses, or with all if asked to.
        """
        original: Callable[[torch.Tensor, torch.Tensor], None] = torch.utils.swap_tensors
        tag = self._recorder.hook("parameter observer", self._tag)

        def swap_tensors(t1: torch.Tensor, t2: torch.Tensor) -> None:
            found = [(self.find(tensor), tensor) for tensor in (t1, t2)]
            for known, _ in found:
                if known is not None:
                    known.ref = _nothing
            try:
                original(t1, t2)
            finally:
                for known, tensor in found:
                    if known is not None:
                        known.ref = weakref.ref(tensor)
                        tag(known, tensor)

        torch.utils.swap_tensors = swap_tensors
        undo.callback(setattr, torch.utils, "swap_tensors", original)
        undo.callback(self._known.clear)

    def learn(
        self, tensor: torch.Tensor, text: str, module: int, category: Category = Category.WEIGHT
    ) -> Known:
        """Add a parameter or buffer to the table, or say its better name; tag its storage."""
        key = id(tensor)
        known = self._known.get(key)
        if known is None or known.ref() is not tensor:
            name = self._names.new(NameKind.TENSOR, text)
            known = self._known[key] = Known(tensor, category, name, text, module)
        self._tag(known, tensor)
        return known

    def rename(self, tensor: torch.Tensor, text: str, module: int) -> None:
        """Give a parameter or buffer its qualified name."""
        known = self.find(tensor)
        if known is not None:
            known.text = text  # first, so that memory which it has left has this name, too
        known = self.learn(tensor, text, module)
        known.text = text
        known.module = module
        self._write_name(known)

    def tell_kind(self, tensor: torch.Tensor, kind: WeightKind) -> None:
        """Say who may change a known parameter or buffer, and in which form it is kept."""
        known = self.find(tensor)
        if known is not None and known.kind is not kind:
            known.kind = kind
            self._write_name(known)

    def _write_name(self, known: Known) -> None:
        detail = _detail(known)
        self._names.rename(NameKind.TENSOR, known.name, known.label, detail)
        for (before, behind), number in known.named_after.items():
            self._names.rename(NameKind.TENSOR, number, f"{before}{known.text}{behind}", detail)

    def hold(
        self,
        tensor: torch.Tensor,
        category: Category,
        text: str,
        *,
        owner: torch.Tensor | None,
        pieces: Sequence[tuple[torch.Tensor, int, int, int, int]],
        certainty: Certainty,
    ) -> None:
        """Take in a tensor that a library holds.

        Args:
            tensor: what it holds.
            category: what it is.
            text: what to call it; of an owner's, what stands before the owner's name.
            owner: the one parameter that it belongs to.
            pieces: (parameter, first element, number of elements, first of the parameter's, how many
                the parameter has or 0) of each. One of the tensor itself: it is a shard.
            certainty: how that is known.
        """
        known = self._known.get(id(tensor))
        if known is None or known.ref() is not tensor:
            known_owner = None if owner is None else self.find(owner)
            module = -1 if known_owner is None else known_owner.module
            if not text and known_owner is None:  # a parameter, whose name will be known
                name = self._names.new(NameKind.TENSOR, text)
            elif known_owner is None:
                name = self._names.intern(NameKind.TENSOR, text)
            else:
                name = self.name_after(known_owner, f"{text} " if text else "")
                text = f"{text} {known_owner.text}".lstrip()
            known = self._known[id(tensor)] = Known(tensor, category, name, text, module)
            known.has_own_name = not text
            known.kind = WeightKind.UNKNOWN  # that of its parameters is told, where it has any
        if known.category is not category:
            known.category, known.address = category, 0
        if pieces and not known.pieces:
            self._divide(known, tensor, tuple(self._slices(pieces)))
        known.certainty = certainty
        known.ours = True
        self._tag(known, tensor)

    def _divide(self, known: Known, tensor: torch.Tensor, pieces: tuple[Slice, ...]) -> None:
        only = pieces[0] if len(pieces) == 1 else None
        if only is not None and only.owner is known:
            if known.suffix != only.suffix:
                known.suffix = only.suffix
                self._write_name(known)
        elif only is not None and only.count == tensor.numel() and known.category in _NAMED_ALIKE:
            # Nothing but elements of one parameter: it is a shard of that, and called so.
            if known.label != only.owner.text + only.suffix:
                known.text, known.suffix = only.owner.text, only.suffix
                known.module = only.owner.module
                if known.has_own_name:
                    self._write_name(known)
                else:
                    known.name = self.name_after(only.owner, "", only.suffix)
                known.address = known.grad_address = 0
        elif pieces:
            known.pieces = pieces
            known.address = known.grad_address = 0

    def _slices(self, pieces: Sequence[tuple[torch.Tensor, int, int, int, int]]) -> Iterator[Slice]:
        for parameter, start, count, first, elements in pieces:
            owner = self.find(parameter)
            if owner is not None and count:
                whole = first == 0 and count == (elements or parameter.numel())
                yield Slice(owner, start, count, "" if whole else f"[{first}:{first + count}]")

    def name_after(self, known: Known, before: str = "", behind: str = "") -> int:
        """Number of a name that is made of a parameter's, and changes with it."""
        if not before and not behind:
            return known.name
        number = known.named_after.get((before, behind))
        if number is None:
            text, detail = f"{before}{known.text}{behind}", _detail(known)
            number = known.named_after[before, behind] = self._names.new(
                NameKind.TENSOR, text, detail
            )
        return number

    def tag_pieces(
        self, tensor: torch.Tensor, pieces: Iterable[Slice], category: Category, before: str = ""
    ) -> None:
        """Tag the parts of a flat tensor (or of one of as many elements), each for its parameter."""
        size = tensor.element_size()
        for piece in pieces:
            self._recorder.tag(
                tensor,
                category,
                self.name_after(piece.owner, before, piece.suffix),
                module=piece.owner.module,
                part=(piece.start * size, piece.count * size),
            )

    def watch(self, tensor: torch.Tensor) -> None:
        """Look at a parameter's gradient as soon as it is there."""
        known = self.find(tensor)
        if known is not None:
            known.leaves_early = True

    def find(self, tensor: torch.Tensor) -> Known | None:
        """What is known of a tensor."""
        known = self._known.get(id(tensor))
        return known if known is not None and known.ref() is tensor else None

    def tag_weights(self) -> None:
        """Tag every storage that changed since it was last seen (`model.half()`, `p.data = ...`)."""
        for known, tensor in self.alive():
            self._tag(known, tensor)

    def claim(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that the session's thread trains these."""
        for tensor in tensors:
            known = self.find(tensor)
            if known is not None:
                known.ours = True

    def retag(self) -> None:
        """Recording begins (again): what was tagged before it counts no more."""
        for known in self._known.values():
            known.address = known.grad_address = 0
        self.tag_weights()
        self.tag_gradients(of_all=True)

    def tag_gradients(self, *, of_all: bool = False) -> None:
        """Tag `.grad` of every parameter of ours, unless this step has seen it at that address.

        Args:
            of_all: also of parameters that other threads may train, if they do not right now.
        """
        recorder = self._recorder
        device_type = recorder.source.device_type
        for known, tensor in self.alive():
            if not (known.ours or (of_all and may_read_gradients())):
                continue
            # Torch warns whoever asks a buffer that was computed from parameters for its gradient.
            grad = tensor.grad if tensor.requires_grad and tensor.is_leaf else None
            if grad is None:
                known.grad_address = 0
            elif type(grad) is torch.Tensor and grad.layout is torch.strided:
                address = grad.data_ptr()
                if address != known.grad_address and grad.device.type == device_type:
                    known.grad_address = address
                    offset = int(grad.storage_offset())
                    if offset:
                        offset *= grad.element_size()
                        address -= offset
                    device, name = grad.device.index or 0, known.name
                    if known.pieces:  # a partition, which is called something else
                        name = self.name_after(known, "gradient of ")
                    recorder.tag_address(
                        address, grad.nbytes, _GRADIENT, name, known.module, device, offset
                    )
                    if known.pieces:
                        self.tag_pieces(grad, known.pieces, Category.GRADIENT)
            else:
                recorder.tag(grad, Category.GRADIENT, known.name, module=known.module)

    def tag_early_gradient(self, tensor: torch.Tensor) -> None:
        """Tag one gradient now, before a hook of the job frees it."""
        known = self.find(tensor)
        if known is not None and tensor.grad is not None:
            self._recorder.tag(tensor.grad, Category.GRADIENT, known.name, module=known.module)

    def forget_gradients(self) -> None:
        """A step has ended: addresses of gradients may come back for others."""
        for known in self._known.values():
            known.grad_address = 0

    def alive(self) -> Iterator[tuple[Known, torch.Tensor]]:
        """Every known parameter and buffer that still exists."""
        dead = []
        for key, known in self._known.items():
            tensor = known.ref()
            if tensor is None:
                dead.append(key)
            else:
                yield known, tensor
        for key in dead:
            del self._known[key]

    def _tag(self, known: Known, tensor: torch.Tensor) -> None:
        address = _address(tensor)
        if address and not _has_moved(known, address):
            return
        if known.kind is None and known.address and known.category is Category.WEIGHT:
            # Cast or quantised after it was made and before its model was called. What it has become
            # is no kind for the memory that it was in, which keeps the old name for itself.
            known.kind = kind_of(tensor)
            self._write_name(known)
            known.name = self._names.new(NameKind.TENSOR, known.label, known.kind.value)
        known.address = address
        # A storage keeps its Python object, and so this reference, for as long as it lives.
        known.storage = weakref.ref(tensor.untyped_storage()) if address else None
        if known.pieces:  # these first: of two names for one place, the first holds
            self.tag_pieces(tensor, known.pieces, known.category)
        self._recorder.tag(
            tensor, known.category, known.name, module=known.module, certainty=known.certainty
        )


def kind_of(tensor: torch.Tensor) -> WeightKind:
    """What can be told of a weight without knowing the library that made it."""
    if is_quantised(tensor):
        return WeightKind.QUANTISED
    if tensor.requires_grad and tensor.is_leaf:
        return WeightKind.TRAINABLE
    return WeightKind.FROZEN if isinstance(tensor, torch.nn.Parameter) else WeightKind.BUFFER


def may_read_gradients() -> bool:
    """Whether no other thread runs the autograd engine right now.

    The engine writes gradients without the GIL: to read one meanwhile could crash the process.
    """
    frames = sys._current_frames()
    # A frame that holds itself would keep what the job's functions hold until the next collection.
    del frames[threading.get_ident()]
    for innermost in frames.values():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code is _ENGINE_CODE:
                return False
            frame = frame.f_back
    return True


def _has_moved(known: Known, address: int) -> bool:
    """Whether a tensor at this address is in another storage than the one that was tagged last."""
    if address != known.address:
        return True
    # Gone: the address was given out again since then.
    return known.storage is not None and known.storage() is None


def _detail(known: Known) -> str:
    return known.kind.value if known.kind is not None else ""


def _nothing() -> None:
    return None


def _address(tensor: torch.Tensor) -> int:
    # Only to tell "changed" from "the same": a wrapper subclass gives 0 and is tagged again, and so
    # does a lazy parameter, which refuses to answer.
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError):
        return 0
