"""What the tests of the catalogue's optimizers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torchao.optim
from bitsandbytes.optim.adam import Adam8bit

from memlens.catalogue.table import CATALOGUE
from memlens.variants.build import _home

for row in CATALOGUE.values():
    # Here, since some leave import hooks behind, which no test may.
    _home(row)


@pytest.fixture(autouse=True, scope="session")
def libraries_are_at_work() -> None:
    """First steps leave something behind: bitsandbytes a logged error, torchao what dynamo patches."""
    for make in (Adam8bit, torchao.optim.Adam8bit):
        parameter = torch.nn.Parameter(torch.zeros(4096))
        parameter.grad = torch.zeros(4096)
        with torch.compiler.set_stance("force_eager"):
            make([parameter]).step()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small jobs are faster so, and the same to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
