"""The simulated device's memory: a block for each storage, whatever happens in between."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import torch
from tests.simulation.conftest import Simulate

from memlens.allocator.settings import AllocatorSettings
from memlens.recording.names import Names
from memlens.simulation.memory import DeviceMemory
from memlens.sources.simulated import SimulatedSource

MIB = 2**20


def memory() -> DeviceMemory:
    return DeviceMemory(AllocatorSettings(), 80 * 2**30)


def test_a_storage_has_its_block_until_it_is_gone() -> None:
    device = memory()
    storage = torch.UntypedStorage(3 * MIB, device="meta")
    device.take(storage)
    device.take(storage)  # views share it
    assert device.allocator.allocated_bytes == 3 * MIB
    assert device.address(storage) > 0
    del storage
    assert device.allocator.allocated_bytes == 0


def test_what_is_given_back_in_the_middle_of_a_request_waits_for_its_end() -> None:
    """The garbage collector may run at any moment, also while the allocator looks for a block."""
    device = memory()
    first = device.malloc(5 * MIB)
    with device.lock:
        device.free(first)
        assert device.allocator.allocated_bytes == 5 * MIB
    second = device.malloc(5 * MIB)
    assert second == first, "it was given back first"
    device.free(second)
    assert device.allocator.allocated_bytes == 0


def test_a_drain_in_the_middle_of_a_request_takes_nothing() -> None:
    """The heartbeat may come on the thread that is in the allocator, and must not wait for it."""
    device = memory()
    host = SimpleNamespace(peaks=lambda: (0, 0))
    simulated: Any = SimpleNamespace(memory=device, host=host, settings={})
    source = SimulatedSource(Names(), stack_depth=0, simulated=simulated)
    source.start()
    address = device.malloc(5 * MIB)
    with device.lock:
        assert len(source.drain().time_ns) == 0
    assert list(source.drain().size_bytes)[-1] == 5 * MIB
    device.free(address)
    assert len(source.stop().time_ns) == 1


def test_cycles_give_their_memory_back_when_they_are_collected() -> None:
    device = memory()
    holder: list[object] = [torch.UntypedStorage(MIB, device="meta")]
    device.take(holder[0])  # type: ignore[arg-type]
    holder.append(holder)
    del holder
    gc.collect()
    assert device.allocator.allocated_bytes == 0


def test_a_resized_storage_has_another_block() -> None:
    device = memory()
    storage = torch.UntypedStorage(MIB, device="meta")
    device.take(storage)
    storage.resize_(4 * MIB)
    device.resize(storage)
    assert device.allocator.allocated_bytes == 4 * MIB
    storage.resize_(0)
    device.resize(storage)
    assert device.allocator.allocated_bytes == 0
    del storage
    assert device.allocator.allocated_bytes == 0


def test_each_handle_and_stream_has_one_workspace() -> None:
    device = memory()
    for _ in range(2):
        device.workspace(8 * MIB, in_backward=False)
        device.workspace(8 * MIB, in_backward=True)
    assert device.allocator.allocated_bytes == 16 * MIB
    device.stream = 1
    device.workspace(8 * MIB, in_backward=False)
    assert device.allocator.allocated_bytes == 24 * MIB
    device.drop_workspaces()
    assert device.allocator.allocated_bytes == 0


def test_other_threads_are_simulated_too(simulate: Simulate) -> None:
    """Libraries load weights in threads; torch's modes are of one."""
    job = simulate(
        """
        import threading
        import torch

        found = []

        def load():
            for _ in range(200):
                found.append(torch.zeros(1000, 1000).to("cuda", torch.bfloat16))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        requested = torch.cuda.memory_stats()["requested_bytes.all.current"]
        print(len(found), {str(each.device) for each in found}, requested)
        """
    )
    assert job.output.strip() == f"800 {{'cuda:0'}} {800 * 2_000_000}"
