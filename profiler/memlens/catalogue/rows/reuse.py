"""memlens' own: intermediates of the update go where the gradient was."""

from __future__ import annotations

from dataclasses import replace

from memlens.catalogue.row import Claim, Expected, Row

__all__ = ["ROWS"]

_SPENT = "the job reads gradients after step(), or never clears them (that is refused)"

_ADAMW_R = Row(
    name="adamw-r",
    title="AdamW-R",
    family="gradient reuse",
    home="memlens.optim:AdamWR",
    when="AdamW's peak lies in step(): the same bits, without the copy that foreach makes",
    when_not=_SPENT,
    paper="Dong and Lin, PRCV 2024, pages 376 to 390",
    expected=Expected(8, 4, 8, 4, "as torch/optim/adam.py"),
    takes=("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"),
    in_backward=True,
    implementation_note="as AdamW: for-loop on the CPU, foreach on CUDA; nothing is allocated",
    claim=Claim(8, "the same state as AdamW; the peak is a copy of the parameters lower"),
)

ROWS: tuple[Row, ...] = (
    _ADAMW_R,
    replace(
        _ADAMW_R,
        name="adan-r",
        title="Adan-R",
        home="memlens.optim:AdanR",
        when="Adan, without the copy that foreach makes",
        expected=Expected(16, 8, 16, 8, "as Adan: exp_avg, exp_avg_diff, exp_avg_sq, previous gradient"),
        takes=("lr", "eps", "weight_decay"),
        in_backward=False,  # it counts its steps for each group
        claim=Claim(16, "the same state as Adan"),
    ),
    replace(
        _ADAMW_R,
        name="lion-r",
        title="Lion-R",
        home="memlens.optim:LionR",
        when="Lion, without the copy that foreach makes",
        expected=Expected(4, 2, 4, 2, "as Lion: exp_avg"),
        # Without betas: its second one is no Adam's, and 0.99 where Adam's is 0.999.
        takes=("lr", "weight_decay"),
        lr_scale=0.2,
        lr_source="arXiv 2302.06675 section 5: 3 to 10 times smaller than AdamW's",
        implementation_note="as AdamW-R, but for 1/256 of the model: signs go into another gradient",
        claim=Claim(4, "the same state as Lion"),
    ),
)  # fmt: skip
