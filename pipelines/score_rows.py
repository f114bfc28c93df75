"""Score rows out of files, as a run's folder or a topic has them: Parquet, or a line of JSON each."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from models.project.declarations import Project
from models.record import (
    BUNDLE_ID,
    CORRECTION,
    DECISION,
    INGESTED_AT,
    RELEASE,
    ROLE,
    SCORED_AT,
    SHADOW_DECISION,
    TIMESTAMP,
    WEIGHT,
)
from pipelines.results import RunError
from pipelines.sinks.folder import Folder

JSON_LINES = (".jsonl", ".json", ".ndjson")
MAX_JSON_BYTES = 4 << 30  # of a file of JSON lines, which is read as a whole
_MAX_LINE_BYTES = 16 << 20
_TEXTS = (BUNDLE_ID, ROLE, DECISION, SHADOW_DECISION)


def read_score_rows(paths: Sequence[str], names: Sequence[str], required: Sequence[str], project: Project) -> pa.Table:
    """All rows of files, of the columns named those that there are, without dictionaries; of no file no rows.

    Raises:
        RunError: if a file can't be read, or lacks a required column.
    """
    types = _types(project)
    tables = []
    for path in paths:
        try:
            table = _read(path, names, types)
            missing = [name for name in required if name not in table.schema.names]
            if missing and len(table):
                raise RunError(
                    f"{path}: has no column {missing[0]!r}, which rows have that {project.name} scored by a release log"
                )
            plain = {name: _plain(table[name], types.get(name)) for name in table.schema.names}
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{path}: can't be read as score rows: {' '.join(str(error).split())}") from None
        if len(table):
            tables.append(pa.table(plain))
    try:
        return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
    except pa.ArrowException as error:
        raise RunError(f"{paths[0]} and those beside it are not of one project: {error}") from None


def _read(path: str, names: Sequence[str], types: dict[str, pa.DataType]) -> pa.Table:
    if not path.endswith(JSON_LINES):
        there = pq.read_schema(path).names
        return pq.read_table(path, columns=[name for name in names if name in there], partitioning=None)
    content = Folder("").read(path, MAX_JSON_BYTES)
    if content is None:
        raise RunError(f"{path}: no such file")
    if not content.strip():
        return pa.table({})
    told = pa.schema([(name, types[name]) for name in names if name in types])
    options = pyarrow.json.ParseOptions(explicit_schema=told, unexpected_field_behavior="ignore")
    at_once = pyarrow.json.ReadOptions(block_size=min(_MAX_LINE_BYTES, max(len(content), 1)))
    table = pyarrow.json.read_json(io.BytesIO(content), read_options=at_once, parse_options=options)
    # A field that no row has comes as one that is null everywhere.
    there = [name for name in names if name in table.schema.names and table[name].null_count < max(len(table), 1)]
    return table.select(there)


def _types(project: Project) -> dict[str, pa.DataType]:
    """The types of the columns of score rows that are known beforehand."""
    known = dict.fromkeys(project.feature_names, pa.float64())
    known |= {name: field.arrow_type for name, field in project.contract.fields.items()}
    known |= dict.fromkeys((project.event.time, INGESTED_AT, SCORED_AT), TIMESTAMP)
    known |= dict.fromkeys(project.score_columns, pa.float32()) | dict.fromkeys(_TEXTS, pa.string())
    return known | {RELEASE: pa.int32(), WEIGHT: pa.float64(), CORRECTION: pa.bool_()}


def _plain(values: pa.ChunkedArray, kind: pa.DataType | None) -> pa.ChunkedArray:
    if kind is not None:
        return values.cast(kind)
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
