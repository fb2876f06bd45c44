"""A variant: a row of the catalogue, with its options, as people write it on a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memlens.catalogue.row import Row, Value
from memlens.catalogue.table import find
from memlens.errors import UsageError

__all__ = ["AS_IS", "NO_RETAIN_GRAD", "Variant", "parse_variant"]

AS_IS = "as-is"
"""The optimizer that the job constructs, untouched."""
NO_RETAIN_GRAD = "+no-retain-grad"

_COMMON: dict[str, Value] = {"lr": 0.0, "lr_scale": 1.0}
"""Options that every row has."""


@dataclass(frozen=True)
class Variant:
    """One optimizer to try.

    `row` is None for the job's own optimizer.
    """

    row: Row | None
    options: Mapping[str, Value] = field(default_factory=dict)
    """Only those that were given."""
    no_retain_grad: bool = False

    @property
    def name(self) -> str:
        """As it is written: `galore-adamw8bit:rank=64+no-retain-grad`."""
        text = AS_IS if self.row is None else self.row.name
        if self.options:
            text += ":" + ",".join(f"{name}={value}" for name, value in self.options.items())
        return text + (NO_RETAIN_GRAD if self.no_retain_grad else "")


def parse_variant(text: str, *, no_retain_grad: bool = False) -> Variant:
    """Read `NAME[:OPTION=VALUE,...][+no-retain-grad]`.

    Args:
        text: what the user wrote.
        no_retain_grad: update within backward wherever the row allows it.

    Raises:
        UsageError: there is no such optimizer or option, or the value is not of its kind.
    """
    body = text.strip()
    explicit = body.endswith(NO_RETAIN_GRAD)
    body = body.removesuffix(NO_RETAIN_GRAD)
    name, _, rest = body.partition(":")
    if name == AS_IS:
        if rest or explicit:
            raise UsageError(f"{AS_IS} is the job's own optimizer and takes no options: {text!r}")
        return Variant(None)
    row = find(name)
    if explicit and not row.in_backward:
        raise UsageError(
            f"{name} never retains gradients; leave out {NO_RETAIN_GRAD}"
            if row.always_in_backward
            else f"{name} cannot update within backward; `memlens optimizers` says which can"
        )
    options: dict[str, Value] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        known = {**_COMMON, **row.options}
        if not equals or key not in known:
            raise UsageError(
                f"{name} has no option {key!r}; it has {', '.join(known)} "
                f"(written {name}:{next(iter(known))}=VALUE)"
            )
        options[key] = _read(name, key, value, known[key])
    return Variant(row, options, explicit or (no_retain_grad and row.in_backward))


def _read(name: str, key: str, text: str, default: Value) -> Value:
    """A value of the kind that the default has."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
    except (KeyError, ValueError):
        kind = type(default).__name__
        raise UsageError(f"{name}:{key} must be of kind {kind}, not {text!r}") from None
    return text
