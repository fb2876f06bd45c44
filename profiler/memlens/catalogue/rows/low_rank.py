"""Optimizers that keep moments of a projected gradient."""

from __future__ import annotations

from dataclasses import replace

from memlens.catalogue.row import Claim, Expected, Row

__all__ = ["ROWS"]

_RANK = 128
_PROJECTED = _RANK * 1024 / 1048576
"""Elements of a matrix of 1024 x 128, per element of one of 1024 x 1024."""
_BLOCK = 1 + 4 / 256
"""Bytes of an 8-bit code, with its share of the scale."""
_FLAT = "GaLore needs matrices: flat partitions have none"
_DEFECT_SVD = (
    "galore-torch's projector is a view of the SVD's factor and keeps all of it in fp32: 4.5 bytes "
    "per parameter instead of 0.75 at rank 64 of 1024; memlens gives it a projector of its own size"
)
_DEFECT_BNB = (
    "galore-torch's GaLoreAdamW8bit passes two arguments that bitsandbytes 0.50 dropped, which then "
    "mean a trust ratio and the skipping of zeros, and it synchronises CUDA on every parameter: "
    "memlens steps bitsandbytes' own kernels on the projected gradient"
)

_DEFECT_APOLLO = (
    "pytorch_optimizer 4.1 projects the scaled projection back, so that an update has no more than rank "
    "directions, where the method (and apollo-torch) scales the gradient itself: memlens does that"
)

_GALORE = Row(
    name="galore-adamw",
    title="GaLore AdamW",
    family="low rank",
    home="memlens_integrations.optimizers.galore:make",
    extra="galore",
    when="pre-training with full-rank weights on a card that is too small for AdamW",
    when_not="nets of vectors and small matrices; or steps that must not stop for an SVD",
    paper="arXiv 2403.03507",
    expected=Expected(
        3 * _PROJECTED * 4, 3 * _PROJECTED * 2, 8, 4,
        "galore_torch/adamw.py: projector and two moments of rank x 1024 in the gradient's dtype; "
        "vectors as AdamW",
    ),
    fixed={"kind": "adamw"},
    options={"rank": _RANK, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"},
    lr_scale=10.0,
    lr_source="arXiv 2403.03507 trains with 0.01 and scale 0.25 where AdamW gets 0.001",
    in_backward=True,
    matrices_only=True,
    implementation_note="a for-loop; an SVD every update_proj_gap steps",
    zero=_FLAT,
    fsdp="shards are parts of matrices: the projection would be that of the part",
    claim=Claim(
        3 * _PROJECTED * 4, "arXiv 2403.03507 table 1: mr + 2nr values for a matrix of m x n",
    ),
    defects=(_DEFECT_SVD,),
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    _GALORE,
    replace(
        _GALORE,
        name="galore-adamw8bit",
        title="8-bit GaLore AdamW",
        when="a 7B model on one 24 GB card, together with no retained gradients",
        expected=Expected(
            _PROJECTED * 4 + 2 * _PROJECTED * _BLOCK, _PROJECTED * 2 + 2 * _PROJECTED * _BLOCK,
            2 * _BLOCK, 2 * _BLOCK,
            "projector of rank x 1024 in the gradient's dtype; two 8-bit moments of that shape; "
            "vectors as adamw8bit",
        ),
        fixed={"kind": "adamw8bit"},
        fsdp="bitsandbytes' kernels take plain tensors, and the shards of fully_shard are DTensors",
        runs_under_fsdp=False,
        claim=Claim(
            0.75, "arXiv 2403.03507 figure 1: 5.0 GB for 6.7 billion parameters at rank 1024",
            "holds (the rank of 1024 there, 128 here)",
        ),
        defects=(_DEFECT_SVD, _DEFECT_BNB),
    ),
    replace(
        _GALORE,
        name="galore-adafactor",
        title="GaLore Adafactor",
        when="GaLore with factored moments: the smallest state of the family",
        expected=Expected(
            _PROJECTED * 4 + (1024 + _RANK) * 4 / 1048576,
            _PROJECTED * 4 + (1024 + _RANK) * 4 / 1048576,
            4, 4,
            "galore_torch/adafactor.py: casts the gradient to fp32, so the projector is fp32 always",
        ),
        takes=("lr", "weight_decay"),
        fixed={"kind": "adafactor"},
        fsdp="it adds plain tensors to shards, which are DTensors",
        runs_under_fsdp=False,
        claim=None,
    ),
    Row(
        name="apollo",
        title="APOLLO",
        family="low rank",
        home="memlens_integrations.optimizers.apollo:make",
        extra="pytorch-optimizer",
        when="GaLore's memory without an SVD: random projections",
        when_not="nets of vectors and small matrices",
        paper="arXiv 2412.05270",
        expected=Expected(
            3 * _PROJECTED * 4, 3 * _PROJECTED * 2, 8, 4,
            "pytorch_optimizer/optimizer/apollo.py: projector and two moments of rank x 1024, in the "
            "gradient's dtype; vectors as AdamW",
        ),
        options={"rank": _RANK, "update_proj_gap": 200, "scale": 1.0, "scale_type": "channel"},
        lr_scale=10.0,
        lr_source="arXiv 2412.05270 trains with 0.01 where AdamW gets 0.001",
        matrices_only=True,
        implementation_note="a for-loop for matrices, a few copies of a layer; foreach for the rest",
        zero=_FLAT,
        fsdp="it multiplies shards, which are DTensors, by a plain projector",
        runs_under_fsdp=False,
        claim=Claim(
            1, "arXiv 2412.05270 table 1: 2nr + 2 values for a matrix of m x n (without projector)",
            "1.5: pytorch_optimizer keeps the projector, where a seed would do",
        ),
        defects=(_DEFECT_APOLLO,),
    ),
)  # fmt: skip
