"""What the optimizers that work in spent gradients share.

A gradient is spent once an update has read it for the last time. Its storage is as large as its
parameter and would lie idle until the job clears it, so the update's intermediates go there. Three
things have to be right for that:

* **No memory but the gradient's own is written.** Gradients that overlap (an expanded tensor, two
  parameters with one gradient) are copied first; see `gradients_to_spend`.
* **A spent gradient is never taken for a gradient.** Its first element is set to NaN, and the tensor
  is marked. A job that clears its gradients, in whichever way, never notices: either the next
  gradient is another tensor, without the mark, or its first element has been set to zero. A job that
  steps again on what it never cleared gets an error. Should the mark be lost (a copy was made of a
  spent gradient), the NaN spoils the weights for all to see, and not a wrong number in silence.
* **Whatever is wrong is found before anything is changed.**
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from memlens.errors import UsageError
from memlens.torch_private import storage_pointer

__all__ = [
    "as_number",
    "buckets",
    "check_hyperparameters",
    "first_elements",
    "gradients_of",
    "gradients_to_spend",
    "local",
    "local_state",
    "mark_spent",
    "refuse_options",
    "square_root_into",
]

Group = dict[str, Any]
Work = list[tuple[Group, list[Tensor], list[Tensor]]]
"""Per parameter group: the group, its parameters that have a gradient, their gradients.

Where parameters are distributed (DTensor), the gradients here are this process's part of them.
"""

_MARK = "_memlens_spent"
"""Attribute of a gradient that was spent. torch keeps it for as long as the tensor lives."""


def check_hyperparameters(
    name: str, *, betas: tuple[float, ...], count: int, **not_negative: Any
) -> None:
    """Refuse what no optimizer of this package can work with.

    Args:
        name: of the optimizer, for the text.
        betas: decay rates; each must be in [0, 1).
        count: how many of them there must be.
        not_negative: numbers that must not be negative, by name.

    Raises:
        UsageError: one of them is out of range.
    """
    if len(betas) != count or not all(0.0 <= float(beta) < 1.0 for beta in betas):
        raise UsageError(f"{name} needs {count} betas in [0, 1), not {betas!r}")
    for key, value in not_negative.items():
        if not float(value) >= 0.0:
            raise UsageError(f"{name} needs {key} >= 0, not {value!r}")


def refuse_options(name: str, groups: Iterable[Group], options: Iterable[str]) -> None:
    """Refuse a checkpoint of the original that was trained with options we do not have.

    Raises:
        UsageError: one of these options is switched on in one of the groups.
    """
    for group in groups:
        for option in options:
            if group.get(option):
                raise UsageError(
                    f"the checkpoint was trained with {option}={group[option]!r}, which {name} does "
                    "not have; load it into the original optimizer"
                )


def as_number(value: float | Tensor) -> float:
    """A hyperparameter as a number; one that is a tensor on a device waits for that device."""
    return float(value)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a distributed tensor; any other tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def local_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`local` of a parameter's state."""
    return {name: local(value) for name, value in state.items()}


def gradients_of(optimizer: Optimizer) -> Work:
    """All parameters that have a gradient, checked.

    Raises:
        UsageError: a gradient is sparse, a parameter is complex, or their dtypes differ.
    """
    work: Work = []
    name = type(optimizer).__name__
    for group in optimizer.param_groups:
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if hasattr(gradient, "to_local"):
                if gradient.placements != parameter.placements:
                    raise UsageError(
                        f"{name} needs gradients that are distributed like their parameter, not "
                        f"{gradient.placements} for {parameter.placements}; redistribute them"
                    )
                gradient = gradient.to_local()
            if gradient.layout is not torch.strided:
                raise UsageError(
                    f"{name} cannot work in sparse gradients, whose storage is smaller than the "
                    "parameter; make the embedding with sparse=False, or give its weight to "
                    "torch.optim.SparseAdam"
                )
            if gradient.dtype is not parameter.dtype or gradient.is_complex():
                raise UsageError(
                    f"{name} needs real gradients of their parameter's dtype, not "
                    f"{gradient.dtype} for {parameter.dtype}; convert them, or use the original "
                    "optimizer for this parameter"
                )
            parameters.append(parameter)
            gradients.append(gradient)
        work.append((group, parameters, gradients))
    return work


def gradients_to_spend(optimizer: Optimizer) -> Work:
    """As `gradients_of`, and each gradient may be written to.

    A gradient that overlaps with another one, with itself or with its parameter is replaced by a
    copy, also in `.grad`. This is the only case in which memory of a gradient's size is allocated.

    Raises:
        UsageError: as `gradients_of`; or a gradient was spent by an earlier step and not cleared.
    """
    work = gradients_of(optimizer)
    _refuse_spent(optimizer, work)
    if not _obviously_apart(work):
        _separate(work)
    return work


def _obviously_apart(work: Work) -> bool:
    """Whether every gradient is alone in its storage, as gradients usually are."""
    storages, count = set(), 0
    for _, parameters, gradients in work:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # Not `data_ptr`, which tensors without data (meta, fake) do not have.
            storage = storage_pointer(gradient.untyped_storage())
            of_parameter = storage_pointer(local(parameter).untyped_storage())
            if storage == of_parameter or not gradient.is_contiguous():
                return False
            storages.add(storage)
            count += 1
    return len(storages) == count


def _separate(work: Work) -> None:
    """Copy the gradients that overlap, as far as that can be told from ranges of memory."""
    ranges = []
    for _, parameters, gradients in work:
        for index, gradient in enumerate(gradients):
            if gradient.numel() == 0:
                continue
            storage = storage_pointer(gradient.untyped_storage())
            begin, end = _extent(gradient)
            if end and not _reaches_into(local(parameters[index]), storage, begin, end):
                ranges.append((storage, begin, end, parameters, gradients, index))
            else:
                _copy_gradient(parameters, gradients, index)
    ranges.sort(key=lambda entry: entry[:2])
    last, reached = 0, 0
    for storage, begin, end, parameters, gradients, index in ranges:
        if storage != last:
            last, reached = storage, 0
        if begin < reached:
            _copy_gradient(parameters, gradients, index)
        reached = max(reached, end)


def _copy_gradient(parameters: list[Tensor], gradients: list[Tensor], index: int) -> None:
    parameter = parameters[index]
    assert parameter.grad is not None
    parameter.grad = parameter.grad.clone(memory_format=torch.contiguous_format)
    gradients[index] = local(parameter.grad)


def _reaches_into(parameter: Tensor, storage: int, begin: int, end: int) -> bool:
    if storage_pointer(parameter.untyped_storage()) != storage:
        return False
    its_begin, its_end = _extent(parameter)
    return its_end == 0 or (begin < its_end and its_begin < end)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First byte and one after the last one within the storage; (0, 0) where elements overlap."""
    reach = 0
    if tensor.is_contiguous():
        reach = tensor.numel() - 1
    else:
        for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
            if size > 1:
                if stride <= reach:  # overlapping, or interleaved in a way not worth working out
                    return 0, 0
                reach += int(stride) * (size - 1)
    begin, size_bytes = int(tensor.storage_offset()), tensor.element_size()
    return begin * size_bytes, (begin + reach + 1) * size_bytes


def _refuse_spent(optimizer: Optimizer, work: Work) -> None:
    kept: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for _, _, gradients in work:
        for gradient in gradients:
            if getattr(gradient, _MARK, False) and gradient.numel():
                kept.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    for some in kept.values():
        # The largest is NaN if any of them is; a sum could also be so because of infinities.
        largest = torch.cat(first_elements(some)).max().item()
        if largest != largest:
            raise UsageError(
                f"{type(optimizer).__name__} was given gradients that its last step() used as "
                "working memory and that were not cleared since (or the job's gradients have "
                "become NaN); call zero_grad() between step() and the next backward()"
            )


def first_elements(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Views of shape (1,) of the first elements, whatever the strides; none of an empty tensor."""
    return [tensor.as_strided((1,), (1,)) for tensor in tensors if tensor.numel()]


def mark_spent(gradients: list[Tensor]) -> None:
    """Make sure that these gradients are not used a second time.

    Args:
        gradients: of one device and dtype; what they hold is lost.
    """
    for gradient in gradients:
        setattr(gradient, _MARK, True)
    firsts = first_elements(gradients)
    if firsts:
        torch._foreach_zero_(firsts)
        torch._foreach_div_(firsts, firsts)  # 0 / 0: no tensor has to be made of a NaN


def buckets(
    parameters: list[Tensor], gradients: list[Tensor]
) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Lists of parameters and gradients of one device and dtype, as `torch._foreach_*` needs them."""
    found: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        bucket = found.setdefault((parameter.device, parameter.dtype), ([], []))
        bucket[0].append(parameter)
        bucket[1].append(gradient)
    return found.values()


def square_root_into(targets: list[Tensor], values: list[Tensor]) -> None:
    """`targets[i] = sqrt(values[i])`, without a temporary; lists of one device and dtype."""
    if targets[0].is_cpu:
        # The foreach functions have no `out`, and are loops on the CPU anyway: one pass, not two.
        for target, value in zip(targets, values, strict=True):
            torch.sqrt(value, out=target)
    else:
        torch._foreach_copy_(targets, values)
        torch._foreach_sqrt_(targets)
