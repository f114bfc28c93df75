"""Which features the bundles of a release log have, kept beside it, so that whose an event is needs no bundle.

A bundle whose files are gone can't tell any more: were its events taken for a run's own, two runs would score them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.notes import note, read_notes

if TYPE_CHECKING:
    from sqlalchemy import Table


def features_id(definitions: bytes) -> str:
    """The SHA-256 of definitions of features, 64 hexadecimal digits."""
    return hashlib.sha256(definitions).hexdigest()


def read_features(place: str, project: str) -> dict[str, str]:
    """The ids of the features of bundles, by the bundles' ids; see `read_notes`."""
    return {row.bundle: row.features for row in read_notes(place, _table, project)}


def note_features(place: str, project: str, features: Mapping[str, str]) -> None:
    """Keep the features of bundles; what is there already stays. See `note`."""
    rows = [{"project": project, "bundle": bundle, "features": found} for bundle, found in features.items()]
    note(place, _table(), rows)


def _table() -> Table:
    from sqlalchemy import Column, MetaData, String, Table

    return Table(
        "headrace_bundle_features",
        MetaData(),
        Column("project", String(100), primary_key=True),
        Column("bundle", String(64), primary_key=True),
        Column("features", String(64), nullable=False),
    )
