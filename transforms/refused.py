"""Dead letters that can't be forgotten: all that a graph's steps refuse comes together, as in Beam's ErrorHandler.

A step that may refuse rows has an output `dead` beside `rows`, of models.dead_letters. Who builds a graph takes its
rows by `rows_of`, which collects what it refused, and `check` finds a step that was left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

from models.batches import marks_of, without
from models.dead_letters import by_rules, split_good
from models.faults import UNKNOWN_FIELD
from models.metrics import DEAD_LETTERS, REASONS
from models.record import IS_HISTORY, IS_PROVISIONAL, MARKS
from models.state import Resume
from transforms.metrics import count
from transforms.state import MarkKnown

DEAD = "dead"


class ForgottenDeadLetters(ValueError):
    """A graph has steps that refuse rows, and what they refuse goes nowhere."""


class Refused:
    """What the steps of one graph refuse; with `resume`, what a state knows already is marked as history."""

    def __init__(self, pipeline: beam.Pipeline, resume: Resume | None = None) -> None:
        self._pipeline = pipeline
        self._resume = resume
        self._letters: list[beam.PCollection] = []
        self._in_slices: list[beam.PCollection] = []
        self._unscored: list[beam.PCollection] = []

    def rows_of(
        self, outputs: beam.pvalue.DoOutputsTuple, in_slices: bool = True, unscored: bool = False
    ) -> beam.PCollection:
        """The rows that a step lets through; those that it refuses are collected.

        `in_slices`, unless they are of records that are read ahead of the events' slices; `unscored`, if they are
        events that nothing is decided of.
        """
        self._letters.append(outputs[DEAD])
        self._in_slices += [outputs[DEAD]] if in_slices else []
        self._unscored += [outputs[DEAD]] if unscored else []
        return outputs.rows

    def letters(self) -> beam.PCollection:
        """All dead letters, with their marks."""
        return self._marked("dead letters", self._letters | "Dead letters" >> beam.Flatten())

    def unscored(self) -> beam.PCollection:
        """The dead letters, with their marks, of events that nothing is decided of."""
        return self._marked("unscored", self._unscored | "Unscored" >> beam.Flatten())

    def _marked(self, name: str, letters: beam.PCollection) -> beam.PCollection:
        return letters if self._resume is None else letters | f"Mark known {name}" >> MarkKnown(self._resume)

    def parts(self) -> dict[str, beam.PCollection]:
        """The dead letters of each step that refuses rows of the events' slices, by a name."""
        return {f"refused {number}": letters for number, letters in enumerate(self._in_slices)}

    def check(self) -> None:
        """ForgottenDeadLetters unless each step of the graph that refuses rows was collected; call it last."""
        refusing = _Refusing()
        self._pipeline.visit(refusing)
        collected = {letters.producer.full_label for letters in self._letters}
        forgotten = [step for step in refusing.labels if step not in collected]
        if forgotten:
            raise ForgottenDeadLetters(f"dead letters go nowhere: take the rows of {', '.join(forgotten)} by rows_of")


class _Refusing(PipelineVisitor):
    """Finds the steps that declare an output for dead letters."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def visit_transform(self, applied: AppliedPTransform) -> None:
        hints = applied.transform.get_type_hints() if isinstance(applied.transform, beam.ParDo) else None
        if hints is not None and DEAD in hints.tagged_output_types():
            self.labels.append(applied.full_label)


@dataclasses.dataclass(eq=False)
class DropKnown(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Dead letters → those that are news: not of history, nor of what is provisional and comes once more."""

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches without their marks."""
        return pcoll | "Drop" >> beam.FlatMap(_drop_known).with_output_types(pa.RecordBatch)


def _drop_known(batch: pa.RecordBatch) -> Iterator[Any]:
    known = (marks_of(batch) & (IS_HISTORY | IS_PROVISIONAL)) != 0
    news = split_good(batch, known)
    if news.num_rows:
        for (step, rules), letters in by_rules(news).items():
            count(DEAD_LETTERS, letters, step=step)
            for field, rule in rules:
                count(REASONS, letters, step=step, field="" if rule == UNKNOWN_FIELD else field, rule=rule)
        yield without(news, MARKS)
