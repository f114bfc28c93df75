"""Changes of a circuit breaker that follow from verdicts, kept beside the release log with their reasons.

A replay does not need them, as it finds them again; people do, and a stream that starts again: it goes on with the
circuit as it was, though it has forgotten the windows from which that follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.quality.circuit import Circuit, Noted
from pipelines.notes import MAX_REASON, note, read_notes

if TYPE_CHECKING:
    from sqlalchemy import Table


def read_circuits(place: str, project: str) -> tuple[Noted, ...]:
    """The changes that were noted, in the order of their times; see `read_notes`."""
    rows = read_notes(place, _table, project)
    return tuple(Noted(Circuit(row.state, row.since_us, 0, row.from_us), row.reason) for row in rows)


def note_circuit(place: str, project: str, noted: Noted) -> None:
    """Keep a change; what is there of its time already stays. See `note`."""
    circuit = noted.circuit
    told = {"state": circuit.state, "since_us": circuit.since_us, "reason": noted.reason[:MAX_REASON]}
    note(place, _table(), [{"project": project, "from_us": circuit.from_us, **told}])


def _table() -> Table:
    from sqlalchemy import BigInteger, Column, MetaData, String, Table

    return Table(
        "headrace_circuits",
        MetaData(),
        Column("project", String(100), primary_key=True),
        Column("from_us", BigInteger, primary_key=True, autoincrement=False),
        Column("state", String(10), nullable=False),
        Column("since_us", BigInteger),
        Column("reason", String(MAX_REASON), nullable=False),
    )
