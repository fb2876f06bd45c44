"""What libraries hold: flat buffers, partitions, gathered parameters, as their adapters tell."""

from __future__ import annotations

from contextlib import ExitStack

from memlens.adapters import Holding
from memlens.events import Certainty
from memlens.observers.parameters import Parameters
from memlens.recording.recorder import Recorder

__all__ = ["HoldingObserver"]


class HoldingObserver:
    """Asks adapters which storages their libraries hold, and has those tagged that are new."""

    def __init__(self, recorder: Recorder, parameters: Parameters) -> None:
        self._recorder = recorder
        self._parameters = parameters

    def install(self, undo: ExitStack) -> None:
        """Let adapters say that now is a good moment, and which gradients leave early."""
        self._recorder.hold = self._recorder.hook("adapters", self._tell)
        self._recorder.take_stock = self._recorder.hook("adapters", self.look)
        self._recorder.watch_gradient = self._recorder.hook("adapters", self._parameters.watch)

    def look(self) -> None:
        """Ask them all; one that fails is not asked again."""
        for ask in list(self._recorder.holdings):
            try:
                for holding in ask():
                    self._tell(holding)
            except Exception as error:
                self._recorder.holdings.remove(ask)
                self._recorder.problem(
                    f"an adapter does not know what its library holds any more "
                    f"({type(error).__name__}: {error}); that is inferred from here on"
                )

    def _tell(self, holding: Holding) -> None:
        self._parameters.hold(
            holding.tensor,
            holding.category,
            holding.name,
            owner=holding.parameter,
            pieces=[
                (each.parameter, each.start, each.count, each.parameter_start, each.elements)
                for each in holding.pieces
            ],
            certainty=Certainty.INFERRED if holding.inferred else Certainty.DECLARED,
        )
