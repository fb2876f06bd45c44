"""One failed request in sentences, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from memlens.analysis.fit import Fit, Obstacle
from memlens.analysis.remedies import Remedy, together_bytes
from memlens.answers import OutOfMemory
from memlens.report.groups import alike_allocations, alike_modules
from memlens.report.oom.explain import Explanation
from memlens.report.text import count, frame_text, plain, shorten, user_frames
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.answers import Frame
    from memlens.events import Phase

__all__ = ["explanation_lines", "place_text", "wrapped"]

MOST_REMEDIES = 5
MOST_HOLDERS = 3
STACK_FRAMES = 3
MOST_PIECES = 1000
"""So many are told of at most."""


def explanation_lines(found: Explanation, width: int, *, with_rank: bool = False) -> list[str]:
    """The explanation of one failed request.

    Args:
        found: what is to be said.
        width: of a line, in characters.
        with_rank: also whose it was.
    """
    lines: list[str] = []
    for text in _sentences(found, width, with_rank):
        lines += wrapped(text, width)
    return lines


def wrapped(text: str, width: int) -> list[str]:
    """Lines of one sentence, of which those that it goes on in are indented."""
    body = text.lstrip()
    indent = len(text) - len(body)
    return wrap(
        body,
        max(width, 20),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
    )


def _sentences(found: Explanation, width: int, with_rank: bool) -> Iterator[str]:
    event, fit = found.event, found.fit
    where = place_text(event, found.phase, found.module)
    if event.requested_bytes is None or fit is None:
        peer = "another rank" if event.peer_rank is None else f"rank {event.peer_rank}"
        me = f"rank {found.rank}" if with_rank else "this rank"
        yield f"{peer} ran out of memory; {me} was then in {where}"
    else:
        mine = f"rank {found.rank}, " if with_rank else ""
        yield f"{mine}{where}: {format_bytes(event.requested_bytes)} more were asked for"
        if event.stack:
            yield f"  by {_called(event.stack)}"
    yield from _device(event, fit)
    if fit is not None:
        yield _verdict(event, fit)
    yield from _alive(found, width)
    if fit is not None and fit.missing_bytes:
        yield from _remedies(found, fit)


def place_text(event: OutOfMemory, phase: Phase, module: str) -> str:
    """Where in the training: `step 2, forward, in layers.3`."""
    where = f"step {event.step}, {phase.value}"
    return f"{where}, in {plain(module)}" if module else where


def _device(event: OutOfMemory, fit: Fit | None) -> Iterator[str]:
    text = f"{plain(event.device)} has {format_bytes(event.device_total_bytes)}"
    if event.limit_bytes is not None:
        text += f", of which this process may reserve {format_bytes(event.limit_bytes)}"
    text += f": {format_bytes(event.allocated_bytes)} allocated"
    cached = event.reserved_bytes - event.allocated_bytes
    if cached > 0:
        text += f", {format_bytes(cached)} reserved beyond that"
    text += f", {format_bytes(event.device_free_bytes)} free"
    if fit and fit.outside_bytes:
        text += (
            f", {format_bytes(fit.outside_bytes)} outside of PyTorch (CUDA context, NCCL, other "
            "processes)"
        )
    yield text
    if event.private_pool_bytes:
        yield (
            f"  {format_bytes(event.private_pool_bytes)} of what is reserved belong to private pools "
            "(CUDA graphs), from which nothing else is served"
        )
    if event.pending_bytes:
        yield f"  {format_bytes(event.pending_bytes)} were freed, but other streams still use them"


def _verdict(event: OutOfMemory, fit: Fit) -> str:
    if not fit.missing_bytes:
        return "By now the device has room for it: something was given back right after it failed."
    pieces = _pieces(event, fit)
    if fit.obstacle is Obstacle.FRAGMENTATION:
        return f"It would have fitted but for fragmentation: {pieces}."
    if fit.obstacle is Obstacle.POOLS:
        return f"It would have fitted but for streams and pools: {pieces}."
    if fit.obstacle is Obstacle.STREAMS:
        return (
            "It would have fitted but for other streams, which still use "
            f"{format_bytes(event.pending_bytes)} that were given back."
        )
    if fit.obstacle is Obstacle.LIMIT:
        return (
            "It would have fitted but for the limit of this process, "
            f"{format_bytes(event.limit_bytes or 0)}."
        )
    return f"{format_bytes(fit.short_bytes)} short, even if all were in one piece; {pieces}."


def _pieces(event: OutOfMemory, fit: Fit) -> str:
    if not event.free_pieces:
        return "nothing lies free in the cache"
    at_least = "at least " if len(event.free_pieces) == MOST_PIECES else ""
    text = "nothing lies free for it in the cache"
    if fit.usable:
        text = (
            f"{at_least}{format_bytes(sum(fit.usable))} lie free for it in the cache, in "
            f"{count(len(fit.usable), 'piece')}, the largest of {format_bytes(fit.usable[0])}"
        )
    if fit.elsewhere_bytes:
        text += (
            f"; {at_least}{format_bytes(fit.elsewhere_bytes)} more are kept for other streams, or for "
            "requests of another size"
        )
    return text


def _alive(found: Explanation, width: int) -> Iterator[str]:
    held = sorted(found.categories.items(), key=lambda item: -item[1])
    alive = ", ".join(
        f"{category.value.replace('_', ' ')} {format_bytes(size)}"
        for category, size in held
        if size
    )
    yield f"alive: {alive or 'nothing that was recorded'}"
    room = max(20, width - 24)
    for modules in alike_modules(found.modules)[:MOST_HOLDERS]:
        name = plain(modules.name(modules.first.module)) or "(no module)"
        most = max(modules.first.categories.items(), key=lambda item: item[1])[0]
        yield (
            f"  {format_bytes(modules.total_bytes):>10}  {_times(modules.count)}"
            f"{shorten(name, room)}, most of it {most.value.replace('_', ' ')}"
        )
    blocks = alike_allocations(found.allocations)[:MOST_HOLDERS]
    if blocks:
        yield "largest blocks:"
    for group in blocks:
        block = group.first
        name = plain(group.name(block.name)) or (
            f"in {plain(group.name(block.module))}" if block.module else ""
        )
        when = (
            "from before the recording"
            if block.preexisting
            else f"step {block.step}, {block.phase.value}"
        )
        what = [block.category.value.replace("_", " "), *([shorten(name, room)] if name else [])]
        yield (
            f"  {format_bytes(group.total_bytes):>10}  {_times(group.count)}{', '.join(what)}, {when}"
        )
        if block.stack:
            yield f"              at {_called(block.stack)}"


def _remedies(found: Explanation, fit: Fit) -> Iterator[str]:
    if not found.remedies:
        yield "No change that memlens knows of would have freed much."
        return
    shown = [remedy for remedy in found.remedies if remedy.suffices]
    missing = format_bytes(fit.missing_bytes)
    if shown:
        yield (
            f"{missing} more had to be free. Each of these alone would have let it through, the "
            "cheapest first:"
        )
    elif found.together is not None:
        shown = list(found.together)
        yield (
            f"{missing} more had to be free. No change alone suffices; these two together do, with "
            f"{format_bytes(together_bytes(shown))}:"
        )
    else:
        shown = sorted(found.remedies, key=lambda remedy: -remedy.frees_bytes)
        yield (
            f"{missing} more had to be free. No two of these changes suffice; all together free "
            f"{format_bytes(together_bytes(shown))}:"
        )
    for remedy in shown[:MOST_REMEDIES]:
        yield from _remedy(remedy)


def _remedy(remedy: Remedy) -> Iterator[str]:
    verb = "saves" if "request" in remedy.parts else "frees"
    yield f"- {plain(remedy.change)}: {verb} {format_bytes(remedy.frees_bytes)}"
    yield f"    {plain(remedy.reason)}; cost: {remedy.cost}"
    if remedy.where is not None:
        yield f"    at {frame_text(remedy.where)}"


def _called(stack: tuple[Frame, ...]) -> str:
    """The innermost line that says something, and who called it."""
    return " < ".join(frame_text(frame) for frame in user_frames(stack, STACK_FRAMES))


def _times(number: int) -> str:
    return f"{number} x " if number > 1 else ""
