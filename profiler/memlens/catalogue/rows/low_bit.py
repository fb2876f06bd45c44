"""Optimizers whose moments are quantised."""

from __future__ import annotations

from dataclasses import replace

from memlens.catalogue.row import Claim, Expected, Row

__all__ = ["ROWS"]

_BNB = "bitsandbytes/optim/optimizer.py"
_BLOCKS = (
    f"{_BNB}: per moment 1 byte of code and a fp32 scale for each 256; tensors below 4096 elements "
    "stay in fp32 (8 B); two tables of 1 KiB per optimizer"
)
_AO = "torchao/optim/subclass_8bit.py"
_SILENT = (
    "torchao leaves the state unquantised, and says nothing, where a tensor has fewer than 4096 "
    "elements or a number of them that its block size does not divide: memlens names those tensors"
)
_COMPILE = (
    "torchao steps through torch.compile: the first step takes tens of seconds, and without a "
    "compiler it fails; memlens runs it eagerly on the CPU, with more temporaries"
)

_ADAMW8BIT = Row(
    name="adamw8bit",
    title="8-bit AdamW (bitsandbytes)",
    family="8-bit",
    home="bitsandbytes.optim:AdamW8bit",
    extra="bitsandbytes",
    when="the first thing to try when AdamW's state does not fit: nearly the same training",
    when_not="most parameters are in small tensors, which stay in fp32",
    paper="arXiv 2110.02861",
    expected=Expected(2.03125, 2.03125, 2.03125, 2.03125, _BLOCKS),
    in_backward=True,
    implementation_note="one kernel on CUDA; on the CPU 5 fp32 copies of a layer",
    zero="flat partitions are quantised: blocks cross parameters",
    fsdp="bitsandbytes' kernels take plain tensors, and the shards of fully_shard are DTensors",
    runs_under_fsdp=False,
    claim=Claim(
        2, "arXiv 2110.02861", "2.031: blocks of 256 and not of 2048, and two scales per block"
    ),
)

_TORCHAO = replace(
    _ADAMW8BIT,
    name="adamw8bit-torchao",
    title="8-bit AdamW (torchao)",
    home="memlens_integrations.optimizers.torchao:make",
    extra="torchao",
    when="8-bit state in plain PyTorch: any device, FSDP2, torch.compile",
    when_not="small tensors: each moment brings a table of 1 KiB of its own",
    expected=Expected(
        2 + 2 / 64 + 2048 / 1048576,
        2 + 2 / 64 + 2048 / 1048576,
        2 + 2 / 64 + 2048 / 8192,
        2 + 2 / 64 + 2048 / 8192,
        f"{_AO}: per moment 1 byte of code, a fp32 scale for each 256, and a table of 1 KiB per tensor",
    ),
    fixed={"kind": "AdamW8bit"},
    implementation_note="fused by torch.compile on CUDA; eager on the CPU",
    zero="a partition is quantised only where its block size divides it, else its state stays fp32",
    fsdp="",
    runs_under_fsdp=True,
    claim=Claim(2, "torchao/optim/README.md", "2.033, and 2.28 for a vector of 8192"),
    defects=(_SILENT, _COMPILE),
)

ROWS: tuple[Row, ...] = (
    replace(
        _ADAMW8BIT, name="adam8bit", title="8-bit Adam (bitsandbytes)",
        home="bitsandbytes.optim:Adam8bit",
    ),
    _ADAMW8BIT,
    replace(
        _TORCHAO, name="adam8bit-torchao", title="8-bit Adam (torchao)", fixed={"kind": "Adam8bit"}
    ),
    _TORCHAO,
    replace(
        _ADAMW8BIT,
        name="paged-adamw8bit",
        title="paged 8-bit AdamW",
        home="bitsandbytes.optim:PagedAdamW8bit",
        when="rare peaks of activations push the state out to host memory instead of failing",
        when_not="the state never fits: every step then waits for the bus",
        paper="arXiv 2305.14314",
        in_backward=False,
        cpu="there is nothing to page to: it steps, unpaged, as adamw8bit does",
        claim=Claim(
            2, "arXiv 2305.14314", "the same state; only tensors of 100,000 elements and more are paged"
        ),
    ),
    replace(
        _TORCHAO,
        name="adamw4bit",
        title="4-bit AdamW (torchao)",
        family="4-bit",
        when="8 bits are still too many",
        when_not="untested tasks: less proven than 8 bits",
        paper="arXiv 2309.01507",
        expected=Expected(
            1 + 1 / 16 + 128 / 1048576,
            1 + 1 / 16 + 128 / 1048576,
            1 + 1 / 16 + 128 / 8192,
            1 + 1 / 16 + 128 / 8192,
            "torchao/optim/subclass_4bit.py: per moment half a byte of code, a fp32 scale for each 128, "
            "and a table of 64 B per tensor",
        ),
        fixed={"kind": "AdamW4bit"},
        claim=Claim(1, "torchao/optim/README.md", "1.0625: a fp32 scale for each 128"),
    ),
    replace(
        _TORCHAO,
        name="adamw-fp8",
        title="fp8 AdamW (torchao)",
        family="8-bit",
        when="GPUs with fp8: the same size as 8-bit, without tables",
        when_not="older GPUs (compute capability below 8.9)",
        paper="arXiv 2310.18313",
        expected=Expected(
            2.03125, 2.03125, 2.03125, 2.03125,
            "torchao/optim/subclass_fp8.py: per moment 1 byte of code and a fp32 scale for each 256",
        ),
        fixed={"kind": "AdamWFp8"},
        claim=Claim(2, "torchao/optim/README.md", "2.031: a fp32 scale for each 256"),
    ),
    replace(
        _ADAMW8BIT,
        name="lion8bit",
        title="8-bit Lion (bitsandbytes)",
        home="bitsandbytes.optim:Lion8bit",
        when="the smallest state of all that keep a full-rank momentum",
        when_not="small batches: the sign of a noisy gradient is noise",
        paper="arXiv 2302.06675",
        expected=Expected(1.015625, 1.015625, 1.015625, 1.015625, _BLOCKS),
        # Without betas: its second one is no Adam's, and 0.99 where Adam's is 0.999.
        takes=("lr", "weight_decay"),
        lr_scale=0.2,
        lr_source="arXiv 2302.06675 section 5: 3 to 10 times smaller than AdamW's",
        claim=Claim(1, "bitsandbytes documentation", "1.016: a fp32 scale for each 256"),
    ),
)  # fmt: skip
