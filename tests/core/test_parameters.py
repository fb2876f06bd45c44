"""The table of parameters: which storages it tags, and when it does so again."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from memlens.events import Category
from memlens.observers.backward import BackwardObserver
from memlens.observers.parameters import Parameters, may_read_gradients
from memlens.recording.names import Names
from memlens.recording.recorder import Recorder


class Notes:
    """Stands for the recorder: keeps (category, address) of each tag."""

    def __init__(self) -> None:
        self.names = Names()
        self.source = SimpleNamespace(device_type="cpu")
        self.tags: list[tuple[str, int]] = []

    def tag(self, tensor: torch.Tensor, category: Category, name: int, **_: Any) -> None:
        self.tags.append((category.value, tensor.data_ptr()))

    def tag_address(self, address: int, *_: Any) -> None:
        self.tags.append(("gradient", address))

    def take(self) -> list[tuple[str, int]]:
        """Tags since the last call."""
        found, self.tags = self.tags, []
        return found


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def parameters(notes: Notes) -> Parameters:
    return Parameters(cast("Recorder", notes))


def learn(parameters: Parameters, weight: nn.Parameter) -> None:
    """Learn of a parameter that this thread trains."""
    parameters.learn(weight, "weight", 0)
    parameters.claim([weight])


def test_a_weight_is_tagged_once(notes: Notes, parameters: Parameters) -> None:
    weight = nn.Parameter(torch.ones(3))
    parameters.learn(weight, "weight", 0)
    assert notes.take() == [("weight", weight.data_ptr())]

    parameters.tag_weights()
    parameters.rename(weight, "layer.weight", 0)
    weight.data.add_(1)
    parameters.tag_weights()

    assert notes.take() == []


def test_a_weight_in_another_storage_is_tagged_again(notes: Notes, parameters: Parameters) -> None:
    weight = nn.Parameter(torch.ones(3))
    parameters.learn(weight, "weight", 0)
    notes.take()
    kept = weight.data
    weight.data = torch.zeros(3)

    parameters.tag_weights()

    assert notes.take() == [("weight", weight.data_ptr())]
    assert kept.data_ptr() != weight.data_ptr()


def test_a_weight_in_another_storage_at_the_same_address_is_tagged_again(
    notes: Notes, parameters: Parameters
) -> None:
    """An address says nothing of whose it is: allocators hand out what was just freed."""
    # So large that the kernel is asked each time, and gives the same place. Nothing is ever written, so
    # that no memory is used.
    size = 64 * 1024 * 1024
    weight = nn.Parameter(torch.empty(size))
    address = weight.data_ptr()
    parameters.learn(weight, "weight", 0)
    notes.take()
    weight.data = torch.empty(0)
    weight.data = torch.empty(size)
    assert weight.data_ptr() == address

    parameters.tag_weights()

    assert notes.take() == [("weight", address)]


def test_a_gradient_is_tagged_once_in_a_step(notes: Notes, parameters: Parameters) -> None:
    weight = nn.Parameter(torch.ones(3))
    learn(parameters, weight)
    notes.take()
    weight.grad = torch.ones(3)
    address = weight.grad.data_ptr()

    parameters.tag_gradients()
    parameters.tag_gradients()
    assert notes.take() == [("gradient", address)]
    parameters.forget_gradients()
    parameters.tag_gradients()
    assert notes.take() == [("gradient", address)]


def test_a_gradient_that_was_gone_is_tagged_again(notes: Notes, parameters: Parameters) -> None:
    weight = nn.Parameter(torch.ones(3))
    learn(parameters, weight)
    weight.grad = kept = torch.ones(3)
    parameters.tag_gradients()
    notes.take()
    weight.grad = None
    parameters.tag_gradients()
    assert notes.take() == []
    weight.grad = kept

    parameters.tag_gradients()

    assert notes.take() == [("gradient", kept.data_ptr())]


def test_a_view_s_storage_is_what_is_tagged(notes: Notes, parameters: Parameters) -> None:
    weight = nn.Parameter(torch.ones(3))
    learn(parameters, weight)
    notes.take()
    flat = torch.zeros(10)
    weight.grad = flat[4:7]

    parameters.tag_gradients()

    assert notes.take() == [("gradient", flat.data_ptr())]


def test_gradients_of_what_other_threads_train_are_not_looked_at(
    notes: Notes, parameters: Parameters
) -> None:
    """Their engine may be writing them; reading one then has crashed the process."""

    class Untouchable(nn.Parameter):
        @property
        def grad(self) -> torch.Tensor:  # type: ignore[override]
            raise AssertionError("its gradient was looked at")

    other = Untouchable(torch.ones(3))
    parameters.learn(other, "other", 0)
    notes.take()

    parameters.tag_gradients()
    BackwardObserver(cast("Recorder", notes), parameters)._before_gradients()
    assert notes.take() == []
    with pytest.raises(AssertionError, match="looked at"):
        parameters.tag_gradients(of_all=True)
    parameters.claim([other])
    with pytest.raises(AssertionError, match="looked at"):
        parameters.tag_gradients()


def test_a_backward_of_another_thread_is_noticed() -> None:
    inside, done = threading.Event(), threading.Event()

    class Waiting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            inside.set()
            done.wait()
            return gradients[0]

    apply: Any = Waiting.apply
    loss = apply(torch.ones(1, requires_grad=True)).sum()
    thread = threading.Thread(target=loss.backward)
    assert may_read_gradients()
    thread.start()
    inside.wait()
    assert not may_read_gradients()
    done.set()
    thread.join()
    assert may_read_gradients()


def test_what_is_gone_is_forgotten(notes: Notes, parameters: Parameters) -> None:
    weight, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    learn(parameters, weight)
    parameters.learn(other, "other", 0)
    del weight

    assert [known.text for known, _ in parameters.alive()] == ["other"]
    assert [known.text for known in parameters._known.values()] == ["other"]


def test_a_backward_begins_by_seeing_which_gradients_are_gone(
    notes: Notes, parameters: Parameters
) -> None:
    """They come back within the step, and may get the same addresses."""
    observer = BackwardObserver(cast("Recorder", notes), parameters)
    weight = nn.Parameter(torch.ones(3))
    learn(parameters, weight)
    weight.grad = kept = torch.ones(3)
    parameters.tag_gradients()
    notes.take()
    weight.grad = None
    observer._before_gradients()
    weight.grad = kept

    parameters.tag_gradients()

    assert notes.take() == [("gradient", kept.data_ptr())]
