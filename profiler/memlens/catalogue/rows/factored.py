"""Optimizers that keep sums over rows and columns of the second moment."""

from __future__ import annotations

from dataclasses import replace

from memlens.catalogue.row import Claim, Expected, Row

__all__ = ["ROWS"]

_FACTORS = 2048 * 4 / 1048576
"""One fp32 value per row and per column of a matrix of 1024 x 1024, in bytes per parameter."""

_ADAFACTOR = Row(
    name="adafactor",
    title="Adafactor, no first moment",
    family="factored",
    home="transformers.optimization:Adafactor",
    extra="models",
    when="state must all but vanish: T5-like pre-training and fine-tuning",
    when_not="convolutions: a 3 x 3 kernel has factors almost as large as itself",
    paper="arXiv 1804.04235",
    expected=Expected(
        _FACTORS, _FACTORS, 4, 4,
        "transformers/optimization.py: exp_avg_sq_row, exp_avg_sq_col in fp32; vectors in full",
    ),
    takes=("lr", "weight_decay"),
    fixed={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    in_backward=True,
    implementation_note="a for-loop; 2 fp32 copies of a layer",
    zero="flat partitions are vectors: nothing is factored, 4 bytes per parameter",
    fsdp="it adds plain tensors to shards, which are DTensors",
    runs_under_fsdp=False,
    claim=Claim(
        1.5, "the usual tables (about 1 without first moment)",
        "far too high: 0.008 on a matrix of 1024 x 1024",
    ),
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    _ADAFACTOR,
    replace(
        _ADAFACTOR,
        name="adafactor-momentum",
        title="Adafactor with first moment",
        when="Adafactor's second moment, with the stability of momentum",
        when_not="on bf16 parameters: its first moment is fp32 there too, more than pure bf16 AdamW",
        expected=Expected(
            4 + _FACTORS, 4 + _FACTORS, 8, 8,
            "transformers/optimization.py: as adafactor, and exp_avg in fp32",
        ),
        fixed={**_ADAFACTOR.fixed, "beta1": 0.9},
        claim=Claim(
            2.15, "GaLore, arXiv 2403.03507, figure 1: 14.5 GB for 6.7 billion parameters",
            "4.01: the first moment is allocated in fp32, also for bf16 parameters",
        ),
    ),
    replace(
        _ADAFACTOR,
        name="adafactor-torch",
        title="Adafactor (torch)",
        home="torch.optim:Adafactor",
        extra="",
        expected=Expected(
            _FACTORS, _FACTORS / 2, 4, 2,
            "torch/optim/_adafactor.py: row_var, col_var in the parameter's dtype; vectors in full",
        ),
        takes=("lr", "weight_decay", "maximize", "foreach"),
        fixed={},
        fsdp="it changes norms of shards in place, which a DTensor does not allow",
        lr_scale=10.0,
        lr_source="torch scales by the weight's RMS: its default is 1e-2",
        implementation_note="the for-loop by default, a layer; foreach needs a copy of the model",
    ),
    Row(
        name="came",
        title="CAME",
        family="factored",
        home="pytorch_optimizer:CAME",
        extra="pytorch-optimizer",
        when="Adafactor's factors with steadier steps",
        when_not="fp32 parameters: the first moment is full size, so little is saved over Lion",
        paper="arXiv 2307.02047",
        expected=Expected(
            4 + 2 * _FACTORS, 2 + _FACTORS, 8, 4,
            "pytorch_optimizer/optimizer/came.py: exp_avg in full, two pairs of factors, in the "
            "parameter's dtype; vectors keep exp_avg and exp_avg_sq",
        ),
        takes=("lr", "weight_decay"),
        in_backward=False,
        implementation="foreach",
        implementation_note="foreach, also on the CPU: 2 copies of the model",
        zero="flat partitions are vectors: nothing is factored, 8 bytes per parameter",
        fsdp="it changes norms of shards in place, which a DTensor does not allow",
        runs_under_fsdp=False,
        claim=Claim(
            2, "the usual tables",
            "4.02 on fp32 parameters, 2.01 on bf16: the first moment is kept in full",
        ),
    ),
)  # fmt: skip
