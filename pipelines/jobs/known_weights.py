"""How much examples count: as the score rows of their events say, of a run whose releases held some out."""

from __future__ import annotations

import pyarrow as pa

from models.project.declarations import Project
from models.record import WEIGHT
from pipelines.results import read_files
from pipelines.sinks.listed import SCORES


def with_weights(examples: pa.Table, run: str, project: Project) -> pa.Table:
    """The examples, in their order, with the weight of their event's row in a run's folder; null where none tells."""
    keys = [project.event.time, project.event.id]
    found = [rows for rows in read_files(run, SCORES, [*keys, WEIGHT]) if WEIGHT in rows.schema.names]
    if not found:
        return examples.append_column(WEIGHT, pa.nulls(len(examples), pa.float64()))
    joined = examples.join(pa.concat_tables(found), keys)
    return joined.sort_by([(name, "ascending") for name in keys]).select([*examples.schema.names, WEIGHT])
