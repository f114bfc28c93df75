"""Labels that come as records of their own, joined to rows of their events once all are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64, column, ranks_of, take_rows
from models.decode import decode_once
from models.partitions import Span
from models.project.declarations import Project
from models.validate import validate_batch
from pipelines.sources.feeds import Feed
from pipelines.sources.files import read_all
from pipelines.sources.listing import Files


def with_labels(table: pa.Table, patterns: Sequence[str], project: Project, until_us: int | None = None) -> pa.Table:
    """The rows with the label of their event's first record in the column of that name; null where there is none.

    Of records at or after `until_us`, microseconds since 1970 UTC, none counts.
    Of two records of one time the smaller label counts, as in the graph; records that it refuses count nowhere.
    """
    records, label = project.label_type, project.label
    if records is None or label is None:
        raise ValueError("labels are given, but the project declares no label.events")
    id_type = project.contract.fields[project.event.id].arrow_type
    label_type = project.contract.fields[label.field].arrow_type
    ids, times, values = [pa.array([], id_type)], [np.empty(0, np.int64)], [pa.array([], label_type)]
    for batch in read_all(Feed(records, Files(tuple(patterns)))):
        rows, faults = decode_once(batch, records)
        rows = take_rows(rows, np.flatnonzero(~faults.bad))
        rows = take_rows(rows, np.flatnonzero(~validate_batch(rows, records).bad))
        rows = take_rows(rows, np.flatnonzero(Span(None, until_us).holds(as_int64(column(rows, records.time)))))
        ids.append(column(rows, records.id))
        times.append(as_int64(column(rows, records.time)))
        values.append(column(rows, label.field))
    known, value = pa.concat_arrays(ids), pa.concat_arrays(values)
    codes = known.dictionary_encode().indices.to_numpy()
    order = np.lexsort((ranks_of(value), np.concatenate(times), codes))
    first = order[np.flatnonzero(np.diff(codes[order], prepend=-1))]
    place = pc.index_in(table.column(project.event.id), value_set=known.take(pa.array(first)))
    found = value.take(pa.array(first)).take(place.combine_chunks())
    if label.field not in table.schema.names:
        return table.append_column(label.field, found)
    return table.set_column(table.schema.get_field_index(label.field), label.field, found)
