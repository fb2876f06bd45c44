"""Which rank holds what: the layouts of ZeRO, FSDP and DDP as arithmetic, without torch."""
