"""Optimizers: when they step, what state they hold, which of their parameters are master weights."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from memlens import torch_private
from memlens.events import Category, MarkKind, NameKind
from memlens.observers.parameters import Parameters
from memlens.recording.recorder import Recorder
from memlens.recording.storages import inner_tensors, tensors_in

__all__ = ["OptimizerObserver"]


class OptimizerObserver:
    """Marks every `step()`, counts training steps and tags optimizer state.

    A training step ends when all optimizers of the job have stepped once; which ones belong to it
    is learned from the steps before. One that steps twice in a row ends the step between the two.
    Those that step within backward (layer by layer, as gradients come) end it with the backward.
    """

    def __init__(self, recorder: Recorder, parameters: Parameters) -> None:
        self._recorder = recorder
        self._parameters = parameters
        self._depth = 0
        self._inner: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        """Have stepped within the one that is at work."""
        self._scopes: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = (
            weakref.WeakKeyDictionary()
        )
        self._tagged: weakref.WeakKeyDictionary[
            torch.optim.Optimizer, dict[tuple[int, str], tuple[int, int]]
        ] = weakref.WeakKeyDictionary()
        self._seen: set[int] = set()
        self._stepped: dict[int, int] = {}
        """Which optimizers have stepped since the last training step, within which backward (or 0)."""
        self._expected: set[int] = set()
        self._overdue = False
        """One has stepped twice in a row, so the step between the two is over."""
        self._whole: list[int] = []
        """Steps of libraries' own optimizers that are open; each steps ours, often piece by piece."""
        self._in_whole: set[int] = set()
        """Which optimizers have stepped within the outermost of those."""
        self.step = 0
        self.on_step: list[Callable[[int], None]] = []
        """Called with the number of the step that begins."""

    def install(self, undo: ExitStack) -> None:
        """Hook into every optimizer of this process."""
        hook = self._recorder.hook
        self._recorder.enter_step = hook("optimizer observer", self._enter_whole)
        self._recorder.leave_step = hook("optimizer observer", self._leave_whole)
        for handle in (
            torch_optimizer.register_optimizer_step_pre_hook(
                hook("optimizer observer", self._enter)
            ),
            torch_optimizer.register_optimizer_step_post_hook(
                hook("optimizer observer", self._leave)
            ),
        ):
            undo.callback(handle.remove)
        original = torch.optim.Optimizer.__init__
        learn = hook("optimizer observer", self._learn)

        def __init__(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            learn(optimizer)

        __init__.__wrapped__ = original  # type: ignore[attr-defined]
        setattr(torch.optim.Optimizer, "__init__", __init__)  # noqa: B010
        undo.callback(setattr, torch.optim.Optimizer, "__init__", original)

    def learn(self, optimizer: torch.optim.Optimizer) -> int:
        """Take in an optimizer; it is expected to step once per training step."""
        scope = self._scopes.get(optimizer)
        if scope is None:
            self._recorder.evidence()
            kind = type(optimizer).__name__
            same = sum(type(other).__name__ == kind for other in self._scopes)
            text = kind if not same else f"{kind}#{same + 1}"
            scope = self._recorder.names.new(NameKind.SCOPE, text, kind)
            self._scopes[optimizer] = scope
            self._expected.add(scope)
        return scope

    def _learn(self, optimizer: torch.optim.Optimizer) -> None:
        self.learn(optimizer)

    # -- hooks ---------------------------------------------------------------------------------

    def _enter(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        scope = self.learn(optimizer)
        self._depth += 1
        if self._depth > 1:
            # Hooks are not told of a step that an exception has left, so see who is still at work.
            self._depth = _open_steps()
        if self._depth > 1:  # one optimizer within another: a wrapper, not a step of its own
            self._expected.discard(scope)
            return
        backward = self._recorder.backward
        before = self._stepped.get(scope)
        again = scope in self._in_whole or (backward and before == backward)
        if self._whole:
            self._in_whole.add(scope)
        if before is not None and not again:
            self._expected = set(self._stepped)
            self._overdue = True
            self._end_if_complete()
        self._recorder.take_stock()  # first: masters are known by it
        if scope not in self._seen:
            # State from before: made by the constructor (Adagrad), or loaded from a checkpoint.
            self._seen.add(scope)
            self._learn_parameters(optimizer)
            for group in optimizer.param_groups:
                self._parameters.claim(group["params"])
            self._tag_state(optimizer)
        if not backward:
            # Gradients that the job has put there since (of master weights; unscaled ones).
            self._parameters.tag_gradients()
        self._recorder.mark(MarkKind.OPTIMIZER_ENTER, scope)

    def _leave(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth:
            self._inner.add(optimizer)
            return
        scope = self.learn(optimizer)
        self._recorder.take_stock()
        self._tag_state(optimizer)
        # The wrapper, which comes first, may know better names, or hold no state itself.
        for inner in list(self._inner):
            self._tag_state(inner)
        self._inner.clear()
        self._recorder.mark(MarkKind.OPTIMIZER_EXIT, scope)
        self._stepped[scope] = self._recorder.backward
        self._end_if_complete()

    def _enter_whole(self, kind: str) -> None:
        """A library's own optimizer begins to step: one of torch's, once for each group of parameters."""
        scope = self._recorder.names.intern(NameKind.SCOPE, kind, kind)
        self._whole.append(scope)
        self._recorder.mark(MarkKind.OPTIMIZER_ENTER, scope)

    def _leave_whole(self, counts: bool) -> None:
        if self._whole:
            self._recorder.mark(MarkKind.OPTIMIZER_EXIT, self._whole.pop())
        if not self._whole:
            if not counts:
                for scope in self._in_whole:
                    self._stepped.pop(scope, None)
            self._in_whole.clear()
            if self._stepped:
                self._end_if_complete()

    def after_backward(self) -> None:
        """Optimizers that step within backward may have ended a training step."""
        if self._stepped:
            self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self._whole:
            return
        complete = set(self._stepped) >= self._expected & set(self._scopes.values())
        if (complete or self._overdue) and not self._recorder.backward:
            self._end_step()

    def state_tensors(self) -> Iterator[torch.Tensor]:
        """All tensors in the state of all optimizers."""
        for optimizer in list(self._scopes):
            for state in list(optimizer.state.values()):
                for _, tensor in tensors_in(state):
                    yield tensor

    def retag(self) -> None:
        """Recording begins (again): what was tagged before it counts no more."""
        self._tagged.clear()
        for optimizer in list(self._scopes):
            self._learn_parameters(optimizer)
            self._tag_state(optimizer)

    def _end_step(self) -> None:
        self._stepped.clear()
        self._overdue = False
        self.step += 1
        self._parameters.forget_gradients()
        self._recorder.mark(MarkKind.STEP, value=self.step)
        for call in self.on_step:
            call(self.step)

    # -- what optimizers hold ------------------------------------------------------------------

    def _learn_parameters(self, optimizer: torch.optim.Optimizer) -> None:
        """Parameters that no module holds are master weights if some module holds lesser ones."""
        unknown = []
        for number, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                if self._parameters.find(parameter) is None:
                    unknown.append((f"param_groups.{number}.{index}", parameter))
        if not unknown:
            return
        counterparts: dict[tuple[int, ...], list[Any]] = {}
        for known, tensor in self._parameters.alive():
            counterparts.setdefault(tuple(tensor.shape), []).append((known, tensor))
        for text, parameter in unknown:
            category, module = Category.WEIGHT, -1
            for known, tensor in counterparts.get(tuple(parameter.shape), ()):
                if tensor.element_size() < parameter.element_size():
                    category, module = Category.MASTER_WEIGHT, known.module
                    break
            self._parameters.learn(parameter, text, module, category)

    def _tag_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Tag what `optimizer.state` holds and was not seen at that address before."""
        # Of this optimizer alone: parameters of a later one may get the ids and addresses of its own.
        tagged = self._tagged.setdefault(optimizer, {})
        states = optimizer.state
        owners: Any = list(states)
        if self._recorder.backward:  # of one layer, and called for each
            mine = [owner for group in optimizer.param_groups for owner in group["params"]]
            owners = [owner for owner in mine if owner in states]
        for owner in owners:
            state = states[owner]
            if not isinstance(state, dict):
                self._tag_deep(owner, "state", state)
                continue
            key_of_owner = id(owner)
            known = self._parameters.find(owner) if isinstance(owner, torch.Tensor) else None
            divided = 0 if known is None else len(known.pieces)  # may become known later
            for name, value in state.items():
                if type(value) is torch.Tensor:
                    if value.layout is torch.strided:
                        place = value.data_ptr(), divided
                        if tagged.get((key_of_owner, name)) != place:
                            tagged[key_of_owner, name] = place
                            self._tag(owner, str(name), value)
                elif value is not None and not isinstance(value, (int, float, bool, str)):
                    self._tag_deep(owner, str(name), value)

    def _tag_deep(self, owner: Any, name: str, value: Any) -> None:
        for path, tensor in tensors_in(value, name):
            self._tag(owner, path, tensor)

    def _tag(self, owner: Any, name: str, tensor: torch.Tensor) -> None:
        known = self._parameters.find(owner) if isinstance(owner, torch.Tensor) else None
        if known is not None and tensor is known.ref():
            return
        if type(tensor) is not torch.Tensor and is_traceable_wrapper_subclass(tensor):
            parts = inner_tensors(tensor)
            if len(parts) > 1:  # quantised: codes, scales and tables, each by its name
                for part, inner in parts:
                    self._tag(owner, f"{name}.{part}", inner)
                return
            if parts and type(parts[0][1]) is not torch.Tensor:  # distributed and quantised
                self._tag(owner, name, parts[0][1])
                return
        master = "master" in name.lower() or "fp32_param" in name.lower()
        category = Category.MASTER_WEIGHT if master else Category.OPTIMIZER_STATE
        self._recorder.tag(
            tensor,
            category,
            self._recorder.names.intern(NameKind.TENSOR, name)
            if known is None
            else self._parameters.name_after(known, f"{name} of ", known.suffix),
            module=-1 if known is None else known.module,
        )
        if known is not None and known.pieces and tensor.numel() == owner.numel():
            self._parameters.tag_pieces(tensor, known.pieces, category, f"{name} of ")


_STEP_CODE = torch_private.optimizer_step_code()


def _open_steps() -> int:
    """How many calls of `Optimizer.step` are on this thread's stack, the one that asks included."""
    count = 0
    frame = inspect.currentframe()
    while frame is not None:
        count += frame.f_code is _STEP_CODE
        frame = frame.f_back
    return max(count, 1)
