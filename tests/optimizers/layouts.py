"""What each optimizer keeps for a parameter, worked out from its library's layout: names and bytes.

Written from the sources that the catalogue names, not from what an optimizer holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from memlens.catalogue.table import CATALOGUE

__all__ = ["LAYOUTS", "SHARED", "Kept", "Parameter", "is_counter"]

FLOAT = 4
COUNTER = FLOAT
"""A step count, or a norm: one number."""

Kept = dict[str, int]
"""Bytes by the name that the state has in the optimizer."""


@dataclass(frozen=True)
class Parameter:
    """What a layout may depend on."""

    shape: tuple[int, ...]
    item_bytes: int
    """Of one element of the parameter, as it is trained."""
    rank: int
    """Of projections."""
    hidden: bool = True
    """It is no embedding and no output layer."""
    name: str = "weight"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def own_bytes(self) -> int:
        """Bytes of the parameter itself."""
        return self.numel * self.item_bytes

    @property
    def projected(self) -> bool:
        return self.hidden and len(self.shape) == 2 and min(self.shape) > self.rank


Layout = Callable[[Parameter], Kept]


def like(*names: str) -> Layout:
    """Tensors like the parameter."""
    return lambda parameter: dict.fromkeys(names, parameter.own_bytes)


def in_fp32(*names: str) -> Layout:
    """Tensors of the parameter's shape in fp32."""
    return lambda parameter: dict.fromkeys(names, parameter.numel * FLOAT)


def with_step(layout: Layout) -> Layout:
    """And a step count that is a tensor."""
    return lambda parameter: {"step": COUNTER} | layout(parameter)


def factored(rows: str, columns: str, whole: str, item_bytes: int | None) -> Layout:
    """One number per row and per column of a matrix; all of them for a vector."""

    def layout(parameter: Parameter) -> Kept:
        item = item_bytes or parameter.item_bytes
        if len(parameter.shape) < 2:
            return {whole: parameter.numel * item}
        return {rows: parameter.shape[0] * item, columns: parameter.shape[1] * item}

    return layout


def both(*layouts: Layout) -> Layout:
    return lambda parameter: {
        name: size for layout in layouts for name, size in layout(parameter).items()
    }


def bitsandbytes_8bit(moments: int) -> Layout:
    """Codes and, for each 256 of them, a fp32 scale; fp32 where there are fewer than 4096 elements."""

    def layout(parameter: Parameter) -> Kept:
        numel = parameter.numel
        numbers = range(1, moments + 1)
        if numel < 4096:
            return {f"state{number}": numel * FLOAT for number in numbers}
        return {f"state{number}": numel for number in numbers} | {
            f"absmax{number}": math.ceil(numel / 256) * FLOAT for number in numbers
        }

    return layout


def torchao(block: int, codes_per_byte: int, table_bytes: int) -> Layout:
    """Codes, a fp32 scale for each block and a table per tensor; like the parameter where that fails."""

    def layout(parameter: Parameter) -> Kept:
        numel = parameter.numel
        if numel < 4096 or numel % block:
            return like("exp_avg", "exp_avg_sq")(parameter)
        kept = {}
        for moment in ("exp_avg", "exp_avg_sq"):
            kept[f"{moment}.codes"] = numel // codes_per_byte
            kept[f"{moment}.scale"] = numel // block * FLOAT
            if table_bytes:
                kept[f"{moment}.qmap"] = table_bytes
        return kept

    return with_step(layout)


def projected(moments: Layout, others: Layout, item_bytes: int | None = None) -> Layout:
    """A projector of `rank` times the shorter side, and moments of `rank` times the longer one."""

    def layout(parameter: Parameter) -> Kept:
        if not parameter.projected:
            return others(parameter)
        rows, columns = parameter.shape
        rank = parameter.rank
        low = (rows, rank) if rows >= columns else (rank, columns)
        item = item_bytes or parameter.item_bytes
        return {"projector.ortho_matrix": rank * min(rows, columns) * item} | moments(
            Parameter(low, item, rank)
        )

    return layout


def came(parameter: Parameter) -> Kept:
    kept = like("exp_avg")(parameter) | {"RMS": parameter.item_bytes}
    if len(parameter.shape) < 2:
        return kept | like("exp_avg_sq")(parameter)
    for name in ("exp_avg_sq", "exp_avg_res"):
        kept[f"{name}_row"] = parameter.shape[0] * parameter.item_bytes
        kept[f"{name}_col"] = parameter.shape[1] * parameter.item_bytes
    return kept


def muon(parameter: Parameter) -> Kept:
    if parameter.hidden and len(parameter.shape) == 2:
        return like("momentum_buffer")(parameter)
    return ADAM(parameter)


def adam_mini(parameter: Parameter) -> Kept:
    if "embed" in parameter.name:
        return in_fp32("m", "v")(parameter)
    return in_fp32("m")(parameter) | {"v_mean": COUNTER, "dimension": COUNTER}


def soap(parameter: Parameter) -> Kept:
    kept = like("exp_avg", "exp_avg_sq")(parameter)
    if len(parameter.shape) == 2:
        for number, side in enumerate(parameter.shape):
            kept[f"GG.{number}"] = kept[f"Q.{number}"] = side * side * parameter.item_bytes
    return kept


def apollo(parameter: Parameter) -> Kept:
    moments = like("exp_avg", "exp_avg_sq")
    kept = projected(moments, moments)(parameter)
    return kept | ({"scaling_grad": parameter.item_bytes} if parameter.projected else {})


ADAM = with_step(like("exp_avg", "exp_avg_sq"))
ADAM_8BIT = bitsandbytes_8bit(2)
ADAFACTOR = both(
    factored("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", FLOAT), lambda _: {"RMS": COUNTER}
)

_FAMILIES: dict[str, Layout] = {
    "sgd": like(),
    "sgd-momentum": like("momentum_buffer"),
    "adagrad": with_step(like("sum")),
    "rmsprop": with_step(like("square_avg")),
    "adam": ADAM,
    "adamw": ADAM,
}
"""Also of the rows that fix an implementation: `adamw-foreach`."""

LAYOUTS: dict[str, Layout] = {
    f"{name}{ending}": layout
    for name, layout in _FAMILIES.items()
    for ending in ("", "-foreach", "-loop", "-fused")
    if f"{name}{ending}" in CATALOGUE
} | {
    "adamw-bf16": ADAM,
    "adamw-mixed": with_step(in_fp32("exp_avg", "exp_avg_sq")),
    "adam8bit": ADAM_8BIT,
    "adamw8bit": ADAM_8BIT,
    "paged-adamw8bit": ADAM_8BIT,
    "lion8bit": bitsandbytes_8bit(1),
    "adam8bit-torchao": torchao(256, 1, 256 * FLOAT),
    "adamw8bit-torchao": torchao(256, 1, 256 * FLOAT),
    "adamw4bit": torchao(128, 2, 16 * FLOAT),
    "adamw-fp8": torchao(256, 1, 0),
    "adafactor": ADAFACTOR,
    "adafactor-momentum": both(in_fp32("exp_avg"), ADAFACTOR),
    "adafactor-torch": with_step(factored("row_var", "col_var", "variance", None)),
    "came": came,
    "galore-adamw": projected(like("exp_avg", "exp_avg_sq"), like("exp_avg", "exp_avg_sq")),
    "galore-adamw8bit": projected(ADAM_8BIT, ADAM_8BIT),
    "galore-adafactor": projected(ADAFACTOR, ADAFACTOR, FLOAT),
    "apollo": apollo,
    "adamw-r": ADAM,
    "adan-r": like("exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad"),
    "lion-r": like("exp_avg"),
    "lion": like("exp_avg"),
    "adan": like("exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad"),
    "sophia": with_step(like("exp_avg", "hessian")),
    "muon": muon,
    "lomo": like(),
    "adam-mini": adam_mini,
    "soap": soap,
    "schedulefree-adamw": like("z", "exp_avg_sq"),
}

_TABLES = {"qmap1": 256 * FLOAT, "qmap2": 256 * FLOAT}

SHARED: dict[str, Kept] = {
    "adam8bit": _TABLES,
    "adamw8bit": _TABLES,
    "paged-adamw8bit": _TABLES,
    "galore-adamw8bit": _TABLES,
    "lion8bit": {"qmap1": 256 * FLOAT},
}
"""Tables that all parameters of an optimizer share, once one of them is quantised."""


def is_counter(name: str) -> bool:
    """Whether a tensor holds a single number, which the catalogue's figures leave out."""
    return name in ("step", "RMS", "v_mean", "dimension", "scaling_grad")
