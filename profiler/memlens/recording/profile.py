"""`memlens.profile`: recording from code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from memlens.errors import UsageError
from memlens.options import Options, parse_steps
from memlens.recording.session import Session

if TYPE_CHECKING:
    import torch

    from memlens.live.scalars import Logger

__all__ = ["profile"]


def profile(
    model: torch.nn.Module | Iterable[torch.nn.Module] | None = None,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    steps: str | tuple[int, int | None] | None = None,
    stacks: bool | None = None,
    stack_depth: int | None = None,
    device: str | None = None,
    oom_only: bool | None = None,
    logger: Logger | None = None,
    log_every: int = 10,
) -> Session:
    """Record this process while the returned session is open.

    ::

        with memlens.profile() as session:
            train()
        print(session.capture.ranks[0].peak())

    Models and optimizers are found without being named, also those made before the session. What is
    not given here comes from the environment (`memlens run --help` lists the variables).

    Args:
        model: one or several models whose names come first when there are others.
        optimizer: one or several optimizers.
        out: the run's folder; must not exist. Or a URL (`s3://...`) to which it is copied when it is
            complete. Default: `memlens-runs/<time>-<name>`.
        name: ends the name of that default folder. Default: the script's name.
        steps: which training steps to record, `"3:8"` or `(3, 8)` for steps 3 to 7. Default: all.
        stacks: whether to record the Python stack of each allocation. Default: yes.
        stack_depth: how many innermost frames to keep. Default: 32.
        device: kind of device whose allocator is recorded: "cpu", "cuda", or "auto", which takes CUDA
            where there is a device. Default: "auto".
        oom_only: write nothing to disk unless CUDA memory runs out. Default: no.
        logger: called after a training step with its scalars (a flat dict of bytes, by the names of
            `memlens.live.scalars.SCALARS`) and its number, counted from 0.
        log_every: after every so many-th step; each call costs a few milliseconds. Default: 10.

    Raises:
        UsageError: an argument is not valid.
    """
    options = Options.from_environment()
    if out is not None:
        options = options.with_out(out)
    if name is not None:
        options = replace(options, name=name)
    if steps is not None:
        first, last = parse_steps(steps) if isinstance(steps, str) else steps
        options = replace(options, first_step=first, last_step=last)
    if stacks is not None:
        options = replace(options, stacks=stacks)
    if stack_depth is not None:
        options = replace(options, stack_depth=stack_depth)
    if device is not None:
        options = replace(options, device=device)
    if oom_only is not None:
        options = replace(options, oom_only=oom_only)
    if log_every < 1:
        raise UsageError(f"log_every must be 1 or more, not {log_every}")
    return Session(options, model=model, optimizer=optimizer, logger=logger, log_every=log_every)
