"""The vocabulary: what an event is, and on which axes it is described.

One capture holds four kinds of row, each an Arrow stream whose schema stands in `memlens.disk.format`:

* **events**: what the allocator did. It knows every byte and no meaning.
* **tags**: "at this time, the storage at this address is the gradient of that parameter".
* **marks**: what the job did: a module was entered, backward began, a step ended.
* **names**: the texts that the other three refer to by number.

Sources write events, observers write tags and marks, and `memlens.attribution` joins them later on
(device, address, lifetime). Enumerators are written to disk by name, never by number.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "ROLLUP",
    "Action",
    "Category",
    "Certainty",
    "MarkKind",
    "NameKind",
    "Phase",
    "WeightKind",
]


class Action(str, Enum):
    """What the allocator did."""

    ALLOC = "alloc"
    """A block was handed out."""
    FREE = "free"
    """A block was given back."""
    CENSUS = "census"
    """A block that was already there when recording began; counts as an allocation at that time."""
    CENSUS_FREE = "census_free"
    """Such a block was given back, as told by its owner; the allocator's count never had it."""
    FREE_REQUESTED = "free_requested"
    """A block was given back while other streams still use it: it counts as freed from here on, and
    can not be handed out again before its FREE_COMPLETED."""
    FREE_COMPLETED = "free_completed"
    """The last of those streams is done with it."""
    SEGMENT_CENSUS = "segment_census"
    """Memory that the allocator had already taken from the device when recording began."""
    SEGMENT_ALLOC = "segment_alloc"
    """The allocator took memory from the device, which it cuts into blocks."""
    SEGMENT_FREE = "segment_free"
    """It gave some back."""
    SEGMENT_MAP = "segment_map"
    """An expandable segment grew by this."""
    SEGMENT_UNMAP = "segment_unmap"
    """It shrank."""
    OUT_OF_MEMORY = "out_of_memory"
    """A request (its bytes) could not be served. The address is what the device had free, in bytes."""


class Category(str, Enum):
    """What a block of memory is for. One axis: phase, sharding and certainty are others."""

    WEIGHT = "weight"
    """Parameters as the forward uses them, and buffers."""
    MASTER_WEIGHT = "master_weight"
    """Higher-precision copies of parameters, which the optimizer updates."""
    OPTIMIZER_STATE = "optimizer_state"
    """Moments, factors, projectors, quantised codes and their scales."""
    GRADIENT = "gradient"
    """`.grad`, flat and partitioned gradients, accumulation buffers."""
    ACTIVATION = "activation"
    """Alive at the end of the forward that made it, or saved for backward."""
    INPUT = "input"
    """Batches, and the data they are cut from."""
    COMMUNICATION = "communication"
    """Buckets, all-gather and reduce-scatter buffers."""
    OPTIMIZER_TEMPORARY = "optimizer_temporary"
    """Made and freed inside one `optimizer.step()`."""
    TEMPORARY = "temporary"
    """Made and freed inside one forward or backward, op or module."""
    WORKSPACE = "workspace"
    """Library workspaces: cuBLAS, cuDNN and others."""
    UNKNOWN = "unknown"
    """No rule explains it. Always shown."""


class WeightKind(str, Enum):
    """Who may change a weight, and in which form it is kept. The first that fits, in this order.

    It is told when a model is first called, and again when recording ends; what is told last holds.
    """

    ADAPTER = "adapter"
    """What a library for parameter-efficient tuning has added to a model (LoRA's factors)."""
    QUANTISED = "quantised"
    """Codes of fewer bits, and what it takes to read them: scales, offsets, code books."""
    BUFFER = "buffer"
    """No parameter: running statistics, masks, tables."""
    FROZEN = "frozen"
    """A parameter that takes no gradient."""
    TRAINABLE = "trainable"
    """A parameter that takes one."""
    UNKNOWN = "unknown"
    """Never told: it, or the job, was gone before its model was called; or the capture is older."""


ROLLUP: dict[str, tuple[Category, ...]] = {
    "Weight": (Category.WEIGHT,),
    "Activation": (Category.ACTIVATION, Category.INPUT),
    "Optimization": (Category.MASTER_WEIGHT, Category.OPTIMIZER_STATE),
    "Weight Gradient": (Category.GRADIENT,),
    "Others": (
        Category.COMMUNICATION,
        Category.OPTIMIZER_TEMPORARY,
        Category.TEMPORARY,
        Category.WORKSPACE,
        Category.UNKNOWN,
    ),
}
"""The five names of the published memory charts, and the categories that each sums up."""


class Phase(str, Enum):
    """What the training loop was doing."""

    INIT = "init"
    """Before the first forward, backward or optimizer step."""
    FORWARD = "forward"
    """Inside a model call, or between it and the backward that uses its result (the loss)."""
    BACKWARD = "backward"
    """Inside the autograd engine, recomputed forwards included."""
    OPTIMIZER = "optimizer"
    """Inside `optimizer.step()`."""
    OTHER = "other"
    """Between the rest: data loading, `zero_grad`, logging."""


class Certainty(str, Enum):
    """How a category is known."""

    DECLARED = "declared"
    """An object that we know holds this storage (a parameter, its `.grad`, an optimizer's state)."""
    INFERRED = "inferred"
    """Concluded from when and where it was allocated and freed."""


class MarkKind(str, Enum):
    """What the job did. `id` and `value` of a mark mean what each kind says here."""

    MODULE_ENTER = "module_enter"
    """A module's forward begins; id: the module."""
    MODULE_EXIT = "module_exit"
    """It ends; id: the module; value: 1 if the result needs a gradient."""
    BACKWARD_ENTER = "backward_enter"
    """The autograd engine starts."""
    BACKWARD_EXIT = "backward_exit"
    """It returns."""
    BACKWARD_MODULE = "backward_module"
    """The gradient has come to the output of this module; id: the module."""
    OPTIMIZER_ENTER = "optimizer_enter"
    """`optimizer.step()` begins; id: the optimizer (kind scope)."""
    OPTIMIZER_EXIT = "optimizer_exit"
    """It returns."""
    SCOPE_ENTER = "scope_enter"
    """A library does something of its own; id: a name of kind scope, whose detail is the category
    that anything outliving the scope has (DDP building its buckets: communication), and behind a
    slash the category of what is freed within it, if that is not temporary."""
    SCOPE_EXIT = "scope_exit"
    """It is done."""
    STEP = "step"
    """A training step begins; value: its number."""
    RECORDING_ON = "recording_on"
    """The source records from here on; value: bytes that the census found."""
    RECORDING_OFF = "recording_off"
    """The source does not record from here on; the capture is blind until the next RECORDING_ON."""
    ALLOCATOR_TOTAL = "allocator_total"
    """The allocator's own count; value: bytes handed out less bytes taken back since RECORDING_ON;
    id: the device's position in the rank's list."""
    GAUGE = "gauge"
    """Memory beside the allocator's count was measured (pinned on the host, in use on the device);
    id: what (kind scope, whose detail is the device, or empty); value: bytes."""


class NameKind(str, Enum):
    """Which table a name belongs to; ids count from 0 in each."""

    MODULE = "module"
    """text: qualified name; detail: class name. A later row with the same id replaces an earlier."""
    TENSOR = "tensor"
    """text: what the observers call a storage: a parameter's qualified name, `exp_avg of ...`; detail:
    the WeightKind of a weight, empty if it was not told. The last row with an id holds."""
    SCOPE = "scope"
    """text: what to call it; detail: see MarkKind.SCOPE_ENTER, or an optimizer's class."""
    STACK = "stack"
    """A frame; text: function; detail: file:line; parent: the frame that called it, or -1."""
