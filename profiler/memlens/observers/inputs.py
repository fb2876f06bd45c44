"""Inputs: the batches that come from a DataLoader or go into a model."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any

import torch

from memlens import torch_private
from memlens.events import Category, NameKind
from memlens.observers.parameters import Parameters
from memlens.recording.recorder import Recorder
from memlens.recording.storages import tensors_in

__all__ = ["InputObserver"]


class InputObserver:
    """Tags what a DataLoader hands out, and what a model is called with from outside.

    Attribution ignores a tag of this kind on what a module has made: one model's output may be the
    next one's input, and stays an activation.
    """

    def __init__(self, recorder: Recorder, parameters: Parameters) -> None:
        self._recorder = recorder
        self._parameters = parameters
        self._roots: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._undo = ExitStack()

    def install(self, undo: ExitStack) -> None:
        """Wrap the DataLoader's iterators; models are hooked when they are first called."""
        undo.callback(self._undo.close)
        iterator = torch_private.loader_iterator_class()
        if iterator is None:
            return
        original = iterator.__next__
        tag = self._recorder.hook("input observer", self._tag_batch)

        def __next__(loader: Any) -> Any:
            batch = original(loader)
            tag(batch)
            return batch

        iterator.__next__ = __next__
        undo.callback(setattr, iterator, "__next__", original)

    def on_root(self, module: torch.nn.Module) -> None:
        """A model is called from outside: look at its arguments when the call ends.

        Global hooks of torch are not given keyword arguments, so the model gets a hook of its own.
        """
        if module in self._roots:
            return
        self._roots.add(module)
        hook = self._recorder.hook("input observer", self._tag_arguments)
        try:
            handle = module.register_forward_hook(
                lambda *args: hook(*args), with_kwargs=True, prepend=True
            )
        except RuntimeError:  # a scripted module takes no hooks once it is compiled
            return
        self._undo.callback(handle.remove)

    def _tag_batch(self, batch: Any) -> None:
        self._tag(batch, "batch")

    def _tag_arguments(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        for index, value in enumerate(args):
            self._tag(value, f"argument {index}")
        for name, value in kwargs.items():
            self._tag(value, name)

    def _tag(self, value: Any, name: str) -> None:
        intern = self._recorder.names.intern
        for path, tensor in tensors_in(value, name):
            if tensor.grad_fn is None and self._parameters.find(tensor) is None:
                self._recorder.tag(tensor, Category.INPUT, intern(NameKind.TENSOR, path))
