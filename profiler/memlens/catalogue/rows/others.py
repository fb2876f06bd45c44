"""Optimizers with a method of their own."""

from __future__ import annotations

from memlens.catalogue.row import Claim, Expected, Row

__all__ = ["ROWS"]

_PO = "pytorch_optimizer/optimizer"

_LION = Row(
    name="lion",
    title="Lion",
    family="sign",
    home="pytorch_optimizer:Lion",
    extra="pytorch-optimizer",
    when="half of AdamW's state at large batches",
    when_not="small batches: the sign of a noisy gradient is noise",
    paper="arXiv 2302.06675",
    expected=Expected(4, 2, 4, 2, f"{_PO}/lion.py: exp_avg like the parameter"),
    # Without betas: its second one is no Adam's, and 0.99 where Adam's is 0.999.
    takes=("lr", "weight_decay", "maximize"),
    lr_scale=0.2,
    lr_source="arXiv 2302.06675 section 5: 3 to 10 times smaller than AdamW's",
    in_backward=False,
    implementation="foreach",
    implementation_note="foreach, also on the CPU: a copy of the model",
    claim=Claim(4, "arXiv 2302.06675", "2 on bf16 parameters"),
)

ROWS: tuple[Row, ...] = (
    _LION,
    Row(
        name="adan",
        title="Adan",
        family="plain",
        home="pytorch_optimizer:Adan",
        extra="pytorch-optimizer",
        when="few epochs, large batches; four states are affordable",
        when_not="memory is the wall",
        paper="arXiv 2208.06677",
        expected=Expected(
            16, 8, 16, 8,
            f"{_PO}/adan.py: exp_avg, exp_avg_sq, exp_avg_diff, previous_grad like the parameter",
        ),
        takes=("lr", "eps", "weight_decay", "maximize"),
        implementation="foreach",
        implementation_note="foreach, also on the CPU: a copy of the model",
        fsdp="DTensors, the shards of fully_shard, have no _foreach_copy_",
        runs_under_fsdp=False,
        claim=Claim(16, "Dong and Lin, PRCV 2024: four states"),
    ),
    Row(
        name="sophia",
        title="Sophia-G",
        family="second order",
        home="memlens_integrations.optimizers.sophia:make",
        extra="sophia",
        when="language models, with a loop that samples labels for its estimate of the Hessian",
        when_not="an unchanged job: squares of its own gradients stand in for that estimate here",
        paper="arXiv 2305.14342",
        expected=Expected(8, 4, 8, 4, "sophia_opt/__init__.py: exp_avg, hessian like the parameter"),
        takes=("lr", "weight_decay", "maximize"),
        options={"rho": 0.04, "hessian_interval": 10},
        lr_scale=0.5,
        lr_source="github.com/Liuhong99/Sophia, README: its largest step about half of AdamW's rate",
        implementation_note="a for-loop; 3 copies of a layer",
        claim=Claim(8, "arXiv 2305.14342", "Sophia-H of pytorch_optimizer keeps a third tensor: 12"),
    ),
    Row(
        name="muon",
        title="Muon, AdamW for the rest",
        family="orthogonalised",
        home="memlens_integrations.optimizers.muon:make",
        when="pre-training: hidden matrices learn faster, with half of AdamW's state",
        when_not="embeddings, heads and vectors dominate: they stay with AdamW",
        paper="Jordan et al. 2024, kellerjordan.github.io/posts/muon",
        expected=Expected(
            4, 2, 8, 4, "torch/optim/_muon.py: momentum_buffer; vectors by AdamW: exp_avg, exp_avg_sq"
        ),
        takes=("lr", "betas", "eps", "weight_decay"),
        matrices_only=True,
        rest="adamw",
        lr_source="adjust_lr_fn=match_rms_adamw (arXiv 2502.16982) makes its rate that of AdamW",
        implementation_note="a for-loop; orthogonalisation in bf16, 6 to 12 bytes per element of a layer",
        zero="flat partitions are vectors: there is nothing to orthogonalise",
        fsdp="each matrix is gathered in step(), to be orthogonalised",
        claim=Claim(
            4, "the usual tables: orthogonalisation in place",
            "true of the state; the orthogonalisation is not in place",
        ),
    ),
    Row(
        name="lomo",
        title="LOMO",
        family="in backward",
        home="memlens_integrations.optimizers.lomo:make",
        extra="pytorch-optimizer",
        when="fine-tuning all weights where not even the gradients fit",
        when_not="SGD does not train the model; or gradients are clipped or accumulated",
        paper="arXiv 2306.09782",
        expected=Expected(0, 0, 0, 0, f"{_PO}/lomo.py: no state"),
        takes=("lr", "maximize"),
        lr_scale=30.0,
        lr_source="it is SGD",
        always_in_backward=True,
        implementation_note="within backward, in fp32: the gradient and two casts of one layer",
        zero="DeepSpeed takes gradients away within backward, and misses those that it has used up",
        claim=Claim(
            0, "arXiv 2306.09782: no gradient either",
            "but for a layer: its gradient and, below fp32, fp32 copies of gradient and weight",
        ),
    ),
    Row(
        name="adam-mini",
        title="Adam-mini",
        family="blockwise",
        home="memlens_integrations.optimizers.adam_mini:make",
        extra="pytorch-optimizer",
        when="half of AdamW's state for transformers whose blocks it knows by name",
        when_not="other nets: it finds its blocks by the names of the parameters",
        paper="arXiv 2406.16793",
        expected=Expected(
            4, 4, 4, 4,
            f"{_PO}/adam_mini.py: m in fp32, one second moment per block",
        ),
        options={"heads": 0},
        implementation_note="a for-loop; a few copies of a layer",
        zero="flat partitions have no blocks",
        fsdp="it takes plain tensors, and the shards of fully_shard are DTensors",
        runs_under_fsdp=False,
        claim=Claim(
            4, "arXiv 2406.16793: 45 to 50 % less than AdamW", "more on bf16 parameters: m is fp32"
        ),
    ),
    Row(
        name="soap",
        title="SOAP",
        family="second order",
        home="pytorch_optimizer:SOAP",
        extra="pytorch-optimizer",
        when="fewer steps matter more than memory",
        when_not="memory is the wall: three times AdamW's state",
        paper="arXiv 2409.11321",
        expected=Expected(
            24, 12, 8, 4,
            f"{_PO}/soap.py: exp_avg, exp_avg_sq, and for each side a covariance and its basis",
        ),
        takes=("lr", "weight_decay"),
        implementation_note="a for-loop; eigenvectors every 10 steps",
        zero="flat partitions are vectors: it becomes Adam",
        fsdp="it mixes plain tensors with shards, which are DTensors",
        runs_under_fsdp=False,
        claim=Claim(
            24, "arXiv 2409.11321 section 6: 2m^2 + 2n^2 + 3mn values for a matrix of m x n, of "
            "which one mn is not state",
        ),
    ),
    Row(
        name="schedulefree-adamw",
        title="schedule-free AdamW",
        family="plain",
        home="memlens_integrations.optimizers.schedulefree:make",
        extra="schedulefree",
        when="the end of training is not known beforehand",
        when_not="the job cannot call optimizer.train() and .eval() around its evaluations",
        paper="arXiv 2405.15682",
        expected=Expected(
            8, 4, 8, 4, "schedulefree/adamw_schedulefree.py: z, exp_avg_sq like the parameter"
        ),
        implementation="foreach",
        implementation_note="foreach: a copy of the model",
        claim=Claim(8, "arXiv 2405.15682: as AdamW"),
    ),
)  # fmt: skip
