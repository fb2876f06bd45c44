"""What a process of a compared job says of itself: which optimizers it made, and its losses."""

from __future__ import annotations

import json
import multiprocessing.util
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

__all__ = ["Witness", "read_witnesses"]


class Witness:
    """Takes notes while the job runs, and writes them into a file when the process ends.

    Args:
        folder: gets a file of its own for each process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / f"process-{os.getpid()}.json"
        self.replaced: list[str] = []
        """Classes of the optimizers that the job constructed."""
        self.optimizers: list[torch.optim.Optimizer] = []
        self.notes: list[str] = []
        """What to know when reading this process's figures."""
        self.is_unsharded = False
        """The job does not share its training state in the way that was asked for."""
        self._losses: list[float] = []
        self._latest: torch.Tensor | None = None

    def install(self, undo: ExitStack) -> None:
        """See what every backward begins from, and write it all down at the end."""
        original: Callable[..., Any] = torch.Tensor.backward

        def backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._see(tensor)
            return original(tensor, *args, **kwargs)

        setattr(torch.Tensor, "backward", backward)  # noqa: B010
        undo.callback(setattr, torch.Tensor, "backward", original)
        # Children of multiprocessing end without atexit, but not without this.
        finalizer = multiprocessing.util.Finalize(None, self.write, exitpriority=50)
        undo.callback(finalizer.cancel)

    def _see(self, loss: torch.Tensor) -> None:
        if loss.numel() != 1 or not loss.is_floating_point():
            return
        if loss.device.type == "cpu":
            self._losses.append(float(loss.detach()))
        else:
            # To read it now would wait for the device.
            self._latest = loss.detach()

    def write(self) -> None:
        """Write what there is, unless the job made no optimizer and ran no backward here."""
        losses = self._losses
        if self._latest is not None:
            losses = [float(self._latest)]
        if not (losses or self.replaced):
            return
        told = (note for each in self.optimizers for note in getattr(each, "memlens_notes", ()))
        notes = [*self.notes, *told]
        text = json.dumps(
            {
                "rank": int(os.environ.get("RANK", "0")),
                "replaced": self.replaced,
                "losses": losses,
                "notes": list(dict.fromkeys(notes)),
                "is_unsharded": self.is_unsharded,
            }
        )
        self._file.write_text(text)


def read_witnesses(folder: Path) -> list[dict[str, Any]]:
    """What the job's processes wrote, the lowest rank first."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("process-*.json"))]
    return sorted(found, key=lambda each: int(each["rank"]))
