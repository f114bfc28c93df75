"""The rows of a file: gathered, in order, and encoded part by part."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.batches import as_int64, column, concat_batches, take_rows
from models.codecs import encode_json_lines
from models.features.windows import sort_order

ROWS_AT_ONCE = 1 << 17  # that a file is encoded in; a row group of Parquet
LOOKED_AT_ROWS = 1 << 14  # to choose how a file's columns are encoded


def gather(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows of the batches, which are taken out of their list: a column at a time, so that none is there twice."""
    names = batches[0].schema.names
    columns = [list(batch.columns) for batch in batches]
    batches.clear()
    gathered = [
        concat_batches([pa.RecordBatch.from_arrays([part.pop(0)], names=[name]) for part in columns]).column(0)
        for name in names
    ]
    return pa.RecordBatch.from_arrays(gathered, names=names)


def in_order(batch: pa.RecordBatch, first: str, second: str) -> Iterator[pa.RecordBatch]:
    """The rows sorted by two columns, in parts of ROWS_AT_ONCE."""
    numbers = as_int64(column(batch, first).cast(pa.int64()).fill_null(0))
    order = None
    if not (numbers[1:] > numbers[:-1]).all():
        order = sort_order(column(batch, second), numbers)
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        if order is None:
            yield batch.slice(start, ROWS_AT_ONCE)
        else:
            yield take_rows(batch, order[start : start + ROWS_AT_ONCE])


def encode(parts: Iterable[pa.RecordBatch], schema: pa.Schema, kind: str, file: Any) -> None:
    """Write the rows to a file as Parquet, or as JSON lines if `kind` is jsonl."""
    if kind == "jsonl":
        for part in parts:
            file.write(encode_json_lines(part))
        return
    fields = [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    plain = (_plain(part, pa.schema(fields)) for part in parts)
    first = next(plain)
    with pq.ParquetWriter(file, first.schema, compression="snappy", use_dictionary=_repeated(first)) as writer:
        for part in itertools.chain([first], plain):
            writer.write_batch(part)


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch without dictionaries."""
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _repeated(batch: pa.RecordBatch) -> list[str]:
    """The columns whose values come again and again in the first rows: others take a dictionary four times as long."""
    rows = batch.slice(0, LOOKED_AT_ROWS)
    columns = zip(rows.schema.names, rows.columns, strict=True)
    return [name for name, c in columns if pa.types.is_nested(c.type) or 2 * len(c.unique()) <= rows.num_rows]


class Digested:
    """A file that is written, and its SHA-256."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Nothing: who opened it closes it."""

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
