"""What a test may need: the arguments of the marker, read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from memlens.errors import UsageError
from memlens.events import ROLLUP, Category
from memlens.options import DEVICES
from memlens.units import parse_bytes

__all__ = [
    "EXACTLY",
    "MEASURES",
    "PEAK",
    "RESERVED",
    "Budget",
    "Tolerance",
    "read_budget",
    "read_limits",
]

PEAK, RESERVED = "peak", "reserved"

MEASURES: dict[str, tuple[Category, ...]] = {
    PEAK: tuple(Category),
    RESERVED: (),
    **{category.value: (category,) for category in Category},
    # Of the five published names, those that are not a category's own.
    "optimization": ROLLUP["Optimization"],
    "weight_gradient": ROLLUP["Weight Gradient"],
    "others": ROLLUP["Others"],
}
"""What can be limited, and the categories that it sums up (of `reserved`: none, the allocator's own)."""

_OTHERS = ("baseline", "tolerance", "gpu", "simulated", "device")


@dataclass(frozen=True)
class Tolerance:
    """By how much a figure may be above its baseline."""

    size_bytes: int = 0
    percent: float = 0.0
    """Of the baseline's peak, for every figure: small categories may vary by what does not matter."""

    @classmethod
    def parse(cls, value: Any) -> Tolerance:
        """Read `"1%"`, `"10MB"` or whole bytes.

        Raises:
            UsageError: it is none of these.
        """
        if isinstance(value, str) and value.strip().endswith("%"):
            try:
                percent = float(value.strip()[:-1])
            except ValueError:
                percent = -1.0
            if 0 <= percent < float("inf"):
                return cls(percent=percent)
            raise UsageError(
                f"tolerance {value!r} is no share: write '1%', or a size such as '10MB'"
            )
        return cls(size_bytes=_size("tolerance", value))

    def allowed_bytes(self, peak_bytes: int) -> int:
        """How many bytes more than the baseline are let pass."""
        return self.size_bytes + int(peak_bytes * self.percent / 100)


EXACTLY = Tolerance()


@dataclass(frozen=True)
class Budget:
    """What one test may need, and how that is measured."""

    limits_bytes: Mapping[str, int] = field(default_factory=dict)
    """By name of what is limited, a key of `MEASURES`."""
    baseline: bool = False
    """Compare with what is stored."""
    tolerance: Tolerance = EXACTLY
    device: str = "cpu"
    """What is recorded; "simulated": the test runs in a process of its own."""
    gpu: str = ""
    """The card that is simulated; empty: none is."""


def read_budget(marks: Iterable[Any]) -> Budget:
    """What markers of one test say together; that of the function goes before that of its class.

    Args:
        marks: as `item.iter_markers` has them, the closest first.

    Raises:
        UsageError: an argument is not valid.
    """
    given: dict[str, Any] = {}
    for mark in marks:
        if mark.args:
            raise UsageError(
                f"takes arguments by name, not {mark.args[0]!r}: memory_budget(peak='1.2GB')"
            )
        given = {**mark.kwargs, **given}
    limits = read_limits({name: value for name, value in given.items() if name not in _OTHERS})
    gpu = _gpu(given.get("gpu"), given.get("simulated", False))
    device = given.get("device", "simulated" if gpu else "cpu")
    if gpu and device != "simulated":
        raise UsageError(f"either device={device!r} is recorded, or a GPU is simulated, not both")
    if not gpu and device == "simulated":
        raise UsageError("write simulated=True, or gpu='A100 80GB' for another card")
    if device not in DEVICES:
        raise UsageError(f"device must be cpu, cuda or auto, not {device!r}")
    if device == "cpu" and RESERVED in limits:
        raise UsageError("the CPU's allocator reserves nothing; limit reserved with simulated=True")
    baseline = given.get("baseline", False)
    if not isinstance(baseline, bool):
        raise UsageError(f"baseline must be True or False, not {baseline!r}")
    if "tolerance" in given and not baseline:
        raise UsageError("a tolerance is for what is compared: add baseline=True")
    return Budget(
        limits_bytes=limits,
        baseline=baseline,
        tolerance=Tolerance.parse(given.get("tolerance", 0)),
        device=device,
        gpu=gpu,
    )


def read_limits(given: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by what is limited.

    Raises:
        UsageError: there is no such thing to limit, or a limit is no size.
    """
    for name in given:
        if name not in MEASURES:
            known = [*MEASURES, *_OTHERS]
            close = get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise UsageError(f"no such argument: {name}; {hint}")
    return {name: _size(name, value) for name, value in given.items()}


def _size(name: str, value: Any) -> int:
    if isinstance(value, str):
        return parse_bytes(value)
    if isinstance(value, float) and value.is_integer():  # 1.2e9
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} must be a size such as '1.2GB', or whole bytes, not {value!r}")
    return value


def _gpu(gpu: Any, simulated: Any) -> str:
    from memlens.catalogue.gpus import find_gpu
    from memlens.planning.simulate import DEFAULT_GPU

    if not isinstance(simulated, bool):
        raise UsageError(f"simulated must be True or False, not {simulated!r}")
    if gpu is None:
        return DEFAULT_GPU if simulated else ""
    if not isinstance(gpu, str):
        raise UsageError(f"gpu must be a card's name or a size, such as 'A100 80GB', not {gpu!r}")
    return find_gpu(gpu).name
