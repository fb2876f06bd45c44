"""What the catalogue says of one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Claim", "Expected", "Row"]

Value = float | int | bool | str | None | tuple[float, ...]


@dataclass(frozen=True)
class Expected:
    """State that the library's documented layout makes, in bytes per parameter.

    Of a matrix of 1024 x 1024 and a vector of 8192, the shapes that `memlens optimizers NAME` measures,
    with the row's default options. Counters of a few bytes per tensor are left out.
    """

    matrix_fp32: float
    matrix_bf16: float
    vector_fp32: float
    vector_bf16: float
    source: str
    """Where the layout stands, and the formula."""

    def of(self, shape: str, dtype: str) -> float:
        """One of the four: shape `matrix` or `vector`, dtype `fp32` or `bf16`."""
        return float(getattr(self, f"{shape}_{dtype}"))


@dataclass(frozen=True)
class Claim:
    """What the literature says that the state costs, and whether that holds."""

    bytes_per_parameter: float
    source: str
    verdict: str = ""
    """Why it does not hold; empty when it does."""


@dataclass(frozen=True)
class Row:
    """One optimizer: where it comes from, how a job's construction maps onto it, what it costs.

    A job constructs an optimizer in the manner of torch's AdamW: parameters or groups of them, and
    hyperparameters. `takes` names those that this optimizer understands; others are dropped.
    """

    name: str
    title: str
    family: str
    home: str
    """`module:attribute` of the class, or of a function of an adapter that makes it."""
    when: str
    """When to use it."""
    when_not: str
    expected: Expected
    paper: str = ""
    """Where the method was published."""
    extra: str = ""
    """memlens' extra that installs its library; empty: torch itself, or ours."""
    takes: tuple[str, ...] = ("lr", "betas", "eps", "weight_decay")
    fixed: Mapping[str, Value] = field(default_factory=dict)
    """Arguments that make this row what it is (`foreach=True`)."""
    options: Mapping[str, Value] = field(default_factory=dict)
    """What may be set behind the name (`galore-adamw:rank=128`), with defaults."""
    lr_scale: float = 1.0
    """Its learning rate as a multiple of what AdamW gets in the same job."""
    lr_source: str = ""
    """Where that multiple comes from."""
    matrices_only: bool = False
    """It takes 2-D parameters of hidden layers only; `rest` gets the others."""
    rest: str = ""
    """Name of the row that takes what this one cannot; empty: it takes all."""
    precision: str = "job"
    """`job`: as the job has it. `bf16`: the model is cast. `mixed`: also, with fp32 master weights."""
    in_backward: bool = False
    """It can update layer by layer within backward, so that no gradient is retained."""
    always_in_backward: bool = False
    """It never retains gradients: that is its method."""
    implementation: str = ""
    """`foreach`, `loop` or `fused`; what plain rows get is said in `implementation_note`."""
    implementation_note: str = ""
    cpu: str = ""
    """Why it does not run (or not as on CUDA) on a CPU; empty: it does."""
    runs_on_cpu: bool = True
    zero: str = ""
    """Limits under DeepSpeed ZeRO; empty: none known."""
    fsdp: str = ""
    """Limits under FSDP2, or why it does not run there; empty: none known."""
    runs_under_fsdp: bool = True
    claim: Claim | None = None
    defects: tuple[str, ...] = ()
    """Defects of the library that would distort a comparison, and what is done about each."""
