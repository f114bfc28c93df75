"""What is decided of events that can't be scored: rows of dead letters, with the decision that is declared for them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.batches import as_int64, column, same_text, take_rows
from models.partitions import EVER, Span
from models.project.declarations import Project
from models.record import DECISION, INGESTED_AT, OUTCOME, PUBLISHED_AT, SOURCE, Outcome

_INT64 = range(-(2**63), 2**63)


def fallback_rows(letters: pa.RecordBatch, project: Project, span: Span = EVER) -> pa.RecordBatch:
    """The rows of those dead letters whose event's id is known: id, event time, decision, outcome, and the source.

    The id is of its field's type, and the time null where it is not known. Of an event that is known to be outside the
    span nothing is decided. The outcome is that of the event, which is
    dead-lettered. Letters of a stream, and so the rows, have the times by the clock, too.
    """
    fallback = project.fallback
    assert fallback is not None
    ids = _ids(column(letters, "event_id"), project.contract.fields[project.event.id].kind)
    due = np.asarray(ids.is_valid())
    times = column(letters, "event_time")
    due &= span.holds(as_int64(times.cast(pa.int64()).fill_null(0))) | np.asarray(times.is_null())
    known = np.flatnonzero(due)
    taken = take_rows(letters, known)
    rows = {
        project.event.id: ids.take(pa.array(known)),
        project.event.time: column(taken, "event_time"),
        DECISION: same_text(fallback.action, len(known)),
        OUTCOME: same_text(Outcome.DEAD_LETTERED, len(known)),
        SOURCE: column(taken, "source"),
    }
    rows |= {name: column(taken, name) for name in (PUBLISHED_AT, INGESTED_AT) if name in taken.schema.names}
    return pa.RecordBatch.from_arrays(list(rows.values()), names=list(rows))


def _ids(texts: pa.Array, kind: str) -> pa.Array:
    """Ids as dead letters have them in the type of their field; null for what is none, an empty text too."""
    if kind == "int":
        return pa.array([_number(text) for text in texts.to_pylist()], pa.int64())
    return pa.array([text or None for text in texts.to_pylist()], pa.string())


def _number(text: str | None) -> int | None:
    digits = (text or "").removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    return int(text or "") if int(text or "") in _INT64 else None
