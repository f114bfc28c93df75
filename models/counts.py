"""That none was lost: every event that was read has one outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from models.batches import column, marks_of
from models.record import ENDS, IS_HISTORY, IS_PROVISIONAL, MARKS, Outcome

DEDUPLICATE = "Deduplicate"  # the step whose dead letters are duplicates


def mismatch(outcomes: Mapping[str, int]) -> str | None:
    """What is wrong with the numbers of events by outcome; None where as many came out as were `read`."""
    read, ended = outcomes.get(Outcome.READ, 0), sum(outcomes.get(outcome, 0) for outcome in ENDS)
    if read == ended:
        return None
    parts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ENDS if outcomes.get(outcome))
    return f"{read} events were read, but {ended} came out: {parts}"


def count_events(batch: pa.RecordBatch, outcome: str, history_only: bool = False) -> Iterator[tuple[str, int]]:
    """(outcome, events) of a batch, as transforms.count.CountEvents; without marks, of all rows."""
    marks = marks_of(batch) if MARKS in batch.schema.names else np.zeros(batch.num_rows, np.int8)
    counted = IS_HISTORY | IS_PROVISIONAL if history_only else IS_PROVISIONAL
    events = int(np.count_nonzero((marks & counted) == (IS_HISTORY if history_only else 0)))
    if events:
        yield outcome, events


def count_refused(batch: pa.RecordBatch) -> Iterator[tuple[str, int]]:
    """(outcome, events) of dead letters that have their marks."""
    yield from count_events(batch, Outcome.HISTORY, history_only=True)
    live = (marks_of(batch) & (IS_HISTORY | IS_PROVISIONAL)) == 0
    duplicate = np.asarray(column(batch, "step").to_numpy(zero_copy_only=False) == DEDUPLICATE)
    for outcome, rows in ((Outcome.DUPLICATE, live & duplicate), (Outcome.DEAD_LETTERED, live & ~duplicate)):
        if rows.any():
            yield outcome, int(np.count_nonzero(rows))
