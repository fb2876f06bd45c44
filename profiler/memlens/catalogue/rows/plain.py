"""Optimizers of torch itself: one moment, two or none, at the precision of the parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memlens.catalogue.row import Claim, Expected, Row

__all__ = ["ROWS"]

_IMPLEMENTATIONS = {
    "foreach": "all parameters at once, intermediates as large as the model",
    "loop": "one parameter after the other, intermediates as large as a layer",
    "fused": "one kernel, no intermediates",
}
_PLAIN = (
    "what the job asks for, else torch's default: for-loop on the CPU, foreach on CUDA "
    "(`memlens optimizers NAME` measures all three)"
)
_ADAMS = ("torch.optim:Adam", "torch.optim:AdamW")
_FUSED_ON_SHARDS: dict[str, dict[str, Any]] = {
    "fused": {
        "fsdp": "DTensors, the shards of fully_shard, have the fused kernels of Adam and AdamW only",
        "runs_under_fsdp": False,
    }
}
_LIKE = "one tensor of the parameter's shape and dtype for each moment"


def _with_implementations(row: Row, *names: str) -> list[Row]:
    """The plain row, and one for each implementation that torch has."""
    plain = replace(row, takes=(*row.takes, *names), implementation_note=_PLAIN)
    return [plain] + [
        replace(
            row,
            name=f"{row.name}-{'loop' if name == 'foreach' and not value else name}",
            title=f"{row.title}, {label}",
            fixed={**row.fixed, name: value},
            implementation=label,
            implementation_note=_IMPLEMENTATIONS[label],
            claim=None,
            **_FUSED_ON_SHARDS.get(label if row.home not in _ADAMS else "", {}),
        )
        for name, value, label in (
            ("foreach", True, "foreach"),
            ("foreach", False, "loop"),
            ("fused", True, "fused"),
        )
        if name in names
    ]


_SGD = Row(
    name="sgd",
    title="SGD",
    family="plain",
    home="torch.optim:SGD",
    when="a convolutional net with a tuned schedule; nothing is cheaper",
    when_not="transformers, which it trains badly",
    expected=Expected(0, 0, 0, 0, "torch/optim/sgd.py: no state without momentum"),
    takes=("lr", "weight_decay", "maximize"),
    fixed={"momentum": 0.0},
    lr_scale=30.0,
    lr_source="AdamW's steps are about lr per weight, SGD's lr times the gradient; by experiment",
    in_backward=True,
    claim=Claim(0, "the usual tables"),
)

_ADAM = Row(
    name="adam",
    title="Adam",
    family="plain",
    home="torch.optim:Adam",
    when="the weight decay is meant to be part of the gradient",
    when_not="the weight decay is meant to be decoupled: AdamW",
    paper="arXiv 1412.6980",
    expected=Expected(8, 4, 8, 4, f"torch/optim/adam.py: exp_avg, exp_avg_sq; {_LIKE}"),
    takes=("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"),
    in_backward=True,
    claim=Claim(8, "Kingma and Ba 2015", "4 on bf16 parameters: the state has their dtype"),
)

_ADAMW = replace(
    _ADAM,
    name="adamw",
    title="AdamW",
    home="torch.optim:AdamW",
    when="the default for transformers",
    when_not="two moments do not fit: 8-bit, Lion, Adafactor or GaLore",
    paper="arXiv 1711.05101",
)

ROWS: tuple[Row, ...] = (
    *_with_implementations(_SGD, "foreach", "fused"),
    *_with_implementations(
        replace(
            _SGD,
            name="sgd-momentum",
            title="SGD with momentum",
            when="vision, with a tuned schedule",
            expected=Expected(4, 2, 4, 2, f"torch/optim/sgd.py: momentum_buffer; {_LIKE}"),
            takes=("lr", "weight_decay", "maximize", "nesterov"),
            fixed={"momentum": 0.9},
            lr_scale=10.0,
            claim=Claim(4, "the usual tables", "2 on bf16 parameters"),
        ),
        "foreach",
        "fused",
    ),
    *_with_implementations(
        Row(
            name="adagrad",
            title="Adagrad",
            family="plain",
            home="torch.optim:Adagrad",
            when="sparse features",
            when_not="long training: its rate only falls",
            paper="Duchi et al. 2011, JMLR 12",
            zero="the state that it makes when it is constructed, of whole parameters, stays beside that "
            "of the partition",
            expected=Expected(4, 2, 4, 2, f"torch/optim/adagrad.py: sum; {_LIKE}"),
            takes=("lr", "weight_decay", "maximize"),
            lr_scale=10.0,
            lr_source="torch's default is 1e-2 where that of AdamW is 1e-3",
            claim=Claim(
                4, "the usual tables", "true of the state; foreach needs 2 copies in step()"
            ),
            in_backward=True,
        ),
        "foreach",
        "fused",
    ),
    *_with_implementations(
        Row(
            name="rmsprop",
            title="RMSprop",
            family="plain",
            home="torch.optim:RMSprop",
            when="recurrent nets and reinforcement learning that were tuned with it",
            when_not="a new transformer: AdamW",
            paper="Tieleman and Hinton 2012, Coursera lecture 6.5",
            expected=Expected(4, 2, 4, 2, f"torch/optim/rmsprop.py: square_avg; {_LIKE}"),
            takes=("lr", "eps", "weight_decay", "maximize"),
            claim=Claim(4, "the usual tables"),
            in_backward=True,
        ),
        "foreach",
    ),
    *_with_implementations(_ADAM, "foreach", "fused"),
    *_with_implementations(_ADAMW, "foreach", "fused"),
    replace(
        _ADAMW,
        name="adamw-bf16",
        title="AdamW, pure bf16",
        when="memory is short and the updates are large enough for 8 bits of mantissa",
        when_not="late in training: small updates round to nothing",
        expected=Expected(4, 4, 4, 4, f"torch/optim/adam.py on bf16 parameters; {_LIKE}"),
        takes=(*_ADAMW.takes, "foreach", "fused"),
        precision="bf16",
        implementation_note=_PLAIN,
        claim=Claim(4, "GaLore, arXiv 2403.03507, figure 1: 27 GB for 6.7 billion parameters"),
    ),
    replace(
        _ADAMW,
        name="adamw-mixed",
        title="AdamW, bf16 with fp32 master weights",
        home="memlens.optim.master_weights:make_adamw",
        when="mixed precision without a framework: weights and gradients in bf16, updates in fp32",
        when_not="4 bytes per parameter for the master weights are too much: 8-bit or pure bf16",
        expected=Expected(
            8, 8, 8, 8, "exp_avg, exp_avg_sq in fp32; the master weights are counted apart (4)"
        ),
        takes=(*_ADAMW.takes, "foreach", "fused"),
        precision="mixed",
        in_backward=False,
        implementation_note=_PLAIN,
        zero="DeepSpeed keeps master weights itself: use adamw",
        claim=Claim(8, "ZeRO, arXiv 1910.02054: 12 with the master weights"),
    ),
)
