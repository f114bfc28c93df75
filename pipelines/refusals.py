"""Bundles that a stream refused where they landed, kept beside the release log, so that a replay refuses the same.

A bundle that is damaged today may be mended tomorrow: what was decided by the one before stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.notes import MAX_REASON, note, read_notes

if TYPE_CHECKING:
    from sqlalchemy import Table


def read_refusals(place: str, project: str) -> dict[tuple[int, str], str]:
    """Why a bundle was refused, by the number of the release and the bundle's id; see `read_notes`."""
    return {(row.seq, row.bundle): row.reason for row in read_notes(place, _table, project)}


def note_refusals(place: str, project: str, seq: int, reasons: Mapping[str, str]) -> None:
    """Keep why bundles of a release were refused; what is there already stays. See `note`."""
    named = {"project": project, "seq": seq}
    rows = [{**named, "bundle": bundle, "reason": reason[:MAX_REASON]} for bundle, reason in reasons.items()]
    note(place, _table(), rows)


def _table() -> Table:
    from sqlalchemy import Column, Integer, MetaData, String, Table

    return Table(
        "headrace_refused_bundles",
        MetaData(),
        Column("project", String(100), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("bundle", String(64), primary_key=True),
        Column("reason", String(MAX_REASON), nullable=False),
    )
