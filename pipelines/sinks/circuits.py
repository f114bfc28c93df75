"""NoteCircuits: changes of the circuit breaker into the history beside the release log."""

from __future__ import annotations

import dataclasses
import logging

import apache_beam as beam

from models.quality.circuit import change_line, noted_of
from models.quality.records import Verdict
from pipelines.circuits import note_circuit
from pipelines.databases import DatabaseError

_LOG = logging.getLogger("headrace")


@dataclasses.dataclass(eq=False)
class NoteCircuits(beam.PTransform[beam.PCollection[Verdict], beam.PCollection[None]]):
    """Verdicts → nothing; each change of the circuit is noted beside the log at `place`, and said in the stream's log.

    What can't be noted is said, too, and nothing waits for it: rows fall back by the verdicts themselves.
    """

    place: str
    project: str

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """An empty PCollection."""
        return pcoll | "Note" >> beam.Map(self._note).with_output_types(type(None))

    def _note(self, verdict: Verdict) -> None:
        noted = noted_of(verdict)
        if noted is None:
            return
        _LOG.warning("%s", change_line(noted))
        try:
            note_circuit(self.place, self.project, noted)
        except DatabaseError as error:
            _LOG.warning("the circuit breaker's change can't be noted: %s", error)
