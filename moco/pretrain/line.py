"""Makes a line of the log, and reads it later.

It is made after its step and read after the next step, so that the host does not wait for the device.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from moco.pretrain.state import Position
from moco.pretrain.step import TrainingStep
from moco.pretrain.watch import Watch
from moco.run.late import Late
from moco.run.meter import Meter, means


class Line:
    """Copies a printed line's numbers from the device to the host.

    All ranks must make it together. position: after the line's step. measured: the measures of that step's batch, which
    has `samples` samples. further: numbers that the host already has.
    """

    def __init__(
        self,
        position: Position,
        step: TrainingStep,
        watch: Watch,
        since_print: Meter,
        measured: dict[str, Tensor],
        samples: int,
        further: dict[str, float],
    ) -> None:
        self.position = dataclasses.replace(position)  # the run changes it
        self.watch = watch
        self.further = further
        of_batch = Meter()
        of_batch.add(measured, samples)
        parts = since_print.totals(), of_batch.totals()
        self._names = [names for names, _ in parts]
        self._late = Late([step.guard.report(), watch.fingerprints(), *(total for _, total in parts)])

    @property
    def arrived(self) -> bool:
        """Returns True if `read` would not wait for the device."""
        return self._late.arrived

    def read(self, last: dict[str, float]) -> dict[str, float]:
        """Returns the line's values. last: the line before.

        NumericsError if a step was not applied or the ranks differ.
        """
        report, of_ranks, *totals = self._late.read()
        assert report is not None
        bad, first = report.tolist()
        self.watch.numbers(self.position, last, (bad, first))
        self.watch.agreement(self.position, of_ranks)
        values: dict[str, float] = {}
        for names, total in zip(self._names, totals, strict=True):
            values |= means(names, total)
        return {**values, **self.further}
