"""One rank of several: collectives that do nothing, and take the memory that they would.

The process is a rank, mostly the first, of a process group that has no others. Torch's `fake` backend
returns at once.
"""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

import torch

__all__ = ["install_distributed"]


def install_distributed(world_size: int) -> None:
    """Have `init_process_group` make a group that is not there; for the life of the process.

    Args:
        world_size: how many ranks there would be. A launcher has said so already, and which this one is.
    """
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }.items():
        os.environ.setdefault(name, value)
    distributed: Any = torch.distributed
    if not distributed.is_available():
        return
    begin = distributed.init_process_group

    @wraps(begin)
    def init_process_group(*args: Any, **kwargs: Any) -> None:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        begin("fake", store=FakeStore(), rank=rank, world_size=size)

    for owner in (distributed, distributed.distributed_c10d):
        owner.init_process_group = init_process_group
    _let_ddp_run()


def _let_ddp_run() -> None:
    """DDP compares parameters between ranks first, and waits for the sum of each bucket."""
    from torch.nn.parallel import distributed

    module: Any = distributed
    module._verify_param_shape_across_processes = lambda *_, **__: True
    module._sync_module_states = lambda *_, **__: None
    make = module.DistributedDataParallel.__init__

    @wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if not self._use_python_reducer:
            self.register_comm_hook(None, _as_it_is)

    module.DistributedDataParallel.__init__ = __init__


def _as_it_is(state, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations as objects
    """The sum over ranks is made within the bucket."""
    future: Any = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
