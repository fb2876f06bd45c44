"""What memlens knows of other libraries, one small file each.

The table maps a name to "module:Class" of an adapter (see `memlens.adapters.Adapter`); nothing is
imported until a session starts. Other packages add theirs by an entry point of the group
`memlens.adapters`.

Word to pytest, which would warn where we are imported before our plugin is: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

__all__ = ["ADAPTERS"]

ADAPTERS: dict[str, str] = {
    "bitsandbytes": "memlens_integrations.bitsandbytes:BitsAndBytesAdapter",
    "deepspeed": "memlens_integrations.deepspeed.adapter:DeepSpeedAdapter",
    "ddp": "memlens_integrations.ddp:DistributedDataParallelAdapter",
    "fsdp1": "memlens_integrations.fsdp1:FullyShardedDataParallelAdapter",
    "fsdp2": "memlens_integrations.fsdp2:FullyShardAdapter",
    "peft": "memlens_integrations.peft:PeftAdapter",
    "torchao": "memlens_integrations.torchao_adapter:TorchAOAdapter",
    "zero_redundancy": "memlens_integrations.zero_redundancy:ZeroRedundancyAdapter",
}
