"""Modules: which one is at work, forward and backward, and what it is called."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from memlens import torch_private
from memlens.adapters import WeightAdapters
from memlens.events import Category, MarkKind, NameKind
from memlens.observers.parameters import Parameters, kind_of
from memlens.recording.recorder import Recorder
from memlens.recording.storages import first_tensor

__all__ = ["ModuleObserver"]

_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}
"""Modules that stand for the one inside them: class name -> attribute, left out of names."""


class ModuleObserver:
    """Marks every module call, and the moment at which the gradient comes to its output.

    The backward of a module is known by a hook on the autograd node of its output. Full backward
    hooks of torch would insert nodes and views into the job's graph; a node's pre-hook does not.
    """

    def __init__(self, recorder: Recorder, parameters: Parameters) -> None:
        self._recorder = recorder
        self._parameters = parameters
        self._ids: dict[int, int] = {}
        self._refs: dict[int, weakref.ref[torch.nn.Module]] = {}
        self._parents: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[torch.nn.Module]] = (
            weakref.WeakKeyDictionary()
        )
        self._named: set[int] = set()
        self._called: set[int] = set()
        self._prefixes: dict[int, str] = {}
        self._paths: dict[int, str] = {}
        """What the names of a module's own parameters begin with."""
        self._adapters = WeightAdapters(recorder)
        self._flow_hooks: dict[int, Callable[..., None]] = {}
        self._stack: list[int] = []
        self._last_node = -1
        self.on_root: list[Callable[[torch.nn.Module], None]] = []
        """Called when a call from outside of any module begins."""
        self.on_new: list[Callable[[], None]] = []
        """Called when a module turns up."""

    @property
    def depth(self) -> int:
        """How many module calls are open."""
        return len(self._stack)

    def install(self, undo: ExitStack) -> None:
        """Hook into every module of this process."""
        hook = self._recorder.hook
        for handle in (
            torch_module.register_module_forward_pre_hook(hook("module observer", self._enter)),
            torch_module.register_module_forward_hook(
                hook("module observer", self._exit), always_call=True
            ),
            torch_module.register_module_module_registration_hook(
                hook("module observer", self._add_child)
            ),
            torch_module.register_module_parameter_registration_hook(
                hook("module observer", self._add_parameter)
            ),
            torch_module.register_module_buffer_registration_hook(
                hook("module observer", self._add_parameter)
            ),
        ):
            undo.callback(handle.remove)
        # Copies and unpickled modules get their parameters without registering them.
        original: Callable[..., None] = torch.nn.Module.__setstate__
        learn = hook("module observer", self._add_copy)

        def __setstate__(module: torch.nn.Module, state: Any) -> None:
            original(module, state)
            learn(module)

        def restore() -> None:
            # Whoever has patched it since (dynamo does, for good) calls ours, which then does nothing.
            if torch.nn.Module.__setstate__ is __setstate__:
                torch.nn.Module.__setstate__ = original  # type: ignore[method-assign]

        torch.nn.Module.__setstate__ = __setstate__  # type: ignore[method-assign]
        undo.callback(restore)

    def learn_existing(self, modules: list[torch.nn.Module]) -> None:
        """Take in models that were made before the session. They get names when they are called."""
        for module in modules:
            self._take_in(module)

    def name(self, module: torch.nn.Module) -> None:
        """Give a model its names now; the first one's stand alone."""
        self._name_tree(self._top(module))

    def forget_calls(self) -> None:
        """A step has ended: calls that are still open were left by an exception that no hook saw."""
        self._stack.clear()

    def name_all(self) -> None:
        """Name also the models that were never called (a copy that holds a moving average).

        Kinds of weights are told once more: a job may freeze some of them on the way.
        """
        for ref in list(self._refs.values()):
            module = ref()
            if module is not None and self._ids.get(id(module)) not in self._named:
                self._name_tree(self._top(module))
        alive = [ref() for ref in list(self._refs.values())]
        self._tell_kinds([module for module in alive if module is not None])
        for known, tensor in self._parameters.alive():
            if known.kind is None and known.category is Category.WEIGHT:  # of no module
                self._parameters.tell_kind(tensor, kind_of(tensor))

    # -- hooks ---------------------------------------------------------------------------------

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        number = self._ids.get(id(module))
        if number is None:
            number = self._learn(module)
        if number not in self._named:
            self._name_tree(self._top(module))
            self._named.add(number)  # also if it has left the tree that it was part of
        if number not in self._called:
            self._called.add(number)
            self._parameters.claim(module.parameters())
        if not self._stack:
            self._recorder.evidence()
            for call in self.on_root:
                call(module)
        self._stack.append(number)
        self._recorder.mark(MarkKind.MODULE_ENTER, number)

    def _exit(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        number = self._ids.get(id(module), -1)
        if number not in self._stack:
            return
        # A call that was left by an exception some hooks never saw: close what is still open.
        while self._stack[-1] != number:
            self._recorder.mark(MarkKind.MODULE_EXIT, self._stack.pop())
        self._stack.pop()
        node = None
        if torch.is_grad_enabled():
            tensor = first_tensor(output)
            node = tensor.grad_fn if tensor is not None else None
            if node is not None:
                # What returns the last one's result as its own (a Sequential) has no backward of its own.
                sequence = torch_private.node_number(node)
                if sequence != self._last_node:
                    self._last_node = sequence
                    node.register_prehook(self._flow_hook(number))
        self._recorder.mark(MarkKind.MODULE_EXIT, number, int(node is not None))

    def _flow_hook(self, number: int) -> Callable[..., None]:
        hook = self._flow_hooks.get(number)
        if hook is None:
            mark = partial(self._recorder.mark, MarkKind.BACKWARD_MODULE, number)
            hook = self._flow_hooks[number] = self._recorder.hook(
                "module observer", lambda *_: mark()
            )
        return hook

    def _add_child(self, module: torch.nn.Module, name: str, child: torch.nn.Module | None) -> None:
        if child is not None:
            self._parents[child] = weakref.ref(module)

    def _add_parameter(
        self, module: torch.nn.Module, name: str, tensor: torch.Tensor | None
    ) -> None:
        self._recorder.evidence(certain=False)
        self._learn_parameter(module, name, tensor)

    def _add_copy(self, module: torch.nn.Module) -> None:
        self._recorder.evidence(certain=False)
        self._take_in(module)

    def _take_in(self, module: torch.nn.Module) -> None:
        """Learn of a module that has its parts already."""
        for name, child in module._modules.items():
            self._add_child(module, name, child)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            self._learn_parameter(module, name, tensor)

    def _learn_parameter(
        self, module: torch.nn.Module, name: str, tensor: torch.Tensor | None
    ) -> None:
        if tensor is not None:
            number = self._ids.get(id(module))
            if number is None:
                number = self._learn(module)
            # Its place in the model is not known yet; `_name_tree` says the qualified name later.
            known = self._parameters.learn(tensor, f"{type(module).__name__}.{name}", number)
            known.ours = known.ours or number in self._called

    # -- names ---------------------------------------------------------------------------------

    def _learn(self, module: torch.nn.Module, text: str | None = None) -> int:
        for call in self.on_new:
            call()
        key, kind = id(module), type(module).__name__
        number = self._ids[key] = self._recorder.names.new(NameKind.MODULE, text or kind, kind)

        def gone(_: object) -> None:
            self._ids.pop(key, None)
            self._refs.pop(key, None)

        self._refs[key] = weakref.ref(module, gone)
        return number

    def _top(self, module: torch.nn.Module) -> torch.nn.Module:
        seen = {id(module)}
        while True:
            ref = self._parents.get(module)
            parent = ref() if ref is not None else None
            if parent is None or id(parent) in seen:
                return module
            seen.add(id(parent))
            module = parent

    def _name_tree(self, top: torch.nn.Module) -> None:
        """Give a model's modules, parameters and buffers their qualified names."""
        prefix = self._prefix(top)
        pending = [(top, prefix.rstrip("."), prefix)]
        seen: dict[int, torch.nn.Module] = {}
        while pending:
            module, text, prefix = pending.pop()
            if id(module) in seen:
                continue
            seen[id(module)] = module
            kind = type(module).__name__
            number = self._ids.get(id(module))
            if number is None:
                number = self._learn(module, text or kind)
            else:
                self._recorder.names.rename(NameKind.MODULE, number, text or kind, kind)
            self._named.add(number)
            self._paths[number] = prefix
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self._parameters.rename(tensor, prefix + name, number)
            inner = _WRAPPERS.get(kind)
            for name, child in module._modules.items():
                if child is None:
                    continue
                self._parents.setdefault(child, weakref.ref(module))
                if name == inner:
                    pending.append((child, text, prefix))
                else:
                    pending.append((child, prefix + name, f"{prefix}{name}."))
        self._tell_kinds(seen.values())

    def _tell_kinds(self, modules: Iterable[torch.nn.Module]) -> None:
        """Say of which kind the weights of named modules are; adapters know some of them better."""
        modules = list(modules)
        declared = set()
        for module in modules:
            number = self._ids[id(module)]
            path = self._paths.get(number, f"{type(module).__name__}.")
            for name, tensor, kind in self._adapters.weights(module):
                # What no module has registered, such as scales, becomes known by this.
                known = self._parameters.learn(tensor, path + name, number)
                if known.text != path + name:
                    self._parameters.rename(tensor, path + name, known.module)
                self._parameters.tell_kind(tensor, kind)
                declared.add(id(tensor))
        for module in modules:
            for weight in [*module._parameters.values(), *module._buffers.values()]:
                if weight is not None and id(weight) not in declared:
                    self._parameters.tell_kind(weight, kind_of(weight))

    def _prefix(self, top: torch.nn.Module) -> str:
        """The first model's names stand alone; those of further models begin with their class."""
        while (inner := _WRAPPERS.get(type(top).__name__)) in top._modules:
            core = top._modules[str(inner)]
            if core is None:
                break
            top = core
        number = self._ids.get(id(top))
        if number is None:
            number = self._learn(top)
        prefix = self._prefixes.get(number)
        if prefix is None:
            kind = type(top).__name__
            prefix, count = "", 1
            if self._prefixes:
                prefix = f"{kind}."
            while prefix in self._prefixes.values():
                count += 1
                prefix = f"{kind}#{count}."
            self._prefixes[number] = prefix
        return prefix
