"""What a layout says: storages with their sizes, and whose elements each of them holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from memlens.events import Category

__all__ = [
    "Held",
    "Parameter",
    "Piece",
    "RankLayout",
    "State",
    "check_rank",
    "cut",
    "total_bytes",
    "whole",
]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model, before it is sharded."""

    name: str
    shape: tuple[int, ...]
    element_bytes: int = 4
    """Size of an element as the job builds it; ZeRO casts to its own precision."""
    trainable: bool = True

    @property
    def elements(self) -> int:
        """How many; a scalar has one."""
        return prod(self.shape)


@dataclass(frozen=True)
class Piece:
    """Some elements of a storage, and whose they are."""

    parameter: str
    start: int
    """First element within the storage."""
    count: int
    parameter_start: int = 0
    """Which element of the parameter that is."""


@dataclass(frozen=True)
class Held:
    """One storage on one rank."""

    name: str
    category: Category
    elements: int
    """Padding included."""
    element_bytes: int
    pieces: tuple[Piece, ...] = ()
    """Whose elements it holds; what no piece covers is padding."""
    on_host: bool = False

    @property
    def size_bytes(self) -> int:
        """Of the storage."""
        return self.elements * self.element_bytes

    @property
    def padding_elements(self) -> int:
        """Elements that belong to no parameter."""
        return self.elements - sum(piece.count for piece in self.pieces)


@dataclass(frozen=True)
class State:
    """What an optimizer keeps of each tensor that it updates."""

    per_element_bytes: float = 8
    """Adam's two fp32 moments, unless told otherwise."""
    per_tensor_bytes: int = 4
    """Adam's step counter."""

    def of(self, tensors: Iterable[Held]) -> int:
        """Bytes of all of it."""
        return sum(
            round(tensor.elements * self.per_element_bytes) + self.per_tensor_bytes
            for tensor in tensors
        )


ADAM = State()


@dataclass(frozen=True)
class RankLayout:
    """Everything that one rank holds of a sharded model, by kind; activations are not in it."""

    rank: int
    weights: tuple[Held, ...]
    """What forward and backward use, as it is held between them."""
    master_weights: tuple[Held, ...]
    """Higher-precision copies; empty where the optimizer updates the weights themselves."""
    gradients_between_steps: tuple[Held, ...]
    """What is never given back once the first step is done."""
    gradients_after_backward: tuple[Held, ...]
    """After the last backward before a step."""
    gradients_in_step: tuple[tuple[Held, ...], ...]
    """While the optimizer runs: once for each of its calls, in their order."""
    optimizer_tensors: tuple[Held, ...]
    """What the optimizer updates; its state follows their sizes."""
    persistent: tuple[Held, ...] = ()
    """Whole parameters that stay gathered although they are sharded (ZeRO 3)."""
    communication: tuple[Held, ...] = ()
    """Buckets and staging buffers, most of them only within backward."""
    transient: tuple[Held, ...] = ()
    """The most that collectives allocate beside these, for a moment; upper bounds."""

    @property
    def weight_bytes(self) -> int:
        """On the device and the host together, as all of these."""
        return total_bytes(self.weights)

    @property
    def master_weight_bytes(self) -> int:
        """Of the higher-precision copies."""
        return total_bytes(self.master_weights)

    @property
    def gradient_bytes(self) -> int:
        """After the last backward before a step."""
        return total_bytes(self.gradients_after_backward)

    def state_bytes(self, state: State = ADAM) -> int:
        """What the optimizer keeps.

        Args:
            state: what it keeps of each tensor that it updates.
        """
        return state.of(self.optimizer_tensors)


def total_bytes(storages: Iterable[Held], *, on_host: bool | None = None) -> int:
    """Sum of sizes.

    Args:
        storages: each counts once.
        on_host: only those there, or only those that are not; None: all.
    """
    return sum(each.size_bytes for each in storages if on_host is None or each.on_host is on_host)


def whole(
    parameters: Iterable[Parameter],
    category: Category,
    element_bytes: int | None = None,
    *,
    on_host: bool = False,
) -> tuple[Held, ...]:
    """One storage for each parameter, as if nothing were sharded.

    Args:
        parameters: whose.
        category: what for.
        element_bytes: size of an element; None: that of the parameter.
        on_host: where they are.
    """
    return tuple(
        Held(
            each.name,
            category,
            each.elements,
            element_bytes or each.element_bytes,
            (Piece(each.name, 0, each.elements),),
            on_host,
        )
        for each in parameters
    )


def cut(spans: Sequence[tuple[str, int, int]], start: int, end: int) -> tuple[Piece, ...]:
    """The pieces of a flat tensor that lie in a range of it; places are relative to the range.

    Args:
        spans: of the flat tensor: parameter, first element, number of elements.
        start: first element of the range.
        end: the one after its last.
    """
    pieces = []
    for name, first, count in spans:
        low, high = max(first, start), min(first + count, end)
        if low < high:
            pieces.append(Piece(name, low - start, high - low, low - first))
    return tuple(pieces)


def check_rank(rank: int, world_size: int) -> None:
    """See that there is such a rank.

    Raises:
        ValueError: there is none.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"there is no rank {rank} of {world_size}")
